"""What the page asks for: objects in an upload, and how fast the network is in its forms.

Nothing here knows Gradio: results come back as arrays, files and HTML.
"""

from __future__ import annotations

import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch

from models.errors import UserError
from utils.benchmark.forms import FORMS, FUSED, ONNX, UNFUSED, make
from utils.checkpoint import load_checkpoint
from utils.data.pictures import is_picture, is_video
from utils.deploy.formats import format_of
from utils.deploy.run import load_runner
from utils.detect.frame import Frame
from utils.detect.predictor import Predictor, create_predictor
from utils.detect.sources import Files
from utils.detect.writers import Wanted, draw
from utils.latency import measure
from utils.web.tables import Tally, speed_table

TIMED_FORMS = (UNFUSED, FUSED, ONNX)  # whose speed the page shows
TIMED_ROUNDS = 10  # of measuring them
MAX_SIDE_SHOWN = 1280  # pixels of a result; larger ones are scaled down
OnProgress = Callable[..., object]  # called with a share from 0 to 1 and `desc`, what is being done


class Detections(NamedTuple):
    """What was found: the picture (H, W, 3) in RGB or the path of a video, a table of counts as HTML, a sentence."""

    drawn: np.ndarray | Path
    counts: str
    sentence: str


class DetectionService:
    """Detects and measures for the page, with weights that it keeps open.

    Args:
        weights: name → path of what may be loaded; nothing else is.
        folder: where videos and exports are written.
        wanted: how boxes are drawn.
        options: of `create_predictor`.
    """

    def __init__(self, weights: dict[str, Path], folder: Path, wanted: Wanted, options: dict[str, Any]) -> None:
        self.weights, self.folder, self.wanted, self.options = weights, folder, wanted, options
        self.predictors: dict[str, Predictor] = {}
        self.speeds: dict[str, str] = {}  # tables that were made, by the name of the weights
        self.videos = 0  # written so far
        self.working = threading.Lock()  # held while something is computed
        self.closed = False

    def close(self) -> None:
        """End what is computed, at its next step, and wait for it.

        A thread that were still in a library when the process ends would abort it.
        """
        self.closed = True
        with self.working:
            pass

    def predictor(self, name: str, conf: float, iou: float) -> Predictor:
        """Return the predictor of listed weights with these thresholds.

        Raises:
            UserError: the weights are not on the list.
            WeightsError: the file is damaged.
        """
        if name not in self.weights:
            raise UserError(f"{name} is not on the list of weights")
        if name not in self.predictors:
            made = create_predictor(self.weights[name], **self.options)
            if made.weights.task == "classify":
                raise UserError(f"{name} is a classifier, and this page shows boxes")
            self.predictors[name] = made
        predictor = self.predictors[name]
        predictor.args.conf, predictor.args.iou = float(conf), float(iou)
        return predictor

    def detect(self, upload: Path, name: str, conf: float, iou: float, progress: OnProgress) -> Detections:
        """Return what is found in a picture or a video.

        Args:
            upload: a picture or a video.
            name: of weights on the list.
            conf, iou: thresholds, from 0 to 1.
            progress: called when the weights are opened, and for each frame of a video.

        Raises:
            UserError: the upload cannot be read, or the weights cannot be used.
            WeightsError: the file is damaged.
        """
        with self._work(progress) as checked:
            return self._detect(upload, name, conf, iou, checked)

    def _detect(self, upload: Path, name: str, conf: float, iou: float, progress: OnProgress) -> Detections:
        files = open_upload(upload)
        progress(0, desc="opening the weights")
        predictor = self.predictor(name, conf, iou)
        video = self._new_video() if files.videos else None
        tally = Tally()
        start = time.perf_counter()
        for frame in files:
            found = predictor.detect(frame)
            tally.add(found.result)
            image = shrink(draw(found.result, self.wanted))
            if video:
                video.write(image, frame.fps)
                progress(share_of(frame), desc=frame.title.split(upload.name)[0].rsplit(" ", 1)[0])
        if video:
            video.close()
        reason = files.unreadable.get(upload.absolute(), "")
        if not tally.frames:
            raise UserError(f"{upload.name} cannot be read: {reason}")
        height, width = found.shape[2:]
        sentence = f"{tally.text()} in {time.perf_counter() - start:.2f} s, with an input of {width}×{height} pixels."
        if reason:
            sentence += f" The end is missing: {reason}."
        return Detections(video.path if video else image[..., ::-1], tally.table(), sentence)

    def _new_video(self) -> BrowserVideo:
        self.videos += 1
        return BrowserVideo(self.folder / f"video{self.videos - 1}.webm")

    def speed(self, name: str, progress: OnProgress) -> str:
        """Return a table of how long the forms of listed weights take: unfused, fused and ONNX, or the export itself.

        The forms are made in a temporary folder and measured in turns; the table is kept for the next time.

        Raises:
            UserError, WeightsError, ExportError: the weights cannot be used or exported.
        """
        with self._work(progress) as checked:
            if name not in self.speeds:
                height, width = self.predictor(name, 0.25, 0.45).imgsz
                self.speeds[name] = self._measure(self.weights[name], (height, width), checked)
            return self.speeds[name]

    @contextmanager
    def _work(self, progress: OnProgress) -> Iterator[OnProgress]:
        """Have `close` wait for what runs within; once it was called, this and what is given raise UserError."""

        def checked(*args: Any, **options: Any) -> object:
            self._check_open()
            return progress(*args, **options)

        with self.working:
            self._check_open()
            yield checked

    def _check_open(self) -> None:
        if self.closed:
            raise UserError("the page is closed")

    def _measure(self, path: Path, size: tuple[int, int], progress: OnProgress) -> str:
        runs: dict[str, Callable[[], object]] = {}
        kind = format_of(path)
        images = torch.rand(1, 3, *size)
        with tempfile.TemporaryDirectory(dir=self.folder) as temporary:
            if kind:
                runs[kind.title] = partial(load_runner(path), images)
            else:
                network = load_checkpoint(path)
                for number, key in enumerate(TIMED_FORMS):
                    progress(number / 4, desc=f"preparing {FORMS[key].title}")
                    made = make(key, network, size, Path(temporary))
                    runs[FORMS[key].title] = partial(made.load(torch.get_num_threads()), images)
            done = iter(range(1, TIMED_ROUNDS + 1))
            latency = measure(
                runs, TIMED_ROUNDS, lambda: progress(0.75 + 0.25 * next(done) / TIMED_ROUNDS, desc="measuring in turns")
            )
        threads = torch.get_num_threads()
        cores = f"{threads} CPU thread{'s' * (threads > 1)}"
        how = f'<p class="note">{size[1]}×{size[0]} pixels, {cores}, the least of {TIMED_ROUNDS} runs in turns</p>'
        return speed_table({title: times.minimum for title, times in latency.items()}) + how


def open_upload(upload: Path) -> Files:
    """Return the frames of a dropped file; UserError for what is no picture and no video.

    A list of paths or a pattern with * would have other files read, which the page must not.
    """
    if not (is_picture(upload) or is_video(upload)) or "*" in str(upload):
        raise UserError(f"{upload.name} is neither a picture nor a video, going by the end of its name")
    return Files(upload)


def shrink(image: np.ndarray) -> np.ndarray:
    """Return a picture that is at most MAX_SIDE_SHOWN pixels wide and high."""
    factor = MAX_SIDE_SHOWN / max(image.shape[:2])
    if factor >= 1:
        return image
    return cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)


def share_of(frame: Frame) -> float:
    """Return which part of a video is done, 0 to 1, of the line `video 1/1 (3/12) …`."""
    numbers = re.search(r"\((\d+)/(\d+)\)", frame.title)
    return min(1.0, int(numbers[1]) / max(1, int(numbers[2]))) if numbers else 0.0


class BrowserVideo:
    """A video that every browser plays: VP8 in WebM, which OpenCV writes without further libraries."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.writer: cv2.VideoWriter | None = None

    def write(self, image: np.ndarray, fps: float) -> None:
        """Add a frame; the first one sets the size."""
        if self.writer is None:
            height, width = image.shape[:2]
            self.writer = cv2.VideoWriter(str(self.path), cv2.VideoWriter.fourcc(*"VP80"), fps, (width, height))
            if not self.writer.isOpened():
                raise UserError("this build of OpenCV cannot write videos that a browser plays (VP8)")
        self.writer.write(image)

    def close(self) -> None:
        """Finish the file."""
        if self.writer is not None:
            self.writer.release()
