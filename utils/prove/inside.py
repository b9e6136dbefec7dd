"""What a network computes on the way to its outputs, shown one tensor at a time.

An eager model and a TorchScript file are watched while they run. A graph of ONNX or OpenVINO is given its inner tensors
as further outputs, as many at a time as a part of the memory holds, and run as the proof runs it. Of the other formats
the inside cannot be seen.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import onnx
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from utils.deploy.formats import format_of
from utils.deploy.openvino import openvino_core
from utils.deploy.run import Outputs, load_runner

TensorShape = tuple[int, ...]
Visit = Callable[[Tensor], None]
T = TypeVar("T")

BUDGET = 2**28  # bytes of inner tensors that a graph puts out at a time
UNKNOWN = 2**24  # bytes that a tensor of unknown shape is taken for


class Watch(TorchDispatchMode):
    """While it is entered, shows `visit` every float tensor that torch computes; TorchScript's included."""

    def __init__(self, visit: Visit) -> None:
        super().__init__()
        self.visit = visit

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.is_floating_point():
                self.visit(leaf.float())
        return result


@contextmanager
def each_output(model: nn.Module, names: Sequence[str], see: Callable[[str, list[Tensor]], None]) -> Iterator[None]:
    """While it lasts, call `see` with the name and the float outputs of each of the named modules that has run."""

    def hook(name: str, _module: nn.Module, _args: Any, output: Any) -> None:
        see(name, [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()])

    handles = [model.get_submodule(name).register_forward_hook(partial(hook, name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def watch(path: Path, images: Tensor, shapes: Collection[TensorShape], visit: Visit) -> Outputs | None:
    """Run a file and show `visit` its inner tensors and its outputs, in float32, in any order.

    Args:
        path: a file, or a folder, of one of the formats.
        images: what it is run on, (B, ch, H, W) in [0, 1].
        shapes: of the tensors that are of interest; others may be shown too.

    Returns:
        what the file put out meanwhile, nothing where it has no such tensors; None where the format shows none.

    Raises:
        RUN_ERRORS, or what the format's own library raises: the file does not run so.
    """
    kind = format_of(path)
    look = LOOKS.get(kind.name) if kind else None
    return look(path, images, shapes, visit) if look else None


def _look_torchscript(path: Path, images: Tensor, shapes: Collection[TensorShape], visit: Visit) -> Outputs:  # noqa: ARG001
    run = load_runner(path)
    with torch.inference_mode(), Watch(visit):
        return run(images)


def _look_onnx(path: Path, images: Tensor, shapes: Collection[TensorShape], visit: Visit) -> Outputs:
    model = onnx.load(path)
    outputs: Outputs = ()
    for group in _groups(_inner_values(model, tuple(images.shape), shapes), _shape):
        exposed = onnx.ModelProto()
        exposed.CopyFrom(model)
        exposed.graph.output.extend(group)
        with tempfile.TemporaryDirectory() as folder:
            onnx.save(exposed, Path(folder) / path.name)
            everything = load_runner(Path(folder) / path.name)(images)
        outputs = everything[: len(model.graph.output)]
        for tensor in everything:
            visit(tensor)
    return outputs


def _inner_values(
    model: onnx.ModelProto, size: TensorShape, shapes: Collection[TensorShape]
) -> Iterator[onnx.ValueInfoProto]:
    """Yield the inner float tensors of a graph that have one of the shapes, or one that is not known beforehand."""
    sized = onnx.ModelProto()
    sized.CopyFrom(model)
    del sized.graph.value_info[:]
    sides = sized.graph.input[0].type.tensor_type.shape.dim
    if len(sides) == len(size) and all(s.dim_value in (0, n) for s, n in zip(sides, size, strict=True)):
        for side, number in zip(sides, size, strict=True):
            side.dim_value = number
    inferred = onnx.shape_inference.infer_shapes(sized, data_prop=True).graph
    known = {output.name for output in model.graph.output}
    for value in inferred.value_info:
        kind = value.type.tensor_type.elem_type
        shape = _shape(value)
        if value.name not in known and kind in FLOATS and (shape is None or shape in shapes):
            yield value


def _shape(value: onnx.ValueInfoProto) -> TensorShape | None:
    """Return the shape of a tensor, None where not all of it is known."""
    sides = value.type.tensor_type.shape.dim
    known = value.type.tensor_type.HasField("shape") and all(side.HasField("dim_value") for side in sides)
    return tuple(side.dim_value for side in sides) if known else None


def _look_openvino(path: Path, images: Tensor, shapes: Collection[TensorShape], visit: Visit) -> Outputs:
    import openvino  # noqa: PLC0415 (slow, and only its files need it)

    source = next(path.glob("*.xml"))
    model = openvino_core().read_model(source)
    model.reshape(list(images.shape))
    count = len(model.outputs)
    inner = [
        output
        for operation in model.get_ordered_ops()
        if operation.get_type_name() not in ("Parameter", "Constant", "Result")
        for output in operation.outputs()
        if output.get_element_type().is_real() and tuple(output.get_partial_shape().get_max_shape()) in shapes
    ]
    outputs: Outputs = ()
    for group in _groups(inner, lambda output: tuple(output.get_partial_shape().get_max_shape())):
        exposed = model.clone()
        exposed.add_outputs([(output.get_node().get_friendly_name(), output.get_index()) for output in group])
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / path.name
            shutil.copytree(path, place, ignore=shutil.ignore_patterns("*.xml", "*.bin"))
            openvino.save_model(exposed, place / source.name, compress_to_fp16=False)
            everything = load_runner(place)(images)
        outputs = everything[:count]
        for tensor in everything:
            visit(tensor)
    return outputs


def _groups(values: Iterable[T], shape_of: Callable[[T], TensorShape | None]) -> Iterator[list[T]]:
    """Yield the values in groups whose tensors together take no more than BUDGET, each group at least one."""
    group: list[T] = []
    taken = 0
    for value in values:
        shape = shape_of(value)
        size = 4 * math.prod(shape) if shape is not None else UNKNOWN
        if group and taken + size > BUDGET:
            yield group
            group, taken = [], 0
        group.append(value)
        taken += size
    if group:
        yield group


FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
LOOKS = {"torchscript": _look_torchscript, "onnx": _look_onnx, "openvino": _look_openvino}
