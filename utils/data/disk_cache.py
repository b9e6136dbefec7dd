"""Decoded pictures on the disk, as NumPy files in the user's own cache folder: the folder of a data set is only read.

The name of a file says of which picture it is, and when and how large that was: once a picture has changed, another
file is meant.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ultralytics.utils import LOGGER

from models.environment import config_dir
from utils.text import printable
from utils.writing import PARTIAL, remove_partials

MARGIN = 1.1  # free space that is asked for, as a multiple of what is written
HEADER = 128  # bytes of a NumPy file before its numbers


def cache_folder() -> Path:
    """Return the folder of the files."""
    return Path(os.environ.get("YOLO_CONFIG_DIR") or config_dir()) / "pictures"


def cached_file(picture: str, channels: int) -> Path | None:
    """Return the file that holds or may hold the pixels of a picture as it is now; None: it is not there.

    Args:
        picture: its path.
        channels: that are read of it.
    """
    try:
        stat = Path(picture).stat()
    except OSError:
        return None
    return cache_folder() / f"{_key(picture, channels)}-{stat.st_mtime_ns:x}-{stat.st_size:x}.npy"


def write_cached(file: Path, pixels: np.ndarray) -> None:
    """Write the pixels of a picture (H, W, C), as a whole; a full disk only costs time."""
    partial = file.with_name(f".{file.name}.{os.getpid()}{PARTIAL}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as opened:
            np.save(opened, pixels, allow_pickle=False)
        partial.replace(file)
    except OSError as error:
        partial.unlink(missing_ok=True)
        LOGGER.warning(f"{file} was not written: {error.strerror}")


def read_cached(file: Path | None) -> np.ndarray | None:
    """Return the pixels (H, W, C) that a file holds; None: it is not there, or damaged."""
    try:
        return None if file is None else np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None


def make_room(pictures: Sequence[str], sizes: Sequence[int], channels: int, prefix: str) -> bool:
    """Return whether the disk holds the pixels of pictures, say how many bytes they take, and remove former versions.

    Args:
        pictures: their paths.
        sizes: bytes of the pixels of each.
        channels: that are read of them.
        prefix: of the line of the log.
    """
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    remove_partials(folder)
    files = [cached_file(picture, channels) for picture in pictures]
    kept = {file.name for file in files if file}
    keys = {name.partition("-")[0] for name in kept}
    there = set()
    for file in folder.glob("*.npy"):
        if file.name in kept:
            there.add(file.name)
        elif file.name.partition("-")[0] in keys:
            file.unlink(missing_ok=True)
    total = sum(size + HEADER for size in sizes)
    new = sum(size + HEADER for file, size in zip(files, sizes, strict=True) if file and file.name not in there)
    free = shutil.disk_usage(folder).free
    place = f"{prefix}{len(pictures)} pictures take {_space(total)} in {printable(folder)}"
    if new * MARGIN > free:
        LOGGER.warning(f"{place}, where {_space(free)} are free: they are not cached")
        return False
    LOGGER.info(f"{place}, {_space(new)} of it new; the folder may be removed at any time")
    return True


def _space(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.2f} MB"


def _key(picture: str, channels: int) -> str:
    return hashlib.sha256(f"{channels} {os.path.abspath(picture)}".encode(errors="surrogateescape")).hexdigest()[:24]  # noqa: PTH100
