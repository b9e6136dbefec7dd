"""Labels that are often mistakes: what is looked for, in how many objects it is, and examples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from utils.data.scan import Record

LEAST_SIDE = 2.0  # pixels at the size of training
MOST_IOU = 0.95  # of two boxes that are probably one object
MOST_ASPECT = 10.0  # of a box's longer side to its shorter one
WHOLE = 0.99  # of the picture's area
EDGE = 1.0  # pixels of the picture that a box may be away from its edge, or beyond it
MOST_KEPT = 1000  # examples of each kind
PAIRS_AT_ONCE = 500_000


@dataclass(frozen=True)
class Meaning:
    """What a kind is called.

    Attributes:
        short: in the picture.
        long: in sentences; {size} is the size of training in pixels.
    """

    short: str
    long: str


KINDS = {  # in the order of the report
    "tiny": Meaning(f"less than {LEAST_SIDE:g} px", f"boxes less than {LEAST_SIDE:g} px wide or high at {{size}} px"),
    "twice": Meaning("same box twice", f"boxes of one class that cover each other (IoU above {MOST_IOU:g})"),
    "two_classes": Meaning(
        "one box, two classes", f"boxes of two classes that cover each other (IoU above {MOST_IOU:g})"
    ),
    "beyond": Meaning("beyond the picture", "boxes that reach beyond the picture"),
    "whole": Meaning("whole picture", f"boxes that cover {WHOLE:.0%} of the picture or more"),
    "thin": Meaning("very long", f"boxes more than {MOST_ASPECT:g} times as long as wide"),
    "no_outline": Meaning("no outline", "objects without an outline, whose mask is their box"),
    "edge": Meaning("at the edge", "boxes that end at the edge of the picture, as cut objects do"),
    "labelled_twice": Meaning("copies, other labels", "exact copies of a picture that have other labels"),
}


@dataclass(frozen=True)
class Example:
    """One place of a kind.

    Attributes:
        split: name of the split.
        file: of the picture.
        rows: numbers of the rows in what the scan kept of its labels, from 0; two where two boxes belong together.
        other: file of a second picture.
    """

    split: str
    file: str
    rows: tuple[int, ...] = ()
    other: str = ""


@dataclass
class Kind:
    """How often something is there, and the first examples of it."""

    count: int = 0
    examples: list[Example] = field(default_factory=list)

    def add(self, example: Example) -> None:
        """Count an example, and keep it if there are not too many."""
        self.count += 1
        if len(self.examples) < MOST_KEPT:
            self.examples.append(example)


def look_for_kinds(record: Record, imgsz: int, outlines: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the kinds that are in the labels of one picture, and the rows that they are in.

    Args:
        record: what the scan found.
        imgsz: pixels of the longer side in training.
        outlines: the objects are to have outlines.
    """
    height, width = record.shape
    sides = record.rows[:, 3:5] * (width, height)
    scaled = sides * (imgsz / max(width, height))
    corners = corners_of(record.rows, width, height)
    inside = corners * (1, 1, -1, -1) - (0, 0, -width, -height)  # pixels from each edge, negative beyond it
    found = {
        "tiny": scaled.min(1) < LEAST_SIDE,
        "beyond": inside.min(1) < -EDGE,
        "whole": record.rows[:, 3:5].prod(1) >= WHOLE,
        "thin": sides.max(1) > MOST_ASPECT * sides.min(1),
        "edge": abs(inside).min(1) <= EDGE,
        "no_outline": np.array([outlines and not len(s) for s in record.segments] or [outlines] * len(sides)),
    }
    for kind, where in found.items():
        for row in np.flatnonzero(where):
            yield kind, (int(row),)
    for a, b in covering_pairs(corners):
        yield ("twice" if record.rows[a, 0] == record.rows[b, 0] else "two_classes"), (a, b)


def corners_of(rows: NDArray, width: int, height: int) -> NDArray:
    """Return the corners (n, 4) x1 y1 x2 y2 in pixels of rows (n, 5) `class x y w h` of a picture."""
    size = np.array([width, height], np.float64)
    centre, half = rows[:, 1:3] * size, rows[:, 3:5] * size / 2
    return np.concatenate([centre - half, centre + half], 1)


def covering_pairs(corners: NDArray) -> Iterator[tuple[int, int]]:
    """Yield the pairs of boxes (n, 4) x1 y1 x2 y2 whose IoU is above MOST_IOU, each once."""
    areas = (corners[:, 2:] - corners[:, :2]).prod(1)
    step = max(1, PAIRS_AT_ONCE // max(1, len(corners)))
    for start in range(0, len(corners), step):
        part = corners[start : start + step, None]
        overlap = (np.minimum(part[..., 2:], corners[:, 2:]) - np.maximum(part[..., :2], corners[:, :2])).clip(0)
        common = overlap.prod(2)
        union = areas[start : start + step, None] + areas - common
        for a, b in np.argwhere(common > MOST_IOU * union):
            if a + start < b:
                yield int(a) + start, int(b)
