"""Losses between what a teacher and a student give for the same pictures. Each is 0 where they give the same.

Of a batch that lies in parts in several processes, what they take the mean over is the whole batch.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from ultralytics.utils.metrics import bbox_iou

from models.loss import in_full
from models.shared_loss import shared_factor
from utils.distributed.group import is_shared
from utils.distributed.sync_bn import batch_norm

EPS = 1e-5  # added to variances


def normalize(maps: Tensor) -> Tensor:
    """Return maps (B, C, H, W) with mean 0 and variance 1 in each channel, over all pictures and cells of the batch.

    The first step of PKD (https://arxiv.org/abs/2207.02039). In float32 at least.
    """
    maps = in_full(maps)
    if is_shared():
        return batch_norm(maps, None, None, training=True, eps=EPS)
    variance, mean = torch.var_mean(maps, (0, 2, 3), correction=0, keepdim=True)
    return (maps - mean) * (variance + EPS).rsqrt()


def channel_divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the mean over pictures and channels of the divergence of CWD (https://arxiv.org/abs/2011.13256).

    Each channel of a map is a distribution over its cells, softmax(values / temperature); what counts is the
    Kullback-Leibler divergence of the student's from the teacher's, times the square of the temperature.

    Args:
        student: (B, C, H, W).
        teacher: of the same shape.
        temperature: above 0; a high one counts more of the cells.
    """
    own, wanted = ((maps.flatten(2) / temperature).log_softmax(2) for maps in (student, teacher))
    divergence = F.kl_div(own, wanted, reduction="none", log_target=True).sum(2)
    return divergence.mean() * temperature**2


def correlation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return half the mean square of the difference of maps (B, C, H, W).

    Of normalized maps it is 1 - r, with Pearson's r of each channel: the loss of PKD.
    """
    return 0.5 * (student - teacher).square().mean()


def weighted_square(student: Tensor, teacher: Tensor, scores: Tensor) -> Tensor:
    """Return the mean over cells, weighted by scores, and over channels of the squared difference.

    It is ultralytics' loss for distillation.

    Args:
        student: (B, C, H, W).
        teacher: of the same shape.
        scores: (B, 1, H, W), how sure the teacher is of an object in a cell.
    """
    scores = in_full(scores)
    squares = (in_full(student) - in_full(teacher)).square().mean(1, keepdim=True)
    return mean_by(squares * scores, scores)


def mean_by(values: Tensor, weights: Tensor) -> Tensor:
    """Return the sum of `values` over the sum of `weights`, of the batches of all processes, or 1 if that is less."""
    amount = weights.detach().sum()
    return values.sum() / amount.clamp(min=1) * shared_factor(amount, len(values))


def score_gap(student: Tensor, teacher: Tensor) -> Tensor:
    """Return how far probabilities are apart, without a gradient, of logits of one shape."""
    return (student.detach().sigmoid() - teacher.sigmoid()).abs()


def binary_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Return for each logit the cross-entropy with the teacher's probability, weighted by how far they are apart.

    The classification loss of BCKD (https://arxiv.org/abs/2308.14286), for scores that are sigmoids of their own.

    Args:
        student: logits.
        teacher: logits of the same shape.
    """
    loss = F.binary_cross_entropy_with_logits(student, teacher.sigmoid(), reduction="none")
    return loss * score_gap(student, teacher)


def box_gap(student: Tensor, teacher: Tensor) -> Tensor:
    """Return 1 - GIoU of boxes x1 y1 x2 y2, (..., 4) to (...), as BCKD compares them."""
    return 1 - bbox_iou(student, teacher, xywh=False, GIoU=True).squeeze(-1)


def class_divergence(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """Return the mean Kullback-Leibler divergence of softened class probabilities, times the temperature's square.

    "Distilling the Knowledge in a Neural Network" (https://arxiv.org/abs/1503.02531).

    Args:
        student: logits (B, nc).
        teacher: of the same shape.
        temperature: by which logits are divided.
    """
    own, wanted = ((in_full(logits) / temperature).log_softmax(1) for logits in (student, teacher))
    return F.kl_div(own, wanted, reduction="batchmean", log_target=True) * temperature**2


def relative_square(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the squared difference over the square of what the teacher gives, (B, ...), both summed over the batch."""
    own, wanted = in_full(student), in_full(teacher)
    return mean_by((own - wanted).square(), wanted.square())
