"""The proof at scale: files compared with the unfused model on many pictures, and by their accuracy on labelled ones.

Pictures pass one batch at a time. Of the errors of all their numbers only counts are kept, and of the pictures the one
whose errors are the largest, so memory does not grow with their number.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from ultralytics.utils import LOGGER, TQDM

from utils.data.files import list_images
from utils.data.pictures import Unreadable
from utils.data.samples import evenly, load_picture
from utils.deploy.ends import Nms
from utils.deploy.run import Outputs, Runner
from utils.detect.sources import prefetch
from utils.evaluate.accuracy import Accuracy, measure_accuracy
from utils.prove.compare import Errors, Tolerance
from utils.prove.reference import Case, Evidence, Reference
from utils.prove.report import remark
from utils.text import printable

T = TypeVar("T")

MAX_DROP = 0.1  # points of mAP or top-1 that rounding may cost, or gain
HALF_MAX_DROP = 0.5  # in float16
QUANTILES = {"median": 0.5, "p95": 0.95, "p99": 0.99}
BINS = 2**15  # sign, exponent and 7 bits of a float32's fraction: neighbours are 0.8 % apart
MAX_REMARKS = 5  # pictures named of those that fail
UNFUSED_MODEL = "unfused"


@dataclass(frozen=True)
class ProofPictures:
    """What files are proven on at scale.

    Attributes:
        data: what `load_dataset` returned, of a data set with labels; its val split.
        files: pictures without labels.
        most: how many of each at most, evenly spread; 0 takes all.
        name: what the report calls it.
    """

    data: dict[str, Any] | None = None
    files: tuple[Path, ...] = ()
    most: int = 0
    name: str = ""


class Distribution:
    """How large many errors are, kept as counts: quantiles are right to 1 %, the largest is exact."""

    def __init__(self) -> None:
        self.counts = np.zeros(BINS, np.int64)
        self.largest = 0.0

    def add(self, errors: Tensor) -> None:
        """Take in some errors, none of them negative."""
        if not errors.numel():
            return
        bins = errors.float().contiguous().view(torch.int32) >> 16
        self.counts += np.bincount(bins.flatten().numpy(), minlength=BINS)
        self.largest = max(self.largest, errors.max().item())

    def quantile(self, part: float) -> float:
        """Return the error that so large a part of all, 0 to 1, does not exceed."""
        total = self.counts.sum()
        if not total:
            return 0.0
        bin_ = int(np.searchsorted(self.counts.cumsum(), math.ceil(part * total)))
        upper = np.array([(bin_ + 1) << 16], np.int32).view(np.float32)[0].item() if bin_ else 0.0
        return min(upper, self.largest)

    def as_dict(self) -> dict[str, float]:
        """Return median, 95 %, 99 % and the largest."""
        return {**{name: self.quantile(part) for name, part in QUANTILES.items()}, "max": self.largest}


@dataclass
class ScaleProof:
    """What comparing one file with the unfused model on many pictures has shown so far."""

    file: str
    most_drop: float = MAX_DROP
    pictures: int = 0
    box: Distribution = field(default_factory=Distribution)
    score: Distribution = field(default_factory=Distribution)
    mask: Distribution = field(default_factory=Distribution)
    reference: int = 0  # detections of the unfused model
    matched: int = 0
    undecidable: int = 0  # of those of the unfused model: rounding may have dropped or replaced them
    min_iou: float = 1.0
    explained: int = 0  # pictures that needed float64 to explain their errors
    failed: int = 0  # pictures
    remarks: list[str] = field(default_factory=list)  # on some of these
    worst: Case | None = None
    unfused: Accuracy | None = None
    accuracy: Accuracy | None = None

    def add(self, case: Case, errors: Errors) -> None:
        """Take in one picture."""
        self.pictures += 1
        for distribution, part in zip((self.box, self.score, self.mask), errors, strict=True):
            distribution.add(part)
        d = case.difference
        if d.sees_something:
            self.reference += d.reference
            self.matched += d.matched
            self.undecidable += d.undecidable
            self.min_iou = min(self.min_iou, d.min_iou)
        self.explained += case.ok and case.rounding is not None
        if not case.ok:
            self.failed += 1
            if len(self.remarks) < MAX_REMARKS:
                self.remarks.append(remark(case))
        if self.worst is None or case.excess > self.worst.excess:
            self.worst = case

    @property
    def drop(self) -> float | None:
        """Points of mAP or top-1 that the file has less than the unfused model."""
        return self.unfused.drop_to(self.accuracy) if self.unfused and self.accuracy else None

    @property
    def allowed_drop(self) -> float:
        """Points that the file may have less: of classes, what those pictures are worth that hang on rounding."""
        if self.accuracy is None or self.accuracy.top1 is None:
            return self.most_drop
        return max(self.most_drop, 100 * self.undecidable / max(self.pictures, 1))

    @property
    def ok(self) -> bool:
        """Whether the file agrees on every picture, and its accuracy with the model's."""
        return self.pictures > 0 and not self.failed and (self.drop is None or self.drop <= self.allowed_drop)

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        accuracy: dict[str, Any] = {}
        if self.unfused and self.accuracy:
            measured = {"unfused": self.unfused.as_dict(), "this": self.accuracy.as_dict()}
            accuracy = {"accuracy": {**measured, "drop_points": self.drop, "max_drop_points": self.allowed_drop}}
        return {
            "pictures": self.pictures,
            "box_error_px": self.box.as_dict(),
            "score_error": self.score.as_dict(),
            **({"mask_error": self.mask.as_dict()} if self.mask.counts.any() else {}),
            "detections": {
                "reference": self.reference,
                "matched": self.matched,
                "undecidable": self.undecidable,
                "min_iou": self.min_iou,
            },
            "explained_by_float32": self.explained,
            "failed": self.failed,
            "worst": self.worst.picture if self.worst else None,
            **accuracy,
            "ok": self.ok,
        }


def compare_at_scale(
    reference: Reference,
    files: Mapping[str, tuple[str, Runner]],
    proof_pictures: ProofPictures,
    size: tuple[int, int],
    batch: int,
    tolerance: Tolerance,
    most_drop: float = MAX_DROP,
    nms: Nms | None = None,
) -> dict[str, ScaleProof]:
    """Compare files with the unfused model on many pictures.

    Args:
        reference: the unfused model.
        files: format → what the report calls its file, and what runs it.
        proof_pictures: the pictures.
        size: height and width that the files take.
        batch: how many pictures they take at a time.
        tolerance: the largest errors that need no explanation.
        most_drop: the points of mAP or top-1 that a file may lose.
        nms: what the files end in. Their mAP is not measured: ultralytics' validator wants other boxes than users do.

    Raises:
        UserError: the labels cannot be used for this model.
    """
    scale_proofs = {kind: ScaleProof(name, most_drop) for kind, (name, _) in files.items()}
    networks: dict[str, Runner] = {UNFUSED_MODEL: reference}
    networks |= {kind: _filling(run, batch) for kind, (_, run) in files.items()}

    def observe(names: Sequence[str], images: Tensor, outputs: Mapping[str, Outputs]) -> None:
        for kind, found in scale_proofs.items():
            singles = Evidence(images, outputs[UNFUSED_MODEL], outputs[kind], nms).singles()
            for picture, single in zip(names, singles, strict=True):
                found.add(*reference.judge(found.file, Path(picture).name, single, tolerance))

    if not files:
        return scale_proofs
    if proof_pictures.data and not nms:
        measured = measure_accuracy(
            networks, reference.model, proof_pictures.data, size, batch, proof_pictures.most, observe
        )
        for kind, found in scale_proofs.items():
            found.unfused, found.accuracy = measured[UNFUSED_MODEL], measured[kind]
    chosen = evenly(proof_pictures.files, proof_pictures.most)
    if proof_pictures.data and nms:
        split = list_images(proof_pictures.data["val"], proof_pictures.data["path"])
        chosen = [*map(Path, evenly(split, proof_pictures.most)), *chosen]
    bar = TQDM(chosen, desc="comparing pictures") if chosen else chosen
    for group in _batched(prefetch(_loaded(bar, size, reference)), batch):
        images = torch.stack([image for _, image in group])
        observe([name for name, _ in group], images, {side: run(images) for side, run in networks.items()})
    return scale_proofs


def _loaded(files: Iterable[Path], size: tuple[int, int], reference: Reference) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and the pixels of each file that can be read, as the model sees it, and warn of the others."""
    for path in files:
        try:
            yield path.name, load_picture(path, size, reference.channels, reference.model.task)
        except Unreadable as reason:
            LOGGER.warning(printable(f"{path} is left out: {reason}"))


def _batched(items: Iterator[T], count: int) -> Iterator[list[T]]:
    while group := list(itertools.islice(items, count)):
        yield group


def _filling(run: Runner, batch: int) -> Runner:
    """Return a runner that also takes fewer pictures than the file does: the last one fills the batch."""

    def filled(images: Tensor) -> Outputs:
        count = len(images)
        missing = images[-1:].expand(max(batch - count, 0), -1, -1, -1)
        with torch.inference_mode():
            return tuple(output[:count] for output in run(torch.cat([images, missing])))

    return filled


# Output ---------------------------------------------------------------------------------------------------------------
def scale_table(
    scale_proofs: Mapping[str, ScaleProof],
    proof_pictures: ProofPictures,
    size: tuple[int, int],
    things: str = "boxes",
) -> str:
    """Return the scale_proofs as text: the distribution of the errors, then detections and accuracy, then what fails.

    `things` are what the networks find in pictures.
    """
    pictures = max(found.pictures for found in scale_proofs.values())
    width = max(len(found.file) for found in scale_proofs.values()) + 2
    shape = "x".join(map(str, size))
    lines = [f"On {pictures} pictures of {proof_pictures.name} at {shape}, errors of all numbers:"]
    lines.append(f"{'file':<{width}}{'output':<10}{'median':>10}{'95 %':>10}{'99 %':>10}{'max':>10}")
    for found in scale_proofs.values():
        parts = {"box, px": found.box, "score": found.score, "mask": found.mask}
        for name, part in parts.items():
            if part.counts.any():
                numbers = "".join(f"{value:>10.1e}" for value in part.as_dict().values())
                lines.append(f"{found.file:<{width}}{name:<10}{numbers}")
    first = next(iter(scale_proofs.values()))
    titles = "".join(f"{m.title:>10}" for m in first.unfused.points) if first.unfused else ""
    drop = f"{'drop, points':>14}" if first.unfused else ""
    lines += ["", f"{'file':<{width}}{'same ' + things:>16}{'least IoU':>12}{titles}{drop}"]
    if first.unfused:
        lines.append(f"{UNFUSED_MODEL:<{width}}{'':>28}{_numbers(first.unfused)}")
    for found in scale_proofs.values():
        same = f"{found.matched}/{found.reference}"
        accuracy = ""
        if found.accuracy and found.drop is not None:
            accuracy = f"{_numbers(found.accuracy)}{found.drop:>14.3f}"
        lines.append(f"{found.file:<{width}}{same:>16}{found.min_iou:>12.6f}{accuracy}")
        lines += [f"    {text}" for text in _remarks(found)]
    return "\n".join(lines)


def _numbers(accuracy: Accuracy) -> str:
    return "".join(f"{value / 100:>10.4f}" for value in accuracy.points.values())


def _remarks(found: ScaleProof) -> Iterator[str]:
    """Yield what is to be said about a file beside its numbers."""
    if found.explained:
        yield f"≈ {found.explained} pictures needed more than the tolerance: float32 alone is as far off there"
    if found.failed:
        yield f"✗ {found.failed} of {found.pictures} pictures differ"
        yield from found.remarks
    if found.accuracy and found.drop is not None and found.drop > found.allowed_drop:
        judge = next(iter(found.accuracy.points))
        yield f"✗ the {judge.title} drops by {found.drop:.3f} points, allowed are {found.allowed_drop:.3g}"
