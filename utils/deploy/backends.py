"""Exported files as ultralytics' predictors and validators run them.

These know neither bytes nor thresholds as inputs, and let OpenVINO choose the precision that it computes in.

Importing this module makes ultralytics' `AutoBackend` open these files with the classes below.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor
from ultralytics.nn.autobackend import AutoBackend
from ultralytics.nn.backends.base import BaseBackend
from ultralytics.nn.backends.onnx import ONNXBackend
from ultralytics.nn.backends.openvino import OpenVINOBackend
from ultralytics.nn.backends.pytorch import TorchScriptBackend
from ultralytics.utils import LOGGER

from utils.deploy.ends import as_bytes, threshold_inputs
from utils.deploy.run import file_in


class Network(BaseBackend):
    """A file that is given pictures as its metadata want them."""

    def forward(self, im: Tensor) -> Any:
        """Return what the file gives for (B, 3, H, W), RGB in [0, 1]."""
        return super().forward(self.feed(im))

    def feed(self, im: Tensor) -> Any:
        """Return the inputs of the file."""
        order = self.metadata.get("preprocess")
        return as_bytes(im, order) if order else im


class TorchScriptNetwork(Network, TorchScriptBackend):
    """A TorchScript file."""


class OnnxNetwork(Network, ONNXBackend):
    """An ONNX file.

    Attributes:
        options: ultralytics' options of prediction or validation, where a file with NMS reads its thresholds.
    """

    options: Any = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        import onnxruntime  # noqa: PLC0415 (slow, and only ONNX files need it)

        quiet = onnxruntime.SessionOptions()
        quiet.log_severity_level = 3  # errors; it warns of inputs that may be left out
        super().__init__(*args, **{"session_options": quiet, **kwargs})

    def feed(self, im: Tensor) -> Any:
        """Return the inputs of the file."""
        pictures = super().feed(im)
        if "nms" not in self.metadata or self.options is None:
            return pictures
        agnostic = self.options.agnostic_nms or self.options.single_cls
        thresholds = threshold_inputs(self.options.conf, self.options.iou, agnostic)
        return {self.session.get_inputs()[0].name: pictures, **thresholds}


class OpenVINONetwork(Network, OpenVINOBackend):
    """An OpenVINO folder, on the CPU in float32 as it was proven; with `fp16` on what and in what OpenVINO likes."""

    ov_compiled_model: Any
    compile_model: Any

    def load_model(self, weight: str | Path) -> None:
        """Load a model folder and compile its graph."""
        super().load_model(weight)
        hint, wanted = "INFERENCE_PRECISION_HINT", self.ov.Type.f32
        if self.fp16:
            LOGGER.info("OpenVINO computes in the precision that suits the processor best")
            return
        network = self.ov_compiled_model
        if hint not in network.get_property("SUPPORTED_PROPERTIES") or network.get_property(hint) != wanted:
            config = {**self.compile_model.keywords["config"], hint: wanted}
            self.compile_model = partial(self.compile_model, device_name="CPU", config=config)
            self.ov_compiled_model = self.compile_model(file_in(Path(weight), "*.xml"))
        LOGGER.info("OpenVINO computes in float32; --half lets it choose")


def read_options(network: Any, options: Any) -> None:
    """Let a file with NMS read its thresholds from ultralytics' options each time that it runs; leave models alone."""
    if isinstance(network, AutoBackend):
        network.backend.options = options


AutoBackend._BACKEND_MAP.update(torchscript=TorchScriptNetwork, onnx=OnnxNetwork, openvino=OpenVINONetwork)
