"""Which part of a network an INT8 file computes in INT8, read from the file itself."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import onnx
from torch import Tensor

from models import DetectionModel
from models.summary import count_parameters, module_operations
from utils.deploy.openvino import openvino_core
from utils.int8.quantize import FloatGraph

OPENVINO_LAYERS = ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "MatMul")


@dataclass(frozen=True)
class Share:
    """Which part of a network is in INT8, both from 0 to 1."""

    parameters: float  # weights in INT8, of all parameters
    operations: float  # of convolutions and matrix products with such weights, of all multiply-adds

    def __str__(self) -> str:
        return f"{self.parameters:.1%} of the parameters and {self.operations:.1%} of the operations are in INT8"


def share_of(model: DetectionModel, layers: Iterable[str], size: tuple[int, int]) -> Share:
    """Return which part of a fused model some layers are.

    Args:
        model: the fused one.
        layers: paths of modules; whatever else a layer is called by is not counted.
        size: height and width of the picture.
    """
    modules, work = dict(model.named_modules()), module_operations(model, size)
    weights = {name: getattr(modules.get(name), "weight", None) for name in layers}
    sizes = {name: weight.numel() for name, weight in weights.items() if isinstance(weight, Tensor)}
    operations = sum(work.get(name, 0) for name in sizes)
    return Share(sum(sizes.values()) / count_parameters(model), operations / work[""])


def layers_of_onnx(graph: FloatGraph, file: Path) -> list[str]:
    """Return which layers of a graph have INT8 weights in a quantized file."""
    nodes = onnx.load(str(file)).graph.node
    integers = {name for node in nodes if node.op_type == "DequantizeLinear" for name in node.output}
    found = {node.name for node in nodes if len(node.input) > 1 and node.input[1] in integers}
    return [name for name, node in graph.layers.items() if node.name in found]


def layers_of_openvino(folder: Path) -> list[str]:
    """Return the paths of the modules that have INT8 weights in a quantized folder."""
    found = []
    for node in openvino_core().read_model(next(folder.glob("*.xml"))).get_ordered_ops():
        path = re.match(r"__module\.(.+?)/", node.get_friendly_name())
        if path is None or node.get_type_name() not in OPENVINO_LAYERS:
            continue
        weight = node.input(1).get_source_output().get_node()
        while weight.get_input_size():  # the scale, and the conversion to float
            weight = weight.input(0).get_source_output().get_node()
        if weight.get_type_name() == "Constant" and weight.get_element_type().get_type_name() == "i8":
            found.append(path[1])
    return found
