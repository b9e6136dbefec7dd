"""One operator as a small ONNX model, between convolutions that give it what it has in a network.

A runtime has layouts of its own for feature maps, and converts at the borders of a graph. So an operator on maps stands
between 1x1 convolutions, whose time is not counted: `utils/operators/timing.py` knows them by their names.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from utils.int8.quantize import ACTIVATION_OPS, LAYER_OPS, OTHER_OPS, FloatGraph
from utils.operators.description import BEFORE, BEHIND, MAP, OUTSIDE, PLAIN, Operator
from utils.operators.graph import POINTWISE

Quantize = Callable[[FloatGraph, TensorsData], Any]  # to a model
IR_VERSION, OPSET = 8, 17
TINY, CHAIN, OUTPUT = 2, 64, (256, 256)  # a side of a map, convolutions, and sides of a map of a million numbers
NARROW = 16  # channels of the borders
PATTERN = 4096  # random numbers, which weights repeat, so that files of them are small when compressed
RANGE = (-1.0, 7.0)  # of the numbers in maps, as INT8 sees them
RANGE_OF_RELU = (0.0, 7.0)


class SmallModel:
    """Makes the model of one operator.

    Attributes:
        quantized: names of nodes of the operator that are in INT8 where its network is.
    """

    def __init__(self, operator: Operator) -> None:
        self.graph: dict[str, Any] = json.loads(operator.graph)
        places = (
            f"{'input/' if port[-1] == OUTSIDE else BEFORE}{n}/output" for n, port in enumerate(self.graph["inputs"])
        )
        self.names = {f"i{n}": place for n, place in enumerate(places)}
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self.quantized = {_name(0, self.graph["nodes"][0])} if self.graph["int8"] else set()

    def made(self) -> ModelProto:
        """Return the model."""
        self._before()
        for number, constant in enumerate(self.graph["constants"]):
            self.constants.append(_constant(f"c{number}", constant))
        for number, node in enumerate(self.graph["nodes"]):
            self.nodes.append(self._node(node, _name(number, node)))
        for name, dtype, shape, near in self.graph["outputs"]:
            self._behind(name, dtype, shape, near)
        graph = helper.make_graph(self.nodes, "operator", self.inputs, self.outputs, self.constants)
        domains = {node["domain"] for node in self.graph["nodes"]} - {"", "ai.onnx"}
        opsets = [helper.make_opsetid("", self.graph["opset"]), *(helper.make_opsetid(name, 1) for name in domains)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)

    def _node(self, node: dict[str, Any], place: str) -> NodeProto:
        """Return a node of the operator."""
        read, written = node["ports"]
        names = [self.names.get(name, name) for name in read]
        return helper.make_node(node["op"], names, written, place, domain=node["domain"], **node["attributes"])

    def _before(self) -> None:
        """Add the inputs, with convolutions before those that are maps; that of the first one is computed last.

        Each reads the map of the one before it, if it is as large, as in a network one map comes from another.
        """
        kept = self.graph["nodes"][0]["op"] in POINTWISE  # it would become part of the convolution before it
        last: tuple[str, list[int]] | None = None
        for number, (dtype, shape, near) in reversed(list(enumerate(self.graph["inputs"]))):
            if near != MAP:
                self._plain(number, dtype, shape, warm=near == PLAIN)
                continue
            if last is None or last[1][2:] != shape[2:]:
                last = (f"{BEFORE}{number}/input", [1, NARROW, *shape[2:]])
                self.inputs.append(helper.make_tensor_value_info(last[0], TensorProto.FLOAT, last[1]))
            name = self.names[f"i{number}"]
            inner = f"{name}/pooled" if kept else name
            self._convolution(f"{BEFORE}{number}", last[0], inner, (last[1][1], shape[1]))
            if kept:
                sides = {"kernel_shape": [3, 3], "pads": [1] * 4, "strides": [1, 1]}
                self.nodes.append(helper.make_node("MaxPool", [inner], [name], f"{BEFORE}{number}/MaxPool", **sides))
            last = (name, shape)

    def _plain(self, number: int, dtype: int, shape: list[int], warm: bool) -> None:
        """Add an input that is no map; a warm one comes from a softmax, to lie in the caches as in a network."""
        name, first = self.names[f"i{number}"], f"{BEFORE}{number}/input"
        if warm and shape and dtype == TensorProto.FLOAT:
            self.inputs.append(helper.make_tensor_value_info(first, dtype, shape))
            self.nodes.append(helper.make_node("Softmax", [first], [name], f"{BEFORE}{number}/Softmax"))
        else:
            self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))

    def _behind(self, name: str, dtype: int, shape: list[int], near: str) -> None:
        """Add an output, behind two convolutions if it is a map, of which the first is quantized in INT8."""
        if near == OUTSIDE or not shape:
            self.outputs.append(helper.make_tensor_value_info(name, dtype, shape))
            return
        if near == PLAIN:
            self._first_number(name, dtype)
            return
        narrow, end = f"{BEHIND}{name}/narrow", f"{BEHIND}{name}/end"
        self._convolution(f"{BEHIND}{name}/0", name, narrow, (shape[1], NARROW))
        self._convolution(f"{BEHIND}{name}/1", narrow, end, (NARROW, NARROW))
        self.outputs.append(helper.make_tensor_value_info(end, TensorProto.FLOAT, [1, NARROW, *shape[2:]]))

    def _first_number(self, name: str, dtype: int) -> None:
        """Add the first number of a tensor as an output: the whole of it would need memory of its own in each run."""
        flat, first = f"{BEHIND}{name}/flat", f"{BEHIND}{name}/first"
        for constant, number in (("all", -1), ("zero", 0), ("one", 1)):
            self.constants.append(numpy_helper.from_array(np.array([number]), f"{BEHIND}{name}/{constant}"))
        bounds = [f"{BEHIND}{name}/zero", f"{BEHIND}{name}/one"]
        self.nodes.append(helper.make_node("Reshape", [name, f"{BEHIND}{name}/all"], [flat], f"{BEHIND}{name}/Reshape"))
        self.nodes.append(helper.make_node("Slice", [flat, *bounds], [first], f"{BEHIND}{name}/Slice"))
        self.outputs.append(helper.make_tensor_value_info(first, dtype, [1]))

    def _convolution(self, place: str, read: str, written: str, channels: tuple[int, int]) -> None:
        """Add a 1x1 convolution with ReLU."""
        weight, bias, inner = f"{place}.weight", f"{place}.bias", f"{place}/sum"
        self.constants.append(_weight(weight, [channels[1], channels[0], 1, 1]))
        self.constants.append(_weight(bias, [channels[1]]))
        self.nodes.append(helper.make_node("Conv", [read, weight, bias], [inner], f"{place}/Conv", kernel_shape=[1, 1]))
        self.nodes.append(helper.make_node("Relu", [inner], [written], f"{place}/Relu"))


def write_float(operator: Operator) -> bytes:
    """Return the small ONNX file of an operator in float32."""
    return SmallModel(operator).made().SerializeToString()


def write_int8(
    operator: Operator, folder: Path, quantize: Quantize = FloatGraph.quantized, convert: bool = True
) -> bytes:
    """Return the small ONNX file of an operator, with what can be in INT8 quantized.

    Args:
        operator: that is meant.
        folder: for what is written on the way.
        quantize: from the float graph and the ranges of its tensors to a model; by default as export.py does it.
        convert: stacks of matrices are grouped convolutions.
    """
    path = folder / "small.onnx"
    small = SmallModel(operator)
    onnx.save(small.made(), str(path))
    graph = FloatGraph(path, convert, small.quantized)
    if not graph.layers:
        return path.read_bytes()
    return quantize(graph, _ranges(graph)).SerializeToString()


def write_openvino_int8(operator: Operator, folder: Path) -> bytes:
    """Return the same quantized as NNCF does it: inputs of layers, sums and pools alone."""
    return write_int8(operator, folder, quantized_as_nncf, convert=False)


def quantized_as_nncf(graph: FloatGraph, ranges: TensorsData) -> ModelProto:
    """Return a graph, which is changed, with rounding before layers, sums and pools, and none in activations."""
    left = {node.name for node in graph.model.graph.node if _of_activation(node, graph)}
    quantizer = QDQQuantizer(
        graph.model,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=ranges,
        nodes_to_quantize=sorted(graph.body - left),
        nodes_to_exclude=[],
        op_types_to_quantize=[*LAYER_OPS, *OTHER_OPS],
        extra_options={
            "OpTypesToExcludeOutputQuantization": [*LAYER_OPS],
            "QDQOpTypePerChannelSupportToAxis": {"MatMul": -1},
        },
    )
    quantizer.quantize_model()
    return quantizer.model.model


def _of_activation(node: NodeProto, graph: FloatGraph) -> bool:
    """Return whether a node is an activation, or a part of one such as the sum with 1 in a GELU."""
    constant = any(name in graph.weights for name in node.input)
    return node.op_type in ACTIVATION_OPS or (node.op_type == "Add" and constant)


def _ranges(graph: FloatGraph) -> TensorsData:
    """Return a range for every tensor of a graph, as calibration would."""
    relus = {name for node in graph.model.graph.node if node.op_type == "Relu" for name in node.output}
    names = {name for node in graph.model.graph.node for name in (*node.input, *node.output)} - graph.weights.keys()
    ranges = {name: RANGE_OF_RELU if name in relus else RANGE for name in names if name}
    data = {n: TensorData(lowest=np.float32(low), highest=np.float32(high)) for n, (low, high) in ranges.items()}
    return TensorsData(CalibrationMethod.MinMax, data)


def write_overheads() -> dict[str, bytes]:
    """Return the models by which `utils/operators/timing.py` finds what a runtime does beside the nodes of a graph.

    One of one small convolution, one of CHAIN of them, and one with as many numbers in its output as OUTPUT says.
    """
    chain = {"one": 1, "chain": CHAIN}
    found = {name: _chain(length, (TINY, TINY)).SerializeToString() for name, length in chain.items()}
    return {**found, "output": _chain(1, OUTPUT).SerializeToString()}


def _chain(length: int, size: tuple[int, int]) -> ModelProto:
    nodes, constants = [], [_weight("weight", [NARROW, NARROW, 1, 1]), _weight("bias", [NARROW])]
    for number in range(length):
        ports = [f"x{number}", "weight", "bias"]
        nodes.append(
            helper.make_node("Conv", ports, [f"x{number + 1}"], f"operator/{number}/Conv", kernel_shape=[1, 1])
        )
    ends = (helper.make_tensor_value_info(f"x{n}", TensorProto.FLOAT, [1, NARROW, *size]) for n in (0, length))
    graph = helper.make_graph(nodes, "overhead", [next(ends)], [next(ends)], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


# Parts ----------------------------------------------------------------------------------------------------------------
def _name(number: int, node: dict[str, Any]) -> str:
    """Return the name of a node of an operator."""
    return f"operator/{number}/{node['op']}"


def _constant(name: str, constant: dict[str, Any]) -> TensorProto:
    dtype, sides = constant["type"], constant["dims"]
    if "values" in constant:
        values = np.array(constant["values"], helper.tensor_dtype_to_np_dtype(dtype)).reshape(sides)
        return numpy_helper.from_array(values, name)
    return _weight(name, sides, dtype)


def _weight(name: str, sides: Sequence[int], dtype: int = TensorProto.FLOAT) -> TensorProto:
    """Return numbers that keep the size of what is multiplied by them, or small whole ones."""
    kind = helper.tensor_dtype_to_np_dtype(dtype)
    if not np.issubdtype(kind, np.floating):
        return numpy_helper.from_array(np.zeros(sides, kind), name)
    size = max(1, int(np.prod(sides[1:])))
    numbers = np.random.default_rng(0).standard_normal(PATTERN) / np.sqrt(size)
    return numpy_helper.from_array(np.resize(numbers, sides).astype(kind), name)
