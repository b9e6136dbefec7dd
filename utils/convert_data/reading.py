"""Files of strangers as plain values: JSON, XML and CSV of a bounded size, and checks of what they hold.

A ValueError says what is wrong with a value; it completes a sentence that begins with the file.
"""

from __future__ import annotations

import csv
import json
import math
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from models.errors import UserError
from models.files import why_no_file
from utils.paths import is_utf8
from utils.text import decode

MAX_JSON, MAX_XML = 2 << 30, 16 << 20  # bytes
MAX_DEPTH = 100  # of elements of XML in each other
MAX_NUMBER = 1e9  # pixels


# Files ----------------------------------------------------------------------------------------------------------------
def read_bytes(path: Path, most: int) -> bytes:
    """Return the content of a file; UserError where there is none, or more than `most` bytes."""
    if problem := why_no_file(path):
        raise UserError(f"{path} {problem}")
    try:
        if path.stat().st_size > most:
            raise UserError(f"{path} has more than the {most >> 20} MB that are read")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def read_json(path: Path) -> Any:
    """Return what a JSON file holds; UserError where it is none."""
    content = read_bytes(path, MAX_JSON)
    try:
        text = decode(content)
    except ValueError as error:
        raise UserError(f"{path} {error}") from error
    try:
        return json.loads(text)
    except RecursionError as error:
        raise UserError(f"{path} is nested too deeply") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not valid JSON: line {error.lineno}: {error.msg}") from error
    except ValueError as error:
        raise UserError(f"{path} holds a number of thousands of digits") from error


def read_xml(path: Path) -> Element:
    """Return the root of an XML file; UserError where it is none, or declares entities.

    Entities could unfold to gigabytes or lead to other files. Nothing that labels of pictures are needs them.
    """
    content = read_bytes(path, MAX_XML)
    builder, parser, depth = TreeBuilder(), expat.ParserCreate(), 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError("is nested too deeply")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def refuse(*_: object) -> None:
        raise ValueError("has a document type (DOCTYPE), whose entities are not read")

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(content, True)
        return builder.close()
    except expat.ExpatError as error:
        raise UserError(f"{path} is not valid XML: line {error.lineno}: {expat.ErrorString(error.code)}") from error
    except (ValueError, LookupError) as error:  # LookupError: an unknown encoding
        raise UserError(f"{path} {error}") from error


def read_csv(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of each line of a CSV file and its cells; UserError where it is none."""
    if problem := why_no_file(path):
        raise UserError(f"{path} {problem}")
    line = 0
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            rows = csv.reader(file)
            for row in rows:
                line = rows.line_num
                if not is_utf8("".join(row)):
                    raise UserError(f"{path} is not UTF-8 text: line {line}")
                if row:
                    yield line, row
    except csv.Error as error:
        raise UserError(f"{path} is not valid CSV behind line {line}: {error}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


# Values ---------------------------------------------------------------------------------------------------------------
def kind_of(value: object) -> str:
    """Return a short description of a value."""
    return "nothing" if value is None else reprlib.repr(value)


def as_mapping(value: object, what: str) -> dict[str, Any]:
    """Return a mapping; ValueError for anything else."""
    if isinstance(value, dict):
        return value
    raise ValueError(f"{what} must be a mapping, not {kind_of(value)}")


def as_list(value: object, what: str) -> list[Any]:
    """Return a list; ValueError for anything else."""
    if isinstance(value, list):
        return value
    raise ValueError(f"{what} must be a list, not {kind_of(value)}")


def as_text(value: object, what: str) -> str:
    """Return a text that is not blank, without spaces around it; a number is one too."""
    if isinstance(value, (str, int, float)) and not isinstance(value, bool) and str(value).strip():
        return str(value).strip()
    raise ValueError(f"{what} must be a text, not {kind_of(value)}")


def as_key(value: object, what: str) -> int | str:
    """Return the number or the text that identifies something."""
    if isinstance(value, (int, str)) and not isinstance(value, bool):
        return value
    raise ValueError(f"{what} must be a number or a text, not {kind_of(value)}")


def as_number(value: object, what: str) -> float:
    """Return a finite number, which may be given as a text."""
    try:
        number = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if abs(number) <= MAX_NUMBER:
        return number
    raise ValueError(f"{what} must be a number, not {kind_of(value)}")


def as_numbers(value: object, what: str, count: int) -> list[float]:
    """Return so many finite numbers."""
    numbers = as_list(value, what)
    if len(numbers) != count:
        raise ValueError(f"{what} must be {count} numbers, not {kind_of(value)}")
    return [as_number(number, what) for number in numbers]


def as_size(width: object, height: object) -> tuple[float, float] | None:
    """Return width and height in pixels; None where they are not said, or 0."""
    if not width or not height or "0" in (width, height):
        return None
    size = as_number(width, "width"), as_number(height, "height")
    if min(size) < 1:
        raise ValueError(f"a picture cannot have {size[0]:g}x{size[1]:g} pixels")
    return size
