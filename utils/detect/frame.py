"""What passes through the detection loop: a frame, and what was found in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Frame:
    """One picture on its way to the network."""

    image: np.ndarray  # (H, W, 3) uint8, BGR
    path: Path  # of the file; for a stream a name without separators
    title: str  # start of the line that is printed: "image 1/2 /path/bus.jpg: "
    number: int | None = None  # of the video's or stream's frame, from 1; None for a picture
    fps: float = 30.0  # frames per second of the video that this belongs to, after skipping
    live: bool = False  # one of several streams that run side by side
