"""Exported files as ultralytics' predictors and validators run them, who know neither bytes nor thresholds as inputs.

Importing this module makes ultralytics' `AutoBackend` open ONNX and TorchScript files with the classes below.
"""

from __future__ import annotations

from typing import Any

import utils.environment  # noqa: F401
from utils.wrappers import as_bytes, threshold_inputs

# isort: split
from torch import Tensor
from ultralytics.nn.autobackend import AutoBackend
from ultralytics.nn.backends.base import BaseBackend
from ultralytics.nn.backends.onnx import ONNXBackend
from ultralytics.nn.backends.pytorch import TorchScriptBackend


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


def read_options(network: Any, options: Any) -> None:
    """Let a file with NMS read its thresholds from ultralytics' options each time that it runs; leave models alone."""
    if isinstance(network, AutoBackend):
        network.backend.options = options


AutoBackend._BACKEND_MAP.update(torchscript=TorchScriptNetwork, onnx=OnnxNetwork)
