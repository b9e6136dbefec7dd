"""The small models of operators in one file, which is carried to the machine that is to be measured."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from models.errors import UserError
from models.files import why_no_file
from utils.operators.description import Operator, read_operator
from utils.writing import replacing

CONTENTS = "operators.json"
FLOAT, ONNX_INT8, OPENVINO_INT8, NCNN = "float", "onnx-int8", "openvino-int8", "ncnn"  # kinds of small models
KINDS = {  # runtime, and whether in INT8 → which kind of small models it computes
    ("onnx", False): FLOAT,
    ("openvino", False): FLOAT,
    ("ncnn", False): NCNN,
    ("onnx", True): ONNX_INT8,
    ("openvino", True): OPENVINO_INT8,
}
OVERHEAD = "overhead"
FORMAT = 2


@dataclass(frozen=True)
class Setting:
    """How networks are computed.

    Attributes:
        runtime: `onnx`, that is ONNX Runtime, `openvino` or `ncnn`.
        int8: what can be is in INT8.
        threads: of the CPU.
    """

    runtime: str
    int8: bool
    threads: int

    @property
    def models(self) -> str:
        """Return which kind of small models such networks consist of."""
        return KINDS[self.runtime, self.int8]

    def __str__(self) -> str:
        numbers = "INT8" if self.int8 else "float"
        return f"{RUNTIMES[self.runtime]}, {numbers}, {self.threads} thread{'s' * (self.threads > 1)}"


RUNTIMES = {"onnx": "ONNX Runtime", "openvino": "OpenVINO", "ncnn": "NCNN"}


def write_archive(
    path: Path, models: Iterable[tuple[str, Operator, bytes]], overheads: Mapping[str, Mapping[str, bytes]]
) -> None:
    """Write small models as one file, as a whole.

    Args:
        path: the new file.
        models: of each, which kind it is (as `Setting.models` says it), its operator, and the content of its file.
        overheads: kind of small models → models for what a runtime does beside the nodes of a graph, by their names.

    Raises:
        OSError: the disk is full, or the folder is none.
    """
    operators: dict[str, Operator] = {}
    kinds: dict[str, list[str]] = {}
    with replacing(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for kind, operator, content in models:
            operators[operator.digest] = operator
            kinds.setdefault(kind, []).append(operator.digest)
            archive.writestr(_place(kind, operator.digest), content)
        for kind, of_kind in overheads.items():
            for name, content in of_kind.items():
                archive.writestr(_overhead(kind, name), content)
        entries = {digest: operator.as_dict() for digest, operator in operators.items()}
        archive.writestr(CONTENTS, json.dumps({"format": FORMAT, "kinds": kinds, "operators": entries}))


class Archive:
    """A file that `write_archive` wrote.

    Raises:
        UserError: it is none.
    """

    def __init__(self, path: Path) -> None:
        if problem := why_no_file(path):
            raise UserError(f"the file of operators {path} {problem}")
        try:
            self.file = zipfile.ZipFile(path)
            contents = json.loads(self.file.read(CONTENTS))
            if contents["format"] != FORMAT:
                raise ValueError("another format")
            operators = {digest: read_operator(entry) for digest, entry in contents["operators"].items()}
            self.kinds: Mapping[str, list[Operator]] = {
                kind: [operators[digest] for digest in digests] for kind, digests in contents["kinds"].items()
            }
        except (zipfile.BadZipFile, KeyError, ValueError, TypeError, AttributeError, OSError) as error:
            raise UserError(f"{path} holds no operators that python benchmark.py --write-operators wrote") from error

    def model(self, kind: str, operator: Operator) -> bytes:
        """Return the content of the small model of an operator."""
        return self.file.read(_place(kind, operator.digest))

    def overhead(self, kind: str, name: str) -> bytes:
        """Return the content of a model for what a runtime does beside the nodes of a graph."""
        return self.file.read(_overhead(kind, name))


def _place(kind: str, digest: str) -> str:
    return f"{kind}/{digest}"


def _overhead(kind: str, name: str) -> str:
    return _place(f"{OVERHEAD}/{kind}", name)
