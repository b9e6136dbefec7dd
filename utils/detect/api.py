"""Weights as a function of pictures: `from models import load`."""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from threading import RLock
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
import torch
from ultralytics.engine.results import Results
from ultralytics.utils import LOGGER
from ultralytics.utils.torch_utils import select_device

from models.errors import UserError
from utils import cli
from utils.deploy.opened import open_weights
from utils.deploy.trust import trust_weights
from utils.detect.frame import Found, Frame
from utils.detect.in_memory import KINDS, is_picture_in_memory, read_memory
from utils.detect.loop import line_of
from utils.detect.predictor import PREDICTORS, Predictor, PredictorOptions
from utils.detect.sources import open_source
from utils.detect.streams import is_live
from utils.paths import find_file, find_weights
from utils.text import printable

DEEPEST = 20  # lists in lists of sources
KEPT = 8  # sets of options whose predictor is kept


class Detector:
    """Weights that are open and called with pictures. Any number of threads may call it; they take turns.

    Args:
        weights: a checkpoint of ours or an exported file; None takes the newest runs/train/*/weights/best.pt.
        device: '', cpu, mps, or a CUDA number; '' is the first GPU, else the CPU.
        half: float16 on a GPU; with OpenVINO the precision that the processor likes best.
        data: a dataset YAML, read for the class names when the weights hold none.
        trust: run a .torchscript file that was not written on this machine, a program that can read and write files,
            now and later.

    Attributes:
        names: class number → name.
        task: "detect" or "segment".
        device: what the network runs on.
        conf: what a call takes that names none; so do `iou`, `classes`, `max_det` and `agnostic`, as YOLOv5 has them.

    Raises:
        WeightsError: the file is not one of ours, or damaged.
        UserError: it does not exist, its runtime is not there, or an option is wrong.
    """

    def __init__(
        self,
        weights: str | Path | None = None,
        device: str | int | torch.device | None = "",
        half: bool = False,
        data: str | Path | None = None,
        trust: bool = False,
    ) -> None:
        if not isinstance(weights, (str, Path, type(None))):
            raise UserError(f"load takes the path of one file, not {type(weights).__name__}; detect.py joins several")
        if not isinstance(half, bool):
            raise UserError(f"half is True or False, not {half!r}")
        if trust:
            trust_weights([weights])
        self.half, self.data = half, find_file(data, "data") if data else None
        self._device = _checked("device", "" if device is None else device, cli.device)
        self.weights = open_weights(find_weights(weights), device=self._device, half=half, data=self.data)
        self.names, self.task, self.device = self.weights.names, self.weights.task, self.weights.network.device
        self.conf, self.iou, self.max_det, self.agnostic = 0.25, 0.45, 1000, False
        self.classes: Any = None
        self._predictors: dict[tuple[Any, ...], Predictor] = {}
        self._lock = RLock()

    def __repr__(self) -> str:
        return f"Detector({str(self.weights.path)!r}, {self.task}, {len(self.names)} classes, {self.device})"

    def __call__(
        self,
        source: Any,
        *,
        imgsz: int | Sequence[int] | None = None,
        conf: float | None = None,
        iou: float | None = None,
        classes: Any = None,
        max_det: int | None = None,
        agnostic_nms: bool | None = None,
        augment: bool = False,
        retina_masks: bool = False,
        batch: int = 1,
        stream: bool = False,
        vid_stride: int = 1,
        verbose: bool = False,
        device: str | int | torch.device | None = None,
    ) -> Any:
        """Return what is in pictures, as ultralytics' `Results` with tensors on the CPU, one for each and in order.

        Args:
            source: what detect.py takes for --source, a file:// address, or a picture in memory: an array (H, W, 3)
                uint8 in BGR as OpenCV gives it, a PIL picture, a tensor (3, H, W) or (B, 3, H, W) in RGB, uint8 or
                floats in [0, 1]; or a list of these, or an iterator.
            imgsz: one side, or height and width, in pixels; None takes the size of training or export.
            conf: boxes below this confidence are dropped, 0 to 1. None takes the attribute of that name, as for `iou`,
                `classes`, `max_det` and `agnostic_nms` (`agnostic`).
            iou: of two boxes of a class that overlap more than this, the less confident is dropped, 0 to 1.
            classes: a number or name of a class to keep, or several.
            max_det: the most boxes in one picture.
            agnostic_nms: boxes of different classes suppress each other too.
            augment: run at several scales and mirrored as well (.pt only).
            retina_masks: masks as fine as the picture, not as the network's input.
            batch: pictures of one shape that are computed together; 1 computes each as detect.py does.
            stream: return a generator, which reads pictures as they are asked for. Iterators and live streams give one
                in any case.
            vid_stride: take every n-th frame of a video.
            verbose: log detect.py's line for each picture.
            device: that of `load`; another one is refused.

        Returns:
            A list of `Results`, or the generator.

        Raises:
            UserError: an option or the source is wrong, or nothing of a source could be read. Broken files among others
                are skipped and logged.
        """
        self._check_device(device)
        options = PredictorOptions(
            imgsz=_checked_list("imgsz", imgsz, cli.image_side),
            conf_thres=_checked("conf", self.conf if conf is None else conf, cli.fraction),
            iou_thres=_checked("iou", self.iou if iou is None else iou, cli.fraction),
            max_det=_checked("max_det", self.max_det if max_det is None else max_det, cli.positive_int),
            classes=self._listed(self.classes if classes is None else classes),
            agnostic_nms=bool(self.agnostic if agnostic_nms is None else agnostic_nms),
            augment=bool(augment),
            half=self.half,
            device=self._device,
            data=self.data,
            retina_masks=bool(retina_masks),
        )
        predictor, size = self._predictor(options), _checked("batch", batch, cli.positive_int)
        if size > 1 and not self.weights.network.takes_batches:
            name = self.weights.path.name
            raise UserError(f"{name} takes one picture at a time: batch=1, or export with --dynamic batch")
        frames = read_frames(source, _checked("vid_stride", vid_stride, cli.positive_int))
        results = self._detect(predictor, frames, size, verbose)
        return results if stream or is_endless(source) else list(results)

    predict = __call__

    def _detect(self, predictor: Predictor, frames: Iterator[Frame], size: int, verbose: bool) -> Iterator[Results]:
        """Yield the results of frames, so many at a time."""
        while together := list(itertools.islice(frames, size)):
            with self._lock:
                predictor.claim_network()
                found = detect_together(predictor, together)
            for one in found:
                if verbose:
                    LOGGER.info(printable(line_of(one)))
                yield one.result

    def _predictor(self, options: PredictorOptions) -> Predictor:
        """Return the predictor with these options, which is made once for the last few sets of them."""
        key = tuple(tuple(value) if isinstance(value, list) else value for value in vars(options).values())
        with self._lock:
            if key not in self._predictors:
                if len(self._predictors) >= KEPT:
                    self._predictors.pop(next(iter(self._predictors)))
                self._predictors[key] = PREDICTORS[self.task](self.weights, options)
            return self._predictors[key]

    def _listed(self, classes: Any) -> list[Any] | None:
        """Return classes as a list, those of a known name by number; the predictor checks the rest."""
        if classes is None:
            return None
        numbers: dict[Any, int] = {name: number for number, name in self.names.items()}
        plain = classes.tolist() if isinstance(classes, (np.ndarray, np.generic, torch.Tensor)) else classes
        several = plain if isinstance(plain, Iterable) and not isinstance(plain, (str, bytes)) else [plain]
        listed = [one.item() if isinstance(one, (np.generic, torch.Tensor)) else one for one in several]
        for one in listed:
            if isinstance(one, bool) or not isinstance(one, (int, str)):
                raise UserError(f"classes are numbers or names, not {one!r}")
        return [numbers.get(one, one) for one in listed]

    def _check_device(self, device: Any) -> None:
        """Raise UserError for another device than that of `load`."""
        if device is not None and select_device(_checked("device", device, cli.device)) != self.device:
            raise UserError(
                f"these weights are on {self.device}: load(…, device='{device}') puts them on another device"
            )


def load(
    path: str | Path | None = None,
    device: str | int | torch.device | None = "",
    half: bool = False,
    data: str | Path | None = None,
    trust: bool = False,
) -> Detector:
    """Return weights as a function of pictures: `load("best.pt")("photo.jpg")[0].boxes`.

    Arguments and errors are those of `Detector`.
    """
    return Detector(path, device, half, data, trust)


@torch.inference_mode()
def detect_together(predictor: Predictor, frames: Sequence[Frame]) -> list[Found]:
    """Return what is found in frames, in their order; those that have one shape when fitted are computed together."""
    start = time.perf_counter()
    fitted = [predictor.preprocess([frame.image]) for frame in frames]
    before = (time.perf_counter() - start) / len(frames)
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, image in enumerate(fitted):
        groups.setdefault(tuple(image.shape), []).append(i)
    found: dict[int, Found] = {}
    for shape, places in groups.items():
        start = time.perf_counter()
        images = torch.cat([fitted[i] for i in places])
        raw = predictor.inference(images)
        computed = time.perf_counter()
        predictor.batch = ([str(frames[i].path) for i in places],)
        results = [result.cpu() for result in predictor.postprocess(raw, images, [frames[i].image for i in places])]
        spent = (before, (computed - start) / len(places), (time.perf_counter() - computed) / len(places))
        for i, result in zip(places, results, strict=True):
            result.speed = dict(zip(("preprocess", "inference", "postprocess"), (s * 1e3 for s in spent), strict=True))
            found[i] = Found(frames[i], result, shape, spent)
    return [found[i] for i in range(len(frames))]


# Sources --------------------------------------------------------------------------------------------------------------
def is_endless(source: Any, depth: int = 0) -> bool:
    """Return whether a source is read as it is asked for: an iterator, or a live stream."""
    if isinstance(source, (list, tuple)):
        return depth <= DEEPEST and any(is_endless(one, depth + 1) for one in source)
    if isinstance(source, (str, Path)):
        name = local_name(source)
        return is_live(str(name)) or str(name).lower().split()[:1] == ["screen"]
    return isinstance(source, Iterator)


def read_frames(source: Any, vid_stride: int = 1) -> Iterator[Frame]:
    """Yield the frames of what `Detector` takes; UserError for another thing, or a source that gives nothing."""
    for number, one in enumerate(_flat(source)):
        if isinstance(one, (str, Path)):
            yield from _read_named(local_name(one), vid_stride)
            continue
        for k, picture in enumerate(read_memory(one)):
            name = Path(getattr(one, "filename", "") or f"image{number}{f'_{k}' if k else ''}.jpg")
            yield Frame(picture, name, f"image {number + 1} {name}: ")


def _flat(source: Any, depth: int = 0) -> Iterator[Any]:
    """Yield each path and each picture in memory."""
    if depth > DEEPEST:
        raise UserError(f"a source is {KINDS}, not lists in lists more than {DEEPEST} deep")
    if isinstance(source, (str, Path)) or is_picture_in_memory(source):
        yield source
    elif isinstance(source, Iterable) and not isinstance(source, (bytes, dict)):
        for one in source:
            yield from _flat(one, depth + 1)
    else:
        raise UserError(f"a source is {KINDS}, not {type(source).__name__}")


def _read_named(name: str | Path, vid_stride: int) -> Iterator[Frame]:
    source = open_source(name, vid_stride)
    seen = False
    for frame in source:
        seen = True
        yield frame
    for path, reason in source.unreadable.items():
        if not seen:
            raise UserError(f"{path} cannot be read: {reason}")
        LOGGER.warning(printable(f"{path} cannot be read: {reason}"))


def local_name(name: str | Path) -> str | Path:
    """Return the path that a file:// address names, and any other name as it is."""
    if isinstance(name, Path) or not name.lower().startswith("file://"):
        return name
    parts = urlsplit(name)
    if parts.netloc not in ("", "localhost"):
        raise UserError(f"{name} names another machine: a file:// address begins with three slashes")
    return Path(url2pathname(parts.path))


# Options --------------------------------------------------------------------------------------------------------------
def _checked(name: str, value: Any, kind: Callable[[str], Any]) -> Any:
    """Return an option's value as the command line would read it; UserError with its name for a wrong one."""
    try:
        return kind(str(value))
    except argparse.ArgumentTypeError as error:
        raise UserError(f"{name}: {error}") from error


def _checked_list(name: str, value: Any, kind: Callable[[str], Any]) -> list[Any] | None:
    if value is None:
        return None
    return [
        _checked(name, one, kind)
        for one in (value if isinstance(value, Iterable) and not isinstance(value, str) else [value])
    ]
