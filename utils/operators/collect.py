"""The operators of networks, each once, and the file with their small models."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models import create_model
from models.spec import ModelSpec
from utils.benchmark.forms import NetworkSource, fit_size
from utils.checkpoint import load_checkpoint
from utils.operators.archive import FLOAT, NCNN, ONNX_INT8, OPENVINO_INT8, Setting, write_archive
from utils.operators.description import Operator
from utils.operators.graph import Parts
from utils.operators.ncnn_graph import write_ncnn_operator, write_ncnn_overheads
from utils.operators.predict import parts_of
from utils.operators.small_models import write_float, write_int8, write_openvino_int8, write_overheads

WRITERS: dict[str, Callable[[Operator, Path], bytes]] = {
    FLOAT: lambda operator, _: write_float(operator),
    ONNX_INT8: write_int8,
    OPENVINO_INT8: write_openvino_int8,
    NCNN: lambda operator, _: write_ncnn_operator(operator),
}
OVERHEADS = {kind: write_ncnn_overheads if kind == NCNN else write_overheads for kind in WRITERS}


@dataclass(frozen=True)
class Source:
    """A network whose operators are wanted.

    Attributes:
        network: with weights that do not matter.
        size: height and width of its picture.
    """

    network: Any
    size: tuple[int, int]


def open_source(source: NetworkSource, imgsz: Iterable[int]) -> Source:
    """Return the network of a model YAML or a checkpoint, and the size of its pictures: its only one if it has one.

    Raises:
        ConfigError, WeightsError, UserError: the file is wrong, or its network takes no such pictures.
    """
    network: Any = create_model(source).eval() if isinstance(source, ModelSpec) else load_checkpoint(source)
    return Source(network, network.only_size or fit_size(network, list(imgsz)))


def kinds_of(settings: Iterable[Setting]) -> list[str]:
    """Return which kinds of small models some settings need."""
    return list(dict.fromkeys(setting.models for setting in settings))


def find_parts(source: Source, settings: Collection[Setting]) -> dict[str, Parts]:
    """Return kind of small models → what a network consists of, for the kinds that settings need.

    Raises:
        UserError: it cannot be written in a format that the settings need.
    """
    return parts_of(source.network, source.size, kinds_of(settings))


def write_operators(
    path: Path,
    networks: Iterable[Mapping[str, Parts]],
    settings: Collection[Setting],
    known: Mapping[str, Collection[str]],
    after: Callable[[int], object],
) -> int:
    """Write the small models of all operators of some networks, each once, and return how many there are.

    Args:
        path: the new file.
        networks: what each consists of, as `find_parts` says it.
        settings: in which they are to be measured.
        known: kind of small models → digests of the operators that are left out.
        after: is told how many have been written.
    """
    kinds = kinds_of(settings)
    wanted: dict[str, dict[str, Operator]] = {kind: {} for kind in kinds}
    for parts in networks:
        for kind in kinds:
            wanted[kind] |= {placed.operator.digest: placed.operator for placed in parts[kind].operators}
    left = {kind: [o for digest, o in found.items() if digest not in known[kind]] for kind, found in wanted.items()}
    with tempfile.TemporaryDirectory(prefix="repyolo-") as name:
        write_archive(path, _models(left, Path(name), after), {kind: OVERHEADS[kind]() for kind in kinds})
    return sum(map(len, left.values()))


def _models(
    wanted: Mapping[str, Iterable[Operator]], folder: Path, after: Callable[[int], object]
) -> Iterator[tuple[str, Operator, bytes]]:
    for kind, operators in wanted.items():
        for operator in operators:
            yield kind, operator, WRITERS[kind](operator, folder)
            after(1)
