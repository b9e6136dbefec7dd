"""Blocks of YOLOv7 (https://arxiv.org/abs/2207.02696); names of their parts are those of its checkpoints."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from ultralytics.nn.modules import Conv


class SPPCSPC(nn.Module):
    """Pyramid pooling in one of two paths: (B, c1, H, W) to (B, c2, H, W).

        cv7([cv6(cv5([x1, pooled x1, ...])), cv2(x)]),  x1 = cv4(cv3(cv1(x)))

    Args:
        c1: channels of the input.
        c2: channels of the output.
        k: sides of the max poolings, odd.
        e: half of the channels inside, as a multiple of c2.
    """

    def __init__(self, c1: int, c2: int, k: Sequence[int] = (5, 9, 13), e: float = 0.5) -> None:
        super().__init__()
        hidden = int(2 * c2 * e)
        self.cv1, self.cv2 = Conv(c1, hidden), Conv(c1, hidden)
        self.cv3, self.cv4 = Conv(hidden, hidden, 3), Conv(hidden, hidden)
        self.m = nn.ModuleList(nn.MaxPool2d(side, 1, side // 2) for side in k)
        self.cv5, self.cv6 = Conv((1 + len(k)) * hidden, hidden), Conv(hidden, hidden, 3)
        self.cv7 = Conv(2 * hidden, c2)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.cv4(self.cv3(self.cv1(x)))
        pooled = self.cv6(self.cv5(torch.cat([x1, *(pool(x1) for pool in self.m)], 1)))
        return self.cv7(torch.cat([pooled, self.cv2(x)], 1))


class DownC(nn.Module):
    """Half of the channels by a convolution, half by max pooling: (B, c1, H, W) to (B, c2, H / k, W / k)."""

    def __init__(self, c1: int, c2: int, k: int = 2) -> None:
        super().__init__()
        self.cv1, self.cv2 = Conv(c1, c1), Conv(c1, c2 // 2, 3, k)
        self.cv3 = Conv(c1, c2 // 2)
        self.mp = nn.MaxPool2d(k, k)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.cv2(self.cv1(x)), self.cv3(self.mp(x))], 1)


class ReOrg(nn.Module):
    """The four pixels of each 2x2 cell as channels, column by column: (B, C, H, W) to (B, 4 C, H / 2, W / 2)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[..., row::2, column::2] for column in (0, 1) for row in (0, 1)], 1)


class Shortcut(nn.Module):
    """The sum of maps of one shape, by adds of two, which runtimes join with what is around them."""

    def forward(self, x: list[Tensor]) -> Tensor:
        return functools.reduce(torch.add, x)
