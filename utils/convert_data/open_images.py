"""Open Images: a CSV file with the boxes of each split, in fractions of the picture, and one with names of classes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from models.errors import UserError
from utils.convert_data.annotations import Annotation, Losses, Picture
from utils.convert_data.reading import as_number, as_text, read_csv
from utils.convert_data.source import Source

DESCRIPTIONS = "*class-descriptions*.csv"
COLUMNS = ("ImageID", "LabelName", "XMin", "YMin", "XMax", "YMax")


def read(source: Source, losses: Losses) -> Iterator[Picture]:
    """Yield the pictures of CSV files, and add the names of their classes to those of the source.

    Raises:
        UserError: a file is none of these.
    """
    names = read_descriptions(source)
    source.classes.update(dict.fromkeys(names.values()))
    for file in source.files:
        split = source.split_of(file)
        rows = read_csv(file)
        _, head = next(rows, (0, []))
        missing = [column for column in COLUMNS if column not in head]
        if missing:
            raise UserError(f"{file} has no column {missing[0]} in its first line")
        named = ((line, dict(zip(head, row, strict=False))) for line, row in rows)
        for key, group in itertools.groupby(named, lambda item: item[1].get("ImageID", "")):
            where = f"{file}: line"
            annotations = [found for line, row in group if (found := read_row(row, names, f"{where} {line}", losses))]
            if key.strip():
                yield Picture((key.strip(),), file, annotations, fractions=True, split=split)


def read_descriptions(source: Source) -> dict[str, str]:
    """Return the names of classes by their codes, such as /m/01g317; none where there is no such file.

    Raises:
        UserError: the file is wrong.
    """
    folders = dict.fromkeys(file.parent for file in source.files)
    files = sorted(path for folder in (*folders, *source.roots) for path in folder.glob(DESCRIPTIONS))
    rows = read_csv(files[0]) if files else ()
    return {row[0]: row[1].strip() for _, row in rows if len(row) > 1 and row[0] != "LabelName" and row[1].strip()}


def read_row(row: dict[str, str], names: dict[str, str], where: str, losses: Losses) -> Annotation | None:
    """Return the object of one row, None where it cannot be used."""
    with losses.malformed(where):
        code = as_text(row.get("LabelName"), "LabelName")
        if names and code not in names:
            losses.add("unknown_classes", where, code)
            return None
        left, top, right, bottom = (as_number(row.get(key), key) for key in ("XMin", "YMin", "XMax", "YMax"))
        crowd = row.get("IsGroupOf") == "1"
        return Annotation(names.get(code, code), (left, top, right, bottom), where, crowd=crowd)
    return None
