"""The proof that goes with an export: every file is run and compared with the unfused eager model in float32.

What is proven, for each format:
- the file itself, at the size it was made for, on two real photographs, noise and a checkerboard;
- a second shape, not square if the first is square and square otherwise. A file with dynamic shapes takes it itself,
  and a third, smaller one with another batch. A static file cannot: there a temporary file is written in the same way
  for the second shape, run, compared and thrown away.

Compared are the raw outputs, all boxes in pixels and all scores, and what is left of them after NMS; of a segmenter the
mask coefficients and prototypes as well (`utils/comparison.py`). Both sides compute in float32, so the errors hold the
rounding of both. Some networks, untrained ones above all, blow rounding up: where a file exceeds the tolerance, the
unfused model runs in float64 as well, and the file may be as far off as `ROUNDING` times the distance between the
unfused model's own float32 and float64. The report says where that was needed.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models import DetectionModel
from utils.comparison import Difference, Errors, Tolerance, compare, confidence, measure, measure_nms
from utils.data.samples import PHOTOS, make_pictures
from utils.deploy.ends import Nms, nms_of, threshold_inputs
from utils.deploy.run import RUN_ERRORS, Outputs, load_runner, read_metadata

THRESHOLDS = ((1, 0.45), (1, 0.7), (2, 0.3))  # of files with NMS: share of the confidence, IoU
TEMPORARY = "temporary"  # what the report calls a file that was made for the proof only
ROUNDING = 10  # how many times the unfused model's own rounding error a file may be off


# Proving --------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Evidence:
    """What was compared: a batch of pictures (B, ch, H, W), and what the unfused model and the file put out for it."""

    images: Tensor
    expected: Outputs
    got: Outputs
    nms: Nms | None = None  # of the file, as it was told

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
        found = {"conf": d.conf, "reference": d.reference, "matched": d.matched, "min_iou": d.min_iou}
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


@dataclass
class Proof:
    """All comparisons of one format."""

    cases: list[Case] = field(default_factory=list)
    not_run: str = ""  # why there can be none on this machine
    divergence: dict[str, Any] | None = None  # where the file parts from the model, as `utils/divergence.py` found it

    @property
    def ok(self) -> bool:
        """Whether there are comparisons and all of them agree."""
        return bool(self.cases) and all(case.ok for case in self.cases)

    def as_dict(self) -> dict[str, Any]:
        """Return the worst of all comparisons, and each of them, as JSON takes it."""
        if self.not_run:
            return {"ok": None, "not_proven": self.not_run}
        parting = {"divergence": self.divergence} if self.divergence else {}
        worst = summarize(self.cases) if self.cases else {}
        return {**worst, **parting, "cases": [case.as_dict() for case in self.cases], "ok": self.ok}


def summarize(cases: Sequence[Case]) -> dict[str, Any]:
    """Return the worst errors of some comparisons and the sum of their detections.

    Pictures in which the model sees nothing count among the detections only where it sees nothing in any.
    """
    differences = [case.difference for case in cases]
    seen = [d for d in differences if d.sees_something] or differences
    return {
        "max_box_error_px": max(d.box_px for d in differences),
        "max_score_error": max(d.score for d in differences),
        **({"max_mask_error": mask} if (mask := max(d.mask for d in differences)) else {}),
        "detections": {
            "reference": sum(d.reference for d in seen),
            "matched": sum(d.matched for d in seen),
            "min_iou": min(d.min_iou for d in seen),
        },
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

    def cases(self, path: Path, size: tuple[int, int], batch: int, tolerance: Tolerance, name: str) -> Iterator[Case]:
        """Run the file at `path`, called `name` in the report, on every picture and yield the comparisons.

        A file with NMS runs several times on each: as it is, and with other thresholds.
        """
        file_nms = nms_of(read_metadata(path))
        try:
            run = load_runner(path)
        except RUN_ERRORS as error:
            problem = f"cannot be loaded: {_first_line(error)}"
            yield Case(name, size, batch, "none", Difference(problem=problem), tolerance)
            return
        for picture, images, expected in self.batches(size, batch):
            for nms, inputs in _told(file_nms, expected[0], self.model.nc):
                where = f"{picture}, conf {nms.conf_thres:.2g}, IoU {nms.iou_thres}" if nms else picture
                try:
                    with torch.inference_mode():
                        got = run(images, **inputs)
                except RUN_ERRORS as error:
                    problem = f"does not run: {_first_line(error)}"
                    yield Case(name, size, batch, where, Difference(problem=problem), tolerance)
                    continue
                yield self.judge(name, where, Evidence(images, expected, got, nms), tolerance)[0]

    def judge(self, file: str, picture: str, evidence: Evidence, tolerance: Tolerance) -> tuple[Case, Errors]:
        """Compare what a file put out with what this model did, by its own rounding where the tolerance is exceeded.

        Args:
            file: what the report calls the file.
            picture: what the report calls the first picture of the batch.
            evidence: the pictures and both outputs.
            tolerance: the largest errors that need no explanation.
        """
        batch, _, height, width = evidence.images.shape
        difference, errors = self._measure(evidence, tolerance)
        case = Case(file, (height, width), batch, picture, difference, tolerance, evidence=evidence)
        if case.ok or difference.problem:
            return case, errors
        own = self.rounding(evidence.images, evidence.expected)
        allowed = Tolerance(*map(max, dataclasses.astuple(tolerance), _times(ROUNDING, own)))
        wider, _ = self._measure(evidence, allowed)
        return dataclasses.replace(case, difference=wider, allowed=allowed, rounding=own), errors

    def _measure(self, evidence: Evidence, tolerance: Tolerance) -> tuple[Difference, Errors]:
        """Return how far a file is from this model, by what the file gives."""
        outputs = evidence.expected, evidence.got, self.model.nc
        if evidence.nms:
            return measure_nms(*outputs, evidence.nms, tolerance)
        return measure(*outputs, self.model.end2end, tolerance)


def _told(nms: Nms | None, candidates: Tensor, nc: int) -> list[tuple[Nms | None, dict[str, Any]]]:
    """Return what to tell a file in turn: its NMS, none where it has none, with the inputs that make it so."""
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


def _times(factor: float, difference: Difference) -> tuple[float, float, float]:
    """Return the errors of boxes, scores and masks times `factor`."""
    return factor * difference.box_px, factor * difference.score, factor * difference.mask


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:200]


# Telling --------------------------------------------------------------------------------------------------------------
def proof_table(proofs: dict[str, Proof]) -> str:
    """Return the proofs as text: a line for each file and input, and one for each comparison to remark on."""
    width = max((len(case.file) for proof in proofs.values() for case in proof.cases), default=0) + 2
    width = max(width, len(TEMPORARY) + len(max(proofs, key=len)) + 3)
    lines = [
        f"{'file':<{width}}{'input':<14}{'pictures':>8}{'box error':>13}{'score error':>13}"
        f"{'same boxes':>14}{'least IoU':>11}"
    ]
    for name, proof in proofs.items():
        if proof.not_run:
            lines.append(f"{name:<{width}}written, not proven here: {proof.not_run}")
        groups: dict[tuple[str, str], list[Case]] = {}
        for case in proof.cases:
            groups.setdefault((name_of(case, name), "x".join(map(str, (case.batch, *case.size)))), []).append(case)
        for (file, shape), cases in groups.items():
            worst = summarize(cases)
            found = worst["detections"]
            boxes = f"{found['matched']:>9}/{found['reference']:<4}{found['min_iou']:>11.6f}"
            if not any(case.difference.sees_something for case in cases):
                boxes = "   none seen; --data names other pictures"
            lines.append(
                f"{file:<{width}}{shape:<14}{len(cases):>8}"
                f"{worst['max_box_error_px']:>10.1e} px{worst['max_score_error']:>13.1e}{boxes}"
            )
            lines += [f"    {text}" for case in cases if (text := remark(case))]
        if proof.divergence:
            lines.append(f"    {proof.divergence['text']}")
    return "\n".join(lines)


def name_of(case: Case, kind: str) -> str:
    """Return what a table calls the file of a case, which is of this format."""
    return f"{case.file} {kind}" if case.file == TEMPORARY else case.file


def remark(case: Case) -> str:
    """Return where a comparison parts, or that it needed more than the tolerance; nothing for the others."""
    d, allowed = case.difference, case.allowed
    if case.ok and case.rounding:
        own = case.rounding
        return f"≈ {case.picture}: float32 alone is off by {own.box_px:.1e} px and {own.score:.1e} from float64 here"
    if case.ok:
        return ""
    reasons = [d.problem] if d.problem else []
    if not d.problem and not d.box_px <= allowed.box_px:
        reasons.append(f"boxes differ by {d.box_px:.3g} px, allowed are {allowed.box_px:.3g}")
    if not d.problem and not d.score <= allowed.score:
        reasons.append(f"scores differ by {d.score:.3g}, allowed are {allowed.score:.3g}")
    if not d.problem and not d.mask <= allowed.mask:
        reasons.append(f"masks differ by {d.mask:.3g} of the largest number, allowed are {allowed.mask:.3g}")
    if d.matched != d.reference and d.sees_something:
        reasons.append(f"{d.reference - d.matched} of {d.reference} detections are missing")
    return f"✗ {case.picture}: {', '.join(reasons)}"
