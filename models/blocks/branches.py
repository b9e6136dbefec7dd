"""A k x k convolution and smaller or composed ones beside it in training, one k x k convolution in deployment.

What stands beside it is a style: that of "RepVGG" (https://arxiv.org/abs/2101.03697), "MobileOne"
(https://arxiv.org/abs/2206.04040), "ACNet" (https://arxiv.org/abs/1908.03930) or "Diverse Branch Block"
(https://arxiv.org/abs/2103.13425). Each branch ends in a BatchNorm of its own, and has the stride, dilation, groups,
padding and padding mode of the k x k convolution, whatever these are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.blocks.reparam import Reparameterizable, bn_scale_shift, with_weights
from models.blocks.repconv import identity_kernel, norm_scale_shift, thinned

MOBILEONE_KERNELS = 4  # k x k convolutions that MobileOne-S0 trains in parallel
PADS = {"reflect": nn.ReflectionPad2d, "replicate": nn.ReplicationPad2d, "circular": nn.CircularPad2d}
Pair = tuple[int, int]  # of the two axes of a picture, height first


class Branch(nn.Module, ABC):
    """What is added to a convolution `like`: (B, c1, H, W) to what `like` puts out; `bn` is the last step."""

    bn: nn.BatchNorm2d

    @abstractmethod
    def kernel_bias(self) -> tuple[Tensor, Tensor]:
        """Return the float64 weight, of the shape of that of `like`, and bias (c2,) that eval mode amounts to.

        Raises:
            ValueError: a BatchNorm has no running statistics.
        """


class Part(Branch):
    """A convolution that reads some of the pixels that `like` reads, then BatchNorm.

    Args:
        like: the convolution that it stands beside.
        size: of its kernel, which is in the middle of that of `like`.
        dilation: a multiple of that of `like`; the same by default.
    """

    def __init__(self, like: nn.Conv2d, size: Pair, dilation: Pair | None = None) -> None:
        super().__init__()
        dilation = dilation or _pair(like.dilation)
        self.whole = _pair(like.kernel_size)
        self.apart = dilation[0] // like.dilation[0], dilation[1] // like.dilation[1]  # in weights of `like`
        point, stride = size == (1, 1), _pair(like.stride)
        self.window, padding = _window(like, size, dilation, outside=point)
        self.thin, stride = (stride, (1, 1)) if point else ((1, 1), stride)
        c1, c2 = like.in_channels, like.out_channels
        self.conv = nn.Conv2d(c1, c2, size, stride, padding, dilation, like.groups, bias=False)
        self.bn = nn.BatchNorm2d(c2)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(thinned(self.window(x), self.thin)))

    def kernel_bias(self) -> tuple[Tensor, Tensor]:
        scale, shift = bn_scale_shift(self.bn)
        weight = self.conv.weight.double() * scale[:, None, None, None]
        return _in_middle(weight, self.whole, self.apart), shift


class Skip(Branch):
    """The BatchNorm of the input itself, where `like` keeps its channels and its stride is 1."""

    def __init__(self, like: nn.Conv2d) -> None:
        super().__init__()
        self.window, _ = _window(like, (1, 1), (1, 1), outside=True)
        self.groups, self.whole = like.groups, _pair(like.kernel_size)
        self.bn = nn.BatchNorm2d(like.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.window(x))

    def kernel_bias(self) -> tuple[Tensor, Tensor]:
        scale, shift = bn_scale_shift(self.bn)
        channels = len(scale)
        point = identity_kernel(scale.new_zeros(channels, channels // self.groups, 1, 1)) * scale[:, None, None, None]
        return _in_middle(point, self.whole), shift


class Average(nn.Module):
    """The mean of the pixels that an unpadded convolution reads, (B, C, H, W) to (B, C, H', W')."""

    def __init__(self, size: Pair, stride: Pair, dilation: Pair) -> None:
        super().__init__()
        self.size, self.stride, self.dilation = size, stride, dilation

    def forward(self, x: Tensor) -> Tensor:
        if self.dilation == (1, 1):
            return F.avg_pool2d(x, self.size, self.stride)
        kernel = self.kernel(x.new_empty(x.shape[1], 1, 1, 1))
        return F.conv2d(x, kernel, None, self.stride, 0, self.dilation, groups=x.shape[1])

    def kernel(self, like: Tensor) -> Tensor:
        """Return the weight that computes it for the channels of `like` (C, C / groups, 1, 1)."""
        height, width = self.size
        return identity_kernel(like).expand(-1, -1, height, width) / (height * width)


class Chain(Branch):
    """1x1 convolution, BatchNorm, then k x k convolution or average, BatchNorm: two branches of DBB.

    The input is padded before the 1x1 convolution, so that the border is that of the fused kernel. Where the 1x1
    convolution keeps the number of channels it starts as the identity.

    Args:
        like: the convolution that it stands beside.
        average: whether the average follows, rather than a convolution.
    """

    def __init__(self, like: nn.Conv2d, average: bool = False) -> None:
        super().__init__()
        c1, c2, groups = like.in_channels, like.out_channels, like.groups
        inside = c2 if average else 2 * c1 if groups == c1 else c1  # depthwise kernels alone span too little
        size, stride, dilation = _pair(like.kernel_size), _pair(like.stride), _pair(like.dilation)
        self.window, _ = _window(like, size, dilation, outside=True)
        self.first = nn.Conv2d(c1, inside, 1, groups=groups, bias=False)
        if inside == c1:
            nn.init.dirac_(self.first.weight, groups)
        self.first_bn = nn.BatchNorm2d(inside)
        self.second: nn.Conv2d | Average = (
            Average(size, stride, dilation)
            if average
            else nn.Conv2d(inside, c2, size, stride, 0, dilation, groups, bias=False)
        )
        self.bn = nn.BatchNorm2d(c2)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.second(self.first_bn(self.first(self.window(x)))))

    def kernel_bias(self) -> tuple[Tensor, Tensor]:
        groups, first = self.first.groups, self.first.weight.double()
        scale, shift = bn_scale_shift(self.first_bn)
        first = (first * scale[:, None, None, None]).flatten(1).unflatten(0, (groups, -1))  # (g, m / g, c1 / g)
        if isinstance(self.second, nn.Conv2d):
            second = self.second.weight.double()
        else:
            second = self.second.kernel(scale.new_empty(len(scale), len(scale) // groups, 1, 1))
        second = second.unflatten(0, (groups, -1))  # (g, c2 / g, m / g, k, k)
        kernel = torch.einsum("gomhw,gmi->goihw", second, first).flatten(0, 1)
        bias = torch.einsum("gomhw,gm->go", second, shift.unflatten(0, (groups, -1))).flatten()
        scale, shift = bn_scale_shift(self.bn)
        return kernel * scale[:, None, None, None], bias * scale + shift


class BranchedConv(Reparameterizable):
    """bn(conv(x)) + branches(x), linear in eval mode: (B, c1, H, W) to what `conv` puts out.

    Args:
        conv: of any stride, padding, dilation, groups and padding mode.
        bn: its own BatchNorm, or nothing.
        branches: what is added, made for `conv`.
    """

    def __init__(self, conv: nn.Conv2d, bn: nn.Module, branches: Iterable[Branch]) -> None:
        super().__init__()
        self.conv = conv
        self.bn = bn
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        for branch in self.branches:
            y = y + branch(x)
        return y

    def get_equivalent_kernel_bias(self) -> tuple[Tensor, Tensor]:
        """Return weight and bias (c2,) of the one convolution that eval mode amounts to.

        Differentiable in the weights of all branches; computed in float64, then cast to the dtype of the weights.

        Raises:
            ValueError: a BatchNorm has no running statistics, or is none.
        """
        own = self.conv.weight
        scale, shift = norm_scale_shift(self.bn, own)
        kernel = own.double() * scale[:, None, None, None]
        bias = shift if self.conv.bias is None else shift + scale * self.conv.bias.double()
        branches: Any = self.branches
        for branch in branches:
            more, offset = branch.kernel_bias()
            kernel, bias = kernel + more, bias + offset
        return kernel.to(own), bias.to(own)

    def fuse(self) -> nn.Conv2d:
        """Return the one convolution, which has all of `conv` but its weights.

        Raises:
            ValueError: a BatchNorm has no running statistics, or is none.
        """
        return with_weights(self.conv, *self.get_equivalent_kernel_bias())


# Styles ---------------------------------------------------------------------------------------------------------------
def repvgg(conv: nn.Conv2d) -> list[Branch]:
    """Return RepVGG's branches: 1x1 and, where the map keeps its shape, the identity."""
    keeps = conv.in_channels == conv.out_channels and _pair(conv.stride) == (1, 1)
    return [Part(conv, (1, 1)), *([Skip(conv)] if keeps else [])]


def mobileone(conv: nn.Conv2d) -> list[Branch]:
    """Return MobileOne's branches: three more k x k, 1x1 and, where the map keeps its shape, the identity."""
    size = _pair(conv.kernel_size)
    return [*(Part(conv, size) for _ in range(MOBILEONE_KERNELS - 1)), *repvgg(conv)]


def acb(conv: nn.Conv2d) -> list[Branch]:
    """Return ACNet's branches: k x 1 and 1 x k."""
    height, width = conv.kernel_size
    return [Part(conv, (height, 1)), Part(conv, (1, width))]


def dbb(conv: nn.Conv2d) -> list[Branch]:
    """Return DBB's branches: 1x1, 1x1 with k x k behind it, 1x1 with the average of k x k pixels behind it."""
    return [Part(conv, (1, 1)), Chain(conv), Chain(conv, average=True)]


STYLES: dict[str, Callable[[nn.Conv2d], list[Branch]]] = {
    "dbb": dbb,
    "acb": acb,
    "mobileone": mobileone,
    "repvgg": repvgg,
}


# Geometry -------------------------------------------------------------------------------------------------------------
def _window(like: nn.Conv2d, size: Pair, dilation: Pair, outside: bool) -> tuple[nn.Module, Pair]:
    """Return what pads or crops a map so that a kernel of `size` reads the middle of what `like` reads, and padding.

    Args:
        like: the convolution whose windows are meant.
        size: of the smaller kernel.
        dilation: of it.
        outside: do all of it before the convolution, so that its own padding is 0.
    """
    own, amounts = [], []  # of the axes, last one first: before, after
    for axis in (1, 0):
        k, d = like.kernel_size[axis], like.dilation[axis]
        before, after = _padding(like, axis)
        start = d * ((k - 1) // 2) - dilation[axis] * ((size[axis] - 1) // 2)
        end = d * (k - 1) - dilation[axis] * (size[axis] - 1) - start
        own += [before, after]
        amounts += [before - start, after - end]
    if like.padding_mode in PADS:
        left, right, top, bottom = own
        crop = (amount - pad for amount, pad in zip(amounts, own, strict=True))
        return nn.Sequential(PADS[like.padding_mode]((left, right, top, bottom)), _zero_pad(*crop)), (0, 0)
    left, right, top, bottom = amounts
    if not outside and left == right >= 0 and top == bottom >= 0:
        return nn.Identity(), (top, left)
    return _zero_pad(*amounts), (0, 0)


def _zero_pad(left: int, right: int, top: int, bottom: int) -> nn.Module:
    """Return what pads a map with so many zeros on each side, or crops it where they are below 0."""
    return nn.ZeroPad2d((left, right, top, bottom)) if any((left, right, top, bottom)) else nn.Identity()


def _padding(conv: nn.Conv2d, axis: int) -> Pair:
    """Return how many pixels a convolution pads before and after a map along an axis, 0 for height."""
    if conv.padding == "valid":
        return 0, 0
    if conv.padding == "same":
        total = conv.dilation[axis] * (conv.kernel_size[axis] - 1)
        return total // 2, total - total // 2
    return (int(conv.padding[axis]),) * 2


def _in_middle(weight: Tensor, whole: Pair, apart: Pair = (1, 1)) -> Tensor:
    """Return a kernel of the size `whole` that is `weight` in its middle, so many weights apart, and 0 elsewhere."""
    kernel = weight.new_zeros(*weight.shape[:2], *whole)
    rows, columns = (
        slice((k - 1) // 2 - step * ((n - 1) // 2), (k - 1) // 2 + step * (n // 2) + 1, step)
        for k, n, step in zip(whole, weight.shape[2:], apart, strict=True)
    )
    kernel[:, :, rows, columns] = weight
    return kernel


def _pair(values: tuple[int, ...]) -> Pair:
    height, width = values
    return height, width
