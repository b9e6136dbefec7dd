"""What a student learns from the feature maps of a teacher, level by level."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.loss import in_full
from utils.train.teaching.losses import channel_divergence, correlation_loss, normalize, weighted_square

FEATURE_LOSSES = ("cwd", "pkd", "l2")
NORMALIZED = {"cwd": channel_divergence, "pkd": correlation_loss}  # those that compare normalized maps


class Features:
    """The losses of a student's maps by a teacher's.

    `cwd` is the channel-wise divergence of normalized maps, as RTMDet's recipes for distillation have it; `pkd` is
    PKD's, 1 - Pearson's r of each channel; `l2` is ultralytics', the squared difference where the teacher sees objects.

    Args:
        kind: one of FEATURE_LOSSES.
        channels: of the student and of the teacher, by stride.
        seed: of the first weights of the adapters.

    Attributes:
        adapters: 1x1 convolutions to the teacher's channels where these differ; trained, and no part of the model.
    """

    def __init__(self, kind: str, channels: Mapping[float, tuple[int, int]], seed: int) -> None:
        self.kind, self.strides = kind, list(channels)
        bias = kind not in NORMALIZED  # which would do nothing there
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            other = {s: sides for s, sides in channels.items() if sides[0] != sides[1]}
            self.adapters = nn.ModuleDict({_key(s): nn.Conv2d(*sides, 1, bias=bias) for s, sides in other.items()})

    def names(self) -> tuple[str, ...]:
        """Return what the loss is called."""
        return (f"{self.kind}_loss",) if self.strides else ()

    def loss(
        self, student: Mapping[Hashable, Any], teacher: Mapping[Hashable, Any], scores: Mapping[float, Tensor]
    ) -> Tensor:
        """Return the sum of the losses of all levels.

        Args:
            student: its maps (B, C, H, W), by stride.
            teacher: those of the teacher.
            scores: how sure the teacher is of an object in each cell, (B, 1, H, W), where that is known; for `l2`.
        """
        levels = [self._level(student[s], teacher[s], s, scores.get(s)) for s in self.strides]
        return torch.stack(levels).sum()

    def _level(self, student: Tensor, teacher: Tensor, stride: float, scores: Tensor | None) -> Tensor:
        student, teacher = in_full(student), in_full(teacher)
        if (key := _key(stride)) in self.adapters:
            student = self.adapters[key](student)
        teacher = _resized(teacher, student)
        if self.kind in NORMALIZED:
            return NORMALIZED[self.kind](normalize(student), normalize(teacher))
        everywhere = torch.ones_like(student[:, :1])
        return weighted_square(student, teacher, everywhere if scores is None else _resized(scores, student))


def _key(stride: float) -> str:
    return f"{stride:g}".replace(".", "_")


def _resized(teacher: Tensor, student: Tensor) -> Tensor:
    """Return a map of the teacher with the sides of the student's."""
    if teacher.shape[2:] == student.shape[2:]:
        return teacher
    return F.interpolate(teacher, student.shape[2:], mode="bilinear")
