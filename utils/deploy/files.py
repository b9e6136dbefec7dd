"""Files of an export on their way to their final names: all of them or none, whatever happens meanwhile.

They are made in a temporary folder beside their final place, on the same disk. What a killed export leaves is removed
by the next one, after what it was replacing has been put back.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from models.errors import UserError
from utils.writing import lock_folder, sync

TEMPORARY_PREFIX, REPLACED = ".export-", "replaced"  # of the folder to write in; in it, of what was there before


@contextmanager
def temporary_folder(folder: Path) -> Iterator[Path]:
    """Give a folder inside of `folder`, on the same disk, and remove it with all that is in it.

    It is locked for as long as this process lives, so that the next export knows what a killed one left, and removes
    that.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            _remove_left_over(folder)
            temporary = tempfile.TemporaryDirectory(dir=folder, prefix=TEMPORARY_PREFIX)
            lock = lock_folder(Path(temporary.name))
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be written to: {error.strerror}") from error
    try:
        with temporary as path:
            yield Path(path)
    finally:
        os.close(lock)


def _remove_left_over(folder: Path) -> None:
    """Remove what exports that were killed have left in `folder`, after putting back what they were replacing."""
    for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
        try:
            lock = lock_folder(path, wait=False)
        except OSError:  # it is still at work, or the file system knows no locks
            continue
        for former in (path / REPLACED).glob("*"):
            if not (folder / former.name).exists():
                former.replace(folder / former.name)
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = lock_folder(folder)
    try:
        yield
    finally:
        os.close(lock)


def reserve(folder: Path, count: int) -> None:
    """Raise OSError when `folder` does not take `count` bytes: torch would end the whole process over a full disk."""
    try:
        with (folder / "reserve").open("wb") as file:
            _fill(file, count)
    except OSError as error:
        temporary = [place for place in (folder, *folder.parents) if place.name.startswith(TEMPORARY_PREFIX)]
        raise OSError(error.errno, error.strerror, str(temporary[0].parent if temporary else folder)) from error
    finally:
        (folder / "reserve").unlink(missing_ok=True)


def _fill(file: BinaryIO, count: int) -> None:
    """Make an empty file take `count` bytes of the disk, where the system can without writing them."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, count)
        return
    block = bytes(2**20)
    for _ in range(count // len(block) + 1):
        file.write(block)
    file.flush()
    os.fsync(file.fileno())


def publish(made: Sequence[Path], temporary: Path, folder: Path) -> list[Path]:
    """Move files and folders from `temporary` into `folder`, the last one last, and return where they are then."""
    for path in made:
        for file in files_in(path):
            sync(file)
    former = temporary / REPLACED
    former.mkdir()
    for path in made:
        _replace(path, folder / path.name, former / path.name)
    sync(folder)
    return [folder / path.name for path in made]


def _replace(new: Path, place: Path, former: Path) -> None:
    """Move `new` to `place`; a folder that is there goes to `former`, and comes back if the move fails."""
    if not place.is_dir() or place.is_symlink():
        new.replace(place)
        return
    try:
        place.replace(former)
        new.replace(place)
    except BaseException:
        if former.exists() and not place.exists():
            former.replace(place)
        raise


def files_in(path: Path) -> list[Path]:
    """Return the files of an export in the order of their names: the file itself, or all in the folder."""
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


def size_of(path: Path) -> int:
    """Return the bytes of an export, of all files of a folder."""
    return sum(file.stat().st_size for file in files_in(path))


def digest(path: Path) -> str:
    """Return the SHA-256 of a file; of a folder that of the lines which `sha256sum *` prints in it."""
    if not path.is_dir():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    lines = (f"{digest(file)}  {file.relative_to(path).as_posix()}\n" for file in files_in(path))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
