"""How far the outputs of two networks are apart: all boxes and scores, and what is left of them after NMS.

A model without NMS gives its boxes in the order of their scores, which rounding changes: there each box is compared
with the nearest one of its class. What NMS leaves is held against those of its decisions that rounding cannot turn
(`decisions.py`). NaN and infinite numbers never agree.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from ultralytics.utils.nms import non_max_suppression
from ultralytics.utils.ops import xywh2xyxy

from utils.deploy.ends import Nms
from utils.deploy.run import Outputs
from utils.prove.decisions import Slack, Verdict, judge_detections, overlap_range, rounding_of_classes

CONF, IOU = 0.25, 0.45  # of NMS
CANDIDATES = 100  # that go into NMS where the model sees nothing
FAINT = 0.05  # where no score is above this one, less than the whole tolerance is allowed
LEAST_TOLERANCE = 1e-12
EXACT = Slack(0.0, 0.0)
SAME_IOU = 0.4  # below NMS's, so that of two boxes that rounding may swap in NMS each finds the other


@dataclass(frozen=True)
class Tolerance:
    """The largest errors with which a file still counts as the same network."""

    box_px: float = 0.01
    score: float = 1e-4
    mask: float = 1e-3  # of mask coefficients and prototypes, relative to the largest

    def for_scores(self, largest: float) -> Tolerance:
        """Return what is allowed where no score is above `largest`.

        Of a network that has hardly learnt all scores may be below 1e-4: two classes in each other's place would pass.
        """
        score = max(self.score * min(largest / FAINT, 1.0), LEAST_TOLERANCE)
        return dataclasses.replace(self, score=score)


HALF_TOLERANCE = Tolerance(box_px=0.5, score=2e-3, mask=2e-2)  # of float16 files


@dataclass(frozen=True)
class Difference:
    """How far the output of a file is from the reference, on one batch."""

    box_px: float = math.inf  # largest error of any box coordinate
    score: float = math.inf  # largest error of any score
    mask: float = 0.0  # of a segmenter: largest error of coefficients and prototypes, relative to the largest of them
    conf: float = CONF  # of NMS
    reference: int = 0  # detections of the reference after NMS
    matched: int = 0  # of these, the ones that the file has too: same class, overlapping
    min_iou: float = 1.0  # of the matched ones
    undecidable: int = 0  # detections of the reference that hang on less than rounding: the file may have others
    wrong: int = 0  # detections that are certain and that the file lacks, or that it has and that are certainly none
    problem: str = ""  # why there is nothing to compare

    @property
    def detections(self) -> dict[str, Any]:
        """What is left after NMS, as reports hold it."""
        return {name: getattr(self, name) for name in ("reference", "matched", "undecidable", "min_iou")}

    @property
    def sees_something(self) -> bool:
        """Whether these are detections, not just the best of what the model takes for background."""
        return self.conf >= CONF and self.reference > 0

    def within(self, tolerance: Tolerance) -> bool:
        """Return whether both sides are the same network; False for anything that is not a number."""
        exact = self.box_px <= tolerance.box_px and self.score <= tolerance.score and self.mask <= tolerance.mask
        return exact and not self.wrong and not self.problem


class Errors(NamedTuple):
    """The errors of all numbers that two networks put out for the same pictures, flat."""

    box: Tensor  # pixels
    score: Tensor
    mask: Tensor  # of a segmenter: coefficients and prototypes, each relative to the largest of its kind


def compare(expected: Outputs, got: Outputs, nc: int, end2end: bool, tolerance: Tolerance = Tolerance()) -> Difference:
    """Compare the outputs of two models; arguments are those of `measure_errors`."""
    return measure_errors(expected, got, nc, end2end, tolerance)[0]


def measure_errors(
    expected: Outputs, got: Outputs, nc: int, end2end: bool, tolerance: Tolerance = Tolerance()
) -> tuple[Difference, Errors]:
    """Return how far the outputs of two models are apart, and the error of each number; none where there is a problem.

    Args:
        expected: those of the unfused model.
        got: those of the other.
        nc: number of classes.
        end2end: the models do without NMS.
        tolerance: what may be lacking in the score of a detection that counts as the same.
    """
    if problem := why_not_compared(expected, got):
        return Difference(problem=problem), no_errors()
    boxes = (expected[0], got[0])
    errors = _ranked_errors(*boxes, tolerance) if end2end else _box_errors(*boxes, nc)
    protos = (relative_errors(*pair) for pair in zip(expected[1:], got[1:], strict=True))
    errors = errors._replace(mask=torch.cat([errors.mask, *protos]))
    conf = CONF if end2end else confidence(boxes[0][:, : 4 + nc])
    reference, found = (detections(output, nc, end2end, conf) for output in boxes)
    largest = _largest(errors)
    slack = _slack(largest, tolerance)
    if end2end:
        judged = (_judge_ranked(*each, tolerance) for each in zip(expected[0], reference, found, strict=True))
    else:
        nms = Nms(conf, IOU)
        each_picture = zip(boxes[0], reference, found, strict=True)
        judged = (judge_detections(*each, nc, nms, slack, _near(tolerance)) for each in each_picture)
    difference = Difference(*largest, conf, **asdict(sum(judged, Verdict())))
    return _matched(difference, reference, found, tolerance), errors


def detections(output: Tensor, nc: int, end2end: bool, conf: float = CONF, **options: Any) -> list[Tensor]:
    """Return what a network sees in each picture, (n, 6 or more): x1 y1 x2 y2 in pixels, score, class, coefficients.

    `options` are those of ultralytics' NMS, which uses torchvision's only where that is imported: its own is ten times
    slower, keeps other boxes of near ties, and ends at a time limit.
    """
    if end2end:
        return [rows[rows[:, 4] > conf] for rows in output]
    import torchvision  # noqa: F401, PLC0415 (slow, and `export.py --help` runs no NMS)

    return non_max_suppression(output, conf, **{"iou_thres": IOU, "nc": nc, **options})


def why_not_compared(expected: Outputs, got: Outputs) -> str:
    """Return why two outputs cannot be compared, if so."""
    shapes = [[tuple(tensor.shape) for tensor in outputs] for outputs in (expected, got)]
    if shapes[0] != shapes[1]:
        wanted, given = (" and ".join(map(str, some)) for some in shapes)
        return f"puts out {given} where {wanted} is due"
    for what, outputs in (("the unfused model", expected), ("the file", got)):
        if not all(tensor.isfinite().all() for tensor in outputs):
            return f"{what} puts out NaN or infinite numbers"
    return ""


def no_errors() -> Errors:
    """Return the errors of nothing."""
    return Errors(*[torch.empty(0)] * 3)


def relative_errors(expected: Tensor, got: Tensor) -> Tensor:
    """Return the differences over the largest number, flat."""
    if not expected.numel():
        return expected.flatten()
    return ((got - expected).abs() / expected.abs().max().clamp(min=1e-6)).flatten()


def _ranked_errors(expected: Tensor, got: Tensor, tolerance: Tolerance) -> Errors:
    """Compare two outputs (B, N, 6 or more) of finite numbers: x1 y1 x2 y2 in pixels, score, class, best scores first.

    Each box is compared with the nearest one of its class. The last boxes are left out where their scores are so alike
    that either side may have had others in their place.
    """
    least = expected[..., 4].amin(1, keepdim=True) + tolerance.score
    judged = (expected[..., 4] > least) | (expected[..., 4] == expected[..., 4].amax(1, keepdim=True))
    box = (expected[:, :, None, :4] - got[:, None, :, :4]).abs().amax(-1)  # (B, N expected, N got)
    score = (expected[:, :, None, 4] - got[:, None, :, 4]).abs()
    other = expected[:, :, None, 5] != got[:, None, :, 5]
    nearest = (box / tolerance.box_px + score / tolerance.score).masked_fill(other, math.inf).argmin(2, keepdim=True)
    box, score = (error.masked_fill(other, math.inf).gather(2, nearest)[..., 0][judged] for error in (box, score))
    masks = got[..., 6:].gather(1, nearest.expand(-1, -1, got.shape[2] - 6))
    return Errors(box, score, relative_errors(expected[..., 6:][judged], masks[judged]))


def _box_errors(expected: Tensor, got: Tensor, nc: int) -> Errors:
    """Compare two outputs (B, 4 + nc or more, N) of finite numbers: boxes xywh in pixels, then scores in [0, 1]."""
    error = (got - expected).abs()
    mask = relative_errors(expected[:, 4 + nc :], got[:, 4 + nc :])
    return Errors(error[:, :4].flatten(), error[:, 4 : 4 + nc].flatten(), mask)


def measure_nms(
    expected: Outputs, got: Outputs, nc: int, nms: Nms, tolerance: Tolerance = Tolerance(), least: Slack = EXACT
) -> tuple[Difference, Errors]:
    """Return how far a file with NMS is from our own NMS on the outputs of the unfused model, as `measure_errors` does.

    Each box of the file must be one of the model's candidates, its best class, above the threshold, and no two of a
    class may overlap by more than they may. What NMS certainly leaves of the model must be there, and what it certainly
    drops must not.

    Args:
        expected: of the unfused model, candidates (B, 4 + nc + nm, N), and prototypes of a segmenter.
        got: of the file, (B, max_det, 6 + nm): x1 y1 x2 y2 in pixels, score, class; and prototypes.
        nc: number of classes.
        nms: with the thresholds that the file was run with.
        tolerance: how far a box of the file may be from the candidate that it is.
        least: what rounding may have changed in candidates, where the boxes that are left differ by less.
    """
    candidates, boxes = expected[0], got[0]
    due = (len(candidates), nms.max_det, candidates.shape[1] - nc + 2)
    form = candidates.new_zeros(due)  # of which the outputs that may be compared are
    found = [rows[rows[:, 4] > 0] for rows in boxes]
    if problem := why_not_compared((form, *expected[1:]), got) or next(
        filter(None, (_misfit(rows, nms, tolerance) for rows in found)), ""
    ):
        return Difference(problem=problem), no_errors()
    options = {"iou_thres": nms.iou_thres, "agnostic": nms.agnostic_nms, "max_det": nms.max_det}
    reference = detections(candidates, nc, end2end=False, conf=nms.conf_thres, **options)
    nearest = [_candidate_errors(*each, nc, tolerance) for each in zip(candidates, found, strict=True)]
    protos = (relative_errors(*pair) for pair in zip(expected[1:], got[1:], strict=True))
    errors = Errors(*map(torch.cat, zip(*nearest, strict=True)))
    errors = errors._replace(mask=torch.cat([errors.mask, *protos]))
    largest = _largest(errors)
    slack = Slack(*map(max, _slack(largest, tolerance), least))
    each_picture = zip(candidates, reference, found, strict=True)
    judged = (judge_detections(*each, nc, nms, slack, _near(tolerance)) for each in each_picture)
    difference = Difference(*largest, nms.conf_thres, **asdict(sum(judged, Verdict())))
    return _matched(difference, reference, found, tolerance, nms.iou_thres), errors


def _largest(errors: Errors) -> tuple[float, float, float]:
    """Return the largest error of boxes, scores and masks."""
    box, score, mask = (part.max().item() if len(part) else 0.0 for part in errors)
    return box, score, mask


def _slack(largest: tuple[float, float, float], tolerance: Tolerance) -> Slack:
    """Return what rounding has changed as far as errors show it, of which more than is tolerated is no rounding."""
    return Slack(min(largest[0], tolerance.box_px), min(largest[1], tolerance.score))


def _near(tolerance: Tolerance) -> Slack:
    return Slack(tolerance.box_px, tolerance.score)


def _judge_ranked(every: Tensor, reference: Tensor, found: Tensor, tolerance: Tolerance) -> Verdict:
    """Judge the detections of a picture without NMS, (n, 6 or more), as `judge_detections` does.

    `every` are all rows of the reference, (N, 6 or more), of which the last may have been others by rounding.
    """
    certain = reference[:, 4] > max(every[:, 4].min().item(), CONF) + tolerance.score
    missing = certain & (_best_overlap(reference, found, tolerance, IOU) < SAME_IOU)
    return Verdict(int((~certain).sum()), int(missing.sum()))


def _misfit(found: Tensor, nms: Nms, tolerance: Tolerance) -> str:
    """Return what is wrong with boxes (n, 6 or more) that NMS is said to have left, if anything."""
    if not len(found):
        return ""
    boxes, group = found[:, :4], found[:, 5] * (not nms.agnostic_nms)
    overlap, least = (
        (overlap_range(boxes[:, None], boxes, error[:, None], error)[0].triu(1) * (group[:, None] == group))
        .max()
        .item()
        for error in (torch.zeros_like(group), rounding_of_classes(group))
    )
    if least > nms.iou_thres:
        return f"leaves boxes that overlap by {overlap:.3f}, over {nms.iou_thres}"
    score = found[:, 4].min().item()
    too_low = score < nms.conf_thres - tolerance.score
    return f"leaves a score of {score:.3g}, under {nms.conf_thres:.3g}" if too_low else ""


def _candidate_errors(candidates: Tensor, found: Tensor, nc: int, tolerance: Tolerance) -> Errors:
    """Compare boxes of one picture with the candidates nearest to them.

    Args:
        candidates: (4 + nc + nm, N).
        found: (n, 6 + nm): x1 y1 x2 y2 in pixels, score, class, coefficients.
        nc: number of classes.
        tolerance: what counts as near.
    """
    boxes, scores = xywh2xyxy(candidates[:4].T), candidates[4 : 4 + nc]
    box = (found[:, None, :4] - boxes).abs().amax(-1)  # (n, N)
    own = scores[found[:, 5].long().clamp(0, nc - 1)]  # of the class of each box, (n, N)
    score = (found[:, None, 4] - own).abs()
    other = own < scores.amax(0) - 2 * tolerance.score  # of classes whose scores differ by less either may be the best
    nearest = (box / tolerance.box_px + score / tolerance.score).masked_fill(other, math.inf).argmin(1, keepdim=True)
    box, score = (error.masked_fill(other, math.inf).gather(1, nearest)[:, 0] for error in (box, score))
    return Errors(box, score, relative_errors(candidates[4 + nc :].T[nearest[:, 0]], found[:, 6:]))


def _matched(
    errors: Difference, reference: Sequence[Tensor], found: Sequence[Tensor], tolerance: Tolerance, iou: float = IOU
) -> Difference:
    """Return `errors` with what the detections of each picture, (n, 6 or more), share; `iou` is that of NMS."""
    overlaps = torch.cat([_best_overlap(a, b, tolerance, iou) for a, b in zip(reference, found, strict=True)])
    matched = overlaps[overlaps >= min(SAME_IOU, iou - 0.05)]
    return dataclasses.replace(
        errors,
        reference=len(overlaps),
        matched=len(matched),
        min_iou=matched.min().item() if len(matched) else 1.0,
    )


def confidence(output: Tensor) -> float:
    """Return the threshold for NMS: 0.25, or one that lets the best candidates through where the model sees nothing."""
    best = output[:, 4:].amax(1).flatten().sort(descending=True).values
    return CONF if best[0] > CONF else best[min(CANDIDATES, len(best) - 1)].item()


def _best_overlap(reference: Tensor, found: Tensor, tolerance: Tolerance, iou: float) -> Tensor:
    """Return for each detection (x1, y1, x2, y2, score, class) the IoU with the nearest one of its class, else 0.

    Of two candidates that overlap by more than `iou`, and whose scores differ by less than rounding, NMS may keep
    either: they count as the same.
    """
    if not len(reference) or not len(found):
        return reference.new_zeros(len(reference))
    a, b = reference[:, None], found[None]
    sides = (torch.minimum(a[..., 2:4], b[..., 2:4]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    areas = [(box[..., 2:4] - box[..., :2]).clamp(min=0).prod(-1) for box in (a, b)]
    both, tiny = sides.prod(-1), 1e-9  # so that two empty boxes at one place are the same
    overlap = (both + tiny) / (areas[0] + areas[1] - both + tiny)
    tied = (overlap > iou) & ((a[..., 4] - b[..., 4]).abs() <= 2 * tolerance.score)
    return torch.where(a[..., 5] == b[..., 5], torch.where(tied, 1, overlap), 0).amax(1)
