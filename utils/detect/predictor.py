"""From a picture to boxes and masks: ultralytics' predictors on our checkpoints and exports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from ultralytics.data.augment import classify_transforms
from ultralytics.data.loaders import SourceTypes
from ultralytics.engine.results import Results
from ultralytics.models.yolo import segment
from ultralytics.models.yolo.classify import ClassificationPredictor
from ultralytics.models.yolo.detect import DetectionPredictor
from ultralytics.utils import LOGGER, ops

from models.errors import UserError, did_you_mean
from utils.deploy.backends import share_options
from utils.deploy.opened import OpenedWeights, check_augment, open_weights
from utils.detect.frame import Found, Frame
from utils.distributed.group import threads_of_process
from utils.text import shorten

MAX_WORKERS = 8  # frames that are computed at once, each of which takes memory
LEAST_END2END = 300  # boxes that a head without NMS gives, at least


@dataclass(frozen=True)
class PredictorOptions:
    """What is kept of what a network finds.

    Attributes:
        imgsz: one side, or height and width, in pixels; None takes the size of training or export.
        conf_thres: boxes below this confidence are dropped, 0 to 1.
        iou_thres: of two boxes of a class that overlap more than this, the less confident is dropped, 0 to 1.
        max_det: the most boxes in one frame.
        classes: those to keep, by number or name, several of them joined by commas if need be; None keeps all.
        agnostic_nms: boxes of different classes suppress each other too.
        augment: run at several scales and mirrored as well (.pt only).
        half: float16 on a GPU; with OpenVINO the precision that the processor likes best.
        device: '', cpu, mps, or CUDA numbers.
        data: a dataset YAML, read for the class names when the weights hold none.
        retina_masks: masks as fine as the picture, not as the network's input.
        many: compute several frames at once where that is faster, for pictures that need not be seen at once.
    """

    imgsz: list[int] | None = None
    conf_thres: float = 0.25
    iou_thres: float = 0.45
    max_det: int = 1000
    classes: Sequence[int | str] | None = None
    agnostic_nms: bool = False
    augment: bool = False
    half: bool = False
    device: str = ""
    data: Path | None = None
    retina_masks: bool = False
    many: bool = False

    @property
    def workers(self) -> int:
        """How many frames may be computed at once."""
        return min(threads_of_process(), MAX_WORKERS) if self.many else 1

    def for_ultralytics(self, weights: OpenedWeights) -> dict[str, Any]:
        """Return ultralytics' options; we write and print."""
        return {
            "task": weights.task,
            "mode": "predict",
            "batch": 1,
            "rect": weights.takes_rectangles,
            "device": self.device,
            "conf": self.conf_thres,
            "iou": self.iou_thres,
            "max_det": self.max_det,
            "classes": None if self.classes is None else find_classes(self.classes, weights.names, weights.path.name),
            "agnostic_nms": self.agnostic_nms,
            "augment": self.augment,
            "retina_masks": self.retina_masks,
            "quantize": 16 if self.half else None,
            "save": False,
            "verbose": False,
            "save_dir": ".",
        }


class Predictor(DetectionPredictor):
    """Finds the boxes in one frame at a time. `create_predictor` makes the one for the task of some weights.

    Attributes:
        weights: what runs the network.
        names: class number → name.
        imgsz: [height, width] of the largest input, in pixels.
        workers: how many threads may call `detect` at once.

    Raises:
        WeightsError: an exported file does not run.
        UserError: an option does not go with these weights.
    """

    def __init__(self, weights: OpenedWeights, options: PredictorOptions) -> None:
        check_options(weights, options)
        super().__init__(overrides=options.for_ultralytics(weights))
        self.weights, self.names = weights, weights.names
        self.model, self.device = weights.network, weights.network.device
        self.imgsz = weights.choose_imgsz(options.imgsz)
        self.claim_network()
        weights.check_runs(self.imgsz)
        self.source_type = SourceTypes()
        self.workers = options.workers if shares_cores(weights) else 1
        self.model.eval()
        self.model.warmup((1, 3, *self.imgsz))
        self.batch: tuple[list[str], ...] = ([""],)  # paths, which ultralytics puts into its results

    def claim_network(self) -> None:
        """Set the options that the network itself reads, which another predictor of the same weights may have set."""
        share_options(self.model, self.args)
        if self.weights.model is not None and self.weights.model.end2end:
            most = max(self.args.max_det, LEAST_END2END)
            self.model.model.set_head_attr(max_det=most, agnostic_nms=self.args.agnostic_nms)

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
        result = self.postprocess(raw, images, [frame.image])[0].cpu().numpy()
        result.path = str(frame.path)
        return result


class SegmentationPredictor(Predictor, segment.SegmentationPredictor):
    """Finds boxes and masks; a `Predictor` in all else."""


class ClassPredictor(Predictor):
    """Says what the middle of a frame shows, as `result.probs`; a `Predictor` in all else."""

    postprocess = ClassificationPredictor.postprocess
    preprocess = ClassificationPredictor.preprocess

    def __init__(self, weights: OpenedWeights, options: PredictorOptions) -> None:
        super().__init__(weights, options)
        self.transforms = classify_transforms(self.imgsz)
        self.device_transform = None  # of ultralytics, for sources that it opens


PREDICTORS = {"detect": Predictor, "segment": SegmentationPredictor, "classify": ClassPredictor}


def create_predictor(weights: Path, **options: Any) -> Predictor:
    """Open weights and return the predictor for their task; options are those of `PredictorOptions`.

    Raises:
        WeightsError: the file is not one of ours, or damaged.
        UserError: an option does not go with these weights, or the runtime of an exported file is not there.
    """
    wanted = PredictorOptions(**options)
    opened = open_weights(
        weights,
        device=wanted.device,
        half=wanted.half,
        data=wanted.data,
        threads=threads_of_process() // wanted.workers,
    )
    return PREDICTORS[opened.task](opened, wanted)


def shares_cores(weights: OpenedWeights) -> bool:
    """Return whether several frames at once, each on some cores, are faster: so it is with an ONNX file on the CPU."""
    network = weights.network
    return network.format == "onnx" and network.session.get_providers() == ["CPUExecutionProvider"]


def check_options(weights: OpenedWeights, options: PredictorOptions) -> None:
    """Raise UserError for an option that does not go with weights, and warn of one that changes nothing."""
    name = weights.path.name
    if options.augment:
        check_augment(weights)
    if options.retina_masks and weights.task != "segment":
        found = "classes" if weights.task == "classify" else "boxes"
        LOGGER.warning(f"--retina-masks is of no use: {name} finds {found}, not masks")
    if options.half and not weights.network.fp16:
        LOGGER.warning("--half needs a GPU; computing in float32")


def find_classes(words: Sequence[int | str], names: Mapping[int, str], weights: str) -> list[int]:
    """Return the numbers of classes.

    Args:
        words: numbers, names, or several of them joined by commas.
        names: class number → name.
        weights: name of the file that knows them, for messages.

    Raises:
        UserError: there is no such class, or none is named.
    """
    by_number, by_name = {str(number): number for number in names}, {name: number for number, name in names.items()}
    parts = [p for word in map(str, words) for p in ([word] if word in by_name else map(str.strip, word.split(",")))]
    found = []
    if not any(parts):
        raise UserError("--classes names no class: give numbers or names of those to keep, or leave it out to keep all")
    for part in filter(None, parts):
        if part in by_number:
            found.append(by_number[part])
        elif part in by_name:
            found.append(by_name[part])
        elif part.lstrip("-").isdecimal():
            raise UserError(f"--classes {shorten(part)} does not exist: {weights} knows 0 to {len(names) - 1}")
        else:
            hint = did_you_mean(part, by_name) or f", whose classes are {shorten(', '.join(by_name))}"
            raise UserError(f"--classes '{shorten(part)}' is no class of {weights}{hint}")
    return found
