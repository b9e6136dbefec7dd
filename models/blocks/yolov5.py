"""The YOLOv5 blocks that ultralytics 8.4 lacks or changed (https://github.com/ultralytics/yolov5).

Names of their parts are those of YOLOv5's checkpoints.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from ultralytics.nn import modules
from ultralytics.nn.modules import C3, SPP, Bottleneck, Conv

from models.blocks.reparam import bn_scale_shift, register_fuser, with_weights
from models.errors import UserError


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


class BottleneckCSP(modules.BottleneckCSP):
    """cv4(act(bn([cv3(m(cv1(x))), cv2(x)]))), m = bottlenecks of 1x1 and 3x3; ultralytics' have two 3x3."""

    def __init__(self, c1: int, c2: int, n: int = 1, shortcut: bool = True, g: int = 1, e: float = 0.5) -> None:
        super().__init__(c1, c2, 0, e=e)
        hidden = int(c2 * e)
        self.m = nn.Sequential(*(Bottleneck(hidden, hidden, shortcut, g, k=(1, 3), e=1.0) for _ in range(n)))


class CrossConv(nn.Module):
    """[x +] f(x), f = 1 x k with stride s across, k x 1 with stride s down: (B, c1, H, W) to (B, c2, H / s, W / s)."""

    def __init__(
        self, c1: int, c2: int, k: int = 3, s: int = 1, g: int = 1, e: float = 1.0, shortcut: bool = False
    ) -> None:
        super().__init__()
        hidden = int(c2 * e)
        self.cv1 = Conv(c1, hidden, (1, k), (1, s))
        self.cv2 = Conv(hidden, c2, (k, 1), (s, 1), g=g)
        self.add = shortcut and c1 == c2

    def forward(self, x: Tensor) -> Tensor:
        y = self.cv2(self.cv1(x))
        return x + y if self.add else y


class C3x(C3):
    """A C3 whose bottlenecks are cross convolutions; ultralytics' has other ones."""

    def __init__(self, c1: int, c2: int, n: int = 1, shortcut: bool = True, g: int = 1, e: float = 0.5) -> None:
        super().__init__(c1, c2, 0, e=e)
        hidden = int(c2 * e)
        self.m = nn.Sequential(*(CrossConv(hidden, hidden, 3, 1, g, 1.0, shortcut) for _ in range(n)))


class C3SPP(C3):
    """A C3 with spatial pyramid pooling in place of bottlenecks."""

    def __init__(self, c1: int, c2: int, k: Sequence[int] = (5, 9, 13), e: float = 0.5) -> None:
        super().__init__(c1, c2, 0, e=e)
        hidden = int(c2 * e)
        self.m = SPP(hidden, hidden, tuple(k))


class MixConv2d(nn.Module):
    """Convolutions of several kernel sizes, each for a part of the output channels, joined; BatchNorm, SiLU.

    "MixConv: Mixed Depthwise Convolutional Kernels" (https://arxiv.org/abs/1907.09595).

    Args:
        c1: channels of the input.
        c2: channels of the output, of all parts together.
        k: side of each kernel, odd.
        s: stride.
        equal_ch: whether the parts have equally many channels, rather than equally many weights per input channel.

    Raises:
        UserError: a part would have no channels, or parts of equal weights do not add up to c2.
    """

    def __init__(self, c1: int, c2: int, k: Sequence[int] = (1, 3), s: int = 1, equal_ch: bool = True) -> None:
        super().__init__()
        parts = split_equally(c2, len(k)) if equal_ch else split_by_weights(c2, k)
        if min(parts) < 1 or sum(parts) != c2:
            raise UserError(f"{c2} channels cannot be split over the kernels {list(k)}, that gives {parts}")
        self.m = nn.ModuleList(
            nn.Conv2d(c1, part, side, s, side // 2, groups=math.gcd(c1, part), bias=False)
            for side, part in zip(k, parts, strict=True)
        )
        self.bn = nn.BatchNorm2d(c2)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(torch.cat([conv(x) for conv in self.m], dim=1)))


def split_equally(channels: int, n: int) -> list[int]:
    """Return YOLOv5's n parts of nearly the same size: channel i of 0 to c - 1 is of the part below n i / (c - 1)."""
    of = [max(i * n - 1, 0) // max(channels - 1, 1) for i in range(channels)]
    return [of.count(part) for part in range(n)]


def split_by_weights(channels: int, k: Sequence[int]) -> list[int]:
    """Return parts in inverse proportion to the areas of their kernels, rounded."""
    shares = [side**-2 for side in k]
    return [round(channels * share / sum(shares)) for share in shares]


class Channels(nn.Module):
    """The channels from `start` to before `stop`: (B, C, H, W) to (B, stop - start, H, W)."""

    def __init__(self, start: int, stop: int) -> None:
        super().__init__()
        self.start, self.stop = start, stop

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.start : self.stop]


class Contract(nn.Module):
    """Space to depth: (B, C, H, W) to (B, C s s, H / s, W / s); (i s + j) C + c is channel c, row i, column j."""

    def __init__(self, gain: int = 2) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        s = self.gain
        return torch.cat([x[..., i::s, j::s] for i in range(s) for j in range(s)], dim=1)


class Expand(nn.Module):
    """Depth to space, the inverse of `Contract`: (B, C, H, W) to (B, C / s / s, H s, W s)."""

    def __init__(self, gain: int = 2) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        cells = x.unflatten(1, (self.gain**2, -1)).transpose(1, 2)  # (B, C / s / s, s s, H, W)
        return F.pixel_shuffle(cells.flatten(1, 2), self.gain)


@register_fuser
def fold_joined_norm(module: Any) -> nn.Module | None:
    """Return a block whose convolutions each took their part of the BatchNorm that reads them joined.

    None for other modules than BottleneckCSP and MixConv2d.
    """
    if type(module) not in (BottleneckCSP, MixConv2d) or not isinstance(module.bn, _BatchNorm):
        return None
    fused = copy.deepcopy(module)
    if isinstance(fused, BottleneckCSP):
        fused.cv3, fused.cv2 = _with_parts_of(module.bn, (fused.cv3, fused.cv2))
    else:
        fused.m = nn.ModuleList(_with_parts_of(module.bn, fused.m))
    fused.bn = nn.Identity()
    return fused


def _with_parts_of(bn: _BatchNorm, convs: Iterable[nn.Conv2d]) -> list[nn.Conv2d]:
    """Return convolutions without bias with the BatchNorm that read their outputs, joined in this order, folded in."""
    folded, start = [], 0
    scale, shift = bn_scale_shift(bn)
    for conv in convs:
        part = slice(start, start + len(conv.weight))
        weight = conv.weight.detach().double() * scale[part, None, None, None]
        folded.append(with_weights(conv, weight, shift[part]))
        start = part.stop
    return folded
