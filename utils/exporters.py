"""ultralytics' Exporter with what it lacks: torch's newer ONNX exporter, and bytes and NMS around the network."""

from __future__ import annotations

from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import cast

import onnx
import onnxslim
import torch
from onnxruntime.transformers import float16
from ultralytics.engine.exporter import Exporter

from models import DetectionModel
from models.errors import UserError
from utils.graph import add_nms, add_preprocess
from utils.wrappers import Nms, Preprocess

SIDES = {  # names of the outputs' sides where these are free, ultralytics' ones
    "output0": ("batch", "values", "anchors"),
    "output1": ("batch", "masks", "mask_height", "mask_width"),
}
ABLE = {  # which formats can have what around the network
    "nms": ("onnx",),
    "preprocess": ("torchscript", "onnx", "openvino"),
}
ONNXSCRIPT = "0.7.2"  # version that was tested
IR_VERSION = 10  # of ONNX files, that all runtimes in use read


class DynamoExporter(Exporter):
    """Writes ONNX with torch.export, not by tracing: what depends on the data is found, and refused, not baked in."""

    def export_onnx(self, prefix: str = "") -> str:  # noqa: ARG002 (ultralytics passes it)
        """Write the file and return its path."""
        path = self.file.with_suffix(".onnx")
        images, shapes = self.im, None
        if self.args.dynamic:
            images = images.expand(max(2, len(images)), -1, -1, -1).contiguous()  # one picture would be a constant
            shapes = ({0: "batch", 2: "height", 3: "width"},)
        program = torch.onnx.export(
            self.model,
            (images,),
            dynamo=True,
            opset_version=self.args.opset,
            input_names=["images"],
            output_names=["output0", "output1"] if self.model.task == "segment" else ["output0"],
            dynamic_shapes=shapes,
            verbose=False,
        )
        model = cast(torch.onnx.ONNXProgram, program).model_proto
        if self.args.simplify:
            model = onnxslim.slim(model)
        if self.args.quantize == 16 and self.device.type == "cpu":
            model = float16.convert_float_to_float16(model, keep_io_types=True)
        for port in model.graph.output:
            for side, axis in zip(port.type.tensor_type.shape.dim, SIDES[port.name], strict=True):
                if side.dim_param:
                    side.dim_param = axis
        onnx.helper.set_model_props(model, {key: str(value) for key, value in self.metadata.items()})
        model.ir_version = min(model.ir_version, IR_VERSION)
        onnx.save(model, path)
        return str(path)


EXPORTERS = {"torchscript": Exporter, "dynamo": DynamoExporter}  # by the names that --exporter takes
OPSETS = {"torchscript": range(11, 21), "dynamo": range(18, 23)}  # that each writes without converting
DEFAULT_OPSETS = {"torchscript": 17, "dynamo": 18}


def check_exporter(name: str) -> str:
    """Return the name of an exporter; UserError where a package that it needs is missing."""
    if name == "dynamo" and not find_spec("onnxscript"):
        raise UserError(f"--exporter dynamo needs the package onnxscript: pip install onnxscript=={ONNXSCRIPT}")
    return name


def check_opset(opset: int, exporter: str) -> int:
    """Return the ONNX opset; UserError for one that the exporter does not write."""
    able = OPSETS[exporter]
    if opset not in able:
        told = "" if exporter == "torchscript" else f" with --exporter {exporter}"
        raise UserError(f"--opset goes from {able[0]} to {able[-1]}{told}, not {opset}")
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
