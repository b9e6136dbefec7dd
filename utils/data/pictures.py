"""One picture on its way to the network, and how its file is decoded.

A picture that cannot be decoded raises Unreadable with the reason. Its size is read from its header first, so that a
small file cannot unfold to gigabytes. Deeper than 8 bits a channel is scaled down, rotation by EXIF is done, grey and
CMYK become colours, transparency is left out, and of several pages or moving pictures the first is taken: all of it as
in training.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from ultralytics.data.utils import IMG_FORMATS
from ultralytics.utils import LOGGER, patches

from models.environment import patch_ultralytics
from utils.paths import why_no_file
from utils.text import printable

MAX_PIXELS = 100_000_000  # a larger picture is refused from its header
HEIF = ("heic", "heif")  # what a package of its own decodes
TIFF = ("tif", "tiff")  # whose pages are all decoded, though the first is taken
PAGED = (*TIFF, "png", "webp")  # may hold several pictures
DEEP = ("I;16", "I;16B", "I;16L", "I;16N")  # what Pillow calls a grey picture of 16 bits
WIDE = ("I", "F")  # 32 bits


class Unreadable(Exception):
    """A file that cannot be decoded; the message is the reason, without the name."""


@dataclass(frozen=True)
class Header:
    """What a picture's file says before it is decoded."""

    width: int  # pixels, before rotation
    height: int
    mode: str  # Pillow's word for the channels and their depth
    pages: int


def read_picture(path: Path) -> np.ndarray:
    """Return a picture as (H, W, 3) uint8 in BGR, decoded as for training.

    Raises:
        Unreadable: it is no picture, it is damaged, or it has more than MAX_PIXELS pixels.
    """
    header = read_header(path)
    try:
        image = patches.imread(path)
    except cv2.error as error:
        raise Unreadable("damaged picture") from error
    if header.mode in WIDE and (image is None or image.dtype != np.uint8):
        raise Unreadable("32 bits a channel, where 8 or 16 are expected")
    if image is None:
        raise Unreadable("damaged picture")
    if header.pages > 1:
        LOGGER.warning(printable(f"{path} holds {header.pages} pictures, the first of which is taken"))
    if header.mode in DEEP and image.max() < 16:
        LOGGER.warning(printable(f"{path} has 16 bits a pixel but uses 12 or fewer, which makes it nearly black"))
    return image if image.shape[2] == 3 else cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)


def read_header(path: Path) -> Header:
    """Return a picture's header.

    Raises:
        Unreadable: it is none of a picture's, or says more than MAX_PIXELS pixels.
    """
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # this function is the stricter check
    kind = suffix(path)
    if kind in HEIF:
        register_heif()
    try:
        if problem := why_no_file(path):
            raise Unreadable(problem)
        with patches._image_open(path) as picture:
            pages = getattr(picture, "n_frames", 1) if kind in PAGED else 1
            width, height = picture.size
            header = Header(width, height, picture.mode, pages)
    except FileNotFoundError as error:  # since it was looked at
        raise Unreadable("does not exist") from error
    except PermissionError as error:
        raise Unreadable("no permission to read it") from error
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise Unreadable("not a picture, or a damaged one" if path.stat().st_size else "empty file") from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    pages = header.pages if kind in TIFF else 1
    if header.width * header.height * pages > MAX_PIXELS:
        many = f"{pages} pages of " if pages > 1 else ""
        size = f"{many}{header.width}x{header.height}"
        raise Unreadable(f"{size} pixels, more than the {MAX_PIXELS // 10**6} million allowed")
    return header


def is_readable(path: Path) -> bool:
    """Return whether a picture can be decoded."""
    try:
        read_picture(path)
    except Unreadable:
        return False
    return True


def is_picture(path: Path) -> bool:
    """Return whether a name is one of a picture."""
    return suffix(path) in IMG_FORMATS


def suffix(path: Path) -> str:
    """Return the suffix of a name in small letters and without its dot."""
    return path.suffix[1:].lower()


def register_heif() -> None:
    """Have Pillow read HEIC, as telephones write it; Unreadable when the package for it is missing."""
    try:
        from pillow_heif import register_heif_opener  # noqa: PLC0415 (optional)
    except ModuleNotFoundError as error:
        raise Unreadable("HEIC needs the package pillow-heif: pip install pillow-heif") from error
    register_heif_opener()


patch_ultralytics()
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
