"""Logits of a network and of its fused form, judged by what float32 itself does to the unfused one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

ROUNDINGS = 10  # how many times further than the unfused network's the fused one's logits may be from those in float64
LEAST_ROUNDING = 1e-7  # of float32, relative to the largest logit of a picture
SAMPLE = 8  # pictures of which the unfused network's rounding is always measured


@dataclass
class LogitDifference:
    """How far the logits of the two forms are apart, all relative to the largest of a picture."""

    relative: float = 0.0  # the largest difference of all pictures
    other_top1: int = 0  # pictures whose best class is another one
    rounding: float = LEAST_ROUNDING  # between float32 and float64 of the unfused network, the largest of the sample
    beyond: int = 0  # pictures whose fused logits are further from float64 than that allows
    measured: int = 0  # pictures of the sample

    @property
    def tolerance(self) -> float:
        """How far apart the logits of a picture may be without a look at its own rounding."""
        return ROUNDINGS * self.rounding

    @property
    def ok(self) -> bool:
        """Whether all of it is rounding."""
        return self.beyond == 0

    def add(self, logits: Tensor, others: Tensor, exact: Callable[[Tensor], Tensor]) -> None:
        """Compare a batch of logits in both forms.

        Args:
            logits: of the unfused network in float32, (B, classes).
            others: of the fused one.
            exact: returns the unfused network's logits in float64 for pictures of the batch, by their numbers (N,).
        """
        sample = torch.arange(min(SAMPLE - self.measured, len(logits)))
        if len(sample):
            self.measured += len(sample)
            own = _apart(logits[sample], exact(sample))
            self.rounding = max([self.rounding, *own[own.isfinite()].tolist()])
        apart = _apart(others, logits)
        far = (~(apart <= self.tolerance)).nonzero().flatten()
        if len(far):
            truth = exact(far)
            allowed = ROUNDINGS * _apart(logits[far], truth).clamp(min=self.rounding)
            self.beyond += int((~(_apart(others[far], truth) <= allowed)).sum())
        self.relative = max(self.relative, float(apart.max()) if apart.isfinite().all() else float("inf"))
        self.other_top1 += int((logits.argmax(dim=1) != others.argmax(dim=1)).sum())


def _apart(got: Tensor, want: Tensor) -> Tensor:
    """Return the largest difference of each picture, (B,), relative to its largest logit."""
    want = want.double()
    return (got.double() - want).abs().amax(dim=1) / want.abs().amax(dim=1)
