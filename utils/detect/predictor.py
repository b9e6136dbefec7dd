"""From a picture to boxes and masks: ultralytics' predictors on our checkpoints and exports."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.data.loaders import SourceTypes
from ultralytics.engine.results import Results
from ultralytics.models.yolo import segment
from ultralytics.models.yolo.detect import DetectionPredictor
from ultralytics.utils import LOGGER, ops

from models.environment import cpu_cores
from models.errors import UserError, WeightsError
from utils.checkpoint import load_checkpoint
from utils.deploy.backends import read_options
from utils.deploy.formats import FORMATS, format_of
from utils.deploy.metadata import check_metadata
from utils.deploy.run import open_session
from utils.detect.frame import Found, Frame
from utils.sizes import check_imgsz

MAX_WORKERS = 8  # frames that are computed at once, each of which takes memory
Shape = tuple[int | str, ...]  # a word stands for any number
UNNAMED = 999  # classes that ultralytics gives to weights without names


class Predictor(DetectionPredictor):
    """Finds the boxes in one frame at a time. `create_predictor` makes the one for the task of some weights.

    Args:
        weights: .pt (ours) or an export; for messages.
        network: what `open_weights` gave for them.
        imgsz: one side, or height and width, in pixels; None takes the size of training or export.
        conf_thres: boxes below this confidence are dropped, 0 to 1.
        iou_thres: of two boxes of a class that overlap more than this, the less confident is dropped, 0 to 1.
        max_det: the most boxes in one frame.
        classes: class numbers to keep; None keeps all.
        agnostic_nms: boxes of different classes suppress each other too.
        augment: run at several scales and mirrored as well (.pt only).
        half: float16 on a GPU; with OpenVINO the precision that the processor likes best.
        device: '', cpu, mps, or CUDA numbers.
        data: a dataset YAML, read for the class names when the weights hold none.
        retina_masks: masks as fine as the picture, not as the network's input.
        many: compute several frames at once where that is faster, for pictures that need not be seen at once.

    Attributes:
        names: class number → name.
        imgsz: [height, width] of the largest input, in pixels.
        workers: how many threads may call `detect` at once.

    Raises:
        WeightsError: the file is not one of ours, or damaged.
        UserError: an option does not go with these weights.
    """

    task = "detect"

    def __init__(
        self,
        weights: Path,
        network: nn.Module | str,
        *,
        imgsz: list[int] | None = None,
        conf_thres: float = 0.25,
        iou_thres: float = 0.45,
        max_det: int = 1000,
        classes: list[int] | None = None,
        agnostic_nms: bool = False,
        augment: bool = False,
        half: bool = False,
        device: str = "",
        data: Path | None = None,
        retina_masks: bool = False,
        many: bool = False,
    ) -> None:
        options: dict[str, Any] = {"task": self.task, "mode": "predict", "batch": 1, "rect": True, "device": device}
        options |= {"conf": conf_thres, "iou": iou_thres, "max_det": max_det, "classes": classes, "augment": augment}
        options |= {"agnostic_nms": agnostic_nms, "data": str(data or ""), "quantize": 16 if half else None}
        options |= {"save": False, "verbose": False, "save_dir": "."}  # we write and print
        options |= {"retina_masks": retina_masks}
        super().__init__(overrides=options)
        if augment:
            check_augment(weights, network)
        if retina_masks and self.task != "segment":
            LOGGER.warning(f"--retina-masks is of no use: {weights.name} finds boxes, not masks")
        own_size, fixed = self._load(weights, network)
        read_options(self.model, self.args)
        self.imgsz = self._choose_imgsz(weights, imgsz, own_size, fixed)
        if isinstance(network, str):
            self._try_out(weights)
        self.names = self.model.names
        if classes and max(classes) >= len(self.names):
            raise UserError(f"--classes {max(classes)} does not exist: {weights.name} knows 0 to {len(self.names) - 1}")
        if half and not self.model.fp16:
            LOGGER.warning("--half needs a GPU; computing in float32")
        if self.model.format == "pt" and self.model.end2end:
            self.model.model.set_head_attr(max_det=max(max_det, 300), agnostic_nms=agnostic_nms)
        self.source_type = SourceTypes()
        self.workers = self._share_cores(weights, many) if self.model.format == "onnx" else 1
        self.model.warmup((1, 3, *self.imgsz))
        self.batch: tuple[list[str], ...] = ([""],)  # paths, which ultralytics puts into its results

    def _load(self, weights: Path, network: nn.Module | str) -> tuple[Any, bool]:
        """Set the network up; return the image size that it was made with, if known, and whether it takes no other."""
        if not isinstance(network, str):
            self.args.rect = not network.wants_one_canvas
            self.setup_model(network)
            return getattr(network, "imgsz", None), False
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # torch.jit is deprecated, and loads
                self.setup_model(network)
        except load_errors() as error:
            name = kind.name if (kind := format_of(weights)) else weights.suffix
            raise WeightsError(f"{weights} is damaged, or no {name} file that runs here") from error
        own = getattr(self.model, "imgsz", None)
        sides = self._sides_in_graph()
        if sides:
            fixed = all(isinstance(side, int) for side in sides)
            return (sides if fixed else own), fixed
        return own, own is not None and not self.model.dynamic

    def _sides_in_graph(self) -> list[int | str]:
        """Return height and width as the graph of an export has them, which knows better than its metadata.

        Free sides are words; there are none where a graph cannot be asked.
        """
        sides = slice(1, 3) if "preprocess" in self.model.metadata else slice(2, 4)
        if self.model.format == "onnx":
            return self.model.session.get_inputs()[0].shape[sides]
        if self.model.format == "openvino":
            shape = list(self.model.ov_compiled_model.input().partial_shape)
            return [side.get_length() if side.is_static else "free" for side in shape[sides]]
        return []

    def _choose_imgsz(self, weights: Path, asked: list[int] | None, own: Any, fixed: bool) -> list[int]:
        """Return [height, width]: what the user asked for if the weights allow it, else their own size, else 640."""
        size = check_imgsz(asked or own or 640, int(self.model.stride))
        if fixed and size != check_imgsz(own, int(self.model.stride)):
            raise UserError(f"{weights.name} takes --imgsz {' '.join(map(str, own))} only, for which it was exported")
        return size

    def _share_cores(self, weights: Path, many: bool) -> int:
        """Give an ONNX file on the CPU a number of cores for each frame; return how many frames it may take at once."""
        session = self.model.session
        if session.get_providers() != ["CPUExecutionProvider"]:
            return 1
        cores = cpu_cores()
        workers = min(cores, MAX_WORKERS) if many else 1
        self.model.backend.session = open_session(str(weights), cores // workers, spinning=False)
        return workers

    @torch.inference_mode()
    def _try_out(self, weights: Path) -> None:
        """Run an export once; WeightsError when it cannot, or when its outputs are not those of its classes."""
        try:
            raw = self.model(torch.zeros(1, 3, *self.imgsz, device=self.device))
        except load_errors() as error:
            raise WeightsError(
                f"{weights} does not run on a picture of {self.imgsz[0]}x{self.imgsz[1]} pixels"
            ) from error
        given = [tuple(getattr(output, "shape", ())) for output in (raw if isinstance(raw, (list, tuple)) else [raw])]
        needed = self._needed(given)
        if len(given) != len(needed) or not all(map(fits, given, needed)):
            what = f"its {len(self.model.names)} classes need" if self._is_named() else f"the task {self.task} needs"
            raise WeightsError(f"{weights} gives {shapes_text(given)} where {what} {shapes_text(needed)}")

    def _needed(self, given: list[Shape]) -> list[Shape]:  # noqa: ARG002
        """Return the shapes that the outputs of an export must have, where these were given."""
        return [self._boxes_needed()]

    def _boxes_needed(self, masks: int = 0) -> Shape:
        """Return the shape of the boxes, each with so many mask coefficients."""
        if self.model.end2end:
            return 1, "boxes", 6 + masks
        return 1, 4 + len(self.model.names) + masks if self._is_named() else "4 + classes", "boxes"

    def _is_named(self) -> bool:
        """Return whether the classes have names, be it that ultralytics made them up from the outputs."""
        return len(self.model.names) != UNNAMED

    @torch.inference_mode()
    def detect(self, frame: Frame) -> Found:
        """Return what is found in one frame."""
        timers = [ops.Profile(device=self.device) for _ in range(3)]
        with timers[0]:
            images = self.preprocess([frame.image])
        with timers[1]:
            raw = self.inference(images)
        with timers[2]:
            result = self.finish(raw, images, frame)
        return Found(frame, result, tuple(images.shape), (timers[0].dt, timers[1].dt, timers[2].dt))

    def finish(self, raw: Any, images: Tensor, frame: Frame) -> Results:
        """Return what is left of the network's raw outputs after NMS, in the frame's own pixels and as numpy arrays."""
        return self.postprocess(raw, images, [frame.image])[0].cpu().numpy()


class SegmentationPredictor(Predictor, segment.SegmentationPredictor):
    """Finds boxes and masks; a `Predictor` in all else."""

    task = "segment"

    def _needed(self, given: list[Shape]) -> list[Shape]:
        masks = given[1][1] if len(given) == 2 and len(given[1]) == 4 else "masks"
        height, width = self.imgsz
        boxes = self._boxes_needed(masks if isinstance(masks, int) else 0)
        return [boxes, (1, masks, height // 4, width // 4)]


def create_predictor(weights: Path, **options: Any) -> Predictor:
    """Return the predictor for the task of `weights`; options and errors are those of `Predictor`."""
    task, network = open_weights(weights)
    return PREDICTORS[task](weights, network, **options)


def open_weights(weights: Path) -> tuple[str, Any]:
    """Return the task of weights, and their network as ultralytics takes it: a model, or the path of an export.

    Raises:
        WeightsError: the file is not one of ours, or damaged; an export was not run yet.
        UserError: the runtime of an export is not there.
    """
    if weights.suffix == ".pt":
        network = load_checkpoint(weights)
        return network.task, network
    kind = format_of(weights)
    if kind is None:
        raise WeightsError(f"{weights} is none of .pt, {', '.join(row.ending for row in FORMATS.values())}")
    if kind.not_run:
        raise UserError(f"{weights} does not run here: {kind.title} {kind.not_run}")
    if kind.content and not any(weights.rglob(kind.content)):
        raise WeightsError(f"{weights} is no {kind.title} model: that is a folder with a file {kind.content}")
    return check_metadata(weights), str(weights)


def check_augment(weights: Path, network: Any) -> None:
    """Raise UserError for a network that does not run at several scales: an export, one with masks or without NMS."""
    if isinstance(network, str):
        raise UserError(f"--augment needs PyTorch weights (.pt), not {weights.name}")
    if network.task != "detect" or network.end2end:
        what = "needs no NMS" if network.end2end else "finds masks as well"
        raise UserError(f"--augment joins boxes of several scales by NMS, but {weights.name} {what}: leave it out")


def fits(given: Shape, needed: Shape) -> bool:
    """Return whether a shape is one that is needed."""
    return len(given) == len(needed) and all(isinstance(n, str) or n == g for g, n in zip(given, needed, strict=True))


def shapes_text(shapes: list[Shape]) -> str:
    """Return shapes for a message: `(1, 7, boxes) and (1, 32, 16, 16)`."""
    return " and ".join(f"({', '.join(map(str, shape))})" for shape in shapes) or "nothing"


PREDICTORS = {kind.task: kind for kind in (Predictor, SegmentationPredictor)}


def load_errors() -> tuple[type[Exception], ...]:
    """Return what the libraries raise for an export that they cannot load."""
    from onnxruntime.capi import onnxruntime_pybind11_state as ort  # noqa: PLC0415 (slow, and only exports need it)

    onnx = (ort.Fail, ort.InvalidArgument, ort.InvalidGraph, ort.InvalidProtobuf, ort.NotImplemented)
    return RuntimeError, TypeError, ValueError, LookupError, AttributeError, OSError, SystemError, *onnx
