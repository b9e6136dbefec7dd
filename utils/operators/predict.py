"""The latency of a network from what its operators cost, before it was run anywhere."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx
from torch import nn

from models.blocks.reparam import switch_to_deploy
from models.errors import UserError
from utils.deploy.formats import FORMATS
from utils.deploy.run import RUN_ERRORS
from utils.deploy.write import ExportError, WriteOptions, write
from utils.int8.quantize import FloatGraph
from utils.operators.archive import FLOAT, NCNN, ONNX_INT8
from utils.operators.description import Operator
from utils.operators.graph import Graph, Parts, parts_in, without_constants
from utils.operators.ncnn_graph import ncnn_parts
from utils.operators.table import Table


@dataclass(frozen=True)
class PlacedCost:
    """An operator of a network and what it costs.

    Attributes:
        operator: that is meant.
        row: of the YAML.
        ms: milliseconds.
        measured: this very operator was; else it was interpolated.
    """

    operator: Operator
    row: int
    ms: float
    measured: bool


@dataclass(frozen=True)
class Prediction:
    """What a network is predicted to take.

    Attributes:
        costs: of its operators, in the order of computation.
        run_ms: what a run takes beside them, such as giving its outputs, in milliseconds.
    """

    costs: tuple[PlacedCost, ...]
    run_ms: float

    @cached_property
    def total_ms(self) -> float:
        """Return the latency in milliseconds."""
        return self.run_ms + sum(cost.ms for cost in self.costs)

    @cached_property
    def rows(self) -> dict[int, float]:
        """Return row of the YAML → milliseconds."""
        found: dict[int, float] = defaultdict(float)
        for cost in self.costs:
            found[cost.row] += cost.ms
        return dict(sorted(found.items()))

    @cached_property
    def measured(self) -> float:
        """Return which part of the time is that of operators that were measured, from 0 to 1."""
        known = sum(cost.ms for cost in self.costs if cost.measured)
        return known / max(self.total_ms - self.run_ms, 1e-9)


def predict(network: nn.Module, size: tuple[int, int], table: Table) -> Prediction:
    """Return what a network takes in the setting of a table.

    Args:
        network: a model as it trains, or fused already; it is left as it is.
        size: height and width of its picture.
        table: what operators cost, as `load_table` gives it.

    Raises:
        UserError: the network cannot be written, or the table is empty.
    """
    kind = table.setting.models
    return price(parts_of(network, size, [kind])[kind], table)


def price(parts: Parts, table: Table) -> Prediction:
    """Return what the parts of a network take together; UserError where the table is empty."""
    costs = []
    for placed in parts.operators:
        found = table.estimate(placed.operator)
        costs.append(PlacedCost(placed.operator, placed.row, found.ms, found.measured))
    return Prediction(tuple(costs), table.overheads.run + table.overheads.output * parts.outputs / 1e6)


def parts_of(network: nn.Module, size: tuple[int, int], kinds: Collection[str]) -> dict[str, Parts]:
    """Return what the deploy graph of a network consists of, in the order of computation.

    Args:
        network: a model as it trains, or fused already.
        size: height and width of its picture.
        kinds: of small models, as `Setting.models` names them, for each of which the parts are returned.

    Raises:
        UserError: the network cannot be written in a format that the kinds need.
    """
    deploy: Any = switch_to_deploy(network)
    found = {}
    try:
        with tempfile.TemporaryDirectory(prefix="repyolo-") as name:
            folder = Path(name)
            for kind in kinds:
                path = folder / f"model{FORMATS[NCNN if kind == NCNN else 'onnx'].ending}"
                if not path.exists():
                    write(deploy, path, WriteOptions(size=size))
                found[kind] = ncnn_parts(deploy, path, size) if kind == NCNN else read_graph(path, folder, kind)
    except (ExportError, *RUN_ERRORS, ValueError) as error:
        raise UserError(f"its operators cannot be found: {' '.join(str(error).split())[:300]}") from error
    return found


def read_graph(file: Path, folder: Path, kind: str = FLOAT) -> Parts:
    """Return what an ONNX file consists of, as a kind of small models; `folder` is for what is written on the way."""
    model = without_constants(file, folder)
    if kind == FLOAT:
        return parts_in(Graph(model))
    path = folder / "float.onnx"
    onnx.save(model, str(path))
    graph = FloatGraph(path, convert=kind == ONNX_INT8)
    return parts_in(Graph(graph.model, graph.body))
