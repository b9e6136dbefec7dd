"""export.py as the tests of exporting run it, and what it left in a folder."""

from __future__ import annotations

import json
from pathlib import Path

import export as script
from utils import cli


def command(*words: object) -> int:
    """Run export.py as the command line does and return the exit code."""
    return cli.run_script(script.main, script.make_parser(), list(map(str, words)))


def names_in(folder: Path) -> list[str]:
    """Return the names of what is in a folder, sorted."""
    return sorted(path.name for path in folder.iterdir())


def report_in(folder: Path, stem: str = "best") -> dict:
    """Return the report that an export of `stem` wrote into a folder."""
    return json.loads((folder / f"{stem}.export.json").read_text(encoding="utf-8"))


def sides_of(ports) -> dict[str, list[int | str]]:
    """Return the sides of inputs or outputs of an ONNX graph: numbers, and names of those that are free."""
    return {port.name: [d.dim_param or d.dim_value for d in port.type.tensor_type.shape.dim] for port in ports}
