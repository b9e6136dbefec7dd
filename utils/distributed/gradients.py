"""The gradients and losses of a batch whose pictures lie in parts in several processes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from utils.distributed.group import is_shared


def add_gradients(parameters: Iterable[Tensor]) -> None:
    """Give each weight that learns the sum of its gradients in all processes; one that has none anywhere keeps none.

    All of them are summed at once and in a fixed order, so that a run that is resumed sums as before, to the last bit.
    """
    if not is_shared():
        return
    weights = [p for p in parameters if p.requires_grad]
    if not weights:
        return
    found = weights[0].new_tensor([float(p.grad is not None) for p in weights])
    parts = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in weights]
    total = torch.cat([found, *parts])
    dist.all_reduce(total)
    present, *sums = total.split([len(weights), *(p.numel() for p in weights)])
    for weight, there, gradient in zip(weights, present.tolist(), sums, strict=True):
        weight.grad = gradient.view_as(weight).clone() if there else None


def average_losses(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
    """Return the loss of a model and its parts for the log, which are those of the whole batch.

    A forward hook; where the model was not given a batch to learn from, the output stays as it is.
    """
    batch = inputs[0]
    if not (isinstance(batch, dict) and torch.is_grad_enabled()):
        return output
    loss, parts = output
    pictures = len(batch["img"])
    total = torch.stack([*(part * pictures for part in parts.values()), loss.new_tensor(pictures)]).detach()
    dist.all_reduce(total)
    return loss, dict(zip(parts, total[:-1] / total[-1], strict=True))


def mean_over_batches(losses: dict[str, Tensor], batches: int) -> dict[str, Tensor]:
    """Return the means of sums of losses over the batches of all processes.

    Args:
        losses: sums over the batches of this process.
        batches: of this process.
    """
    total = torch.stack([*losses.values(), next(iter(losses.values())).new_tensor(batches)])
    dist.all_reduce(total)
    return dict(zip(losses, total[:-1] / total[-1], strict=True))
