"""Detection heads: what stands in the last row of a YAML."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from ultralytics.nn.modules import Detect


def build_detect(nc: int, channels: Sequence[int], strides: Sequence[float]) -> Detect:
    """Return ultralytics' anchor-free detection head for feature maps of these channels and strides.

    In training it returns the raw maps that ultralytics' loss reads; in eval mode (predictions, raw maps) with
    predictions (B, 4 + nc, N): boxes xywh in input pixels, then class scores in [0, 1].
    """
    head = Detect(nc=nc, ch=tuple(channels))
    head.stride = torch.tensor(strides, dtype=torch.float32)
    head.bias_init()
    return head
