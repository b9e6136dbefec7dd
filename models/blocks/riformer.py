"""The RIFormer block: a PoolFormer block whose token mixer is nothing but an affine map at training time.

"RIFormer: Keep Your Vision Backbone Effective But Removing Token Mixer" (https://arxiv.org/abs/2304.05659):

    x = x + layer_scale_1 * (affine(norm1(x)) - norm1(x))        affine: a factor and a shift per channel
    x = x + layer_scale_2 * fc2(gelu(fc1(norm2(x))))             norms: GroupNorm with one group

Published deployment folds the affine map into norm1. Here everything linear is folded: what remains is a factor and a
shift per channel, two 1x1 convolutions and a GELU. Parameter names are those of the published checkpoints.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from models.blocks.reparam import Reparameterizable, register_fuser, with_weights


class Affine(nn.Module):
    """The token mixer at training time: `affine(x) - x`, a depthwise 1x1 convolution minus the identity."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.affine = nn.Conv2d(dim, dim, kernel_size=1, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.affine(x) - x


class Mlp(nn.Module):
    """Two 1x1 convolutions around a GELU, with dropout behind both, (B, C, H, W) to (B, C, H, W)."""

    def __init__(self, dim: int, hidden: int, drop: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden, kernel_size=1)
        self.act = nn.GELU()
        self.fc2 = nn.Conv2d(hidden, dim, kernel_size=1)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class DropPath(nn.Module):
    """Stochastic depth: in training, drop the branch of each picture with probability `rate` and scale up the rest."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(1 - self.rate)
        return x * keep / (1 - self.rate)


class RIFormerBlock(Reparameterizable):
    """A RIFormer block in its training form, (B, C, H, W) to (B, C, H, W)."""

    def __init__(
        self,
        dim: int,
        mlp_ratio: float = 4.0,
        layer_scale_init: float = 1e-5,
        drop_path: float = 0.0,
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(1, dim)
        self.token_mixer = Affine(dim)
        self.norm2 = nn.GroupNorm(1, dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop)
        self.layer_scale_1 = nn.Parameter(torch.full((dim,), layer_scale_init))
        self.layer_scale_2 = nn.Parameter(torch.full((dim,), layer_scale_init))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.layer_scale_1[:, None, None] * self.token_mixer(self.norm1(x)))
        return x + self.drop_path(self.layer_scale_2[:, None, None] * self.mlp(self.norm2(x)))

    def get_equivalent_scale_bias(self) -> tuple[Tensor, Tensor]:
        """Return weight and bias, each (dim,), of the GroupNorm that computes `token_mixer(norm1(x))`.

        It is norm1 in the published deploy form, which has layer_scale_1 beside it. Differentiable in norm1 and the
        affine map; computed in float64, then cast to the dtype of the weights.
        """
        weight, bias = _scale_bias(self.norm1, self.token_mixer.affine)
        return weight.to(self.norm1.weight), bias.to(self.norm1.weight)

    def fuse(self) -> DeployRIFormerBlock:
        """Fold the affine map and layer_scale_1 into norm1, layer_scale_2 into fc2, and norm2's affine into fc1."""
        scale1, scale2 = (s.detach().double() for s in (self.layer_scale_1, self.layer_scale_2))
        norm = fuse_norm_affine(self.norm1, self.token_mixer.affine)
        norm = with_weights(norm, norm.weight.double() * scale1, norm.bias.double() * scale1)
        fc1 = fuse_norm_conv(self.norm2, self.mlp.fc1)
        weight, bias = _double(self.mlp.fc2)
        fc2 = with_weights(self.mlp.fc2, scale2[:, None, None, None] * weight, scale2 * bias)
        return DeployRIFormerBlock(norm, self.norm2.eps, fc1, self.mlp.act, fc2)


class WrittenOut(nn.Module):
    """Base class of modules that write the statistics of GroupNorms out, which suits most runtimes best."""

    def with_group_norms(self) -> nn.Module:
        """Return what computes the same with GroupNorms, for runtimes that have a fast one; weights are shared."""
        raise NotImplementedError


class DeployRIFormerBlock(WrittenOut):
    """A fused RIFormer block, (B, C, H, W) to (B, C, H, W):

        y = x + norm(x);  y + fc2(act(fc1(plain_norm(y))))        plain_norm: a GroupNorm(1) without affine

    Both norms are scalar statistics and a factor and a shift per channel, so y = A d + S with d = x - mean(x), and the
    mean and variance of y follow from those of d's channels: the pictures are read for statistics once, not twice. With
    the statistics written out, ONNX also has no InstanceNormalization, which runtimes compute on one thread.
    """

    def __init__(self, norm: nn.GroupNorm, eps: float, fc1: nn.Conv2d, act: nn.Module, fc2: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        self.eps1, self.eps2 = norm.eps, eps
        self.fc1, self.act, self.fc2 = fc1, act, fc2

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight[:, None, None], self.bias[:, None, None]
        wide = x.to(torch.promote_types(x.dtype, torch.float32))  # half-precision squares would overflow
        mean_c = wide.mean((2, 3), keepdim=True)  # per channel: (B, C, 1, 1)
        mean = mean_c.mean(1, keepdim=True)  # per picture: (B, 1, 1, 1)
        d = wide - mean
        square_c = d.square().mean((2, 3), keepdim=True)
        factor = 1 + weight * torch.rsqrt(square_c.mean(1, keepdim=True) + self.eps1)  # A
        shift = mean + bias  # S

        offset_c = mean_c - mean
        mean_c = factor * offset_c + shift  # of y from here on
        mean = mean_c.mean(1, keepdim=True)
        variance = (factor.square() * (square_c - offset_c.square()) + (mean_c - mean).square()).mean(1, keepdim=True)
        rstd = torch.rsqrt(variance + self.eps2)
        normed = d * (factor * rstd) + (shift - mean) * rstd
        y = d * factor + shift
        return y.to(x.dtype) + self.fc2(self.act(self.fc1(normed.to(x.dtype))))

    def with_group_norms(self) -> nn.Module:
        """Return the same block as its docstring states it."""
        norm1 = group_norm(self.weight, self.bias, self.eps1)
        norm2 = nn.GroupNorm(1, len(self.weight), self.eps2, affine=False)
        return GroupNormRIFormerBlock(norm1, norm2, self.fc1, self.act, self.fc2)


class GroupNormRIFormerBlock(nn.Module):
    """A fused RIFormer block with norms that are GroupNorms; see `DeployRIFormerBlock`."""

    def __init__(
        self, norm1: nn.GroupNorm, norm2: nn.GroupNorm, fc1: nn.Conv2d, act: nn.Module, fc2: nn.Conv2d
    ) -> None:
        super().__init__()
        self.norm1, self.norm2, self.fc1, self.act, self.fc2 = norm1, norm2, fc1, act, fc2

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.norm1(x)
        return y + self.fc2(self.act(self.fc1(self.norm2(y))))


class DeployGroupNorm(WrittenOut):
    """A GroupNorm with one group, its statistics written out; (B, C, H, W) to (B, C, H, W).

    ONNX has InstanceNormalization in its place, which ONNX Runtime computes on one thread and, on large maps, to three
    digits less.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        d = wide - wide.mean((2, 3), keepdim=True).mean(1, keepdim=True)
        variance = d.square().mean((2, 3), keepdim=True).mean(1, keepdim=True)
        factor = self.weight[:, None, None] * torch.rsqrt(variance + self.eps)
        return (d * factor + self.bias[:, None, None]).to(x.dtype)

    def with_group_norms(self) -> nn.Module:
        """Return the GroupNorm that this was."""
        return group_norm(self.weight, self.bias, self.eps)


def group_norm(weight: Tensor, bias: Tensor, eps: float) -> nn.GroupNorm:
    """Return a GroupNorm with one group that shares these parameters."""
    norm = nn.GroupNorm(1, len(weight), eps)
    norm.weight, norm.bias = nn.Parameter(weight), nn.Parameter(bias)
    return norm


@register_fuser
def write_out_group_norm(module: nn.Module) -> nn.Module | None:
    """Return the deploy form of a GroupNorm with one group and an affine; None for other modules."""
    if type(module) is not nn.GroupNorm or module.num_groups != 1 or not module.affine:
        return None
    return DeployGroupNorm(copy.deepcopy(module))


def fuse_norm_affine(norm: nn.GroupNorm, affine: nn.Conv2d) -> nn.GroupNorm:
    """Return the GroupNorm that computes `affine(norm(x)) - norm(x)`, the published deploy form of the token mixer."""
    return with_weights(norm, *_scale_bias(norm, affine))


def _scale_bias(norm: nn.GroupNorm, affine: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Return the float64 weight and bias, each (C,), of a GroupNorm that computes `affine(norm(x)) - norm(x)`."""
    (weight, bias), (factor, shift) = _double(norm), _double(affine)
    factor = factor.flatten() - 1
    return weight * factor, bias * factor + shift


def fuse_norm_conv(norm: nn.GroupNorm, conv: nn.Conv2d) -> nn.Conv2d:
    """Return the 1x1 convolution that computes `conv(norm(x))` from `norm(x)` without its weight and bias."""
    (factor, shift), (weight, bias) = _double(norm), _double(conv)
    return with_weights(conv, weight * factor[:, None, None], bias + weight.flatten(1) @ shift)


def _double(module: nn.GroupNorm | nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Return weight and bias in float64, zeros if there is no bias."""
    weight = module.weight.double()
    return weight, weight.new_zeros(len(weight)) if module.bias is None else module.bias.double()
