"""RepMLP: a fully connected layer over the pixels of a tile, which trains beside convolutions and swallows them.

"RepMLP: Re-parameterizing Convolutions into Fully-connected Layers for Image Recognition"
(https://arxiv.org/abs/2105.01883) and "RepMLPNet: Hierarchical Vision MLP with Re-parameterized Locality"
(https://arxiv.org/abs/2112.11081). A map is cut into tiles of h x w pixels, and every tile goes through

    fc3_bn(fc3(tile)) + sum of bn(conv_k(tile))        fc3: all pixels of its group of channels to all pixels

which is linear, so that deployment has one fully connected layer: a convolution of a tile is a sparse one.

A map that is no whole number of tiles is padded with zeros at its right and lower end and cropped afterwards. The
published RepMLPNet exchanges tiles and channels as soon as there are two tiles, and pictures of a batch at some sizes;
here every tile of every picture is on its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.blocks.reparam import Reparameterizable, bn_scale_shift, with_weights
from models.blocks.repconv import ConvNorm


def to_tiles(x: Tensor, h: int, w: int, group: int) -> Tensor:
    """Cut (B, C, H, W) into tiles, (B * C / group * T, group, h, w), where T tiles make up the padded map.

    No tensor in here has more than five axes, which some runtimes ask for.
    """
    batch, channels, height, width = x.shape
    rows, columns = (height + h - 1) // h, (width + w - 1) // w
    if torch.jit.is_tracing() or (rows * h, columns * w) != (height, width):
        x = F.pad(x, (0, columns * w - width, 0, rows * h - height))
    if torch.jit.is_tracing() or rows * columns > 1:
        x = x.reshape(batch * channels, rows, h, columns, w).permute(0, 1, 3, 2, 4)
        x = x.reshape(batch * channels // group, group, rows * columns, h * w).transpose(1, 2)
    return x.reshape(batch * channels // group * rows * columns, group, h, w)


def from_tiles(tiles: Tensor, like: Tensor, channels: int) -> Tensor:
    """Put tiles (B * channels / group * T, group, h, w) together and crop: (B, channels, H, W) as large as `like`."""
    group, h, w = tiles.shape[1:]
    batch, _, height, width = like.shape
    rows, columns = (height + h - 1) // h, (width + w - 1) // w
    if torch.jit.is_tracing() or rows * columns > 1:
        tiles = tiles.reshape(batch * channels // group, rows * columns, group, h * w).transpose(1, 2)
        tiles = tiles.reshape(batch * channels, rows, columns, h, w).permute(0, 1, 3, 2, 4)
    return tiles.reshape(batch, channels, rows * h, columns * w)[:, :, :height, :width]


class TileFC(nn.Module):
    """A grouped fully connected layer over the pixels of a tile: (B, c1, h, w) to (B, c2, h, w).

    `weight` is (c2 * h * w, c1 / groups * h * w, 1, 1), as published: that of a grouped 1x1 convolution on flat tiles.
    """

    def __init__(self, c1: int, c2: int, h: int, w: int, groups: int = 1, bias: bool = False) -> None:
        super().__init__()
        self.shape = (c2, h, w)
        self.groups = groups
        conv = nn.Conv2d(c1 * h * w, c2 * h * w, kernel_size=1, groups=groups, bias=bias)  # for its initialisation
        self.weight, self.bias = conv.weight, conv.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.multiply(x, self.weight)

    def multiply(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return the output for tiles, (B, c1, h, w) to (B, c2, h, w), with another weight of the same shape."""
        weight = weight.view(self.groups, weight.shape[0] // self.groups, weight.shape[1])
        x = x.reshape(x.shape[0], self.groups, weight.shape[2]).transpose(0, 1)  # (groups, B, pixels)
        x = torch.bmm(x, weight.transpose(1, 2))
        if self.bias is not None:
            x = x + self.bias.view(self.groups, 1, -1)
        return x.transpose(0, 1).reshape(x.shape[1], *self.shape)


class RepTileFC(Reparameterizable):
    """The linear part of both RepMLPs on tiles, (B, c1, h, w) to (B, c2, h, w).

    Args:
        c1: channels of a tile.
        c2: channels of the result.
        h: height of a tile.
        w: width of a tile.
        groups: of channels, in the fully connected layer and in the convolutions.
        kernels: sides of the convolutions' kernels, odd.
        norm_pixels: normalize every pixel's output on its own, as the first version does, not every channel's.
    """

    def __init__(
        self, c1: int, c2: int, h: int, w: int, groups: int, kernels: Sequence[int], norm_pixels: bool = False
    ) -> None:
        super().__init__()
        self.kernels = tuple(kernels)
        self.fc3 = TileFC(c1, c2, h, w, groups)
        self.fc3_bn = nn.BatchNorm1d(c2 * h * w) if norm_pixels else nn.BatchNorm2d(c2)
        for k in self.kernels:
            conv = nn.Conv2d(c1, c2, k, padding=k // 2, groups=groups, bias=False)
            self.add_module(f"repconv{k}", ConvNorm(conv, nn.BatchNorm2d(c2)))

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc3(x)
        y = self.fc3_bn(y.flatten(1)).view_as(y) if isinstance(self.fc3_bn, nn.BatchNorm1d) else self.fc3_bn(y)
        for k in self.kernels:
            y = y + self.get_submodule(f"repconv{k}")(x)
        return y

    def get_equivalent_fc3(self) -> tuple[Tensor, Tensor]:
        """Return weight (c2 * h * w, c1 / groups * h * w, 1, 1) and bias of the one layer that eval mode amounts to.

        Differentiable in the weights of all branches; computed in float64, then cast to the dtype of the weights.

        Raises:
            ValueError: a BatchNorm has no running statistics.
        """
        weight = self.fc3.weight.double()
        _, h, w = self.fc3.shape
        scale, shift = (v.repeat_interleave(len(weight) // len(v)) for v in bn_scale_shift(self.fc3_bn))
        weight, bias = weight * scale[:, None, None, None], shift
        for k in self.kernels:
            branch: Any = self.get_submodule(f"repconv{k}")
            factor, offset = bn_scale_shift(branch.bn)
            kernel = branch.conv.weight.double() * factor[:, None, None, None]
            add_conv(weight, kernel, h, w)
            bias = bias + offset.repeat_interleave(h * w)
        return weight.to(self.fc3.weight), bias.to(self.fc3.weight)

    def fuse(self) -> TileFC:
        """Return the one fully connected layer.

        Raises:
            ValueError: a BatchNorm has no running statistics.
        """
        return with_weights(self.fc3, *self.get_equivalent_fc3())


def conv_as_fc(kernel: Tensor, h: int, w: int) -> Tensor:
    """Return the matrix, (c2 * h * w, c1 * h * w), of a convolution of stride 1 on maps of h x w, padded to keep them.

    Args:
        kernel: (c2, c1, k, k), k odd; for a grouped convolution c1 counts the channels of a group.
    """
    c2, c1, _, _ = kernel.shape
    return add_conv(kernel.new_zeros(c2 * h * w, c1 * h * w), kernel, h, w)


def add_conv(matrix: Tensor, kernel: Tensor, h: int, w: int) -> Tensor:
    """Add the matrix of a convolution, as `conv_as_fc` gives it, to another of as many elements, in place; return that.

    Only the elements that are not zero are touched, which are few.
    """
    c2, c1, k, _ = kernel.shape
    pixels = matrix.view(c2, h, w, c1, h, w)  # from the pixel of the last two axes to that of the first two
    reach = k // 2
    for dy in range(-min(reach, h - 1), min(reach, h - 1) + 1):
        for dx in range(-min(reach, w - 1), min(reach, w - 1) + 1):
            pairs = pixels.diagonal(dy, 1, 4).diagonal(dx, 1, 3)  # of pixels (y, x) and (y + dy, x + dx)
            pairs += kernel[:, :, reach + dy, reach + dx, None, None]
    return matrix


class GlobalPerceptron(nn.Module):
    """A factor from 0 to 1 per channel from the means of all channels, (B, C, H, W) to (B, C, 1, 1)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, kernel_size=1)
        self.fc2 = nn.Conv2d(hidden, channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True)))))


class RepMLPBlock(nn.Module):
    """RepMLPNet's token mixer, (B, C, H, W) to (B, C, H, W): tiles through shared layers, times a factor per channel.

    Args:
        channels: of the map, a multiple of `sharesets`.
        h: height of a tile.
        w: width of a tile.
        sharesets: how many different layers there are; channel c uses layer c mod sharesets.
        kernels: sides of the convolutions beside the layers.
        reduction: how many times fewer channels the global perceptron has inside.
    """

    def __init__(
        self, channels: int, h: int, w: int, sharesets: int, kernels: Sequence[int] = (1, 3), reduction: int = 4
    ) -> None:
        super().__init__()
        self.tile = (h, w)
        self.sharesets = sharesets
        self.gp = GlobalPerceptron(channels, channels // reduction)
        self.local = RepTileFC(sharesets, sharesets, h, w, sharesets, kernels)

    def forward(self, x: Tensor) -> Tensor:
        tiles = self.local(to_tiles(x, *self.tile, self.sharesets))
        return from_tiles(tiles, x, x.shape[1]) * self.gp(x)


class NormLinear(Reparameterizable):
    """A linear layer of normalized channels, (B, channels * cells) to (B, hidden)."""

    def __init__(self, channels: int, cells: int, hidden: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels * cells, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.bn(x.view(x.shape[0], self.bn.num_features, -1, 1)).flatten(1))

    def fuse(self) -> nn.Linear:
        """Return the one linear layer.

        Raises:
            ValueError: the BatchNorm has no running statistics.
        """
        cells = self.fc.in_features // self.bn.num_features
        scale, shift = (v.repeat_interleave(cells) for v in bn_scale_shift(self.bn))
        weight = self.fc.weight.detach().double()
        return with_weights(self.fc, weight * scale, self.fc.bias.detach().double() + weight @ shift)


class PartitionPerceptron(nn.Module):
    """The first version's view of the whole map: tile means through two layers, (B, C, rows, columns) to the same.

    Its layers are made for one grid of tiles. Another grid is resampled to that one and back, so that any picture can
    be taken; for the grid that it is made for, nothing is resampled.

    Args:
        channels: of the map.
        grid: rows and columns of tiles that the layers are made for.
        reduction: how many times fewer neurons there are between the two layers.
    """

    def __init__(self, channels: int, grid: tuple[int, int], reduction: int = 1) -> None:
        super().__init__()
        self.grid = grid
        neurons = channels * grid[0] * grid[1]
        self.fc1 = NormLinear(channels, grid[0] * grid[1], neurons // reduction)
        self.fc2 = nn.Linear(neurons // reduction, neurons)

    def forward(self, x: Tensor) -> Tensor:
        values = self.fc2(F.relu(self.fc1(_resampled(x, self.grid).flatten(1))))
        return _resampled(values.view(-1, x.shape[1], *self.grid), x.shape[2:])


class RepMLP(nn.Module):
    """The first version's layer, (B, C, H, W) to the same: what the whole map says to a tile, and tiles on their own.

    Args:
        channels: of the map.
        tile: height and width of a tile.
        grid: rows and columns of tiles that the partition perceptron is made for; one tile needs none.
        groups: of channels in the fully connected layer.
        kernels: sides of the convolutions beside it.
        reduction: how many times fewer neurons the partition perceptron has inside.
    """

    def __init__(
        self,
        channels: int,
        tile: tuple[int, int],
        grid: tuple[int, int],
        groups: int,
        kernels: Sequence[int] = (1, 3, 5),
        reduction: int = 1,
    ) -> None:
        super().__init__()
        self.tile = tile
        self.perceptron = PartitionPerceptron(channels, grid, reduction) if grid != (1, 1) else None
        self.local = RepTileFC(channels, channels, *tile, groups, kernels, norm_pixels=True)

    def forward(self, x: Tensor) -> Tensor:
        tiles = to_tiles(x, *self.tile, x.shape[1])  # (B * T, C, h, w)
        if self.perceptron is not None:
            (h, w), (batch, channels, height, width) = self.tile, x.shape
            rows, columns = (height + h - 1) // h, (width + w - 1) // w
            means = tiles.mean((2, 3)).view(batch, rows * columns, channels).transpose(1, 2)
            said = self.perceptron(means.reshape(batch, channels, rows, columns))
            tiles = tiles + said.flatten(2).transpose(1, 2).reshape(batch * rows * columns, channels, 1, 1)
        return from_tiles(self.local(tiles), x, x.shape[1])


def _resampled(x: Tensor, size: Sequence[int]) -> Tensor:
    """Return maps (B, C, H, W) of another size; the size that they have already is left as it is."""
    same = not torch.jit.is_tracing() and tuple(x.shape[2:]) == tuple(size)
    return x if same else F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)
