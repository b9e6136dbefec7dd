"""The YOLOv5 blocks that ultralytics 8.4 changed (https://github.com/ultralytics/yolov5)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from ultralytics.nn.modules import Conv


class SPPF(nn.Module):
    """Spatial pyramid pooling, fast: 1x1, three max poolings in a row, all four maps joined, 1x1.

    ultralytics' SPPF has no activation after its first convolution; YOLOv5's has one.
    """

    def __init__(self, c1: int, c2: int, k: int = 5) -> None:
        super().__init__()
        hidden = c1 // 2
        self.cv1 = Conv(c1, hidden, 1, 1)
        self.cv2 = Conv(hidden * 4, c2, 1, 1)
        self.m = nn.MaxPool2d(kernel_size=k, stride=1, padding=k // 2)

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.cv1(x)]
        for _ in range(3):
            maps.append(self.m(maps[-1]))
        return self.cv2(torch.cat(maps, dim=1))
