"""Feature maps where a detector wants them: at strides 8, 16 and 32, on the grid of the picture.

`Pyramid` makes the levels that a network lacks from the nearest map that it has, as ViTDet's simple feature pyramid
does for plain vision transformers (https://arxiv.org/abs/2203.16527). It differs in reducing the channels first, which
spares most of the work, and in BatchNorm, which folds into the convolutions for deployment.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F


def nearest_stride(stride: int, has: Sequence[int]) -> int:
    """Return the one of `has` from which a map of `stride` takes the fewest steps; the finer one of two."""
    return min(sorted(has), key=lambda other: abs(math.log2(other / stride)))


class Branch(nn.Sequential):
    """One level from another: 1x1, then a 2x2 deconvolution per doubling or a 2x2 pooling per halving, then 3x3.

    Maps (B, c1, H, W) at `stride_in` to (B, c2, H * stride_in / stride_out, W * stride_in / stride_out).
    """

    def __init__(self, c1: int, c2: int, stride_in: int, stride_out: int) -> None:
        steps = round(math.log2(stride_in / stride_out))
        resize: list[nn.Module] = [nn.MaxPool2d(2) for _ in range(-steps)]
        for _ in range(steps):
            resize += _with_norm(nn.ConvTranspose2d(c2, c2, 2, 2, bias=False))
        reduce = _with_norm(nn.Conv2d(c1, c2, 1, bias=False))
        smooth = _with_norm(nn.Conv2d(c2, c2, 3, padding=1, bias=False))
        super().__init__(*reduce, *resize, *smooth)


def _with_norm(conv: nn.Conv2d | nn.ConvTranspose2d) -> list[nn.Module]:
    return [conv, nn.BatchNorm2d(conv.out_channels), nn.SiLU()]


class Pyramid(nn.Module):
    """The levels `strides`, each a map of the network as it is, or a branch from the nearest one.

    Args:
        has: channels of the network's maps by their stride, ascending.
        strides: the levels to give.
        plain: make every level, also those that are there: a network's only map holds everything, so each level gets
            its own view of it.
        dim: channels of a branch's map; as many as it reads, but at most 256, by default.

    Attributes:
        channels: channels of each level.
        made: the strides that branches make.
    """

    def __init__(
        self, has: dict[int, int], strides: Sequence[int], plain: bool = False, dim: int | None = None
    ) -> None:
        super().__init__()
        self.made = tuple(s for s in strides if plain or s not in has)
        origins = [nearest_stride(s, list(has)) for s in strides]
        widths = [dim or min(has[origin], 256) for origin in origins]
        self.channels = tuple(w if s in self.made else has[s] for s, w in zip(strides, widths, strict=True))
        self.sources = [list(has).index(origin) for origin in origins]  # which of the network's maps a level reads
        self.levels = nn.ModuleList(
            Branch(has[origin], width, origin, s) if s in self.made else nn.Identity()
            for s, origin, width in zip(strides, origins, widths, strict=True)
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Map one (B, C, H / s, W / s) per stride s of `has` to one per stride of `strides`."""
        return [level(maps[source]) for level, source in zip(self.levels, self.sources, strict=True)]


def fit_to_grid(feature: Tensor, picture: Tensor, stride: int) -> Tensor:
    """Return `feature` with ceil(H / stride) rows for a picture of H rows, and columns so.

    A smaller map lost its rim to convolutions without padding, as much on either side, so it gets zeros around it and
    each cell ends up over its place in the picture. A larger one was stretched over the picture, so it is resized.
    """
    rows, columns = (-(-side // stride) for side in picture.shape[2:])
    down, across = rows - feature.shape[2], columns - feature.shape[3]
    if down < 0 or across < 0:
        return F.interpolate(feature, size=(rows, columns), mode="bilinear")
    return F.pad(feature, (across // 2, across - across // 2, down // 2, down - down // 2))
