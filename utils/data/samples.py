"""Pictures to compare and calibrate on: photographs, noise and a checkerboard, as network inputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor
from ultralytics.data.augment import LetterBox, classify_transforms
from ultralytics.utils import ASSETS

from utils.data.pictures import read_picture

PHOTOS = (ASSETS / "bus.jpg", ASSETS / "zidane.jpg")
CHECKER = 8  # pixels a side of a square of the checkerboard
T = TypeVar("T")


def make_pictures(size: tuple[int, int], channels: int = 3, files: Sequence[Path] = PHOTOS) -> dict[str, Tensor]:
    """Return pictures to compare on: name → (channels, *size) float32 in [0, 1].

    Args:
        size: height and width, in pixels.
        channels: a picture of another number than three repeats or leaves out its RGB channels.
        files: pictures to letterbox to `size` as detection does; noise and a checkerboard are added.

    Raises:
        Unreadable: a file is no picture.
    """
    pictures = {path.name: load_picture(path, size, channels) for path in files}
    noise = torch.randint(256, (channels, *size), generator=torch.Generator().manual_seed(0))
    pictures["noise"] = noise / 255  # as all pictures, which some files take as bytes
    rows, columns = (torch.arange(side) // CHECKER for side in size)
    pictures["checkerboard"] = ((rows[:, None] + columns) % 2).float().expand(channels, *size)
    return pictures


def timed_picture(size: tuple[int, int], channels: int = 3) -> Tensor:
    """Return the picture that latencies are measured on, a photograph, as (1, channels, *size) float32 in [0, 1]."""
    return load_picture(PHOTOS[0], size, channels)[None]


def load_picture(path: Path, size: tuple[int, int], channels: int = 3, task: str = "detect") -> Tensor:
    """Return a picture as (channels, *size) float32 in [0, 1]; arguments as above.

    To detect it is letterboxed to the size; to classify it is scaled by its shorter side, and the middle is taken.

    Raises:
        Unreadable: the file is no picture.
    """
    fit = center_crop if task == "classify" else letterbox
    return fit(path, size)[[i % 3 for i in range(channels)]]


def letterbox(path: Path, size: tuple[int, int]) -> Tensor:
    """Return a file as (3, *size) RGB in [0, 1]."""
    bgr = LetterBox(size)(image=read_picture(path))
    return torch.from_numpy(bgr[..., ::-1].copy()).permute(2, 0, 1).float() / 255


def center_crop(path: Path, size: tuple[int, int]) -> Tensor:
    """Return the middle of a file as (3, *size) RGB in [0, 1], as ultralytics' classifiers see it."""
    return classify_transforms(size)(Image.fromarray(read_picture(path)[..., ::-1]))


def evenly(items: Sequence[T], most: int) -> list[T]:
    """Return at most so many of the items, evenly spread; 0 returns all."""
    count = min(most or len(items), len(items))
    return [items[i * len(items) // count] for i in range(count)]
