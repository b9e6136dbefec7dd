"""The deploy form of ultralytics' re-parameterizable blocks, whose own `fuse` works in place and in float32."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from ultralytics.nn.modules import DFL, RepConv, RepVGGDW

from models.blocks.reparam import fuse_conv_bn, register_fuser, with_weights


@register_fuser
def fuse_rep_conv(module: Any) -> nn.Module | None:
    """Return ultralytics' RepConv (in RepC3, RepNCSPELAN4) as one convolution and its activation; None for others."""
    if type(module) is not RepConv or not hasattr(module, "conv1"):
        return None
    branches = [(module.conv1.conv, module.conv1.bn), (module.conv2.conv, module.conv2.bn)]
    if module.bn is not None:
        branches.append((_identity(module.conv2.conv), module.bn))
    return nn.Sequential(merge(branches), module.act)


@register_fuser
def fuse_rep_vgg_dw(module: Any) -> nn.Module | None:
    """Return ultralytics' RepVGGDW (in C2fCIB) as one depthwise convolution and its activation; None for others."""
    if type(module) is not RepVGGDW or not hasattr(module, "conv1"):
        return None
    return nn.Sequential(merge((part.conv, part.bn) for part in (module.conv, module.conv1)), module.act)


class ExponentialDFL(DFL):
    """DFL's expectation sum_i i softmax(x)_i as a ratio of two means of exponentials, (B, 4 bins, N) to (B, 4, N).

    ONNX Runtime computes it in a seventh of the time of the softmax over an inner axis and its convolution; sums in
    place of the means would be refused by OpenCV. Parameters keep their names (https://arxiv.org/abs/2006.04388).
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, _, cells = x.shape
        sides = x.view(batch, 4, self.c1, cells)
        exponentials = (sides - sides.amax(2, keepdim=True)).exp()
        weighted = exponentials * self.conv.weight.view(1, 1, self.c1, 1)
        return (weighted.mean(2, keepdim=True) / exponentials.mean(2, keepdim=True)).view(batch, 4, cells)


@register_fuser
def fuse_dfl(module: Any) -> nn.Module | None:
    """Return ultralytics' DFL as two sums; None for other modules."""
    if type(module) is not DFL:
        return None
    fused = copy.deepcopy(module)
    fused.__class__ = ExponentialDFL
    return fused


def merge(branches: Iterable[tuple[nn.Conv2d, _BatchNorm]]) -> nn.Conv2d:
    """Return the convolution that computes the sum of `bn(conv(x))` over branches, the largest kernel first.

    Kernels are odd, of one stride and groups, and padded so that they are centred on each other.
    """
    pairs = list(branches)
    fused = [fuse_conv_bn(copy.deepcopy(conv).double(), bn) for conv, bn in pairs]
    largest = pairs[0][0]
    weights = [_widened(conv.weight.detach(), largest.kernel_size) for conv in fused]
    biases = [conv.bias.detach() for conv in fused if conv.bias is not None]
    return with_weights(largest, torch.stack(weights).sum(0), torch.stack(biases).sum(0))


def _widened(kernel: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Return a kernel (c2, c1, h, w) with zeros around it, (c2, c1, *size)."""
    rows, columns = ((want - has) // 2 for want, has in zip(size, kernel.shape[2:], strict=True))
    return F.pad(kernel, [columns, columns, rows, rows])


def _identity(like: nn.Conv2d) -> nn.Conv2d:
    """Return a 1x1 convolution with the groups, dtype and device of `like` that passes every channel on."""
    conv = copy.deepcopy(like)
    nn.init.dirac_(conv.weight, groups=conv.groups)
    return conv
