"""The loop of detection: reads, computes, prints and writes.

Reading, computing and writing run on threads of their own, one frame ahead and a few behind, so that all cores are
busy all of the time. An ONNX file on the CPU computes several frames at once, each on one core: that needs less of
every core than one frame on all of them, which wait for each other.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, TypeVar

import cv2
from ultralytics.utils import LOGGER

from utils.detect.frame import Finder, Found, Frame, Step
from utils.detect.sources import AnySource, prefetch
from utils.detect.writers import Writers, draw
from utils.latency import torch_threads
from utils.text import printable

BACKLOG = 8  # frames that may wait to be written; bounds the memory
T = TypeVar("T")
R = TypeVar("R")


@dataclass
class Speed:
    """How fast a run was.

    Attributes:
        seen: how many frames were looked at.
        seconds: that preparing, the network and NMS took, over all of them.
        shape: of the last input, (B, C, H, W).
        total: seconds from the first frame's reading to the last one's writing.
    """

    seen: int = 0
    seconds: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    shape: tuple[int, ...] = ()
    total: float = 0.0

    def add(self, found: Found) -> None:
        """Count a frame."""
        self.seen += 1
        self.seconds = [a + b for a, b in zip(self.seconds, found.seconds, strict=True)]
        self.shape = found.shape

    def __add__(self, other: Speed) -> Speed:
        """Return how fast two processes were that worked side by side."""
        seconds = [a + b for a, b in zip(self.seconds, other.seconds, strict=True)]
        return Speed(self.seen + other.seen, seconds, other.shape or self.shape, max(self.total, other.total))

    def line(self) -> str:
        """Return YOLOv5's line with the mean times of a frame."""
        before, network, after = (seconds / max(self.seen, 1) * 1e3 for seconds in self.seconds)
        return (
            f"Speed: {before:.1f}ms pre-process, {network:.1f}ms inference, {after:.1f}ms NMS per image "
            f"at shape {self.shape}"
        )


class Background:
    """Does jobs in their order on one thread; a context manager that waits for the last of them.

    At most `limit` jobs wait: `submit` then blocks, and raises what an earlier job raised.
    """

    def __init__(self, limit: int = BACKLOG) -> None:
        self.limit = limit
        self.jobs: deque[Future] = deque()
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="writer")

    def submit(self, job: Callable[..., object], *args: object) -> None:
        """Have `job(*args)` done."""
        while len(self.jobs) >= self.limit or (self.jobs and self.jobs[0].done()):
            self.jobs.popleft().result()
        self.jobs.append(self.thread.submit(job, *args))

    def __enter__(self) -> Background:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.thread.shutdown(wait=True)
        while self.jobs and kind is None:
            self.jobs.popleft().result()


def in_order(function: Callable[[T], R], items: Iterable[T], workers: int) -> Generator[R]:
    """Yield `function(item)` of each item, in their order, while it computes so many at once."""
    if workers == 1:
        yield from map(function, items)
        return
    waiting: deque[Future[R]] = deque()
    with torch_threads(1), ThreadPoolExecutor(workers, thread_name_prefix="worker") as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= 2 * workers:  # so that none has to wait for the next
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def predict(
    finder: Finder, source: AnySource, outputs: Writers, show: bool = False, steps: Sequence[Step] = ()
) -> Speed:
    """Detect in every frame of a source, print a line for each and write what `outputs` wants.

    Args:
        finder: detects.
        source: gives the frames.
        outputs: writes.
        show: show the results in a window as well.
        steps: what is done with what was found in each frame, in their order, before it is printed and written.
    """
    speed, start = Speed(), time.perf_counter()
    frames = iter(source) if source.live else prefetch(iter(source))  # a stream's newest frame must not wait
    with outputs, Background() as writer, closing(in_order(finder.detect, frames, finder.workers)) as findings:
        for first in findings:
            found = reduce(lambda found, step: step(found), steps, first)
            speed.add(found)
            LOGGER.info(printable(line_of(found)))
            if outputs.wanted.anything:
                writer.submit(outputs.save, found.frame, found.result)
            if show and not display(found.frame, draw(found.result, outputs.wanted)):
                break
    speed.total = time.perf_counter() - start
    return speed


def line_of(found: Found) -> str:
    """Return YOLOv5's line: `image 1/2 /path/bus.jpg: 640x480 4 persons, 1 bus, 98.1ms`."""
    height, width = found.shape[2:]
    return f"{found.frame.title}{height}x{width} {found.result.verbose()}{found.seconds[1] * 1e3:.1f}ms"


def display(frame: Frame, image: Any) -> bool:
    """Show a picture in a window; False when the user pressed q."""
    cv2.imshow(printable(frame.path.name), image)
    return cv2.waitKey(300 if frame.number is None else 1) & 0xFF != ord("q")
