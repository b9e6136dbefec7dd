"""Writing a model into a file of one format: ultralytics' Exporter with what it lacks.

Added are torch's newer ONNX exporter, bytes before and NMS behind the network. The files carry the metadata that
ultralytics reads (stride, names, imgsz, task, batch), so that `YOLO("best.onnx")` runs them as well as detect.py does.
"""

from __future__ import annotations

import copy
import ctypes
import logging
import os
import shutil
import sys
import time
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, cast

import onnx
import torch
from onnxruntime.transformers import float16
from onnxruntime.transformers.onnx_model import OnnxModel
from torch import nn
from ultralytics.engine.exporter import Exporter
from ultralytics.nn.modules import Detect
from ultralytics.utils import LOGGER
from ultralytics.utils.export.engine import torch2onnx
from ultralytics.utils.patches import arange_patch

from models import DetectionModel
from models.blocks.riformer import WrittenOut
from models.errors import UserError
from models.summary import count_parameters
from utils.deploy.ends import Nms, Preprocess
from utils.deploy.files import digest, reserve, size_of
from utils.deploy.formats import Format, format_of
from utils.deploy.onnx_graph import add_nms, add_preprocess, set_shape
from utils.deploy.openvino import openvino_core
from utils.deploy.run import file_in

FREE: dict[bool | str, dict[int, str]] = {
    False: {},
    True: {0: "batch", 2: "height", 3: "width"},
    "batch": {0: "batch"},
}  # sides of the input
SIDES = {  # of the outputs that may be free, by ultralytics' names
    "output0": {0: "batch", 2: "anchors"},
    "output1": {0: "batch", 2: "mask_height", 3: "mask_width"},
}
ABLE = {  # which formats can have what around the network
    "nms": ("onnx",),
    "preprocess": ("torchscript", "onnx", "openvino"),
}
ONNXSCRIPT = "0.7.2"  # version that was tested
IR_VERSION = 10  # of ONNX files, that all runtimes in use read
OPSETS = {"torchscript": range(11, 21), "dynamo": range(18, 23)}  # that each writes without converting
DEFAULT_OPSETS = {"torchscript": 17, "dynamo": 18}
SOURCE = ".checkpoint-to-export"  # a suffix that occurs nowhere else in a path
EXPORT_ERRORS = (  # what torch, ultralytics and onnx raise for a model that they cannot write
    RuntimeError,
    ValueError,
    TypeError,
    AssertionError,
    onnx.checker.ValidationError,
    onnx.shape_inference.InferenceError,
)


class OnnxExporter(Exporter):
    """Writes ONNX with names for what is free, and numbers for all else, among the sides of its input and outputs.

    Attributes:
        free: of the input (B, ch, H, W) the sides that stay free, and their names.
    """

    free: dict[int, str]

    def export_onnx(self, prefix: str = "") -> str:  # noqa: ARG002 (ultralytics passes it)
        """Write the file and return its path."""
        path = self.file.with_suffix(".onnx")
        model = self.convert(path, ["output0", "output1"] if self.model.task == "segment" else ["output0"])
        if self.args.simplify:
            import onnxslim  # noqa: PLC0415 (slow, and only --simplify needs it)

            model = onnxslim.slim(model)
        if self.args.quantize == 16 and self.device.type == "cpu":
            model = float16.convert_float_to_float16(model, keep_io_types=True)
        del model.graph.value_info[:]  # sides under names of whoever inferred them
        shapes = self.output_shape if isinstance(self.output_shape[0], tuple) else (self.output_shape,)
        for port, shape in zip(model.graph.output, shapes, strict=True):
            free = self.free_of(port.name)
            set_shape(port, [free.get(axis, side) for axis, side in enumerate(shape)])
        onnx.helper.set_model_props(model, {key: str(value) for key, value in self.metadata.items()})
        model.ir_version = min(model.ir_version, IR_VERSION)
        onnx.save(model, path)
        return str(path)

    def convert(self, path: Path, names: list[str]) -> onnx.ModelProto:
        """Return the model as ONNX, whose outputs have these names; a file may be left at `path`."""
        raise NotImplementedError

    def free_of(self, output: str) -> dict[int, str]:
        """Return which sides of an output stay free, and their names; some heads give as much whatever the picture."""
        as_much = self.model.task == "classify" or self.model.end2end
        fixed = len(self.free) < 2 or (output == "output0" and as_much)
        return {axis: name for axis, name in self.free.items() if axis == 0} if fixed else SIDES[output]


class TracingExporter(OnnxExporter):
    """Writes ONNX by tracing."""

    def convert(self, path: Path, names: list[str]) -> onnx.ModelProto:
        """Return the model as ONNX, whose outputs have these names; the file lies at `path`."""
        free = {"images": self.free, **{name: self.free_of(name) for name in names}} if self.free else None
        with arange_patch(bool(free), self.args.quantize, "onnx"):
            torch2onnx(self.model, self.im, path, self.args.opset, ["images"], names, free)
        return onnx.load(path)


class DynamoExporter(OnnxExporter):
    """Writes ONNX with torch.export, not by tracing: what depends on the data is found, and refused, not baked in."""

    def convert(self, path: Path, names: list[str]) -> onnx.ModelProto:  # noqa: ARG002 (nothing is left there)
        """Return the model as ONNX, whose outputs have these names."""
        images = self.im
        if self.free:
            images = images.expand(max(2, len(images)), -1, -1, -1).contiguous()  # one picture would be a constant
        program = torch.onnx.export(
            self.model,
            (images,),
            dynamo=True,
            opset_version=self.args.opset,
            input_names=["images"],
            output_names=names,
            dynamic_shapes=(self.free,) if self.free else None,
            verbose=False,
        )
        return cast(torch.onnx.ONNXProgram, program).model_proto


EXPORTERS = {"torchscript": TracingExporter, "dynamo": DynamoExporter}  # by the names that --exporter takes


def check_exporter(name: str) -> str:
    """Return the name of an exporter; UserError where a package that it needs is missing."""
    if name == "dynamo" and not find_spec("onnxscript"):
        raise UserError(f"--exporter dynamo needs the package onnxscript: pip install onnxscript=={ONNXSCRIPT}")
    return name


def check_opset(opset: int, exporter: str) -> int:
    """Return the ONNX opset; UserError for one that the exporter does not write."""
    able = OPSETS[exporter]
    if opset not in able:
        chosen = "" if exporter == "torchscript" else f" with --exporter {exporter}"
        raise UserError(f"--opset goes from {able[0]} to {able[-1]}{chosen}, not {opset}")
    return opset


def announce(exporter: Exporter, nms: Nms | None, preprocess: str | None) -> None:
    """Say in the metadata of a file what is around its network, and let a format that is traced begin with bytes."""
    if nms:
        exporter.metadata |= {"nms": asdict(nms), "end2end": True}  # as ultralytics calls boxes that need no NMS
    if preprocess:
        exporter.metadata["preprocess"] = preprocess
    if preprocess and exporter.args.format != "onnx":
        dtype = exporter.im.dtype
        exporter.im = torch.zeros_like(exporter.im, dtype=torch.uint8).permute(0, 2, 3, 1).contiguous()
        exporter.model = Preprocess(exporter.model, preprocess, dtype)


def free_batch_alone(exporter: Exporter) -> None:
    """Let height and width be fixed in a file whose batch stays free, and say so in its metadata."""
    exporter.metadata["free"] = "batch"
    exporter.metadata["args"]["dynamic"] = False  # by which ultralytics means height and width as well
    for module in exporter.model.modules():
        if isinstance(module, Detect):
            module.dynamic = False


def surround(path: Path, network: DetectionModel, nms: Nms | None, preprocess: str | None) -> None:
    """Put bytes and NMS around the network of an ONNX file."""
    if not (nms or preprocess):
        return
    model = onnx.load(path)
    if nms:
        model = add_nms(model, nms, network.nc, getattr(network.model[-1], "nm", 0))
    if preprocess:
        model = add_preprocess(model, preprocess)
    onnx.save(model, path)


class ExportError(Exception):
    """A format cannot be written for this model; the message says which and why."""


@dataclass(frozen=True)
class WriteOptions:
    """How a file is written."""

    size: tuple[int, int] = (640, 640)  # height, width, in pixels
    batch: int = 1
    device: str = "cpu"
    dynamic: bool | Literal["batch"] = False  # batch, height and width stay free, or the batch alone
    half: bool = False  # float16
    simplify: bool = False  # onnxslim
    opset: int = 17
    exporter: str = "torchscript"  # of ONNX, one of EXPORTERS
    nms: Nms | None = None  # at the end of an ONNX file
    preprocess: str | None = None  # order of the bytes that a file takes, one of ORDERS; None: numbers in [0, 1]
    verbose: bool = False


@dataclass(frozen=True)
class Written:
    """One file or folder and what is known of it before the proof."""

    path: Path
    seconds: float  # that writing and checking took
    bytes: int
    sha256: str  # of a file; of a folder that of the lines which `sha256sum *` prints in it
    opset: int | None = None


def write(deploy: DetectionModel, path: Path, options: WriteOptions) -> Written:
    """Write `deploy` as it stands to `path`, whose ending says the format. Other files may come to lie beside it.

    Raises:
        ExportError: this model cannot be written so.
        OSError: the disk is full.
    """
    kind = format_of(path)
    if kind is None:
        raise ValueError(f"{path} has the ending of no format")
    path.parent.mkdir(parents=True, exist_ok=True)
    space = kind.copies * count_parameters(deploy) * 4 + 2**23
    reserve(path.parent, space)
    errors = (Exception, SystemExit) if kind.writers else EXPORT_ERRORS  # some converters leave the process
    start = time.perf_counter()
    try:
        with quiet(options.verbose):
            made = _make_exporter(kind, options)(_to_be_written(deploy, path, kind))
        _take(Path(made), path)
        if kind.name == "openvino" and options.dynamic == "batch":
            _fix_sides(path, options)
        if kind.name == "onnx" and options.half:
            _sort_onnx(path)
        if kind.name == "onnx":
            surround(path, deploy, options.nms, options.preprocess)
        opset = _check_onnx(path, options.opset) if kind.name == "onnx" else None
    except OSError:
        raise
    except errors as error:
        reserve(path.parent, space)  # what fails may have failed because the disk filled up
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ExportError(f"{kind.title} cannot be written for this model: {reason}") from error
    return Written(path, time.perf_counter() - start, size_of(path), digest(path), opset)


def _take(made: Path, path: Path) -> None:
    """Move what the Exporter has made to `path`, without the programs that some converters leave in a folder."""
    made.replace(path)
    for file in path.glob("*.py"):
        file.unlink()
    shutil.rmtree(path / "__pycache__", ignore_errors=True)


def _make_exporter(kind: Format, options: WriteOptions) -> Exporter:
    settings = {"format": kind.name, "imgsz": list(options.size), "batch": options.batch}
    settings |= {"dynamic": bool(options.dynamic), "device": options.device, "quantize": 16 if options.half else None}
    if kind.onnx:
        settings |= {"opset": options.opset, "simplify": options.simplify}
    exporter = EXPORTERS[options.exporter](overrides=settings)
    exporter.free = FREE[options.dynamic]
    if options.dynamic == "batch":
        exporter.add_callback("on_export_start", free_batch_alone)
    exporter.add_callback("on_export_start", _sign)
    exporter.add_callback("on_export_start", partial(announce, nms=options.nms, preprocess=options.preprocess))
    return exporter


def _to_be_written(deploy: DetectionModel, path: Path, kind: Format) -> DetectionModel:
    """Return a copy of `deploy` that the Exporter takes as it is, and of which it makes `path`.

    It shares the modules of `deploy`, of which the Exporter makes copies, unless some of them are written otherwise.
    """
    model = copy.deepcopy(deploy) if kind.group_norm else copy.copy(deploy)
    if kind.group_norm:
        for name, module in list(model.named_modules()):
            if isinstance(module, WrittenOut):
                model.set_submodule(name, module.with_group_norms())
    stem = path.name[: -len(kind.ending)]
    model.pt_path = str(path.with_name(stem + SOURCE))  # the Exporter changes the suffix wherever it stands in there
    model.__dict__["fuse"] = types.MethodType(_as_it_is, model)  # whether to fuse is decided before
    return model


# Parts ----------------------------------------------------------------------------------------------------------------
def _as_it_is(model: nn.Module, **_: Any) -> nn.Module:
    """Stand in for `fuse` in a model that is to be written as it is."""
    return model


def _sign(exporter: Exporter) -> None:
    """Say in the metadata whose model it is; leave the date out, so that the same model gives the same file."""
    exporter.metadata["description"] = f"RepYOLO model of {exporter.model.spec.name}"
    exporter.metadata["author"] = "RepYOLO, with ultralytics"
    del exporter.metadata["date"]


@contextmanager
def quiet(verbose: bool) -> Iterator[None]:
    """Silence what Python and native libraries say of temporary paths and tracing; what they warn of is proven."""
    if verbose:
        yield
        return
    level = LOGGER.level
    with warnings.catch_warnings(), Path(os.devnull).open("w") as nowhere, instead_of_output(nowhere.fileno()):
        LOGGER.setLevel(logging.WARNING)
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            LOGGER.setLevel(level)


@contextmanager
def instead_of_output(descriptor: int) -> Iterator[None]:
    """Let what this process and those that it starts print go to a file descriptor."""
    streams = (1, 2)
    _flush()
    kept = [os.dup(stream) for stream in streams]
    for stream in streams:
        os.dup2(descriptor, stream)
    try:
        yield
    finally:
        _flush()
        for stream, former in zip(streams, kept, strict=True):
            os.dup2(former, stream)
            os.close(former)


def _flush() -> None:
    """Write out what Python and C hold back."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    ctypes.CDLL(None).fflush(None)


def _fix_sides(folder: Path, options: WriteOptions) -> None:
    """Give the input of an OpenVINO model its height and width, which ultralytics leaves free with the batch."""
    import openvino  # noqa: PLC0415 (slow, and few need it)

    graph = file_in(folder, "*.xml")
    model = openvino_core().read_model(graph.read_bytes(), graph.with_suffix(".bin").read_bytes())
    shape = model.input().partial_shape
    first = 1 if options.preprocess else 2  # of bytes (B, H, W, 3), or numbers (B, ch, H, W)
    for axis, side in enumerate(options.size, first):
        shape[axis] = side
    model.reshape(shape)
    openvino.save_model(model, graph, compress_to_fp16=options.half)


def _sort_onnx(path: Path) -> None:
    """Put the nodes of an ONNX file behind those that they read, where the conversion to float16 has not."""
    graph = OnnxModel(onnx.load(path))
    graph.topological_sort()
    onnx.save(graph.model, path)


def _check_onnx(path: Path, asked: int) -> int:
    """Check an ONNX file in full and return the opset that it says it needs; ValueError if that was not asked for."""
    onnx.checker.check_model(str(path), full_check=True)
    content = onnx.load(str(path), load_external_data=False)
    opset = next(entry.version for entry in content.opset_import if entry.domain in ("", "ai.onnx"))
    if opset != asked:
        raise ValueError(f"opset {asked} was asked for, and the file needs {opset}: give --opset {opset}")
    return opset
