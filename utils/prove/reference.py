"""The proof that goes with an export: every file is run and compared with the unfused eager model in float32.

What is proven, for each format:
- the file itself, at the size it was made for, on two real photographs, noise and a checkerboard;
- a second shape, not square if the first is square and square otherwise. A file with dynamic shapes takes it itself,
  and a third, smaller one with another batch. A static file cannot: there a temporary file is written in the same way
  for the second shape, run, compared and thrown away.

Compared are the raw outputs, all boxes in pixels and all scores, and what is left of them after NMS; of a segmenter the
mask coefficients and prototypes as well (`compare.py`), of a classifier the probabilities (`classes.py`). Both sides
compute in float32, so the errors hold the rounding of both. Some networks, untrained ones above all, blow rounding up:
where a file exceeds the tolerance, the unfused model runs in float64 as well, and the file may be as far off as
`ROUNDING` times the distance between the unfused model's own float32 and float64. The report says where that was so.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models import DetectionModel
from utils.data.samples import PHOTOS, make_pictures
from utils.deploy.ends import Nms, nms_of, threshold_inputs
from utils.deploy.run import RUN_ERRORS, Outputs, Runner, load_runner, read_metadata
from utils.prove.classes import measure_classes
from utils.prove.compare import (
    EXACT,
    Difference,
    Errors,
    Tolerance,
    compare,
    confidence,
    measure_errors,
    measure_nms,
)
from utils.prove.decisions import Slack

THRESHOLDS = ((1, 0.45), (1, 0.7), (2, 0.3))  # of files with NMS: share of the confidence, IoU
TEMPORARY = "temporary"  # what the report calls a file that was made for the proof only
SPREAD = 4  # how many times the errors of the boxes that NMS leaves those of the others may be
ROUNDING = 10  # how many times the unfused model's own rounding error a file may be off


# Proving --------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Evidence:
    """What was compared: a batch of pictures (B, ch, H, W), and what the unfused model and the file put out for it."""

    images: Tensor
    expected: Outputs
    got: Outputs
    nms: Nms | None = None  # of the file, with the thresholds that it was run with

    def singles(self) -> list[Evidence]:
        """Return the evidence for each picture of the batch."""
        return [
            Evidence(
                self.images[one],
                tuple(part[one] for part in self.expected),
                tuple(part[one] for part in self.got),
                self.nms,
            )
            for one in (slice(i, i + 1) for i in range(len(self.images)))
        ]


@dataclass(frozen=True)
class Case:
    """One comparison: which file, on which picture, of which size."""

    file: str
    size: tuple[int, int]  # height, width
    batch: int
    picture: str
    difference: Difference
    allowed: Tolerance
    rounding: Difference | None = None  # of the unfused model, float32 from float64, where that set what is allowed
    evidence: Evidence | None = field(default=None, repr=False, compare=False)  # None where the file did not run

    @property
    def ok(self) -> bool:
        """Whether the file agrees."""
        return self.difference.within(self.allowed)

    @property
    def excess(self) -> float:
        """The largest error as a multiple of what is allowed; infinite where there is a problem or a box is missing."""
        d, allowed = self.difference, self.allowed
        errors = max(d.box_px / allowed.box_px, d.score / allowed.score, d.mask / allowed.mask)
        return errors if self.ok or errors > 1 else math.inf

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        d = self.difference
        found = {"conf": d.conf, **d.detections, "wrong": d.wrong}
        rounding = {}
        if self.rounding:
            rounding["float32_rounding"] = {"box_px": self.rounding.box_px, "score": self.rounding.score}
            if self.rounding.mask:
                rounding["float32_rounding"]["mask"] = self.rounding.mask
            rounding["allowed"] = {"box_px": self.allowed.box_px, "score": self.allowed.score}
        return {
            "file": self.file,
            "size": list(self.size),
            "batch": self.batch,
            "picture": self.picture,
            "max_box_error_px": d.box_px,
            "max_score_error": d.score,
            **({"max_mask_error": d.mask} if d.mask else {}),
            "detections": found,
            **rounding,
        }


class Reference:
    """The unfused model, and what it puts out for pictures of each size, computed once.

    Args:
        model: a copy of it is kept, in float32 and eval mode on the CPU.
        files: the real pictures.
    """

    def __init__(self, model: DetectionModel, files: Sequence[Path] = PHOTOS) -> None:
        self.model = copy.deepcopy(model).eval().float().cpu()
        self.files = files
        self.channels = model.example_input().shape[1]
        self._known: dict[tuple[tuple[int, int], int], list[tuple[str, Tensor, Outputs]]] = {}

    def __call__(self, images: Tensor) -> Outputs:
        """Return what the model puts out for (B, ch, H, W)."""
        return run_eager(self.model, images)

    def compare(self, expected: Outputs, got: Outputs, tolerance: Tolerance) -> Difference:
        """Compare the outputs of two models of this one's kind."""
        if self.model.task == "classify":
            return measure_classes(expected, got, tolerance)[0]
        return compare(expected, got, self.model.nc, self.model.end2end, tolerance)

    def batches(self, size: tuple[int, int], batch: int) -> list[tuple[str, Tensor, Outputs]]:
        """Return (name, images, outputs) for each picture; the batch is filled with those that follow it."""
        if (size, batch) not in self._known:
            pictures = make_pictures(size, self.channels, self.files)
            names = list(pictures)
            stacks = [
                torch.stack([pictures[names[(start + i) % len(names)]] for i in range(batch)])
                for start in range(len(names))
            ]
            outputs = [self(images) for images in stacks]
            self._known[size, batch] = list(zip(names, stacks, outputs, strict=True))
        return self._known[size, batch]

    def rounding(self, images: Tensor, outputs: Outputs) -> Difference:
        """Return how far `outputs`, the model's in float32, are from its outputs in float64."""
        exact = run_eager(self.exact, images.double())
        return self.compare(exact, tuple(tensor.double() for tensor in outputs), Tolerance())

    @cached_property
    def exact(self) -> DetectionModel:
        """The model in float64."""
        return copy.deepcopy(self.model).double()

    def cases(
        self,
        path: Path,
        size: tuple[int, int],
        batch: int,
        tolerance: Tolerance,
        name: str,
        load: Callable[[Path], Runner] = load_runner,
    ) -> Iterator[Case]:
        """Run the file at `path`, called `name` in the report, on every picture and yield the comparisons.

        A file with NMS runs several times on each: as it is, and with other thresholds. `load` may keep what it has
        loaded, for a file that runs at several sizes.
        """
        file_nms = nms_of(read_metadata(path))
        try:
            run = load(path)
        except RUN_ERRORS as error:
            problem = f"cannot be loaded: {_last_line(error)}"
            yield Case(name, size, batch, "none", Difference(problem=problem), tolerance)
            return
        for picture, images, expected in self.batches(size, batch):
            for nms, inputs in _threshold_cases(file_nms, expected[0], self.model.nc):
                where = f"{picture}, conf {nms.conf_thres:.2g}, IoU {nms.iou_thres}" if nms else picture
                try:
                    with torch.inference_mode():
                        got = run(images, **inputs)
                except RUN_ERRORS as error:
                    problem = f"does not run: {_last_line(error)}"
                    yield Case(name, size, batch, where, Difference(problem=problem), tolerance)
                    continue
                yield self.judge(name, where, Evidence(images, expected, got, nms), tolerance)[0]

    def judge(self, file: str, picture: str, evidence: Evidence, tolerance: Tolerance) -> tuple[Case, Errors]:
        """Compare what a file put out with what this model did, by its own rounding where the tolerance is exceeded.

        Args:
            file: what the report calls the file.
            picture: what the report calls the first picture of the batch.
            evidence: the pictures and both outputs.
            tolerance: the largest errors that need no explanation, less where all scores are small.
        """
        batch, _, height, width = evidence.images.shape
        tolerance = tolerance.for_scores(self._largest_score(evidence.expected[0]))
        difference, errors = self._measure(evidence, tolerance)
        case = Case(file, (height, width), batch, picture, difference, tolerance, evidence=evidence)
        if case.ok or difference.problem:
            return case, errors
        own = self.rounding(evidence.images, evidence.expected)
        allowed = Tolerance(*map(max, dataclasses.astuple(tolerance), _times(ROUNDING, own)))
        wider, _ = self._measure(evidence, allowed, _hidden(difference, own, allowed))
        return dataclasses.replace(case, difference=wider, allowed=allowed, rounding=own), errors

    def _largest_score(self, output: Tensor) -> float:
        """Return the largest score in an output of this model; 1 where it is not a number."""
        if self.model.task == "classify":
            scores = output
        else:
            scores = output[..., 4] if self.model.end2end else output[:, 4 : 4 + self.model.nc]
        largest = scores.max().item()
        return largest if math.isfinite(largest) else 1.0

    def _measure(self, evidence: Evidence, tolerance: Tolerance, least: Slack = EXACT) -> tuple[Difference, Errors]:
        """Return how far a file is from this model, by what the file gives; `least` is that of `measure_nms`."""
        if self.model.task == "classify":
            return measure_classes(evidence.expected, evidence.got, tolerance)
        outputs = evidence.expected, evidence.got, self.model.nc
        if evidence.nms:
            return measure_nms(*outputs, evidence.nms, tolerance, least)
        return measure_errors(*outputs, self.model.end2end, tolerance)


def _threshold_cases(nms: Nms | None, candidates: Tensor, nc: int) -> list[tuple[Nms | None, dict[str, Any]]]:
    """Return the thresholds to run a file with: its NMS, None where it has none, and the inputs that set it."""
    if nms is None:
        return [(None, {})]
    conf = confidence(candidates[:, : 4 + nc])
    others = [dataclasses.replace(nms, conf_thres=share * conf, iou_thres=iou) for share, iou in THRESHOLDS]
    return [(nms, {}), *((other, threshold_inputs(**other.inputs)) for other in others)]


def run_eager(model: nn.Module, images: Tensor) -> Outputs:
    """Return the outputs of a model in eval mode, without the raw maps that come with them."""
    with torch.inference_mode():
        output = model(images)[0]
    return (output,) if isinstance(output, Tensor) else output


def _hidden(shown: Difference, own: Difference, allowed: Tolerance) -> Slack:
    """Return by how much rounding may have moved the candidates that NMS in a file has dropped.

    Args:
        shown: how far the boxes are off that the file gives.
        own: the rounding of the unfused model.
        allowed: more than that is no rounding.
    """
    box = max(SPREAD * shown.box_px, ROUNDING * own.box_px)
    score = max(SPREAD * shown.score, ROUNDING * own.score)
    return Slack(min(box, allowed.box_px), min(score, allowed.score))


def _times(factor: float, difference: Difference) -> tuple[float, float, float]:
    """Return the errors of boxes, scores and masks times `factor`."""
    return factor * difference.box_px, factor * difference.score, factor * difference.mask


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:200]
