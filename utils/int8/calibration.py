"""What a quantized file is made with: pictures of the training split, as the network sees them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from ultralytics.utils import TQDM

from models.errors import UserError
from utils.data.files import list_images
from utils.data.pictures import is_readable
from utils.data.samples import evenly, load_picture


def calibration_pictures(data: dict[str, Any], count: int) -> list[Path]:
    """Return `count` readable pictures of a data set's training split, evenly spread over it, or all if it has fewer.

    Raises:
        UserError: none can be read.
    """
    names = list_images(data["train"], data["path"])
    chosen = list(map(Path, evenly(names, count)))
    readable = list(filter(is_readable, chosen))
    if not readable:
        raise UserError(f"none of the {len(chosen)} pictures of {data['train']} can be read, nothing to calibrate with")
    return readable


def batches(pictures: Sequence[Path], shape: Sequence[int], what: str, task: str = "detect") -> Iterator[Tensor]:
    """Yield the pictures, as a task sees them, as one input after the other, with a progress bar.

    Args:
        pictures: files; the last input is filled with the first ones.
        shape: batch, channels, height and width of an input.
        what: is done with them, for the bar.
        task: of the network.

    Returns:
        float32 in [0, 1], each of `shape`.
    """
    batch, channels, height, width = shape
    for start in TQDM(range(0, len(pictures), batch), desc=what):
        files = [pictures[i % len(pictures)] for i in range(start, start + batch)]
        yield torch.stack([load_picture(file, (height, width), channels, task) for file in files])
