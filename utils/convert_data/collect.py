"""The pictures of a source with the rows of their labels, their splits and their classes."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from models.errors import UserError
from models.files import why_no_file
from utils.convert_data.annotations import Losses, Picture
from utils.convert_data.rows import Row, Wanted, rows_of
from utils.convert_data.source import PictureFinder
from utils.data.description import check_names
from utils.data.pictures import BROKEN_PICTURE, Unreadable, checked_header, open_picture, suffix
from utils.text import printable, shorten

ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)  # the tag of EXIF, and its values where width and height change places
DIVIDED = (0.8, 0.2)  # where the source has no splits: parts for train and val


@dataclass
class Labelled:
    """A picture that will be written.

    Attributes:
        path: of its file.
        split: train, val or test; None where the source does not say it.
        rows: of its label file.
    """

    path: Path
    split: str | None
    rows: list[Row] = field(default_factory=list)


def collect(pictures: Iterable[Picture], finder: PictureFinder, wanted: Wanted, losses: Losses) -> list[Labelled]:
    """Return the pictures that are there, with their rows.

    Raises:
        UserError: none of them is there.
    """
    found: dict[tuple[Path, str | None], Labelled] = {}
    missing = ""
    for picture in pictures:
        path = find_file(picture, finder, losses)
        if path is None:
            missing = missing or picture.names[0]
            continue
        size = size_of(path, picture, losses)
        if size is None:
            continue
        rows = rows_of(picture, size, wanted, losses)
        key = path, picture.split
        if key in found:
            losses.add("listed_twice", picture.source, path)
            rows = without_repeated(found[key].rows, rows, path, losses)
        found.setdefault(key, Labelled(*key)).rows.extend(rows)
    if not found:
        raise UserError(why_nothing(missing, finder, losses))
    for path, count in Counter(path for path, _ in found).items():
        if count > 1:
            losses.add("several_splits", path)
    return list(found.values())


def why_nothing(missing: str, finder: PictureFinder, losses: Losses) -> str:
    """Return in a sentence why there is no picture to convert."""
    if missing and losses.of["missing_pictures"].count:
        folders = " and ".join(map(str, finder.roots))
        return (
            f"none of the pictures is there, such as {shorten(missing)}: looked in {folders}, name their folder with "
            "--images"
        )
    return f"there are no pictures to convert{reason(losses)}"


def reason(losses: Losses) -> str:
    """Return the end of a sentence that says what was lost; empty where nothing was."""
    return f" ({first})" if (first := losses.first()) else ""


def find_file(picture: Picture, finder: PictureFinder, losses: Losses) -> Path | None:
    """Return the file of a picture, None where there is none, or where it is unclear which."""
    several: list[Path] = []
    for name in picture.names:
        files = finder.find(name, picture.source.parent, picture.split)
        if len(files) == 1:
            return files[0]
        several = several or files
    if several:
        losses.add("ambiguous_pictures", picture.source, f"{shorten(picture.names[0])}: {several[0]} or {several[1]}")
    else:
        losses.add("missing_pictures", picture.source, shorten(picture.names[0]))
    return None


def size_of(path: Path, picture: Picture, losses: Losses) -> tuple[int, int] | None:
    """Return width and height of a picture's file as it is shown; None where it cannot be used, which is counted."""
    try:
        if problem := why_no_file(path):
            raise Unreadable(problem)
        size = shown_size(path)
    except (Unreadable, *BROKEN_PICTURE) as error:
        losses.add("unreadable_pictures", path, error or type(error).__name__)
        return None
    if picture.size is None:
        return size
    (width, height), (said_width, said_height) = size, picture.size
    slack = 1 / said_width + 1 / said_height  # a picture that was resized has whole pixels
    if abs(width / said_width - height / said_height) <= slack * max(1, width / said_width):
        return size
    losses.add("other_shape", path, f"{said_width:g}x{said_height:g} in {picture.source}, but it has {width}x{height}")
    return None


def shown_size(path: Path) -> tuple[int, int]:
    """Return width and height in pixels of a picture as it is shown, from its header.

    Raises:
        Unreadable: it has more pixels than are allowed.
        OSError: it is no picture; damaged ones raise one of BROKEN_PICTURE.
    """
    with open_picture(path) as picture:
        header = checked_header(picture, suffix(path))
        turned = picture.getexif().get(ORIENTATION) in TURNED
    return (header.height, header.width) if turned else (header.width, header.height)


def without_repeated(before: Sequence[Row], rows: Sequence[Row], path: Path, losses: Losses) -> list[Row]:
    """Return the rows that a picture does not have yet."""
    known = set(before)
    new = [row for row in rows if row not in known]
    if len(new) < len(rows):
        losses.add("repeated", path, count=len(rows) - len(new))
    return new


# Splits ---------------------------------------------------------------------------------------------------------------
def assign_splits(pictures: list[Labelled], parts: Sequence[float], root: Path, losses: Losses) -> str:
    """Give each picture a split, and return a line that says how, empty where the source has said it.

    Args:
        pictures: those that will be written; where they are divided anew, each of them is there once afterwards.
        parts: for train, val and test; empty: as the source says, and DIVIDED where it says none.
        root: a folder that holds them, by the names below which they are drawn.
        losses: what was left out, for messages.

    Raises:
        UserError: a split has no pictures.
    """
    splits = {picture.split for picture in pictures}
    said = ""
    if parts or splits == {None}:
        pictures[:] = merged(pictures)
        if len(pictures) < 2:
            raise UserError(f"one picture alone cannot be divided into train and val{reason(losses)}")
        parts = parts or DIVIDED
        divide(pictures, parts, root)
        said = f"divided by --split {' '.join(f'{part:g}' for part in parts)}, drawn by the names of the pictures"
    elif None in splits:
        rest = [picture for picture in pictures if picture.split is None]
        for picture in rest:
            picture.split = "train"
        said = f"{len(rest)} pictures whose split is not said go to train"
    there = {picture.split for picture in pictures}
    for split in ("train", "val"):
        if split not in there:
            raise UserError(
                f"no picture is in the {split} split, only in {', '.join(sorted(map(str, there)))}: divide them anew, "
                f"for instance with --split 0.8 0.2{reason(losses)}"
            )
    return said


def merged(pictures: Sequence[Labelled]) -> list[Labelled]:
    """Return each picture once, with the rows that it has in several splits."""
    found: dict[Path, Labelled] = {}
    for picture in pictures:
        one = found.setdefault(picture.path, picture)
        if one is not picture:
            one.rows.extend(row for row in picture.rows if row not in one.rows)
    return list(found.values())


def divide(pictures: list[Labelled], parts: Sequence[float], root: Path) -> None:
    """Draw the pictures of each split: the same whenever the pictures have the same names."""

    def draw(picture: Labelled) -> bytes:
        name = str(picture.path.relative_to(root) if picture.path.is_relative_to(root) else picture.path.name)
        return hashlib.sha256(name.encode(errors="surrogateescape")).digest()

    drawn, first = sorted(pictures, key=draw), 0
    for i, split in enumerate(("train", "val", "test")[: len(parts)]):
        last = len(drawn) if i == len(parts) - 1 else first + round(parts[i] * len(drawn))
        if i == 0:
            last = min(max(last, 1), len(drawn) - 1)  # one is left to validate
        for picture in drawn[first:last]:
            picture.split = split
        first = last


# Classes --------------------------------------------------------------------------------------------------------------
def assign_classes(
    pictures: list[Labelled], listed: Sequence[str], all_of_them: bool, wanted: Sequence[str], losses: Losses
) -> list[str]:
    """Return the names of the classes in their order; rows of others are left out.

    Args:
        pictures: those that will be written; receive the names as they are written.
        listed: names in the order of the source; others come behind them, in the order of the alphabet.
        all_of_them: keep those that no object is of, too.
        wanted: these alone, in this order; empty: all.
        losses: receives what is left out.

    Raises:
        UserError: there are no classes, too many, or a wrong name.
    """
    there = {label for picture in pictures for label, _ in picture.rows}
    order = [*(name for name in listed if all_of_them or name in there), *sorted(there - set(listed))]
    shown = list(dict.fromkeys(map(printable, wanted or order)))
    if not shown:
        raise UserError(f"there are no objects to convert{reason(losses)}")
    names = dict.fromkeys(check_names(shown, None, Path("the source")).values())
    for picture in pictures:
        rows = [(printable(label), numbers) for label, numbers in picture.rows]
        picture.rows = [row for row in rows if row[0] in names]
        for label in (label for label, _ in rows if label not in names):
            losses.add("unknown_classes", picture.path, label)
    return list(names)
