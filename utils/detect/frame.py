"""What passes through the detection loop: a frame, and what was found in it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from ultralytics.engine.results import Results


@dataclass(frozen=True)
class Frame:
    """One picture on its way to the network."""

    image: np.ndarray  # (H, W, 3) uint8, BGR
    path: Path  # of the file, absolute; for a stream a name without separators
    title: str  # start of the line that is printed: "image 1/2 /path/bus.jpg: "
    number: int | None = None  # of the video's or stream's frame, from 1, skipped ones counted; None for a picture
    fps: float = 30.0  # frames per second of the video that this belongs to, after skipping
    live: bool = False  # one of several streams that run side by side
    index: int = 0  # of the file among those of its source, from 1
    name: str = ""  # of the source's output files, without suffix; no other source of the run has it

    @property
    def output_name(self) -> str:
        """The name of the source's output files, where none was given that of the file or stream."""
        return self.name or (self.path.name if self.live else self.path.stem)


@dataclass(frozen=True)
class Found:
    """What was found in one frame."""

    frame: Frame
    result: Results  # in the frame's own pixels, as numpy arrays
    shape: tuple[int, ...]  # of the network's input, (B, C, H, W)
    seconds: tuple[float, float, float]  # for preparing, the network, NMS

    def as_tensors(self, with_image: bool) -> Results:
        """Return the result with tensors on the CPU in place of arrays, and with the frame if that is wanted."""
        result = copy.copy(self.result)
        for name in ("boxes", "masks", "probs"):
            part = getattr(result, name)
            if part is not None:
                setattr(result, name, type(part)(torch.as_tensor(part.data), part.orig_shape))
        if not with_image:
            result.orig_img = None
        return result


Step = Callable[[Found], Found]


class Finder(Protocol):
    """What `predict` needs: a `Predictor`, or several joined into one."""

    workers: int

    def detect(self, frame: Frame) -> Found:
        """Return what is found in one frame; called on `workers` threads at once."""
