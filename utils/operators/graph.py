"""The operators that an ONNX graph consists of, as runtimes group its nodes.

A convolution or matrix product, and likewise an elementwise node, takes along the elementwise nodes behind it, as
runtimes do: an activation of one node or of several, and the addition of a map that is there already.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper, shape_inference

from utils.deploy.run import session_options
from utils.int8.quantize import LAYER_OPS
from utils.operators.description import MAP, OUTSIDE, PLAIN, Operator, by

POINTWISE = frozenset(
    "Abs Add Clip Div Elu Erf Exp Gelu HardSigmoid HardSwish LeakyRelu Log Mish Mul Neg PRelu Pow Reciprocal Relu "
    "Sigmoid Softplus Sqrt Sub Tanh".split()
)
NORMS = ("BatchNormalization", "GroupNormalization", "InstanceNormalization", "LayerNormalization")
POOLS = ("MaxPool", "AveragePool")
CONVOLUTIONS = ("Conv", "ConvTranspose")
MAP_OPS = frozenset(
    [*CONVOLUTIONS, "Concat", "GlobalAveragePool", "Resize", "BatchNormalization", *POOLS, *POINTWISE]
)  # that runtimes compute on maps in a layout of their own
BY_VALUE = ("Clip", "Pad", "Pow", "Resize")  # whose constants, where they are fractions, change what is computed
LONGEST = 8  # nodes of one operator
MOST_VALUES = 4096  # of a constant of whole numbers that is kept by its values


@dataclass(frozen=True)
class Placed:
    """An operator where a network has it."""

    operator: Operator
    row: int  # of the YAML, by the names of the nodes; 0 for nodes of no row at the beginning


@dataclass(frozen=True)
class Parts:
    """What a network consists of.

    Attributes:
        operators: in the order of computation.
        outputs: how many numbers it gives.
    """

    operators: tuple[Placed, ...]
    outputs: int


class Graph:
    """An ONNX graph whose sizes are all known.

    Args:
        model: constants are folded, as ONNX Runtime's basic optimization leaves it.
        maps: names of the nodes that compute on maps in the runtime's own layout: of INT8 files those that are
            quantized; by default convolutions, and what is of MAP_OPS and has one behind it.

    Raises:
        ValueError: the size of a tensor is not known.
    """

    def __init__(self, model: ModelProto, maps: Collection[str] | None = None) -> None:
        graph = shape_inference.infer_shapes(model, data_prop=True).graph
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant":
                self.constants[node.output[0]] = _value(node)
        self.nodes = [node for node in graph.node if node.op_type != "Constant"]
        self.order = {id(node): number for number, node in enumerate(self.nodes)}
        self.writers = {name: node for node in self.nodes for name in node.output if name}
        self.readers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in dict.fromkeys(filter(None, node.input)):
                self.readers[name].append(node)
        self.ends = {port.name for port in graph.output}
        self.kinds = {p.name: p.type.tensor_type for p in (*graph.input, *graph.value_info, *graph.output)}
        self.quantized = maps is not None
        self.maps = self._map_nodes() if maps is None else self._with_pointwise(maps)
        self.opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))

    def shape(self, name: str) -> list[int]:
        """Return the sides of a tensor."""
        if name in self.constants:
            return list(self.constants[name].dims)
        kind = self.kinds.get(name)
        if kind is None or not kind.HasField("shape") or not all(d.HasField("dim_value") for d in kind.shape.dim):
            raise ValueError(f"the size of the tensor {name} is not known")
        return [side.dim_value for side in kind.shape.dim]

    def dtype(self, name: str) -> int:
        """Return the ONNX type of the numbers in a tensor."""
        return self.constants[name].data_type if name in self.constants else self.kinds[name].elem_type

    def operators(self) -> list[Placed]:
        """Return the operators in the order of computation."""
        taken: set[int] = set()
        found, row = [], 0
        for node in self.nodes:
            if id(node) in taken:
                continue
            nodes = self._group(node, taken)
            taken |= {id(member) for member in nodes}
            row = _row(node, row)
            found.append(Placed(self._describe(nodes), row))
        return found

    def _map_nodes(self) -> set[str]:
        found: set[str] = set()
        before: set[str] = set()  # tensors that a convolution depends on
        for node in reversed(self.nodes):
            if node.op_type in CONVOLUTIONS or before.intersection(node.output):
                before.update(node.input)
                found |= {node.name} if node.op_type in MAP_OPS else set()
        return found

    def _with_pointwise(self, maps: Collection[str]) -> set[str]:
        """Return nodes on maps with the elementwise ones behind them, as in a GELU or a sum with what is in float."""
        found = set(maps)
        for node in self.nodes:
            before = {self.writers[name].name for name in node.input if name in self.writers}
            if node.op_type in POINTWISE and before & found:
                found.add(node.name)
        return found

    # Grouping ---------------------------------------------------------------------------------------------------------
    def _group(self, start: NodeProto, taken: Collection[int]) -> list[NodeProto]:
        """Return a node and those elementwise nodes behind it that make one operator with one output."""
        group, whole = [start], 1
        if start.op_type not in (*LAYER_OPS, *NORMS, *POINTWISE):
            return group
        while len(group) < LONGEST and (follower := self._follower(group, taken)) is not None:
            group.append(follower)
            if len(self._open(group)) == 1:
                whole = len(group)
        return group[:whole]

    def _follower(self, group: Sequence[NodeProto], taken: Collection[int]) -> NodeProto | None:
        """Return the first elementwise node that reads a group, constants, and at most maps that are there already."""
        inside = {name for node in group for name in node.output}
        members = {id(node) for node in group}
        readers = [r for name in inside for r in self.readers[name] if id(r) not in members and id(r) not in taken]
        able = [r for r in readers if r.op_type in POINTWISE and self._is_ready(r, inside, group)]
        return min(able, key=lambda reader: self.order[id(reader)], default=None)

    def _is_ready(self, node: NodeProto, inside: Collection[str], group: Sequence[NodeProto]) -> bool:
        """Return whether a node's inputs are of a group, constants, or were computed before the group began."""
        first = self.order[id(group[0])]
        others = [name for name in node.input if name and name not in inside and name not in self.constants]
        before = (self.order[id(self.writers[name])] if name in self.writers else -1 for name in others)
        sizes = self.shape(node.output[0])
        return all(place < first for place in before) and all(self.shape(name) == sizes for name in others)

    def _open(self, group: Sequence[NodeProto]) -> list[str]:
        """Return the tensors of a group that others read."""
        members = {id(node) for node in group}
        names = [name for node in group for name in node.output if name]
        return [n for n in names if n in self.ends or any(id(reader) not in members for reader in self.readers[n])]

    # Describing -------------------------------------------------------------------------------------------------------
    def _describe(self, group: Sequence[NodeProto]) -> Operator:
        inner = {name for node in group for name in node.output}
        read = list(dict.fromkeys(name for node in group for name in node.input if name and name not in inner))
        inputs = [name for name in read if name not in self.constants]
        written = self._open(group) or [group[-1].output[0]]
        names = {name: f"i{n}" for n, name in enumerate(inputs)}
        names |= {name: f"c{n}" for n, name in enumerate(name for name in read if name in self.constants)}
        names |= {name: f"t{n}" for n, name in enumerate(name for node in group for name in node.output if name)}
        constants = [self._constant(name, group) for name in read if name in self.constants]
        graph = {
            "opset": self.opset,
            "inputs": [self._port(name, group) for name in inputs],
            "constants": constants,
            "nodes": [_node(node, names) for node in group],
            "outputs": [[names[name], *self._port(name, self.readers[name])] for name in written],
            "int8": self.quantized and group[0].name in self.maps and group[0].op_type in LAYER_OPS,
        }
        near = f"{'/'.join(port[-1] for port in graph['inputs'])}>{'/'.join(port[-1] for port in graph['outputs'])}"
        return Operator(
            graph=json.dumps(graph, separators=(",", ":"), sort_keys=True),
            family=" ".join([*_family(group[0], self), *(node.op_type for node in group[1:]), near]),
            text=" ".join([_text(group[0], self), *(node.op_type for node in group[1:])]),
            work=self._work(group[0]),
            read=sum(math.prod(self.shape(name)) for name in inputs),
            written=sum(math.prod(self.shape(name)) for name in written),
            weights=sum(math.prod(constant["dims"]) for constant in constants),
        )

    def _port(self, name: str, readers: Sequence[NodeProto]) -> list[Any]:
        """Return the type and the sides of a tensor, and whether it is a map between nodes on maps."""
        written = name in self.writers and self.writers[name].name in self.maps
        read = self.quantized or any(node.name in self.maps for node in readers if name in node.input)
        near = MAP if len(self.shape(name)) == 4 and written and read else PLAIN
        inside = name in self.writers and name not in self.ends
        return [self.dtype(name), self.shape(name), near if inside else OUTSIDE]

    def _constant(self, name: str, group: Sequence[NodeProto]) -> dict[str, Any]:
        """Return type and sides of a constant, and its values where they say what is computed."""
        tensor = self.constants[name]
        found = {"type": tensor.data_type, "dims": list(tensor.dims)}
        count = math.prod(tensor.dims)
        by_value = any(node.op_type in BY_VALUE for node in group if name in node.input)
        whole = tensor.data_type not in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
        if count == 1 or ((by_value or whole) and count <= MOST_VALUES):  # runtimes know GELU by its factors
            found["values"] = numpy_helper.to_array(tensor).ravel().tolist()
        return found

    def _work(self, node: NodeProto) -> int:
        """Return the multiply-adds of a node, or what stands for them."""
        size = math.prod(self.shape(node.output[0]))
        if node.op_type == "Conv":
            return size * math.prod(self.shape(node.input[1])[1:])
        if node.op_type == "ConvTranspose":
            return math.prod(self.shape(node.input[0])) * math.prod(self.shape(node.input[1])[1:])
        if node.op_type in ("Gemm", "MatMul"):
            across = "transA" in _attributes(node) and _attributes(node)["transA"]
            return size * self.shape(node.input[0])[-2 if across else -1]
        if node.op_type in POOLS:
            return size * math.prod(_attributes(node)["kernel_shape"])
        return size


def parts_in(graph: Graph) -> Parts:
    """Return what a graph consists of."""
    return Parts(tuple(graph.operators()), sum(math.prod(graph.shape(name)) for name in graph.ends))


def without_constants(file: Path, folder: Path) -> ModelProto:
    """Return what is left of an ONNX file when all that depends on constants alone is computed, in plain ONNX.

    Args:
        file: the file.
        folder: where ONNX Runtime writes what it has made of it.
    """
    options = session_options()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folder / "basic.onnx")
    onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return onnx.load(str(folder / "basic.onnx"))


def _row(node: NodeProto, before: int) -> int:
    """Return the row of the YAML that a node is of, by its name; that of the node before it where it has none."""
    found = re.search(r"\bmodel\.(\d+)\b", node.name)
    return int(found[1]) if found else before


def _value(node: NodeProto) -> TensorProto:
    """Return the tensor that a Constant node gives."""
    value = helper.get_attribute_value(node.attribute[0])
    return value if isinstance(value, TensorProto) else numpy_helper.from_array(np.asarray(value))


def _attributes(node: NodeProto) -> dict[str, Any]:
    """Return the attributes of a node as JSON takes them."""
    found = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in found.items()}


def _node(node: NodeProto, names: dict[str, str]) -> dict[str, Any]:
    """Return a node as JSON takes it, with its tensors by the numbers in `names`; "" is an input that is left out."""
    tensors = [[names.get(name, "") for name in ports] for ports in (node.input, node.output)]
    return {"op": node.op_type, "domain": node.domain, "attributes": _attributes(node), "ports": tensors}


def _family(node: NodeProto, graph: Graph) -> list[str]:
    """Return what a node has in common with those that differ from it in sizes alone."""
    attributes = _attributes(node)
    if node.op_type not in (*CONVOLUTIONS, *POOLS):
        sides = {name: value for name, value in attributes.items() if name in ("axis", "perm", "mode", "axes")}
        return [node.op_type, *(f"{name}={value}" for name, value in sorted(sides.items()))]
    kernel = attributes.get("kernel_shape") or graph.shape(node.input[1])[2:]
    channels = graph.shape(node.input[0])[1]
    groups = attributes.get("group", 1)
    kind = "dense" if groups == 1 else "depthwise" if groups == channels else "grouped"
    even = "even" if all(graph.shape(name)[1] % 16 == 0 for name in (node.input[0], node.output[0])) else "odd"
    return [node.op_type, by(kernel), f"/{by(attributes.get('strides', [1]))}", kind, even]


def _text(node: NodeProto, graph: Graph) -> str:
    """Return a node for people."""
    attributes, out = _attributes(node), graph.shape(node.output[0])
    if node.op_type not in CONVOLUTIONS:
        sides = [f"{by(attributes['kernel_shape'])}/{by(attributes['strides'])}"] if node.op_type in POOLS else []
        return " ".join([node.op_type, *sides, "x".join(map(str, out[1:] if len(out) > 1 else out))])
    kernel = attributes.get("kernel_shape") or graph.shape(node.input[1])[2:]
    groups = f" groups {attributes['group']}" if attributes.get("group", 1) > 1 else ""
    wide = f"{graph.shape(node.input[0])[1]}>{out[1]}"
    return f"{node.op_type} {wide} {by(kernel)}/{by(attributes.get('strides', [1]))}{groups} {out[2]}x{out[3]}"
