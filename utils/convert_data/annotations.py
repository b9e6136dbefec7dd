"""What the readers of all formats hand on, and what is lost on the way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from utils.text import printable, shorten

MOST_EXAMPLES = 20  # of each kind of loss that are kept
LOSSES = {  # kind: what of it is told
    "missing_pictures": "pictures that are not there, left out",
    "unreadable_pictures": "pictures that cannot be read, left out",
    "ambiguous_pictures": "pictures whose name several files have, left out",
    "other_shape": "pictures of another shape than their labels say, left out",
    "no_split": "pictures that are in no split, left out",
    "several_splits": "pictures that are in several splits",
    "listed_twice": "pictures that are listed several times, put together",
    "no_size": "pictures whose size is not said, taken from the file",
    "renamed": "pictures that got another name",
    "unused_files": "files without boxes, not used",
    "malformed": "entries that cannot be read, left out",
    "no_picture": "objects of pictures that are not listed, left out",
    "unknown_classes": "objects of classes that are not listed, left out",
    "crowds": "crowds and groups, left out",
    "difficult": "objects marked difficult, left out",
    "no_area_shapes": "points, lines and other shapes without an area, left out",
    "zero_area": "boxes without area, left out",
    "outside": "boxes outside of their picture, left out",
    "clipped": "boxes that reach out of their picture, clipped",
    "repeated": "objects that stand there twice, left out",
    "no_outline": "objects without an outline, written as boxes",
    "parts": "outlines of several parts, joined to one",
    "holes": "masks with holes, filled",
    "thinned": "outlines of too many points, thinned out",
}

Points = NDArray[np.float64]


@dataclass(frozen=True)
class Mask:
    """A run-length encoded mask, as COCO has it: how many pixels in turn are out and in, column by column.

    Attributes:
        runs: lengths.
        size: height and width in pixels.
    """

    runs: tuple[int, ...]
    size: tuple[int, int]


@dataclass(frozen=True)
class Annotation:
    """One object in a picture.

    Attributes:
        label: the name of its class.
        box: left, top, right and bottom, in the unit of its picture.
        where: it is said: a file, and a place in it.
        parts: outlines, (points, 2) each, in the same unit.
        mask: instead of outlines.
        crowd: it is several objects.
        difficult: it is marked as such.
    """

    label: str
    box: tuple[float, float, float, float]
    where: str
    parts: tuple[Points, ...] = ()
    mask: Mask | None = None
    crowd: bool = False
    difficult: bool = False


@dataclass(frozen=True)
class Picture:
    """A picture with its objects, as a source describes it.

    Attributes:
        names: what its file may be called, the likeliest first; with folders or without, with a suffix or without.
        source: the file that describes it.
        annotations: the objects.
        size: width and height in pixels; None where the source does not say it, then it is that of the file.
        fractions: coordinates are parts of the width and the height, not pixels.
        split: train, val, test, or None where the source does not say it.
    """

    names: tuple[str, ...]
    source: Path
    annotations: list[Annotation]
    size: tuple[float, float] | None = None
    fractions: bool = False
    split: str | None = None


@dataclass
class Loss:
    """How often something was lost, and where for instance."""

    count: int = 0
    examples: list[str] = field(default_factory=list)


class Losses:
    """What was lost or changed, by the kinds of LOSSES."""

    def __init__(self) -> None:
        self.of: dict[str, Loss] = {kind: Loss() for kind in LOSSES}

    def add(self, kind: str, where: object, reason: object = "", count: int = 1) -> None:
        """Count a loss.

        Args:
            kind: a key of LOSSES.
            where: the file, and the place in it.
            reason: what there is to say beside the kind.
            count: how many.
        """
        loss = self.of[kind]
        loss.count += count
        if len(loss.examples) < MOST_EXAMPLES:
            loss.examples.append(printable(shorten(f"{where}: {reason}" if reason else where, 300)))

    @contextmanager
    def malformed(self, where: str) -> Iterator[None]:
        """Count what a ValueError inside says of an entry."""
        try:
            yield
        except ValueError as error:
            self.add("malformed", where, str(error).removeprefix(f"{where} "))

    def found(self) -> dict[str, Loss]:
        """Return those that there are."""
        return {kind: loss for kind, loss in self.of.items() if loss.count}

    def first(self) -> str:
        """Return what was lost first of all, in a few words; empty where nothing was."""
        return next((f"{loss.count} {LOSSES[kind]}: {loss.examples[0]}" for kind, loss in self.found().items()), "")

    def as_dict(self) -> dict[str, dict[str, object]]:
        """Return it as JSON takes it."""
        return {
            kind: {"what": LOSSES[kind], "count": loss.count, "examples": loss.examples}
            for kind, loss in self.found().items()
        }
