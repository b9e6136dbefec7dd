"""Pictures and videos to detect in, detect.py as a process, and what is in its folders afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np

from utils.paths import ROOT

NOT_UTF8 = os.fsdecode(b"caf\xe9")  # a name of a file that text cannot hold


def picture(path: Path, height: int = 48, width: int = 64) -> Path:
    """Write a picture of noise in the format that the suffix names, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    path.write_bytes(cv2.imencode(path.suffix, image)[1].tobytes())
    return path


def video(
    path: Path, frames: int = 12, size: tuple[int, int] = (64, 48), fourcc: str = "MJPG", fps: float = 10
) -> Path:
    """Write a video of grey frames, each with a grey of its own, of `size` (width, height); return its path."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*fourcc), fps, size)
    for i in range(frames):
        writer.write(np.full((size[1], size[0], 3), i * 10 % 255, np.uint8))
    writer.release()
    return path


def count_frames(path: Path) -> int:
    """Return how many frames of a video can be read."""
    capture = cv2.VideoCapture(str(path))
    frames = 0
    while capture.grab():
        frames += 1
    return frames


def files_below(folder: str | Path) -> list[str]:
    """Return the paths of all files below a folder, relative to it and sorted."""
    return sorted(p.relative_to(folder).as_posix() for p in Path(folder).rglob("*") if p.is_file())


def start(folder: Path, *argv: object) -> subprocess.Popen[str]:
    """Start detect.py in a process of its own, in this folder."""
    command = [sys.executable, str(ROOT / "detect.py"), *map(str, argv)]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
