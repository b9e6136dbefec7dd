"""Sizes of pictures in pixels: the one that an option asks for, and others to compare at."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from ultralytics.utils import LOGGER

from models.errors import UserError

MAX_IMGSZ = 8192  # pixels a side; a larger input would not fit in memory


def check_imgsz(imgsz: int | Sequence[int], stride: int) -> list[int]:
    """Return [height, width] in pixels, rounded up to multiples of `stride`, with a line saying so.

    Args:
        imgsz: one side of a square, or height and width, in pixels.
        stride: the largest stride of the model, in pixels.
    """
    sides = [imgsz] if isinstance(imgsz, int) else list(imgsz)
    if len(sides) not in (1, 2) or not all(isinstance(s, int) and 0 < s <= MAX_IMGSZ for s in sides):
        raise UserError(f"--imgsz takes one side or height and width, of 1 to {MAX_IMGSZ} pixels, not {imgsz}")
    rounded = [math.ceil(side / stride) * stride for side in sides]
    if rounded != sides:
        LOGGER.warning(f"--imgsz {_spaced(sides)} is rounded up to {_spaced(rounded)}, a multiple of stride {stride}")
    return rounded * 2 if len(rounded) == 1 else rounded


def _spaced(numbers: Iterable[int]) -> str:
    return " ".join(map(str, numbers))


def other_shape(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """Return a size that is not square if `size` is, and square if it is not; multiples of `stride` both."""
    height, width = size
    if height != width:
        return min(size), min(size)
    narrower = max(stride, int(0.75 * width) // stride * stride)
    return height, narrower if narrower < width else width + stride


def third_shape(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """Return a small size, not square, that is neither `size` nor its `other_shape`; multiples of `stride`."""
    half = math.ceil(min(size) / 2 / stride) * stride
    wide = (half, half + 2 * stride)
    return wide if wide != size else wide[::-1]
