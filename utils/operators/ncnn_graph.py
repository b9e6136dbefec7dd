"""The operators of an NCNN graph, which are its layers, and each as a small graph in NCNN's own format.

NCNN computes layer by layer, after activations have become part of convolutions in its file. A small graph is text
alone: `utils/operators/timing.py` opens it with zeros as weights, as NCNN's own benchmark does.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.data.samples import timed_picture
from utils.deploy.ncnn import NcnnLayer, input_layer, load_ncnn, read_ncnn, write_ncnn
from utils.deploy.run import file_in
from utils.operators.description import BEFORE, MAP, OUTSIDE, PLAIN, Operator, by
from utils.operators.graph import Parts, Placed
from utils.operators.small_models import CHAIN, NARROW, OUTPUT, TINY
from utils.prove.inside import each_output

CONVOLUTIONS = ("Convolution", "ConvolutionDepthWise", "Deconvolution", "DeconvolutionDepthWise")
WEIGHTS = {**dict.fromkeys(CONVOLUTIONS, 6), "InnerProduct": 2}  # kind of layer → option with their number
ACTIVATIONS = ("", "Relu", "LeakyRelu", "Clip", "Sigmoid", "Mish", "HardSwish")  # of convolutions, by option 9
UNCOMPUTED = ("Input", "Split")  # kinds of layers that only name tensors
CLOSE = 1e-3  # part of the largest number by which a tensor in NCNN may differ from the same one in PyTorch


class NcnnGraph:
    """An NCNN graph whose tensors were computed once.

    Args:
        layers: as `read_ncnn` gives them.
        values: name of a tensor → what it was.
    """

    def __init__(self, layers: Sequence[NcnnLayer], values: Mapping[str, np.ndarray]) -> None:
        copies = {name: layer.inputs[0] for layer in layers if layer.kind == "Split" for name in layer.outputs}
        self.layers = [_with_inputs(layer, copies) for layer in layers if layer.kind not in UNCOMPUTED]
        self.values = values
        self.pictures = {name for layer in layers if layer.kind == "Input" for name in layer.outputs}

    def parts(self, rows: Sequence[Sequence[np.ndarray]]) -> Parts:
        """Return the operators, with the rows of the YAML that they are of.

        Args:
            rows: of each row of the YAML what it gives.
        """
        placed = [Placed(self._describe(layer), row) for layer, row in zip(self.layers, self._rows(rows), strict=True)]
        read = {name for layer in self.layers for name in layer.inputs}
        ends = (name for layer in self.layers for name in layer.outputs if name not in read)
        return Parts(tuple(placed), sum(self.values[name].size for name in ends))

    def _rows(self, rows: Sequence[Sequence[np.ndarray]]) -> list[int]:
        """Return the row of each layer: the first one whose output depends on it."""
        needed: dict[str, int] = {}  # tensor → first row that it is needed for
        for row, outputs in enumerate(rows):
            for output in outputs:
                names = [n for layer in self.layers for n in layer.outputs if is_close(self.values[n], output)]
                needed |= {name: row for name in names if name not in needed}
        found = []
        for layer in reversed(self.layers):
            row = min(needed.get(name, len(rows) - 1) for name in layer.outputs)
            for name in layer.inputs:
                needed[name] = min(needed.get(name, row), row)
            found.append(row)
        return found[::-1]

    def _describe(self, layer: NcnnLayer) -> Operator:
        """Return a layer as plain data."""
        inputs = [(self.values[name].shape, self._near(name)) for name in layer.inputs]
        written = [self.values[name] for name in layer.outputs]
        content = {"kind": layer.kind, "options": layer.options, "inputs": inputs, "outputs": len(written)}
        near = f"{'/'.join(near for _, near in inputs)}>{'/'.join(map(self._near, layer.outputs))}"
        weights = layer.option(WEIGHTS[layer.kind]) if layer.kind in WEIGHTS else 0
        size = sum(array.size for array in written)
        return Operator(
            graph=json.dumps(content, separators=(",", ":"), sort_keys=True),
            family=" ".join([*self._family(layer), *_activation(layer), near]),
            text=" ".join([layer.kind, *self._sides(layer), *_activation(layer)]),
            work=self._work(layer, size),
            read=sum(math.prod(sides) for sides, _ in inputs),
            written=size,
            weights=weights,
        )

    def _near(self, name: str) -> str:
        if name in self.pictures:
            return OUTSIDE
        return MAP if self.values[name].ndim == 3 else PLAIN

    def _work(self, layer: NcnnLayer, size: int) -> int:
        """Return the multiply-adds of a layer, or what stands for them."""
        if layer.kind in CONVOLUTIONS:
            across = layer.outputs if layer.kind.startswith("Conv") else layer.inputs
            return layer.option(WEIGHTS[layer.kind]) * math.prod(self.values[across[0]].shape[1:])
        if layer.kind == "Pooling":
            return size * max(1, math.prod(_kernel(layer)))
        if layer.kind in ("InnerProduct", "Gemm", "MatMul") and layer.inputs:
            return size * self.values[layer.inputs[0]].shape[-1]
        return size

    def _family(self, layer: NcnnLayer) -> list[str]:
        """Return what a layer has in common with those that differ from it in sizes alone."""
        if layer.kind not in (*CONVOLUTIONS, "Pooling"):
            return [layer.kind]
        channels = [self.values[name].shape[0] for name in (*layer.inputs, *layer.outputs)]
        groups = layer.option(7, 1) if layer.kind in CONVOLUTIONS else 1
        kind = "dense" if groups == 1 else "depthwise" if groups == channels[0] else "grouped"
        even = "even" if all(count % 16 == 0 for count in channels) else "odd"
        return [layer.kind, by(_kernel(layer)), f"/{_stride(layer)}", kind, even]

    def _sides(self, layer: NcnnLayer) -> list[str]:
        """Return the sizes of a layer for people."""
        out = self.values[layer.outputs[0]].shape
        if layer.kind == "Pooling":
            return [f"{by(_kernel(layer))}/{_stride(layer)}", "x".join(map(str, out))]
        if layer.kind not in CONVOLUTIONS:
            return ["x".join(map(str, out))]
        wide = f"{self.values[layer.inputs[0]].shape[0]}>{out[0]}"
        groups = [f"groups {layer.option(7)}"] if layer.option(7, 1) > 1 else []
        return [wide, f"{by(_kernel(layer))}/{_stride(layer)}", *groups, "x".join(map(str, out[1:]))]


def ncnn_parts(deploy: Any, folder: Path, size: tuple[int, int]) -> Parts:
    """Return what the NCNN files of a network consist of.

    Args:
        deploy: the network that was written.
        folder: of its files.
        size: height and width of its picture.

    Raises:
        RuntimeError, ValueError: NCNN does not compute them.
    """
    picture = timed_picture(size, deploy.example_input().shape[1])
    path = file_in(folder, "*.param")
    layers = read_ncnn(path.read_text(encoding="utf-8"))
    return NcnnGraph(layers, compute_tensors(path, layers, picture)).parts(compute_rows(deploy, picture))


def compute_tensors(path: Path, layers: Sequence[NcnnLayer], picture: Tensor) -> dict[str, np.ndarray]:
    """Return name → what it is for a picture (1, ch, H, W), of all tensors in the graph of a file.

    Raises:
        RuntimeError: NCNN does not compute one.
    """
    import ncnn  # noqa: PLC0415 (optional)

    net = load_ncnn(path, torch.get_num_threads())
    values: dict[str, np.ndarray] = {}
    image = picture[0].numpy()
    with net.create_extractor() as extractor:
        extractor.set_light_mode(False)  # tensors are kept
        for layer in layers:
            if layer.kind == "Input":
                extractor.input(layer.outputs[0], ncnn.Mat(image))
            for name in layer.outputs:
                code, mat = extractor.extract(name)
                if code:
                    raise RuntimeError(f"NCNN does not compute {layer}")
                values[name] = np.array(mat)
    return values


def compute_rows(deploy: Any, picture: Tensor) -> list[list[np.ndarray]]:
    """Return of each row of a model what it gives for a picture, without the axis of the batch."""
    found: dict[str, list[np.ndarray]] = {f"model.{row}": [] for row in range(len(deploy.model))}

    def keep(name: str, outputs: Sequence[Tensor]) -> None:
        found[name] = [output[0].numpy().copy() for output in outputs]

    with torch.inference_mode(), each_output(deploy, list(found), keep):
        deploy(picture)
    return list(found.values())


def is_close(one: np.ndarray, other: np.ndarray) -> bool:
    """Return whether two arrays are the same but for rounding."""
    return one.shape == other.shape and bool(np.abs(one - other).max(initial=0) <= CLOSE * np.abs(other).max(initial=0))


# Small graphs ---------------------------------------------------------------------------------------------------------
def write_ncnn_operator(operator: Operator) -> bytes:
    """Return the graph of an operator in NCNN's format.

    Layers before it give what it reads, but for the picture, the layout that it has in a network.
    """
    graph = json.loads(operator.graph)
    layers, names = [], []
    for number, (sides, near) in enumerate(graph["inputs"]):
        first = input_layer(f"input{number}", sides)
        layers.append(first)
        if near != OUTSIDE:
            layers.append(NcnnLayer("ReLU", f"{BEFORE}{number}", first.outputs, (f"i{number}",)))
        names.append(layers[-1].outputs[0])
    outputs = tuple(f"t{number}" for number in range(graph["outputs"]))
    layers.append(NcnnLayer(graph["kind"], "operator", tuple(names), outputs, tuple(graph["options"])))
    return write_ncnn(layers).encode()


def write_ncnn_overheads() -> dict[str, bytes]:
    """Return the same models as `write_overheads` in `utils/operators/small_models.py` in NCNN's format."""
    tiny = (TINY, TINY)
    return {"one": _chain(1, tiny), "chain": _chain(CHAIN, tiny), "output": _chain(1, OUTPUT)}


def _chain(length: int, size: tuple[int, int]) -> bytes:
    layers = [input_layer("x0", [NARROW, *size])]
    options = (f"0={NARROW}", "1=1", "5=1", f"6={NARROW * NARROW}")
    for number in range(length):
        ports = (f"x{number}",), (f"x{number + 1}",)
        layers.append(NcnnLayer("Convolution", f"operator/{number}", *ports, options))
    return write_ncnn(layers).encode()


# Parts ----------------------------------------------------------------------------------------------------------------
def _with_inputs(layer: NcnnLayer, copies: Mapping[str, str]) -> NcnnLayer:
    """Return a layer that reads what was copied, not copies."""
    inputs = tuple(copies.get(name, name) for name in layer.inputs)
    return NcnnLayer(layer.kind, layer.name, inputs, layer.outputs, layer.options)


def _kernel(layer: NcnnLayer) -> list[int]:
    """Return height and width of a kernel."""
    return [layer.option(11, layer.option(1)), layer.option(1)]


def _stride(layer: NcnnLayer) -> int:
    return layer.option(2 if layer.kind == "Pooling" else 3, 1)


def _activation(layer: NcnnLayer) -> list[str]:
    """Return the activation that a convolution holds, if any."""
    return [ACTIVATIONS[layer.option(9)]] if layer.kind in CONVOLUTIONS and layer.option(9) else []
