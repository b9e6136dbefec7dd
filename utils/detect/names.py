"""Names of output files: each source has its own, and class names are made safe before they become folders or cells."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

MAX_STEM = 251  # bytes of a file's name without a suffix of four
FRAME_DIGITS = 12  # bytes that the number of a frame may take
WINDOWS_NAMES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # no file names on Windows


def output_names(pictures: Sequence[Path], videos: Sequence[Path]) -> dict[Path, str]:
    """Return the name without suffix of each source's output files: its own, or bus-2 where there is a bus before it.

    No two are alike, be it that case does not count, nor is a picture's that of a frame of a video, clip_12.
    """
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for path in pictures:
        names[path] = _free_name(path.stem, taken, MAX_STEM)
        taken.add(_key(names[path]))
    taken |= {stem for stem, _, number in (name.rpartition("_") for name in taken) if number.isdecimal()}
    for path in videos:
        names[path] = _free_name(path.stem, taken, MAX_STEM - FRAME_DIGITS)
        taken.add(_key(names[path]))
    return names


def _free_name(stem: str, taken: set[str], most: int) -> str:
    """Return `stem`, or the first of stem-2, stem-3, … that is not taken, of at most so many bytes."""
    name, n = extend(stem, "", most), 1
    while _key(name) in taken:
        n += 1
        name = extend(stem, f"-{n}", most)
    return name


def _key(name: str) -> str:
    """Return what names have in common that some file systems take for one."""
    return unicodedata.normalize("NFC", name).casefold()


def extend(stem: str, end: str, most: int = MAX_STEM) -> str:
    """Return `stem` and `end`, of at most so many bytes, for which the stem is cut if need be."""
    whole = os.fsencode(stem)
    room = most - len(end.encode())
    return f"{stem if len(whole) <= room else whole[:room].decode(errors='ignore')}{end}"


def relative_path(path: Path) -> str:
    """Return a path as seen from the current folder where it lies below that, else as it is."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def safe_name(text: str) -> str:
    """Return a class name as the name of a folder: one that every system accepts and that stays where it is."""
    name = unicodedata.normalize("NFC", text)
    name = "".join(c if c.isprintable() and c not in '<>:"/\\|?*' else "_" for c in name).strip(" .")
    name = name.encode()[:120].decode(errors="ignore")
    return f"_{name}" if not name or WINDOWS_NAMES.fullmatch(name) else name


def safe_cell(text: str) -> str:
    """Return a name for a table: a spreadsheet takes text that begins with = + - @ for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
