"""One operator of a deploy graph as plain data, which a machine without torch reads as well."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

MAP, PLAIN, OUTSIDE = "map", "plain", "outside"  # a map in the runtime's own layout; another tensor; the input
BEFORE, BEHIND = "before/", "behind/"  # begin the names of nodes around an operator in its small model


@dataclass(frozen=True)
class Operator:
    """An operator with the elementwise ones behind it, which runtimes compute along with it.

    Attributes:
        graph: its nodes, constants, inputs and outputs as JSON, in which names are numbers: equal operators of
            different networks have the same. `utils/operators/small_models.py` makes an ONNX model of it, and
            `utils/operators/ncnn_graph.py` an NCNN graph where it is a layer of one.
        family: what operators have in common that differ in sizes alone: types, kernel, stride, groups, neighbours.
        text: for people, as `Conv 64>128 3x3/2 80x80 Sigmoid Mul`; the size is that of the output.
        work: multiply-adds, or comparisons of a pooling, or elements written.
        read: elements that come from other operators.
        written: elements that other operators read.
        weights: elements of its constants.
    """

    graph: str
    family: str
    text: str
    work: int
    read: int
    written: int
    weights: int

    @cached_property
    def digest(self) -> str:
        """Return the key of the operator in tables and files."""
        return hashlib.sha256(self.graph.encode()).hexdigest()[:20]

    @property
    def features(self) -> tuple[float, ...]:
        """Return the logarithms of its sizes to base 2, between which tables interpolate."""
        return tuple(math.log2(1 + size) for size in (self.work, self.read, self.written, self.weights))

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        return asdict(self)


def by(sides: Sequence[int]) -> str:
    """Return sides as 3x5, or once where they are equal."""
    return str(sides[0]) if len(set(sides)) == 1 else "x".join(map(str, sides))


def read_operator(entry: Any) -> Operator:
    """Return the operator that an entry of a file holds; ValueError where it holds none."""
    kinds = {"graph": str, "family": str, "text": str}
    if not isinstance(entry, dict) or entry.keys() != {field.name for field in fields(Operator)}:
        raise ValueError("no operator")
    if not all(type(value) is kinds.get(name, int) for name, value in entry.items()):
        raise ValueError("an operator with values of other types")
    json.loads(entry["graph"])
    return Operator(**entry)
