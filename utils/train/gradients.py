"""Gradient re-parameterization: a plain network learns as one with branches would, and has none to fuse.

"Re-parameterizing Your Optimizers rather than Architectures" (RepOptimizer, https://arxiv.org/abs/2205.15242): beside
each k x k convolution a 1x1 one and the identity are imagined, s (W + W1) + I with a constant s for each convolution.
The sum is one kernel from the first step on, and its steps are multiplied by what they would be in the sum. The scales
are those from which the paper searches: 1 where the map is reduced, and sqrt(2 / l) in the l-th convolution after it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from models import DetectionModel
from models.blocks.repconv import identity_kernel
from models.blocks.widen import narrow_convolutions
from models.errors import UserError

OPTIMIZERS = ("SGD", "AdamW")  # for which it is known what a step would be


def plain_convolutions(model: DetectionModel) -> dict[nn.Conv2d, float]:
    """Return the convolutions that have no branches but a BatchNorm of their own and an odd kernel, with their scales.

    Raises:
        UserError: there is none.
    """
    scales: dict[nn.Conv2d, float] = {}
    depth = 0  # convolutions since the map was reduced
    for conv, bn in narrow_convolutions(model, model.example_input()).items():
        if bn is not None and conv.kernel_size[0] % 2:
            depth = 0 if max(conv.stride) > 1 else depth + 1
            scales[conv] = (2 / depth) ** 0.5 if depth else 1.0
    if not scales:
        raise UserError(
            f"--rep-optimizer is for convolutions without branches and with BatchNorm, of which {model.spec.name} has "
            f"none: leave it out"
        )
    return scales


def check_scales_steps(model: DetectionModel, optimizer: str) -> None:
    """Raise UserError unless a model can be trained with the steps of this optimizer scaled."""
    if optimizer not in OPTIMIZERS:
        raise UserError(f"--rep-optimizer scales the steps of {' or '.join(OPTIMIZERS)}, not of {optimizer}")
    plain_convolutions(model)


@torch.no_grad()
def start_as_sum(model: DetectionModel) -> None:
    """Let new weights be those of the sum, s (W + W1) + I, in place; rows that start pretrained keep theirs."""
    kept = model.pretrained_modules()
    for conv, scale in plain_convolutions(model).items():
        if conv not in kept:
            point = nn.Conv2d(conv.in_channels, conv.out_channels, 1, groups=conv.groups, bias=False).weight
            conv.weight *= scale
            _middle(conv.weight).add_(scale * point.to(conv.weight))
            if _keeps_shape(conv):
                _middle(conv.weight).add_(identity_kernel(point).to(conv.weight))


def scale_steps(model: DetectionModel, optimizer: torch.optim.Optimizer) -> None:
    """Have each step of an optimizer move plain kernels as the sum with branches would move.

    Of SGD the gradients are multiplied, by s^2 and where a branch joins by what is its own: momentum and weight decay
    follow. A step of AdamW has the same size whatever the gradient is multiplied by, so that the step itself is
    multiplied, by s in place of s^2; its weight decay is not.

    Args:
        model: whose weights are optimized.
        optimizer: one of OPTIMIZERS.
    """
    of_gradients = isinstance(optimizer, torch.optim.SGD)
    convs = plain_convolutions(model)
    factors = {conv.weight: step_factors(conv, scale**2 if of_gradients else scale) for conv, scale in convs.items()}
    if of_gradients:
        optimizer.register_step_pre_hook(lambda *_: _multiply_gradients(factors))
        return
    before: dict[Tensor, Tensor] = {}
    optimizer.register_step_pre_hook(lambda *_: _note(factors, before))
    optimizer.register_step_post_hook(lambda optimizer, *_: _multiply_steps(optimizer, factors, before))


def step_factors(conv: nn.Conv2d, factor: float) -> Tensor:
    """Return by what a step of each weight of a convolution, (c2, c1 / groups, k, k), is multiplied.

    Args:
        conv: of stride 1 and as many channels out as in, where the identity is imagined too.
        factor: that of the k x k branch, and of the 1x1 branch.
    """
    factors = torch.full_like(conv.weight, factor, requires_grad=False)
    _middle(factors).add_(factor)
    if _keeps_shape(conv):
        _middle(factors).add_(identity_kernel(_middle(factors)))
    return factors


def _multiply_gradients(factors: dict[Tensor, Tensor]) -> None:
    for weight, factor in factors.items():
        if weight.grad is not None:
            weight.grad.mul_(factor)


def _note(factors: dict[Tensor, Tensor], before: dict[Tensor, Tensor]) -> None:
    before.update({weight: weight.detach().clone() for weight in factors if weight.grad is not None})


@torch.no_grad()
def _multiply_steps(optimizer: Any, factors: dict[Tensor, Tensor], before: dict[Tensor, Tensor]) -> None:
    for group in optimizer.param_groups:
        for weight in (p for p in group["params"] if p in before):
            decayed = before.pop(weight).mul_(1 - group["lr"] * group["weight_decay"])
            weight.copy_(decayed + factors[weight] * (weight - decayed))


def _middle(kernel: Tensor) -> Tensor:
    """Return the middle of a kernel, (c2, c1 / groups, 1, 1), as a view."""
    middle = kernel.shape[-1] // 2
    return kernel[:, :, middle : middle + 1, middle : middle + 1]


def _keeps_shape(conv: nn.Conv2d) -> bool:
    return conv.in_channels == conv.out_channels and max(conv.stride) == 1
