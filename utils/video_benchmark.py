"""Measure detect.py on a video against ultralytics' own predictor, with the same exported file, in one run.

    python export.py --include onnx --imgsz 384 640
    python -m utils.video_benchmark --weights runs/train/exp/weights/best.onnx --frames 1000

Both read the video, find the boxes and write a video with them, in turns and several times over; what counts is each
one's fastest round. The boxes of every frame are compared, and the memory of this process at frame 100 and at the end.
The video is drawn at first: 1280x720 pixels, the objects of the built-in data set moving over a photograph that moves.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
import psutil
from ultralytics import YOLO
from ultralytics.engine.results import Results
from ultralytics.utils import LOGGER, TQDM

from models.errors import UserError
from utils import cli
from utils.data.drawn import load_photos
from utils.data.shapes import NAMES, PALETTE, Shape, bounce, draw_shape
from utils.deploy.trust import trust
from utils.detect.frame import Finder, Frame
from utils.detect.loop import predict
from utils.detect.predictor import create_predictor
from utils.detect.sources import Files, open_source
from utils.detect.writers import Wanted, Writers
from utils.paths import find_weights

SIZE = 1280, 720  # pixels: width, height
GRID = 4, 2  # of the picture, with one object in each
EARLY = 100  # the frame at which the memory is first measured
CONF_ROUNDING = 1e-4  # of confidences
SAME_PX = 1.0  # boxes that are nearer than this are the same


def make_parser() -> cli.Parser:
    """Return the options."""
    parser = cli.Parser(prog="python -m utils.video_benchmark", description=__doc__)
    add = parser.add_argument
    add("--weights", default="", help="an exported file, or .pt; default: the newest runs/train/*/weights/best.pt")
    add("--trust", action="store_true", help="run a .torchscript file from elsewhere, a program, now and later")
    add("--video", default="", help="a video; default: one is drawn")
    add("--frames", type=cli.positive_int, default=1000, help="of the video that is drawn")
    add("--rounds", type=cli.positive_int, default=2, help="how often each of the two is timed")
    add("--conf-thres", type=cli.fraction, default=0.25, help="least confidence of a box")
    add("--iou-thres", type=cli.fraction, default=0.45, help="overlap above which the less confident box goes")
    return parser


def benchmark_frames(frames: int) -> Iterator[np.ndarray]:
    """Yield pictures of 1280x720 pixels, (H, W, 3) uint8 BGR: objects to and fro over a photograph that moves too."""
    rng = np.random.default_rng(720)
    width, height = SIZE
    photo = cv2.resize(load_photos()[1], None, fx=1.5, fy=1.5, interpolation=cv2.INTER_CUBIC)
    columns, rows = GRID
    cell = width / columns
    objects = []
    for i in range(columns * rows):
        red, green, blue = PALETTE[rng.integers(len(PALETTE))]
        x, y, size = i % columns * cell, i // columns * height / rows, cell * rng.uniform(0.5, 0.75)
        objects.append((Shape(i % len(NAMES), x, y, size, 0, (blue, green, red)), rng.uniform(1, 5, 2)))
    for moment in range(frames):
        left = int(bounce(0, 2, 0, photo.shape[1] - width, moment))
        top = int(bounce(0, 1, 0, photo.shape[0] - height, moment))
        canvas = photo[top : top + height, left : left + width].copy()
        for shape, speed in objects:
            room = cell - shape.size, height / rows - shape.size
            x, y = (bounce(0, v, 0, r, moment) + shape.size / 2 for v, r in zip(speed, room, strict=True))
            draw_shape(canvas, replace(shape, x=shape.x + x, y=shape.y + y, angle=0.05 * math.sin(moment / 15)))
        yield canvas


def write_benchmark_video(path: Path, frames: int) -> None:
    """Write the video as MPEG-4 part 2, which OpenCV's wheels can write and read everywhere."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 30, SIZE)
    if not writer.isOpened():
        raise UserError(f"OpenCV cannot write {path.name}")
    for picture in TQDM(benchmark_frames(frames), total=frames, desc="Drawing the video"):
        writer.write(picture)
    writer.release()


@dataclass
class Round:
    """One pass over the video: the boxes of each frame, (N, 6) as x1 y1 x2 y2 confidence class, and the time."""

    boxes: list[np.ndarray] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)  # of the process, in bytes, after each frame
    seconds: float = 0.0

    def add(self, result: Results) -> None:
        """Keep the boxes of one frame, but nothing of the picture."""
        self.boxes.append(result.boxes.numpy().data.copy())
        self.memory.append(psutil.Process().memory_info().rss)


class Recorder(Writers):
    """The files of a run, which keeps its boxes as well."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, Wanted())
        self.round = Round()

    def save(self, frame: Frame, result: Results) -> None:
        """Write what is wanted of one frame, and keep its boxes."""
        super().save(frame, result)
        self.round.add(result)


def ours(finder: Finder, video: Path, folder: Path) -> Round:
    """Run detect.py's loop over a video."""
    outputs = Recorder(folder)
    with silenced():
        outputs.round.seconds = predict(finder, open_source(video), outputs).total
    return outputs.round


def theirs(model: YOLO, video: Path, folder: Path, args: argparse.Namespace) -> Round:
    """Run ultralytics' predictor over a video, with the same thresholds."""
    options = {"conf": args.conf_thres, "iou": args.iou_thres, "max_det": 1000, "device": "cpu"}
    options |= {"stream": True, "save": True, "project": str(folder), "name": "theirs", "exist_ok": True}
    done, start = Round(), time.perf_counter()
    with silenced():
        for result in model.predict(str(video), **options):
            done.add(result)
    done.seconds = time.perf_counter() - start
    return done


@contextmanager
def silenced() -> Iterator[None]:
    """Write the lines of the frames, as both print them, to nowhere."""
    former, streams = sys.stdout, [(h, h.stream) for h in LOGGER.handlers if isinstance(h, logging.StreamHandler)]
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        sys.stdout = nowhere
        for handler, _ in streams:
            handler.setStream(nowhere)
        try:
            yield
        finally:
            sys.stdout = former
            for handler, stream in streams:
                handler.setStream(stream)


def farthest(first: Round, second: Round, least: float = 0.0) -> float:
    """Return how far the boxes of two rounds are apart at most, in pixels; infinite where a frame has others.

    Args:
        first, second: of the same video.
        least: confidence from which boxes are kept. One that is there by less than ROUNDING decides nothing: the sums
            of a network depend on how many cores share them.
    """
    far = 0.0
    for a, b in zip(first.boxes, second.boxes, strict=True):
        far = max(far, _nearest(a[a[:, 4] > least + CONF_ROUNDING], b), _nearest(b[b[:, 4] > least + CONF_ROUNDING], a))
    return far


def _nearest(some: np.ndarray, others: np.ndarray) -> float:
    """Return how far the nearest of the others of its class is from each box, of these the largest."""
    distances = np.abs(some[:, None, :4] - others[None, :, :4]).max(-1, initial=0)
    distances[some[:, None, 5] != others[None, :, 5]] = math.inf
    return float(distances.min(1, initial=math.inf).max(initial=0))


def growth(memory: list[int], early: int = EARLY) -> float:
    """Return by which part the memory at the end is larger than at frame `early`."""
    return memory[-1] / memory[min(early, len(memory)) - 1] - 1


def find_video(name: str) -> Path:
    """Return the one video that `name` stands for; UserError for anything else, or one that gives no frame."""
    files = Files(name)
    if len(files) != 1 or not files.videos:
        raise UserError(f"--video takes one video, not {name}")
    try:
        next(iter(files))
    except StopIteration:
        raise UserError(f"{name}: {files.unreadable[files.videos[0]]}") from None
    return files.videos[0]


def main(args: argparse.Namespace) -> int:
    """Measure, print the figures, and return 1 when the boxes are others or memory grew."""
    weights = find_weights(args.weights)
    if args.trust:
        trust(weights)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        video = find_video(args.video) if args.video else folder / "video.mp4"
        if not args.video:
            write_benchmark_video(video, args.frames)
        finder = create_predictor(
            weights, conf_thres=args.conf_thres, iou_thres=args.iou_thres, device="cpu", many=True
        )
        model = YOLO(str(weights), task=finder.weights.task)
        mine, other = [], []
        for _ in range(args.rounds):
            mine.append(ours(finder, video, folder))
            other.append(theirs(model, video, folder, args))
    frames = len(mine[0].boxes)
    fastest = [min(r.seconds for r in rounds) for rounds in (mine, other)]
    far, grown = farthest(mine[-1], other[-1], args.conf_thres), growth(mine[0].memory)
    for title, seconds in zip(("detect.py", "ultralytics"), fastest, strict=True):
        LOGGER.info(f"{title:>12}: {frames / seconds:6.1f} frames a second ({seconds:.1f} s)")
    LOGGER.info(f"{fastest[1] / fastest[0]:.2f} times as fast, {finder.workers} frames at once")
    LOGGER.info(f"boxes: {sum(map(len, mine[-1].boxes))}, at most {far:.4f} px apart")
    LOGGER.info(
        f"memory: {mine[0].memory[min(EARLY, frames) - 1] / 2**20:.0f} MiB at frame {EARLY}, {grown:+.2%} at the end"
    )
    return int(far > SAME_PX or grown > 0.01)


if __name__ == "__main__":
    sys.exit(cli.run_script(main, make_parser()))
