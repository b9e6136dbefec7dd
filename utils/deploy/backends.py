"""Networks as ultralytics' predictors and validators run them: `Backend`, its AutoBackend with classes of ours.

ultralytics' own know neither bytes nor thresholds as inputs, let OpenVINO choose the precision that it computes in, and
set all of a file's metadata as attributes. `models.environment.patch_ultralytics` has its validator take a `Backend`
that is open already.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import onnxruntime
from torch import Tensor, nn
from ultralytics.nn.autobackend import AutoBackend
from ultralytics.nn.backends.base import BaseBackend
from ultralytics.nn.backends.onnx import ONNXBackend
from ultralytics.nn.backends.openvino import OpenVINOBackend
from ultralytics.nn.backends.pytorch import TorchScriptBackend
from ultralytics.utils import LOGGER

from models.environment import patch_ultralytics
from utils.deploy.ends import as_bytes, threshold_inputs
from utils.deploy.metadata import KNOWN
from utils.deploy.onnx_graph import with_threshold_inputs
from utils.deploy.run import file_in, session_options
from utils.distributed.group import OWN_DEVICE
from utils.sizes import check_imgsz
from utils.text import class_names

CORES: list[Any] = []  # of OpenVINO; `utils.deploy.openvino.openvino_core` says why none of them may end


class KnownMetadata(BaseBackend):
    """A file of whose metadata only known entries become attributes: exports come from strangers."""

    imgsz: Any  # height and width, of files that have it

    def apply_metadata(self, metadata: dict[str, Any] | None) -> None:
        """Set the entries that are known; see `utils.deploy.metadata`, which has checked them."""
        super().apply_metadata({key: value for key, value in (metadata or {}).items() if key in KNOWN})
        if self.batch_alone:
            self.metadata["dynamic"] = True  # where ultralytics looks before it splits a batch
        if hasattr(self, "imgsz"):
            self.imgsz = check_imgsz(self.imgsz, 1)  # two sides, where the file may have one

    @property
    def batch_alone(self) -> bool:
        """Whether the file takes any batch of pictures of one size."""
        return self.metadata.get("free") == "batch"


class ExportedNetwork(KnownMetadata):
    """A file that is given pictures as its metadata want them."""

    def forward(self, im: Tensor) -> Any:
        """Return what the file gives for (B, 3, H, W), RGB in [0, 1]."""
        return super().forward(self.feed(im))

    def feed(self, im: Tensor) -> Any:
        """Return the inputs of the file."""
        order = self.metadata.get("preprocess")
        return as_bytes(im, order) if order else im


class TorchScriptNetwork(ExportedNetwork, TorchScriptBackend):
    """A TorchScript file."""


class OnnxNetwork(ExportedNetwork, ONNXBackend):
    """An ONNX file.

    Attributes:
        options: ultralytics' options of prediction or validation, where a file with NMS reads its thresholds.
    """

    options: Any = None
    session: Any
    dynamic: bool

    def __init__(self, *args: Any, threads: int | None = None, **kwargs: Any) -> None:
        settings = session_options(threads or 0, spinning=threads is None)
        super().__init__(*args, **{"session_options": settings, **kwargs})

    def load_model(self, weight: str | Path) -> None:
        """Load a file, with its thresholds as inputs where it has NMS."""
        super().load_model(weight)
        self.dynamic = self.dynamic and not self.batch_alone  # ultralytics takes a free batch for free sizes as well
        if "nms" in self.metadata:
            model, providers = with_threshold_inputs(Path(weight)), self.session.get_providers()
            self.session = onnxruntime.InferenceSession(model, self.session_options, providers=providers)
            self.use_io_binding = False  # which gives the pictures alone

    def feed(self, im: Tensor) -> Any:
        """Return the inputs of the file."""
        pictures = super().feed(im)
        if "nms" not in self.metadata or self.options is None:
            return pictures
        agnostic = self.options.agnostic_nms or self.options.single_cls
        thresholds = threshold_inputs(self.options.conf, self.options.iou, agnostic)
        return {self.session.get_inputs()[0].name: pictures, **thresholds}


class OpenVINONetwork(ExportedNetwork, OpenVINOBackend):
    """An OpenVINO folder, on the CPU in float32 as it was proven; with `fp16` on what and in what OpenVINO likes."""

    ov_compiled_model: Any
    compile_model: Any

    def load_model(self, weight: str | Path) -> None:
        """Load a model folder and compile its graph."""
        super().load_model(weight)
        CORES.append(self.compile_model.func.__self__)
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


class Backend(AutoBackend):
    """A network that is open: a model in PyTorch, fused, or an exported file.

    Args:
        model: a module, or the path of an exported file.
        threads: that ONNX Runtime computes on, which leaves its cores to others while it waits; None: all cores.
        options: of AutoBackend: device, fp16, data.
    """

    _BACKEND_MAP: ClassVar[dict[str, Any]] = {
        **{
            name: kind if name == "pt" else type(kind.__name__, (KnownMetadata, kind), {})
            for name, kind in AutoBackend._BACKEND_MAP.items()
        },
        "torchscript": TorchScriptNetwork,
        "onnx": OnnxNetwork,
        "openvino": OpenVINONetwork,
    }

    def __init__(self, model: nn.Module | str, *, threads: int | None = None, **options: Any) -> None:
        if threads is not None:
            self.__dict__["_BACKEND_MAP"] = {**Backend._BACKEND_MAP, "onnx": partial(OnnxNetwork, threads=threads)}
        super().__init__(model, **options)
        self.backend.names = class_names(self.backend.names)

    @property
    def takes_batches(self) -> bool:
        """Whether several pictures can be given at once: to a model, and to a file whose batch is free."""
        return self.format == "pt" or bool(self.dynamic or self.metadata.get("dynamic"))

    def sides_in_graph(self) -> list[int | str]:
        """Return height and width as the graph of an export has them, which knows better than its metadata.

        Free sides are words; there are none where a graph cannot be asked.
        """
        sides = slice(1, 3) if "preprocess" in self.metadata else slice(2, 4)
        if self.format == "onnx":
            return self.session.get_inputs()[0].shape[sides]
        if self.format == "openvino":
            shape = list(self.ov_compiled_model.input().partial_shape)
            return [side.get_length() if side.is_static else "free" for side in shape[sides]]
        return []


def open_backend(model: Any, **options: Any) -> Backend:
    """Return a network as `Backend`, as it is if it is one already; stands in for AutoBackend in the validator."""
    own = {"device": OWN_DEVICE[-1]} if OWN_DEVICE else {}
    return model if isinstance(model, Backend) else Backend(model, **{**options, **own})


class OwnDevice:
    """The device of this process among several, as ultralytics' validator asks for it."""

    @staticmethod
    def current_device() -> int:
        """Return its number."""
        return OWN_DEVICE[-1].index or 0


def share_options(network: Any, options: Any) -> None:
    """Let a file with NMS read its thresholds from ultralytics' options each time that it runs; leave models alone."""
    if isinstance(network, AutoBackend):
        network.backend.options = options


patch_ultralytics(open_backend=open_backend, own_device=OwnDevice)
