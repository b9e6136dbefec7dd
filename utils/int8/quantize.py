"""INT8 files by static quantization of the fused model, in which the layers that it spoils stay in float.

Weights are quantized per output channel, symmetrically; activations per tensor to unsigned numbers, with the ranges
that calibration pictures give them. Everything between the picture and the last convolutions of the head is quantized,
SiLU as a Sigmoid and a Mul as well as Concat, MaxPool, Resize and Add: each of them left in float would put the whole
map through two conversions. Where the chain is broken, as by a GroupNorm, it begins again with the next convolution.
The last convolutions and the decoding of boxes stay in float: the convolutions put out coordinates, objectness and
classes in one tensor, and one scale for all of them would spoil the boxes.

How much a layer suffers is its signal-to-noise ratio: the energy of its output over the energy of what changes when
its weights and its inputs alone are quantized, all layers before it in float. Fused RepVGG kernels are those that
suffer: the identity and 1x1 branches make single weights large, and all others of the channel share their scale.
(https://arxiv.org/abs/2212.01593, https://arxiv.org/abs/2004.09602)
"""

from __future__ import annotations

import copy
import logging
import re
import shutil
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import CalibrationDataReader, TensorData, TensorsData, create_calibrator
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from torch import Tensor

from models.errors import UserError
from utils.deploy.openvino import openvino_core
from utils.int8.stacks import module_path, with_grouped_convolutions

LAYER_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")  # that have a weight
ACTIVATION_OPS = ("Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid", "Mul")  # SiLU is a Sigmoid and a Mul
OTHER_OPS = ("Add", "Concat", "MaxPool", "AveragePool", "GlobalAveragePool", "Resize")
FIXED = ".dfl.conv.weight"  # the bins of ultralytics' head, which are part of decoding
ALONE = "alone/"  # begins the names of what is computed from float inputs
MIN_OPSET = 13  # from which on scales may differ from channel to channel
NNCF = "nncf==3.4.0"
Ranges = Mapping[str, tuple[float, float]]  # layer → least and largest input


@dataclass(frozen=True)
class LayerNoise:
    """What quantization does to one convolution or linear layer."""

    name: str  # path of the module
    weight_range: float  # largest weight over standard deviation, of the worst output channel
    typical_range: float  # of the median output channel
    sqnr: float  # dB


# The graph ------------------------------------------------------------------------------------------------------------
class FloatGraph:
    """A float ONNX file as quantization sees it.

    Args:
        path: the file; nodes have names, as torch's exporter gives them that traces.
        convert: stacks of matrices become grouped convolutions, for which ONNX Runtime has INT8; NNCF needs no others.
        inside: nodes of layers that are quantized though no layer is behind them.

    Attributes:
        model: what it holds, with grouped convolutions for stacks of matrices.
        layers: path of a module, else name of a node → node with the weight; those that can be quantized.
        ends: the same of the layers that decoding reads, which stay in float.
    """

    def __init__(self, path: Path, convert: bool = True, inside: Collection[str] = ()) -> None:
        self.path = path
        self.deepest = 2 if convert else 3  # sides of the weight of a linear layer
        model = with_own_constants(onnx.load(str(path)))
        self.model = onnx.shape_inference.infer_shapes(with_grouped_convolutions(model) if convert else model)
        self.weights = {tensor.name: tensor for tensor in self.model.graph.initializer}
        self.readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        self.writers: dict[str, onnx.NodeProto] = {}
        for node in self.model.graph.node:
            for name in node.input:
                self.readers[name].append(node)
            self.writers.update(dict.fromkeys(node.output, node))
        found: dict[str, Any] = {}
        for node in filter(self._is_layer, self.model.graph.node):
            name = _layer_name(node)
            found[node.name if name in found else name] = node
        inner = set(inside).union(*(self._before([node]) for node in found.values()))
        self.layers = {name: node for name, node in found.items() if node.name in inner}
        self.ends = {name: node for name, node in found.items() if node.name not in inner}
        self.body = self._chain(inner)

    def _chain(self, candidates: set[str]) -> set[str]:
        """Return the names of the layers among some nodes, and of what reads nothing but those or one another.

        Whatever else stands alone, such as the factors of a GroupNorm, would be quantized for its own sake.
        """
        chosen: set[str] = set()
        for node in self.model.graph.node:  # in the order of computation
            writers = [self.writers[name] for name in node.input if name in self.writers]
            inside = writers and all(writer.name in chosen or writer.op_type == "Constant" for writer in writers)
            follows = node.op_type in (*ACTIVATION_OPS, *OTHER_OPS) and inside
            if node.name in candidates and (self._is_layer(node) or follows):
                chosen.add(node.name)
        return chosen

    def _is_layer(self, node: onnx.NodeProto) -> bool:
        """Return whether a node has a weight of its own, one for the whole of a map or of a row."""
        weight = self.weights.get(node.input[1]) if node.op_type in LAYER_OPS else None
        if weight is None or weight.name.endswith(FIXED):
            return False
        return node.op_type not in ("Gemm", "MatMul") or 2 <= len(weight.dims) <= self.deepest

    def weight(self, name: str) -> np.ndarray:
        """Return the weight of a layer, (output channels, all others)."""
        node = self.layers[name]
        weight = numpy_helper.to_array(self.weights[node.input[1]])
        if node.op_type in ("MatMul", "ConvTranspose"):
            weight = weight.swapaxes(0, 1)
        return weight.reshape(len(weight), -1)

    def channels(self, name: str) -> int:
        """Return how many channels a layer reads."""
        node = (self.layers | self.ends)[name]
        sides = self.weights[node.input[1]].dims
        groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
        across = next((attribute.i for attribute in node.attribute if attribute.name == "transB"), 0)
        if node.op_type == "Conv":
            return sides[1] * groups
        return {"ConvTranspose": sides[0], "Gemm": sides[across]}.get(node.op_type, sides[-2])

    def _before(self, nodes: Iterable[Any]) -> set[str]:
        """Return the names of all nodes that some others depend on."""
        seen: set[str] = set()
        waiting = list(nodes)
        while waiting:
            for name in waiting.pop().input:
                writer = self.writers.get(name)
                if writer is not None and writer.name not in seen:
                    seen.add(writer.name)
                    waiting.append(writer)
        return seen

    def unit(self, name: str) -> set[str]:
        """Return the names of a layer's node and of its activation's nodes."""
        inside = set(self.layers[name].output)
        found = {self.layers[name].name}
        waiting = list(inside)
        while waiting:
            for reader in self.readers[waiting.pop()]:
                whole = all(tensor in inside for tensor in reader.input if tensor in self.writers)
                if reader.op_type in ACTIVATION_OPS and reader.name not in found and whole:
                    found.add(reader.name)
                    inside.update(reader.output)
                    waiting += [*inside]
        return found

    def calibrate(self, batches: Iterable[Tensor], folder: Path, learned: Ranges) -> TensorsData:
        """Return the range of every tensor over some inputs; those of `learned` layers' inputs are as given."""
        name, graph = self.model.graph.input[0].name, folder / "graph.onnx"
        onnx.save(self.model, str(graph))
        calibrator = create_calibrator(graph, [*LAYER_OPS, *ACTIVATION_OPS, *OTHER_OPS], str(folder / "ranges.onnx"))
        calibrator.collect_data(_Reader({name: images.numpy()} for images in batches))
        ranges = calibrator.compute_data()
        for layer in learned.keys() & self.layers.keys():
            low, high = learned[layer]
            ranges[self.layers[layer].input[0]] = TensorData(lowest=np.float32(low), highest=np.float32(high))
        return ranges

    def quantized(self, ranges: TensorsData, floats: Collection[str] = (), reduce_range: bool = False) -> Any:
        """Return the model in INT8, with QuantizeLinear and DequantizeLinear around what is quantized.

        Args:
            ranges: what `calibrate` gave.
            floats: layers that stay in float.
            reduce_range: 7 bits for weights, so that x86 processors without VNNI do not saturate.
        """
        kept = {node for name in floats for node in self.unit(name)}
        quantizer = QDQQuantizer(
            copy.deepcopy(self.model),
            per_channel=True,
            reduce_range=reduce_range,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=ranges,
            nodes_to_quantize=sorted(self.body - kept),
            nodes_to_exclude=[],
            op_types_to_quantize=[*LAYER_OPS, *ACTIVATION_OPS, *OTHER_OPS],
            extra_options={},
        )
        quantizer.quantize_model()
        model = quantizer.model.model
        model.producer_name = self.model.producer_name
        for name in (*floats, *self.ends):
            self._read_by_channel(model.graph, name)
        return model

    def _read_by_channel(self, graph: Any, name: str) -> None:
        """Let a layer that is in float dequantize its input by itself, with the one scale repeated for every channel.

        ONNX Runtime quantizes the weights of what reads a tensor with a single scale, even if they were left in float,
        and that with one scale for all of the weight.
        """
        layer = next(node for node in graph.node if node.name == (self.layers | self.ends)[name].name)
        dequantize = next((node for node in graph.node if layer.input[0] in node.output), None)
        if dequantize is None or dequantize.op_type != "DequantizeLinear":
            return
        known = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        repeated = []
        for value in dequantize.input[1:]:
            tensor = np.repeat(known[value].reshape(1), self.channels(name))
            repeated.append(f"{value}/{name}")
            graph.initializer.append(numpy_helper.from_array(tensor, repeated[-1]))
        own = f"{layer.input[0]}/{name}"
        inputs = [dequantize.input[0], *repeated]
        axis = 1 if layer.op_type in ("Conv", "ConvTranspose") else -1
        node = onnx.helper.make_node("DequantizeLinear", inputs, [own], f"{dequantize.name}/{name}", axis=axis)
        graph.node.insert(list(graph.node).index(layer), node)
        layer.input[0] = own

    def measure_noise(self, quantized: Any, batches: Iterable[Tensor]) -> list[LayerNoise]:
        """Return what quantization does to each layer, worst signal-to-noise ratio first.

        Args:
            quantized: the model with all layers quantized.
            batches: inputs to measure the ratios on.
        """
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # rounded, but in float
        model = self._alone(quantized).SerializeToString()
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        name, names = session.get_inputs()[0].name, list(self.layers)
        energies = sum(np.array(session.run(None, {name: images.numpy()}), np.float64) for images in batches)
        signal, noise = np.split(np.asarray(energies), 2)
        with np.errstate(divide="ignore"):
            ratios = 10 * np.log10(np.maximum(signal, 1e-30) / np.maximum(noise, 1e-30))
        found = []
        for layer, ratio in zip(names, ratios.tolist(), strict=True):
            weight = self.weight(layer)
            spread = weight.std(1)
            ranges = (np.abs(weight).max(1) / np.where(spread > 0, spread, 1)).tolist()
            found.append(LayerNoise(layer, max(ranges), float(np.median(ranges)), ratio))
        return sorted(found, key=lambda layer: layer.sqnr)

    def _alone(self, quantized: Any) -> Any:
        """Return a model that computes every layer in float, and once more from what its quantized twin reads.

        Its outputs are the energy of each layer's output, then the energy of each layer's error.
        """
        model = copy.deepcopy(self.model)
        graph, layers = model.graph, {node.name for node in self.layers.values()}
        rounding = [node for node in quantized.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
        rounded = {name for node in rounding for name in node.output}
        twins = {node.name: node for node in quantized.graph.node if node.name in layers}
        graph.initializer.extend(t for t in quantized.graph.initializer if t.name not in self.weights)
        for node in (*rounding, *twins.values()):
            twin = graph.node.add()
            twin.CopyFrom(node)
            twin.name = ALONE + node.name
            twin.input[:] = [ALONE + name if name in rounded else name for name in node.input]
            twin.output[:] = [ALONE + name for name in node.output]
        del graph.output[:]
        for what in ("signal", "noise"):
            for name, node in self.layers.items():
                tensor = node.output[0]
                if what == "noise":
                    other = ALONE + twins[node.name].output[0]
                    tensor = f"{ALONE}{name}/error"
                    graph.node.append(onnx.helper.make_node("Sub", [node.output[0], other], [tensor]))
                energy = f"{ALONE}{name}/{what}"
                graph.node.append(onnx.helper.make_node("ReduceSumSquare", [tensor], [energy], keepdims=0))
                graph.output.append(onnx.helper.make_tensor_value_info(energy, onnx.TensorProto.FLOAT, []))
        return model


class _Reader(CalibrationDataReader):
    """Inputs as ONNX Runtime asks for them."""

    def __init__(self, inputs: Iterator[dict[str, np.ndarray]]) -> None:
        self.inputs = inputs

    def get_next(self) -> dict[str, np.ndarray]:
        return next(self.inputs, {})


def with_own_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model, which is changed, with a tensor for each constant.

    torch's exporter lets equal ones share one through Identity nodes. A convolution whose bias is such a node's output
    would be computed in float, and one with such a weight would be no layer.
    """
    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in [node for node in graph.node if node.op_type == "Identity" and node.input[0] in tensors]:
        own = graph.initializer.add()
        own.CopyFrom(tensors[node.input[0]])
        own.name = node.output[0]
        tensors[own.name] = own
        graph.node.remove(node)
    return model


def _layer_name(node: onnx.NodeProto) -> str:
    """Return the path of the module that a node computes: that of its weight, else of where it was traced."""
    path, _, last = node.input[1].rpartition(".")
    return path if last == "weight" else module_path(node.name)


# OpenVINO -------------------------------------------------------------------------------------------------------------
def quantize_openvino(
    folder: Path, target: Path, inputs: Iterable[Tensor], ends: Collection[str] = (), floats: Collection[str] = ()
) -> None:
    """Write a float OpenVINO folder once more, quantized by NNCF.

    Args:
        folder: what ultralytics' exporter wrote.
        target: the new folder.
        inputs: calibration pictures; NNCF takes statistics of other kinds than ranges alone.
        ends: paths of the layers that decoding reads: they stay in float, as does all that is computed from them.
        floats: paths of further modules that stay in float.

    Raises:
        UserError: NNCF is not installed.
    """
    nncf = import_nncf()
    import openvino  # noqa: PLC0415  # takes a second, and only this needs it

    source = next(folder.glob("*.xml"))
    network = openvino_core().read_model(source)
    patterns = [rf"{re.escape(_scope(name))}.*" for name in floats]
    ignored = nncf.IgnoredScope(names=_names_from(network, ends), patterns=patterns, validate=False)
    pictures = [images.numpy() for images in inputs]
    model = nncf.quantize(
        network,
        nncf.Dataset(pictures),
        preset=nncf.QuantizationPreset.MIXED,
        target_device=nncf.TargetDevice.CPU,
        subset_size=len(pictures),
        ignored_scope=ignored,
    )
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.xml", "*.bin"))  # the metadata
    openvino.save_model(model, target / source.name, compress_to_fp16=False)


def _scope(name: str) -> str:
    """Return what the names of the operations of a module begin with in OpenVINO's graph."""
    return f"__module.{name}/"


def _names_from(network: Any, modules: Collection[str]) -> list[str]:
    """Return the names of the operations of some modules, and of all that are computed from them."""
    scopes = tuple(map(_scope, modules))
    found: dict[str, None] = {}
    for operation in network.get_ordered_ops():
        before = [value.get_source_output().get_node().get_friendly_name() for value in operation.inputs()]
        name = operation.get_friendly_name()
        if name.startswith(scopes) or not found.keys().isdisjoint(before):
            found[name] = None
    return list(found)


def import_nncf() -> Any:
    """Return the module nncf, with its talk kept to warnings; UserError where it is not installed."""
    try:
        import nncf  # noqa: PLC0415  # an optional package
    except ImportError as error:
        raise UserError(f"--int8 for OpenVINO needs the package nncf: pip install {NNCF}") from error
    logging.getLogger("nncf").setLevel(logging.WARNING)
    return nncf
