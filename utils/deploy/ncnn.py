"""NCNN's networks and the text of its graphs, which need none of what else this folder imports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAGIC = "7767517"  # first line of a graph
SIDES = ((), (0,), (1, 0), (2, 1, 0), (2, 11, 1, 0))  # options of an input, from the outermost side, by their number


@dataclass(frozen=True)
class NcnnLayer:
    """A line of a graph.

    Attributes:
        kind: such as `Convolution`.
        name: its own.
        inputs: names of the tensors that it reads.
        outputs: names of those that it writes.
        options: as `0=16`, what it computes; numbers stand for names.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    options: tuple[str, ...] = ()

    def __str__(self) -> str:
        ports = [*self.inputs, *self.outputs]
        counts = [str(len(self.inputs)), str(len(self.outputs))]
        return " ".join([self.kind, self.name, *counts, *ports, *self.options])

    def option(self, key: int, default: int = 0) -> int:
        """Return an option that is a whole number."""
        values = dict(option.split("=", 1) for option in self.options)
        return int(values.get(str(key), default))


def input_layer(name: str, sides: Sequence[int]) -> NcnnLayer:
    """Return the layer of an input with these sides, from the outermost to the innermost; at most 4."""
    options = zip(SIDES[len(sides)], sides, strict=True)
    return NcnnLayer("Input", name, (), (name,), tuple(f"{key}={side}" for key, side in options))


def sides_of_input(layer: NcnnLayer) -> list[int]:
    """Return the sides of the layer of an input."""
    return [layer.option(key) for key in SIDES[len(layer.options)]]


def read_ncnn(text: str) -> list[NcnnLayer]:
    """Return the layers of a graph in the order of computation; ValueError where the text is none."""
    magic, *lines = text.splitlines() or [""]
    if magic.strip() != MAGIC:
        raise ValueError("no graph of NCNN")
    return [_read_layer(line.split()) for line in lines[1:] if line.strip()]


def _read_layer(words: list[str]) -> NcnnLayer:
    if len(words) < 4:
        raise ValueError("no layer of NCNN")
    kind, name, *rest = words
    first, last = 2 + int(rest[0]), 2 + int(rest[0]) + int(rest[1])
    return NcnnLayer(kind, name, tuple(rest[2:first]), tuple(rest[first:last]), tuple(rest[last:]))


def write_ncnn(layers: list[NcnnLayer]) -> str:
    """Return the text of a graph."""
    tensors = sum(len(layer.outputs) for layer in layers)
    return "\n".join([MAGIC, f"{len(layers)} {tensors}", *map(str, layers)]) + "\n"


def ncnn_net(threads: int) -> Any:
    """Return an empty network of NCNN, which computes on the CPU in float32."""
    import ncnn  # noqa: PLC0415 (optional)

    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_vulkan_compute = False
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.opt.use_bf16_storage = False
    return net


def load_ncnn(graph: Path, threads: int) -> Any:
    """Return the network of a graph and the weights beside it; RuntimeError where NCNN does not take them."""
    net = ncnn_net(threads)
    if net.load_param(str(graph)) or net.load_model(str(graph.with_suffix(".bin"))):
        raise RuntimeError("NCNN knows no such graph")
    return net
