"""BatchNorm whose statistics are those of all processes, on GPUs and on the CPU, where torch's own refuses.

Of each class of BatchNorm, timm's with an activation too, a subclass is made that leaves the work to `F.batch_norm` as
before, for which `batch_norm` stands in while it trains. So names of tensors, fusing and what is saved stay the same.
"""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F
from torch.nn.modules._functions import SyncBatchNorm as SyncOnGpu
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode


def synchronize(model: nn.Module) -> None:
    """Have all BatchNorms of a model take their statistics over all processes while they train."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.__class__ = synchronized(cast(Any, type(module)))


@cache
def synchronized(kind: Any) -> type[_BatchNorm]:
    """Return the subclass of a class of BatchNorm whose statistics are those of all processes."""

    def forward(self: Any, x: Tensor) -> Tensor:
        if not self.training:
            return kind.forward(self, x)
        with Synchronized():
            return kind.forward(self, x)

    return type(kind.__name__, (kind,), {"forward": forward})


class Synchronized(TorchFunctionMode):
    """Where `batch_norm` stands in for `F.batch_norm`."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of torch, or what stands in for it."""
        return (batch_norm if function is F.batch_norm else function)(*args, **(kwargs or {}))


class SumOfAll(torch.autograd.Function):
    """The sum of a tensor over all processes, whose gradient is the sum of theirs."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        """Return the sum."""
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        """Return the sum of the gradients."""
        total = gradient.clone()
        dist.all_reduce(total)
        return total


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Return `F.batch_norm` of x (B, C, ...) with the statistics of the batches of all processes."""
    if not training:
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    if x.is_cuda:
        group, size = dist.group.WORLD, dist.get_world_size()
        return SyncOnGpu.apply(x, weight, bias, running_mean, running_var, eps, momentum, group, size)
    over = [i for i in range(x.ndim) if i != 1]
    shape = [1, -1, *[1] * (x.ndim - 2)]
    count = x.new_tensor([x.numel() // x.shape[1]])
    dist.all_reduce(count)
    mean = SumOfAll.apply(x.sum(over)) / count
    centred = x - mean.view(shape)
    var = SumOfAll.apply(centred.square().sum(over)) / count
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean, momentum)
            running_var.lerp_(var * count / (count - 1), momentum)
    y = centred * (var + eps).rsqrt().view(shape)
    y = y if weight is None else y * weight.view(shape)
    return y if bias is None else y + bias.view(shape)
