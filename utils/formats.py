"""The formats that export.py writes, as data: one row each, read by everything that writes, runs or names files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from models.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        name: what `--include` takes, and ultralytics' exporter.
        title: what people call it.
        ending: of a file's or folder's name, after the stem of the weights: ".onnx".
    """

    name: str
    title: str
    ending: str


FORMATS = {
    row.name: row
    for row in (
        Format("torchscript", "TorchScript", ".torchscript"),
        Format("onnx", "ONNX", ".onnx"),
    )
}


def check_formats(names: Sequence[str]) -> tuple[str, ...]:
    """Return the formats that `--include` names, each once; UserError for one that does not exist."""
    for name in names:
        if name.lower() not in FORMATS:
            raise UserError(f"there is no format '{name}'{did_you_mean(name, FORMATS)}, choose of {', '.join(FORMATS)}")
    return tuple(dict.fromkeys(name.lower() for name in names))


def format_of(path: str | Path) -> Format | None:
    """Return the format of an exported file by the ending of its name, or None for anything else."""
    name = Path(path).name.lower()
    return next((row for row in FORMATS.values() if name.endswith(row.ending)), None)
