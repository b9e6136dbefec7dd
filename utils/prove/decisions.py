"""Which decisions of non-maximum suppression (NMS) are certain, when rounding may have moved every box and score.

NMS drops and keeps by comparing numbers: a score with the threshold and with other scores, the overlap (IoU) of two
boxes with the largest one allowed. Where two sides of a comparison are nearer than rounding moves them, either outcome
is right, and so is everything that follows from it: a box that is kept drops others, which would have dropped further
ones. Here every candidate is certainly kept, certainly dropped, or undecidable, which is found by running NMS with
three values instead of two until nothing changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from ultralytics.utils.ops import xywh2xyxy

from utils.deploy.ends import CLASS_STEP, Nms

JUDGED = 3000  # best candidates of a picture; those after them stay undecided
CORNER = 1.5  # error of a corner of a box over that of its centre and its sides: centre + side / 2
FLOAT32 = 2**-23  # spacing of float32 relative to the number
BLOCK = 128  # candidates that are paired with all others at a time


class Slack(NamedTuple):
    """How far rounding may have moved each number, either way."""

    box_px: float  # centre and sides of a box, in pixels
    score: float


@dataclass(frozen=True)
class Decisions:
    """What is certain of the N candidates of one picture; all are (N,) booleans. The rest is undecidable.

    Attributes:
        kept: it is among the boxes that NMS gives.
        dropped: it is not.
    """

    kept: Tensor
    dropped: Tensor


def decide(candidates: Tensor, nc: int, nms: Nms, slack: Slack) -> Decisions:
    """Return which candidates of one picture NMS certainly keeps and which it certainly drops.

    Args:
        candidates: (4 + nc or more, N): boxes xywh in pixels, then scores in [0, 1].
        nc: number of classes.
        nms: its thresholds.
        slack: what rounding may have changed in each number.
    """
    best = candidates[4 : 4 + nc].amax(0)
    possible = best > nms.conf_thres - slack.score
    kept, dropped = torch.zeros_like(possible), ~possible
    if not possible.any():
        return Decisions(kept, dropped)
    order = best.masked_fill(~possible, -1).argsort(descending=True)[: int(possible.sum())]
    judged, rest = order[:JUDGED], order[JUDGED:]
    least = best[rest[0]].item() if len(rest) else -1.0
    part = _decide_sorted(candidates[: 4 + nc, judged], nms, slack, least)
    kept[judged], dropped[judged] = part.kept, part.dropped
    return Decisions(kept, dropped)


def _decide_sorted(candidates: Tensor, nms: Nms, slack: Slack, least: float) -> Decisions:
    """Decide candidates (4 + nc, K) that come in the order of their scores; others have at most the score `least`."""
    scores = candidates[4:]
    best = scores.amax(0)
    classes = scores >= best - 2 * slack.score  # (nc, K): those that may be the best one
    sure = (classes.sum(0) == 1) & (best > nms.conf_thres + slack.score) & (best > least + 2 * slack.score)
    may_drop, drops = _suppressions(candidates[:4].T, best, classes, nms, slack)
    kept, dropped = torch.zeros_like(sure), torch.zeros_like(sure)
    while True:
        now_dropped = _is_target(drops, kept)
        now_kept = sure & ~_is_target(may_drop, ~now_dropped)
        if now_dropped.equal(dropped) and now_kept.equal(kept):
            break
        kept, dropped = now_kept, now_dropped
    before = torch.searchsorted(-best, 2 * slack.score - best, right=True)  # candidates that may come first, and itself
    ahead = (~dropped).cumsum(0)
    certainly_given = ahead[before - 1] <= nms.max_det
    return Decisions(kept & certainly_given, dropped)


class Pairs(NamedTuple):
    """Pairs of candidates, as indices (P,): the one that is kept drops the other."""

    by: Tensor
    target: Tensor


def _is_target(pairs: Pairs, active: Tensor) -> Tensor:
    """Return for each candidate whether it is the target of one that is `active`, (K,)."""
    hit = torch.zeros_like(active)
    hit[pairs.target[active[pairs.by]]] = True
    return hit


def _suppressions(boxes: Tensor, best: Tensor, classes: Tensor, nms: Nms, slack: Slack) -> tuple[Pairs, Pairs]:
    """Return the pairs of which one may drop the other, and those of which it does if it is kept.

    Args:
        boxes: (K, 4) xywh in pixels.
        best: score of each, (K,), the largest first.
        classes: (nc, K): whether a class may be the best one of a candidate.
        nms: its thresholds.
        slack: what rounding may have changed.
    """
    label, single = classes.int().argmax(0), classes.sum(0) == 1
    rounding: Tensor | float = 0.0
    if nms.agnostic_nms:
        label, single = torch.zeros_like(label), torch.ones_like(single)
    else:
        rounding = rounding_of_classes(label)
    alike = label[:, None] == label  # (K, K)
    some = (~single).nonzero()[:, 0]
    if len(some):
        shared = classes.float().T @ classes[:, some].float() > 0
        alike[:, some], alike[some] = shared, shared.T
    corners = xywh2xyxy(boxes)
    error = (CORNER * slack.box_px + rounding + torch.zeros_like(best)).to(boxes.dtype)
    by, target = _touching(corners, error.max(), best, alike, slack)
    low, high = overlap_range(corners[by], corners[target], error[by], error[target])
    lead = best[by] - best[target]  # by how much the first is ahead of the second
    may = (lead >= -2 * slack.score) & (high > nms.iou_thres)
    does = (lead > 2 * slack.score) & single[by] & single[target] & (low > nms.iou_thres)
    return Pairs(by[may], target[may]), Pairs(by[does], target[does])


def _touching(corners: Tensor, error: Tensor, best: Tensor, alike: Tensor, slack: Slack) -> Pairs:
    """Return the pairs, each both ways, that may overlap at all, and whose first may come before the second in NMS.

    They are few of all K x K, which are looked at in blocks of rows that stay in the processor's cache.

    Args:
        corners: (K, 4) xyxy in pixels.
        error: by how much a corner may be off, in pixels.
        best: score of each, (K,), the largest first.
        alike: (K, K): the two may be of one class.
        slack: what rounding may have changed.
    """
    x1, y1, x2, y2 = (corners + torch.stack([-error, -error, error, error])).T
    first = torch.searchsorted(-best, -(best + 2 * slack.score))  # of those that are not certainly ahead
    found = []
    for start in range(0, len(best), BLOCK):
        rows, columns = slice(start, start + BLOCK), slice(int(first[start]), None)
        touch = alike[rows, columns].clone()
        for low, high in ((x1, x2), (y1, y2)):
            touch &= low[rows, None] < high[columns]
            touch &= low[columns] < high[rows, None]
        touch[torch.arange(len(touch)), torch.arange(start, start + len(touch)) - columns.start] = False
        by, target = touch.nonzero(as_tuple=True)
        found.append((by + start, target + columns.start))
    return Pairs(*map(torch.cat, zip(*found, strict=True)))


def rounding_of_classes(classes: Tensor) -> Tensor:
    """Return by how many pixels NMS rounds corners of boxes of some classes, which it moves far apart in float32."""
    return (classes + 1) * CLASS_STEP * FLOAT32


def overlap_range(first: Tensor, second: Tensor, first_error: Tensor, second_error: Tensor) -> tuple[Tensor, Tensor]:
    """Return the least and the largest IoU, (...), of boxes (..., 4) xyxy whose corners are off by up to the errors.

    Errors are in pixels, (...). All are broadcast as torch does.
    """
    errors = first_error[..., None], second_error[..., None]
    shared = torch.minimum(first[..., 2:], second[..., 2:]) - torch.maximum(first[..., :2], second[..., :2])
    off = 2 * torch.maximum(*errors)
    least, most = ((shared + by).clamp(min=0).prod(-1) for by in (-off, off))
    sides = [(box[..., 2:] - box[..., :2]).clamp(min=0) for box in (first, second)]
    small, large = (
        sum((side + sign * 2 * error).clamp(min=0).prod(-1) for side, error in zip(sides, errors, strict=True))
        for sign in (-1, 1)
    )
    tiny = 1e-9  # two empty boxes do not overlap
    low = least / (large - least + tiny)
    high = most / (small - most).clamp(min=tiny)
    return low, high.clamp(max=1)


# Judging --------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Verdict:
    """What NMS left on one side, held against the decisions that are certain.

    Attributes:
        undecidable: detections of the reference that rounding may have dropped or replaced.
        wrong: detections that are certain and missing, or that are there and certainly dropped.
    """

    undecidable: int = 0
    wrong: int = 0

    def __add__(self, other: Verdict) -> Verdict:
        return Verdict(self.undecidable + other.undecidable, self.wrong + other.wrong)


def judge_detections(
    candidates: Tensor, reference: Tensor, found: Tensor, nc: int, nms: Nms, slack: Slack, near: Slack
) -> Verdict:
    """Return how many detections of one picture are wrong, and how many nobody can judge.

    Args:
        candidates: of the reference, (4 + nc or more, N): boxes xywh in pixels, then scores.
        reference: what NMS left of them, (n, 6 or more): x1 y1 x2 y2 in pixels, score, class.
        found: what NMS left on the other side, likewise.
        nc: number of classes.
        nms: the thresholds of both.
        slack: what rounding may have changed in each number, on either side.
        near: how far a detection may be from the candidate that it comes from.
    """
    decisions = decide(candidates, nc, nms, slack)
    of_reference, of_found = (_origins(candidates, rows, nc, near) for rows in (reference, found))
    missing = decisions.kept & ~of_found.any(0)
    unfounded = of_found.any(1) & (~of_found | decisions.dropped).all(1)
    certain = (of_reference & decisions.kept).any(1)
    return Verdict(int((~certain).sum()), int(missing.sum() + unfounded.sum()))


def _origins(candidates: Tensor, rows: Tensor, nc: int, near: Slack) -> Tensor:
    """Return which candidates each detection (n, 6 or more) may come from: (n, N), same class, box and score."""
    boxes, scores = xywh2xyxy(candidates[:4].T), candidates[4 : 4 + nc]
    box = (rows[:, None, :4] - boxes).abs().amax(-1) <= CORNER * near.box_px
    return box & ((scores[rows[:, 5].long()] - rows[:, 4:5]).abs() <= near.score)
