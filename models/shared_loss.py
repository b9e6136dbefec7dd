"""Losses of a batch that several processes share, so that their gradients add up to those of the whole batch.

A loss is a sum over a batch, divided by an amount that the batch has, such as its positives, times its number of
pictures. Where the batch lies in parts in the processes of `torch.distributed`, the amount is that of all parts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from ultralytics.nn.modules import Detect, Segment, Segment26
from ultralytics.utils.loss import SegmentLoss26, v8ClassificationLoss, v8DetectionLoss, v8SegmentationLoss


def shared_factor(amount: Tensor, pictures: int) -> Tensor:
    """Return by what to multiply a loss of this process's pictures, so that the losses of all add up to the batch's.

    The loss was divided by `amount`, or by 1 where that is less, and multiplied by `pictures`. Alone, and where nothing
    is learnt, as in validation, the factor is 1.

    Args:
        amount: of this process, ().
        pictures: of this process.
    """
    if not (dist.is_initialized() and torch.is_grad_enabled()):
        return torch.ones_like(amount)
    own = torch.stack([amount, amount.new_tensor(pictures)]).detach()
    total = own.clone()
    dist.all_reduce(total)
    return (own[0].clamp(min=1) / own[1]) / (total[0].clamp(min=1) / total[1])


def share_of_mean(pictures: Tensor) -> Tensor:
    """Return by what to multiply the mean loss of this process's pictures, so that those of all add up to the mean.

    Args:
        pictures: of this process, ().
    """
    if not (dist.is_initialized() and torch.is_grad_enabled()):
        return torch.ones_like(pictures)
    total = pictures.clone()
    dist.all_reduce(total)
    return pictures / total


class SharedClassificationLoss(v8ClassificationLoss):
    """ultralytics' cross-entropy, of which each process has its part."""

    def __call__(self, preds: Any, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the part of the mean over the pictures of all processes, and the mean of these."""
        loss, items = super().__call__(preds, batch)
        return loss * share_of_mean(loss.new_tensor(float(len(batch["cls"])))), items


class SharedDetectionLoss(v8DetectionLoss):
    """ultralytics' loss of a head without anchors, whose amounts are those of all processes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.assigner.register_forward_hook(self.keep_scores)

    def keep_scores(self, _: Any, __: Any, assigned: tuple[Tensor, ...]) -> None:
        """Keep the sum of the scores that are to be learnt, by which ultralytics divides its loss."""
        self.scores = assigned[2].sum()

    def get_assigned_targets_and_loss(self, preds: dict[str, Tensor], batch: dict[str, Any], **options: Any) -> tuple:
        """Return what ultralytics' does, with the loss as a part of that of the whole batch."""
        found, loss, items = super().get_assigned_targets_and_loss(preds, batch, **options)
        loss = loss * shared_factor(self.scores, len(preds["scores"]))
        return found, loss, dict(zip(items, loss.detach(), strict=True))


class SharedSegmentationLoss(SharedDetectionLoss, v8SegmentationLoss):
    """ultralytics' loss of a segmentation head without anchors, whose amounts are those of all processes."""

    def get_assigned_targets_and_loss(self, preds: dict[str, Tensor], batch: dict[str, Any], **options: Any) -> tuple:
        """Return what ultralytics' does, and keep how much the masks' loss of this process weighs."""
        found, loss, items = super().get_assigned_targets_and_loss(preds, batch, **options)
        self.mask_factor = shared_factor(found[0].sum().to(loss), len(preds["scores"]))
        return found, loss, items

    def calculate_segmentation_loss(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss of the masks, as a part of that of the whole batch."""
        return super().calculate_segmentation_loss(*args, **kwargs) * self.mask_factor


class SharedSegmentationLoss26(SharedSegmentationLoss, SegmentLoss26):
    """ultralytics' loss of YOLO26's segmentation head, whose amounts are those of all processes.

    ultralytics leaves out the loss of the classes of pixels where a batch has no positives; here so does a process
    whose part has none.
    """


def shared_loss(head: Detect) -> type[SharedDetectionLoss]:
    """Return the loss of a head without anchors."""
    if isinstance(head, Segment26):
        return SharedSegmentationLoss26
    return SharedSegmentationLoss if isinstance(head, Segment) else SharedDetectionLoss
