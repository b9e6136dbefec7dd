"""Average precision as COCO measures it, of all objects and of small, medium and large ones.

The rules are those of COCO's evaluation (Lin et al. 2014, pycocotools' COCOeval): up to 100 detections of a class in
a picture, matched to objects in the order of their scores, each to the free object of the highest IoU; 101 points of
the precision over the recall. Of one size count its objects, what is matched to them, and what is matched to none and
has this size itself.
"""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
Flags = NDArray[np.bool_]

AREAS = {
    "all": (0, 1e10),
    "small": (0, 32**2),
    "medium": (32**2, 96**2),
    "large": (96**2, 1e10),
}  # pixels, both ends in
SIZES = tuple(AREAS)[1:]
IOUS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
MOST = 100  # detections of a class in a picture
MEASURED = ("AP", "AP50", "AP75", "APs", "APm", "APl")  # by COCO's own code, in its order
PACKAGES = {"faster_coco_eval": "COCOeval_faster", "pycocotools.cocoeval": "COCOeval"}  # module: its class


@dataclass(frozen=True)
class PictureBoxes:
    """What was found in one picture and what is there; boxes are left, top, right, bottom in its pixels.

    Attributes:
        found: (n, 4).
        conf: (n,) scores in [0, 1].
        cls: (n,) classes.
        true: (m, 4).
        true_cls: (m,) classes.
    """

    found: Numbers
    conf: Numbers
    cls: NDArray[np.int64]
    true: Numbers
    true_cls: NDArray[np.int64]


@dataclass(frozen=True)
class Matched:
    """What the detections of one class in one picture are, the highest scores first; areas have the order of AREAS.

    Attributes:
        conf: (n,) scores.
        right: (areas, IOUS, n) matched to an object that counts.
        ignored: (areas, IOUS, n) neither right nor wrong.
        objects: (areas,) how many there are that count.
    """

    conf: Numbers
    right: Flags
    ignored: Flags
    objects: NDArray[np.int64]


def average_precisions(pictures: Sequence[PictureBoxes]) -> dict[str, dict[int, float]]:
    """Return area of AREAS → class → AP50-95 in [0, 1], of classes that have objects of this area."""
    matched: dict[int, list[Matched]] = {}
    for picture in pictures:
        for each, outcome in match_classes(picture):
            matched.setdefault(each, []).append(outcome)
    found: dict[str, dict[int, float]] = {area: {} for area in AREAS}
    for each in sorted(matched):
        for number, area in enumerate(AREAS):
            if (precision := average_precision(matched[each], number)) is not None:
                found[area][each] = precision
    return found


def mean_average_precisions(pictures: Sequence[PictureBoxes]) -> dict[str, float]:
    """Return area of AREAS → mean of the AP50-95 of its classes, without areas that no object has."""
    found = average_precisions(pictures)
    return {area: float(np.mean(list(classes.values()))) for area, classes in found.items() if classes}


def count_sizes(pictures: Sequence[PictureBoxes]) -> dict[str, int]:
    """Return how many objects there are of each area of AREAS."""
    areas = np.concatenate([np.zeros(0), *(area_of(picture.true) for picture in pictures)])
    return {name: int(((areas >= low) & (areas <= high)).sum()) for name, (low, high) in AREAS.items()}


def match_classes(picture: PictureBoxes) -> Iterator[tuple[int, Matched]]:
    """Yield each class that is found in a picture or is there, and what its detections are."""
    order = np.argsort(-picture.conf, kind="mergesort")
    found, conf, cls = picture.found[order], picture.conf[order], picture.cls[order]
    out_found, out_true = outside(found), outside(picture.true)
    for each in np.union1d(cls, picture.true_cls):
        mine, there = np.flatnonzero(cls == each)[:MOST], picture.true_cls == each
        right, ignored = match(found[mine], picture.true[there], out_found[:, mine], out_true[:, there])
        yield int(each), Matched(conf[mine], right, ignored, (~out_true[:, there]).sum(1))


def match(found: Numbers, true: Numbers, out_found: Flags, out_true: Flags) -> tuple[Flags, Flags]:
    """Return whether detections are right, and whether they are ignored; (areas, IOUS, n) both.

    Args:
        found: (n, 4) boxes of one class in one picture, the highest scores first.
        true: (m, 4) objects of this class.
        out_found: (areas, n) the box is not of this area.
        out_true: (areas, m) the object is not.
    """
    right = np.zeros((len(AREAS), len(IOUS), len(found)), bool)
    if not len(true) or not len(found):  # as of most classes in a picture
        return right, np.broadcast_to(out_found[:, None], right.shape)
    ignored = right.copy()
    taken = np.zeros((len(AREAS), len(IOUS), len(true)), bool)
    overlap = iou(found, true)
    for i in np.flatnonzero(overlap.max(1) >= IOUS[0]):
        fits = ~taken & (overlap[i] >= IOUS[:, None])
        worth = np.where(fits, overlap[i] + 2.0 * ~out_true[:, None], 0)  # objects of the area first
        best = len(true) - 1 - worth[..., ::-1].argmax(-1)  # the last of those that are alike
        is_matched = _at(fits, best)
        np.put_along_axis(taken, best[..., None], (is_matched | _at(taken, best))[..., None], -1)
        is_out = _at(np.broadcast_to(out_true[:, None], taken.shape), best)
        right[..., i], ignored[..., i] = is_matched & ~is_out, is_matched & is_out
    return right, ignored | (~right & out_found[:, None])


def _at(values: Flags, places: NDArray[np.int64]) -> Flags:
    return np.take_along_axis(values, places[..., None], -1)[..., 0]


def average_precision(matched: Sequence[Matched], area: int) -> float | None:
    """Return the AP50-95 of one class on the area of this number; None without objects."""
    objects = sum(int(one.objects[area]) for one in matched)
    if not objects:
        return None
    conf = np.concatenate([one.conf for one in matched])
    order = np.argsort(-conf, kind="mergesort")
    right = np.concatenate([one.right[area] for one in matched], -1)[:, order]
    ignored = np.concatenate([one.ignored[area] for one in matched], -1)[:, order]
    tp, fp = right.cumsum(1), (~right & ~ignored).cumsum(1)
    recall, precision = tp / objects, tp / np.maximum(tp + fp, 1)
    precision = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
    precision = np.concatenate([precision, np.zeros((len(IOUS), 1))], 1)  # of recalls that are not reached
    places = [np.searchsorted(row, RECALLS, side="left") for row in recall]
    return float(np.mean([row[place] for row, place in zip(precision, places, strict=True)]))


def iou(a: Numbers, b: Numbers) -> Numbers:
    """Return the IoU (n, m) of boxes."""
    sides = np.minimum(a[:, None, 2:], b[:, 2:]) - np.maximum(a[:, None, :2], b[:, :2])
    common = sides.clip(0).prod(-1)
    return common / np.maximum(area_of(a)[:, None] + area_of(b) - common, 1e-12)


def area_of(boxes: Numbers) -> Numbers:
    """Return the areas of boxes (n, 4)."""
    return (boxes[:, 2:] - boxes[:, :2]).prod(1)


def outside(boxes: Numbers) -> Flags:
    """Return whether boxes are not of each of AREAS, (areas, n)."""
    low, high = (np.array(ends)[:, None] for ends in zip(*AREAS.values(), strict=True))
    areas = area_of(boxes)
    return (areas < low) | (areas > high)


# COCO's own code ------------------------------------------------------------------------------------------------------
def find_package() -> str | None:
    """Return the module of COCO's evaluation that is installed, the faster one first; None without any."""
    for name in PACKAGES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
            return name
    return None


def measure_with(package: str, pictures: Sequence[PictureBoxes], classes: int) -> dict[str, float]:
    """Return what COCO's own code measures: AP, AP50, AP75, APs, APm and APl in [0, 1], -1 where there are no objects.

    Args:
        package: a key of PACKAGES, which is installed.
        pictures: what was found and what is there.
        classes: how many there are.
    """
    module = importlib.import_module(package)
    dataset_class: Any = importlib.import_module(package.replace("cocoeval", "coco")).COCO
    with contextlib.redirect_stdout(io.StringIO()):  # it prints as it goes
        truth = dataset_class()
        truth.dataset = ground_truth(pictures, classes)
        truth.createIndex()
        results = truth.loadRes(list(detections(pictures)))
        evaluation = getattr(module, PACKAGES[package])(truth, results, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(MEASURED, map(float, evaluation.stats), strict=False))


def ground_truth(pictures: Sequence[PictureBoxes], classes: int) -> dict[str, Any]:
    """Return the objects in COCO's form; pictures are numbered from 1, categories as the classes are."""
    boxes = (
        (i, box, each) for i, one in enumerate(pictures, 1) for box, each in zip(one.true, one.true_cls, strict=True)
    )
    annotations = [
        {"id": number, "image_id": i, "category_id": int(each), "bbox": _xywh(box), "iscrowd": 0}
        | {"area": float(area_of(box[None])[0])}
        for number, (i, box, each) in enumerate(boxes, 1)
    ]
    images = [{"id": i} for i in range(1, len(pictures) + 1)]
    return {"images": images, "annotations": annotations, "categories": [{"id": each} for each in range(classes)]}


def detections(pictures: Sequence[PictureBoxes]) -> Iterator[Mapping[str, Any]]:
    """Yield the detections in COCO's form of results."""
    for i, one in enumerate(pictures, 1):
        for box, conf, each in zip(one.found, one.conf, one.cls, strict=True):
            yield {"image_id": i, "category_id": int(each), "bbox": _xywh(box), "score": float(conf)}


def _xywh(box: Numbers) -> list[float]:
    return [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()]
