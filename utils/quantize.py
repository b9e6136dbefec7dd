"""INT8 files by static quantization of the fused model, in which the layers that it spoils stay in float.

Weights are quantized per output channel, symmetrically; activations per tensor to unsigned numbers, with the ranges
that calibration pictures give them. Everything between the picture and the last convolutions of the head is quantized,
SiLU as a Sigmoid and a Mul as well as Concat, MaxPool, Resize and Add: each of them left in float would put the whole
map through two conversions. The decoding of boxes stays in float, as one scale for pixels and scores would spoil both.

How much a layer suffers is its signal-to-noise ratio: the energy of its output over the energy of what changes when
its weights and its inputs alone are quantized, all layers before it in float. Fused RepVGG kernels are those that
suffer: the identity and 1x1 branches make single weights large, and all others of the channel share their scale.
(https://arxiv.org/abs/2212.01593, https://arxiv.org/abs/2004.09602)
"""

from __future__ import annotations

import copy
import dataclasses
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import utils.environment  # noqa: F401
from utils.calibration import Accuracy
from utils.latency import Latency

# isort: split
import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import CalibrationDataReader, TensorData, TensorsData, create_calibrator
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from torch import Tensor

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")  # that have a weight
ACTIVATIONS = ("Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid", "Mul")  # SiLU is a Sigmoid and a Mul
OTHERS = ("Add", "Concat", "MaxPool", "AveragePool", "GlobalAveragePool", "Resize")
FIXED = ".dfl.conv.weight"  # the bins of ultralytics' head, which are part of decoding
ALONE = "alone/"  # begins the names of what is computed from float inputs
MOST = 0.5  # of the layers may stay in float; the rest would hardly be an INT8 file
ROUNDS = 5  # of measuring latency
Ranges = Mapping[str, tuple[float, float]]  # layer → least and largest input


@dataclass(frozen=True)
class Layer:
    """What quantization does to one convolution or linear layer."""

    name: str  # path of the module
    weight_range: float  # largest weight over standard deviation, of the worst output channel
    typical_range: float  # of the median output channel
    sqnr: float  # dB


@dataclass(frozen=True)
class Point:
    """One file of the search: so many of the worst layers in float, and what came of it."""

    floats: int
    accuracy: Accuracy
    drop: float  # points of mAP50-95 below the float file
    path: Path


@dataclass
class Quantization:
    """The search for one format; `path` is the file with the fewest layers in float that drops no more than allowed."""

    format: str
    layers: list[Layer]  # worst first
    points: list[Point]  # in the order of `floats`; the last one is the float file
    max_drop: float
    pictures: int  # it was calibrated on
    data: str  # the data set's file
    latency: dict[int, Latency] = field(default_factory=dict)  # floats → of the file

    @property
    def chosen(self) -> Point | None:
        """The file to publish; None when no file of at most half of the layers in float was good enough."""
        good = [point for point in self.points[:-1] if point.drop <= self.max_drop]
        return min(good, key=lambda point: point.floats) if good else None

    @property
    def ok(self) -> bool:
        """Whether there is a file to publish."""
        return self.chosen is not None

    @property
    def kept(self) -> list[str]:
        """The layers that are in float."""
        return [layer.name for layer in self.layers[: self.chosen.floats if self.chosen else 0]]

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        chosen, fast = self.chosen, {floats: latency.minimum for floats, latency in self.latency.items()}
        return {
            "data": self.data,
            "calibration_pictures": self.pictures,
            "max_drop": self.max_drop,
            "drop": round(chosen.drop, 3) if chosen else None,
            "speedup": round(fast[len(self.layers)] / fast[chosen.floats], 3) if chosen and fast else None,
            "float_layers": self.kept,
            "layers": [dataclasses.asdict(layer) for layer in self.layers],
            "curve": [
                {
                    "float_layers": point.floats,
                    "map50_95": round(point.accuracy.map50_95, 3),
                    "map50": round(point.accuracy.map50, 3),
                    "drop": round(point.drop, 3),
                    "latency_min_ms": round(fast[point.floats], 3) if fast else None,
                    "bytes": size_of(point.path),
                }
                for point in self.points
            ],
            "ok": self.ok,
        }


# The graph ------------------------------------------------------------------------------------------------------------
class FloatGraph:
    """A float ONNX file as quantization sees it.

    Args:
        path: the file; nodes have names, as torch's exporters give them.

    Attributes:
        layers: path of a module, else name of a node → node with the weight.
        shape: of the input: batch, channels, height, width.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model = onnx.shape_inference.infer_shapes(onnx.load(str(path)))
        self.weights = {tensor.name: tensor for tensor in self.model.graph.initializer}
        self.readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        self.writers: dict[str, onnx.NodeProto] = {}
        for node in self.model.graph.node:
            for name in node.input:
                self.readers[name].append(node)
            self.writers.update(dict.fromkeys(node.output, node))
        self.layers = {
            _layer_name(node): node
            for node in self.model.graph.node
            if node.op_type in LAYERS and node.input[1] in self.weights and not node.input[1].endswith(FIXED)
        }
        sides = self.model.graph.input[0].type.tensor_type.shape.dim
        self.shape = tuple(side.dim_value for side in sides)

    def weight(self, name: str) -> np.ndarray:
        """Return the weight of a layer, (output channels, all others)."""
        node = self.layers[name]
        weight = numpy_helper.to_array(self.weights[node.input[1]])
        if node.op_type in ("MatMul", "ConvTranspose"):
            weight = weight.swapaxes(0, 1)
        return weight.reshape(len(weight), -1)

    def body(self) -> set[str]:
        """Return the names of the nodes that can be quantized: layers and what leads to one; decoding does not."""
        seen: set[str] = set()
        waiting = list(self.layers.values())
        while waiting:
            node = waiting.pop()
            if node.name not in seen:
                seen.add(node.name)
                waiting += [self.writers[name] for name in node.input if name in self.writers]
        return seen

    def unit(self, name: str) -> set[str]:
        """Return the names of a layer's node and of its activation's nodes."""
        inside = dict.fromkeys(self.layers[name].output, self.layers[name])
        found = {self.layers[name].name}
        waiting = list(inside)
        while waiting:
            for reader in self.readers[waiting.pop()]:
                whole = all(tensor in inside for tensor in reader.input if tensor in self.writers)
                if reader.op_type in ACTIVATIONS and reader.name not in found and whole:
                    found.add(reader.name)
                    inside.update(dict.fromkeys(reader.output, reader))
                    waiting += [*inside]
        return found

    def calibrate(self, batches: Iterable[Tensor], folder: Path, learned: Ranges) -> TensorsData:
        """Return the range of every tensor over some inputs; those of `learned` layers' inputs are as given."""
        name = self.model.graph.input[0].name
        calibrator = create_calibrator(self.path, list((*LAYERS, *ACTIVATIONS, *OTHERS)), str(folder / "ranges.onnx"))
        calibrator.collect_data(_Reader({name: images.numpy()} for images in batches))
        ranges = calibrator.compute_data()
        for layer, (low, high) in learned.items():
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
            nodes_to_quantize=sorted(self.body() - kept),
            nodes_to_exclude=[],
            op_types_to_quantize=[*LAYERS, *ACTIVATIONS, *OTHERS],
            extra_options={},
        )
        quantizer.quantize_model()
        model = quantizer.model.model
        model.producer_name = self.model.producer_name
        return model

    def survey(self, quantized: Any, batches: Iterable[Tensor]) -> list[Layer]:
        """Return what quantization does to each layer, worst signal-to-noise ratio first.

        Args:
            quantized: the model with all layers quantized.
            batches: inputs to measure the ratios on.
        """
        session = _session(self._alone(quantized).SerializeToString())
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
            found.append(Layer(layer, max(ranges), float(np.median(ranges)), ratio))
        return sorted(found, key=lambda layer: layer.sqnr)

    def _alone(self, quantized: Any) -> Any:
        """Return a model that computes every layer in float, and once more from what its quantized twin reads.

        Its outputs are the energy of each layer's output, then the energy of each layer's error.
        """
        model = copy.deepcopy(self.model)
        graph, known = model.graph, {*self.writers, model.graph.input[0].name}
        twins = {node.name: node for node in quantized.graph.node}
        made = {name for node in quantized.graph.node for name in node.output}
        graph.initializer.extend(t for t in quantized.graph.initializer if t.name not in self.weights)
        needed = {node.name for node in self.layers.values()}
        for node in quantized.graph.node:
            if node.name in needed or node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                twin = graph.node.add()
                twin.CopyFrom(node)
                twin.name = ALONE + node.name
                reads_float = node.op_type == "QuantizeLinear"
                inputs = [n if n not in made or (reads_float and n in known) else ALONE + n for n in node.input]
                twin.input[:], twin.output[:] = inputs, [ALONE + name for name in node.output]
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


def _layer_name(node: onnx.NodeProto) -> str:
    """Return the path of the module that a node computes, where its weight has it, else the node's name."""
    path, _, last = node.input[1].rpartition(".")
    return path if last == "weight" else node.name


def _session(model: Any) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
