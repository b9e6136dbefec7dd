"""Exported files that are programs, and which of them may run on this machine.

A TorchScript file can read and write any file as soon as it is loaded. So it is opened only if it was written here, by
export.py, or if the user said once that it may run (`--trust`). Either is remembered by the file's SHA-256, in the
user's cache folder: a hash that comes with the file is as easy to forge as the file.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from models.environment import cache_folder
from models.errors import UserError
from utils.deploy.files import digest
from utils.deploy.formats import format_of
from utils.paths import find_weights

TRUSTED: set[str] = set()  # SHA-256 of what this process trusts, in case that the cache folder cannot be written to


def trust(path: Path) -> None:
    """Let a file run from now on, in this process and in later ones of this user; nothing to do for formats of data."""
    if not is_program(path):
        return
    name = digest(path)
    TRUSTED.add(name)
    with suppress(OSError):  # then the user is asked again
        _folder().mkdir(parents=True, exist_ok=True)
        (_folder() / name).touch()


def trust_weights(weights: Iterable[str | Path | None]) -> None:
    """Let those of several weights that are programs run; None stands for a checkpoint of train.py."""
    for name in weights:
        if name:
            trust(find_weights(name))


def check_trusted(path: Path) -> None:
    """Raise UserError for a program that neither export.py wrote on this machine nor the user has trusted."""
    if not is_program(path):
        return
    name = digest(path)
    if name not in TRUSTED and not (_folder() / name).exists():
        raise UserError(
            f"{path} was not written on this machine, and a {path.suffix} file is a program that can read and write "
            "any file: if you trust who made it, --trust (trust=True in Python) runs it now and later; an .onnx or .pt "
            "file needs no trust"
        )


def is_program(path: Path) -> bool:
    """Return whether a file is of a format that can do more than compute."""
    kind = format_of(path)
    return kind is not None and kind.program and path.is_file()


def _folder() -> Path:
    return cache_folder() / "trusted"
