"""Pictures that are in memory already, as the network's predictors take them: (H, W, 3) uint8 in BGR."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from models.errors import UserError
from utils.data.pictures import DEEP, WIDE

KINDS = "a path, a numpy array, a PIL picture, a tensor, or a list of these"
CHANNELS = (1, 3, 4)


def is_picture_in_memory(source: Any) -> bool:
    """Return whether an object holds pixels, be they right or wrong."""
    return isinstance(source, (np.ndarray, Tensor, Image.Image))


def read_memory(source: Any) -> Iterator[np.ndarray]:
    """Yield the pictures of an object as (H, W, 3) uint8 in BGR.

    Args:
        source: an array (H, W), (H, W, 1), (H, W, 3) in BGR or (H, W, 4) in BGRA, uint8, as OpenCV gives it, or several
            as (B, H, W, C); a PIL picture; or a tensor (3, H, W) or (B, 3, H, W) in RGB, uint8 or floats in [0, 1].

    Raises:
        UserError: it is another thing.
    """
    if isinstance(source, Image.Image):
        yield from_pil(source)
    elif isinstance(source, Tensor):
        for picture in from_tensor(source):
            yield from_array(picture)
    elif isinstance(source, np.ndarray) and source.ndim == 4:
        for picture in source:
            yield from_array(picture)
    else:
        yield from_array(source)


def from_array(array: np.ndarray) -> np.ndarray:
    """Return OpenCV's picture with three channels; UserError for another type or shape, or no pixels."""
    if array.dtype != np.uint8:
        raise UserError(f"a numpy picture is uint8, 0 to 255, not {array.dtype}")
    picture = array[..., None] if array.ndim == 2 else array
    if picture.ndim != 3 or picture.shape[2] not in CHANNELS or not picture.size:
        raise UserError(f"a numpy picture is (H, W, 3) in BGR as OpenCV gives it, not of shape {array.shape}")
    if picture.shape[2] == 1:
        return cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_GRAY2BGR)
    return np.ascontiguousarray(picture[..., :3])


def from_pil(picture: Image.Image) -> np.ndarray:
    """Return a PIL picture turned as its EXIF data say, without transparency.

    Raises:
        UserError: it has 32 bits a channel or no pixels, is closed, or its file is damaged.
    """
    if picture.mode in WIDE:
        raise UserError(f"a PIL picture has 8 or 16 bits a channel, not 32 (mode {picture.mode})")
    try:
        turned = ImageOps.exif_transpose(picture)
        deep = turned.mode in DEEP
        pixels = np.asarray(turned if deep else turned.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:  # what PIL raises when it reads a file at last
        raise UserError(f"a PIL picture (mode {picture.mode}) cannot be read: {error}") from error
    return from_array((pixels >> 8).astype(np.uint8) if deep else pixels[..., ::-1])


def from_tensor(tensor: Tensor) -> list[np.ndarray]:
    """Return the pictures of (3, H, W) or (B, 3, H, W) in RGB; UserError for another shape, type or range."""
    if tensor.layout != torch.strided or tensor.is_meta:
        raise UserError(f"a tensor holds its numbers, not {'none' if tensor.is_meta else str(tensor.layout)}")
    batch = tensor[None] if tensor.ndim == 3 else tensor
    if batch.ndim != 4 or batch.shape[1] != 3:
        raise UserError(f"a tensor is (3, H, W) or (B, 3, H, W) in RGB, not of shape {tuple(tensor.shape)}")
    batch = batch.detach().cpu()
    if batch.is_floating_point():
        if batch.numel() and not (batch.min() >= 0 and batch.max() <= 1):  # nan is neither
            raise UserError("a tensor of floats holds values in [0, 1]; these lie outside of it")
        batch = (batch.double() * 255).round().to(torch.uint8)
    if batch.dtype != torch.uint8:
        raise UserError(f"a tensor holds floats in [0, 1] or uint8, not {tensor.dtype}")
    return list(batch.flip(1).permute(0, 2, 3, 1).numpy())
