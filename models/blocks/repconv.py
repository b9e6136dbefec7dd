"""Parallel k x k and 1x1 convolutions and an identity in training, one k x k convolution in deployment.

"RepVGG: Making VGG-style ConvNets Great Again" (https://arxiv.org/abs/2101.03697), style `repvgg`:

    bn(conv_kxk(x)) + bn(conv_1x1(x)) [+ bn(x)]

"Make RepVGG Greater Again: A Quantization-aware Approach" (https://arxiv.org/abs/2212.01593), style `qarep`, whose
fused weights keep a range that INT8 can hold:

    bn(bn(conv_kxk(x)) + conv_1x1(x) [+ x])

Only this sum is fused. Activation and squeeze-excite stand outside of it, in `RepVGGBlock`, so that their paths stay.
Names of the branches are those of the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from models.blocks.reparam import Reparameterizable, bn_scale_shift, with_weights
from models.errors import UserError, did_you_mean

STYLES = ("repvgg", "qarep")
PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]
SQUEEZE = 16  # channels per channel inside of squeeze-excite


class ConvNorm(nn.Module):
    """A convolution without bias and what normalizes its output, (B, c1, H, W) to (B, c2, H / s, W / s)."""

    def __init__(self, conv: nn.Conv2d, bn: nn.Module) -> None:
        super().__init__()
        self.conv = conv
        self.bn = bn

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class RepConv(Reparameterizable):
    """The sum of the branches, linear in eval mode: (B, c1, H, W) to (B, c2, ceil(H / s), ceil(W / s)).

    Args:
        c1: channels of the input.
        c2: channels of the output.
        k: side of the kernel, odd.
        s: stride.
        g: groups, of both convolutions.
        d: dilation.
        identity: whether the input is added too.
        style: `repvgg` or `qarep`, see above.
        padding_mode: nn.Conv2d's.

    Raises:
        UserError: an even kernel, an unknown style, groups that do not divide both widths, or an identity between maps
            of different shapes.
    """

    def __init__(
        self,
        c1: int,
        c2: int,
        k: int = 3,
        s: int = 1,
        g: int = 1,
        d: int = 1,
        *,
        identity: bool = False,
        style: str = "repvgg",
        padding_mode: PaddingMode = "zeros",
    ) -> None:
        super().__init__()
        _check(c1, c2, k, s, g, identity, style)
        qarep = style == "qarep"
        dense = nn.Conv2d(c1, c2, k, s, d * (k // 2), d, g, bias=False, padding_mode=padding_mode)
        point = nn.Conv2d(c1, c2, 1, groups=g, bias=False)
        self.stride = s
        self.rbr_dense = ConvNorm(dense, nn.BatchNorm2d(c2))
        self.rbr_1x1 = ConvNorm(point, nn.Identity() if qarep else nn.BatchNorm2d(c2))
        self.rbr_identity = (nn.Identity() if qarep else nn.BatchNorm2d(c2)) if identity else None
        self.post_bn = nn.BatchNorm2d(c2) if qarep else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.rbr_dense(x) + self.rbr_1x1(thinned(x, (self.stride, self.stride)))
        return self.post_bn(y if self.rbr_identity is None else y + self.rbr_identity(x))

    def get_equivalent_kernel_bias(self) -> tuple[Tensor, Tensor]:
        """Return weight (c2, c1 / g, k, k) and bias (c2,) of the one convolution that eval mode amounts to.

        Differentiable in the weights of all branches; computed in float64, then cast to the dtype of the weights.

        Raises:
            ValueError: a BatchNorm has no running statistics, or is none.
        """
        dense = self.rbr_dense.conv.weight
        kernel, bias = (
            dense.new_zeros(dense.shape, dtype=torch.float64),
            dense.new_zeros(len(dense), dtype=torch.float64),
        )
        for branch, norm in self._branches():
            scale, shift = norm_scale_shift(norm, dense)
            kernel = kernel + scale[:, None, None, None] * branch
            bias = bias + shift
        scale, shift = norm_scale_shift(self.post_bn, dense)
        return (scale[:, None, None, None] * kernel).to(dense), (scale * bias + shift).to(dense)

    def get_custom_l2(self) -> Tensor:
        """Return the paper's L2 penalty, a scalar: that of the fused kernel rather than of the branches.

        The ring of the k x k kernel counts as it is; its centre and the 1x1 kernel count together, as
        (t3 K3 + t1 K1)^2 / (t3^2 + t1^2) with t the factors of their BatchNorms, which get no gradient. The identity is
        left out, as published. A channel whose factors are both 0 is 0 in the fused kernel and counts nothing.

        Raises:
            ValueError: a BatchNorm has no running statistics, or is none.
        """
        dense, point = self.rbr_dense.conv.weight, self.rbr_1x1.conv.weight
        t3, t1 = (
            norm_scale_shift(branch.bn, dense)[0].detach().to(dense)[:, None, None, None]
            for branch in (self.rbr_dense, self.rbr_1x1)
        )
        middle = dense.shape[-1] // 2
        centre = dense[:, :, middle : middle + 1, middle : middle + 1]
        norm = t3.square() + t1.square()
        fused = (t3 * centre + t1 * point).square() / norm.where(norm > 0, 1)
        return dense.square().sum() - centre.square().sum() + fused.sum()

    def decayed_by_custom_l2(self) -> tuple[Tensor, Tensor]:
        """Return the two weights that `get_custom_l2` speaks of, in place of whose plain weight decay it stands."""
        return self.rbr_dense.conv.weight, self.rbr_1x1.conv.weight

    def fuse(self) -> nn.Conv2d:
        """Return the one convolution, with stride, padding, dilation and groups of the k x k branch.

        Raises:
            ValueError: a BatchNorm has no running statistics, or is none.
        """
        return with_weights(self.rbr_dense.conv, *self.get_equivalent_kernel_bias())

    def _branches(self) -> Iterator[tuple[Tensor, nn.Module]]:
        """Yield the float64 kernel (c2, c1 / g, k, k) of every branch and the norm behind it."""
        dense, point = self.rbr_dense.conv.weight.double(), self.rbr_1x1.conv.weight.double()
        margin = dense.shape[-1] // 2
        yield dense, self.rbr_dense.bn
        yield F.pad(point, [margin] * 4), self.rbr_1x1.bn
        if self.rbr_identity is not None:
            yield F.pad(identity_kernel(point), [margin] * 4), self.rbr_identity


class SqueezeExcite(nn.Module):
    """A factor from 0 to 1 per channel, from the means of all channels; (B, C, H, W) to the same.

    "Squeeze-and-Excitation Networks" (https://arxiv.org/abs/1709.01507). The mean is over the whole map, of any shape.
    """

    def __init__(self, channels: int, reduction: int = SQUEEZE) -> None:
        super().__init__()
        hidden = max(channels // reduction, 1)
        self.down = nn.Conv2d(channels, hidden, kernel_size=1)
        self.up = nn.Conv2d(hidden, channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))


class RepVGGBlock(nn.Module):
    """act([squeeze-excite] RepConv(x)): (B, c1, H, W) to (B, c2, ceil(H / s), ceil(W / s)).

    Args:
        conv: the linear part, which fusing replaces by a plain convolution.
        act: the activation.
        squeeze: whether a squeeze-excite stands between the two; it stays in deployment.
    """

    def __init__(self, conv: RepConv, act: nn.Module, squeeze: bool = False) -> None:
        super().__init__()
        self.conv = conv
        self.se = SqueezeExcite(conv.rbr_dense.conv.out_channels) if squeeze else nn.Identity()
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.se(self.conv(x)))


def thinned(x: Tensor, stride: tuple[int, int]) -> Tensor:
    """Return the pixels of (B, C, H, W) that a strided 1x1 convolution reads, for one of stride 1.

    torch 2.14's own strided one, of 3 channels in channels_last, corrupts memory when training on a CPU.
    """
    rows, columns = stride
    return x if stride == (1, 1) else x[:, :, ::rows, ::columns]


def _check(c1: int, c2: int, k: int, s: int, g: int, identity: bool, style: str) -> None:
    """Raise UserError for arguments of `RepConv` that make no such block."""
    if style not in STYLES:
        raise UserError(f"unknown style {style!r}{did_you_mean(str(style), STYLES)}, expected {' or '.join(STYLES)}")
    if k % 2 == 0:
        raise UserError(f"a RepConv needs an odd kernel, in whose middle the 1x1 stands, got k={k}")
    if c1 % g or c2 % g:
        raise UserError(f"a RepConv of {g} groups needs multiples of {g} channels, got {c1} in and {c2} out")
    if identity and (c1 != c2 or s != 1):
        raise UserError(
            f"a RepConv with identity keeps channels and size, got {c1} channels in, {c2} out and stride {s}: "
            f"leave the identity out"
        )


def norm_scale_shift(norm: nn.Module, kernel: Tensor) -> tuple[Tensor, Tensor]:
    """Return the float64 factor and shift per output channel of `kernel` that a BatchNorm or an identity means.

    Raises:
        ValueError: it is neither, or a BatchNorm without running statistics.
    """
    if isinstance(norm, nn.Identity):
        zeros = kernel.new_zeros(len(kernel), dtype=torch.float64)
        return zeros + 1, zeros
    if not isinstance(norm, _BatchNorm):
        raise ValueError(f"a {type(norm).__name__} cannot be folded into a convolution")
    return bn_scale_shift(norm)


def identity_kernel(like: Tensor) -> Tensor:
    """Return the 1x1 kernel of the shape of `like` (C, C / groups, 1, 1) that passes every channel on."""
    kernel = torch.zeros_like(like)
    channels = torch.arange(like.shape[0], device=like.device)
    kernel[channels, channels % like.shape[1]] = 1
    return kernel
