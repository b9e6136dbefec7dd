"""One picture on its way to the network, and how its file is decoded.

A picture that cannot be decoded raises Unreadable with the reason. Its size is read from its header first, so that a
small file cannot unfold to gigabytes. Deeper than 8 bits a channel is scaled down, rotation by EXIF is done, grey and
CMYK become colours, transparency is left out, and of several pages or moving pictures the first is taken: all of it as
in training.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Lock

import cv2
import numpy as np
from PIL import Image
from ultralytics.data.utils import IMG_FORMATS, VID_FORMATS
from ultralytics.utils import LOGGER, patches

from models.environment import patch_ultralytics
from models.files import why_no_file
from utils.text import printable

PICTURES = IMG_FORMATS | {"jfif", "jif", "jpe", "pbm", "pgm", "pnm", "ppm"}  # suffixes
VIDEOS = VID_FORMATS | {"3g2", "3gp", "flv", "m2ts", "m2v", "mjpeg", "mjpg", "mts", "ogv", "vob"}
HEIF = ("heic", "heif")  # what a package of its own decodes
LIMIT = {"megapixels": 100}  # a larger picture is refused from its header
MOST_MEGAPIXELS = 1000  # OpenCV decodes 2**30 pixels
TIFF = ("tif", "tiff")  # whose pages are all decoded, though the first is taken
PAGED = (*TIFF, "png", "webp")  # may hold several pictures
DEEP = ("I;16", "I;16B", "I;16L", "I;16N")  # what Pillow calls a grey picture of 16 bits
WIDE = ("I", "F")  # 32 bits
BROKEN_PICTURE = (  # what Pillow raises for one
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    OverflowError,
    struct.error,
    zlib.error,
)
UNLIMITED = Lock()  # held while Pillow is told that a picture may have any size


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
        Unreadable: it is no picture, it is damaged, or it has more pixels than are allowed.
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
        Unreadable: it is none of a picture's, or says more pixels than are allowed.
    """
    try:
        if problem := why_no_file(path):
            raise Unreadable(problem)
        with open_picture(path) as picture:
            return checked_header(picture, suffix(path))
    except FileNotFoundError as error:  # since it was looked at
        raise Unreadable("does not exist") from error
    except PermissionError as error:
        raise Unreadable("no permission to read it") from error
    except BROKEN_PICTURE as error:
        raise Unreadable("not a picture, or a damaged one" if path.stat().st_size else "empty file") from error


@contextmanager
def open_picture(path: str | Path, formats: tuple[str, ...] | None = None) -> Iterator[Image.Image]:
    """Open a picture of any size, of which no more than the header is read.

    Args:
        path: of a file.
        formats: Pillow's names of those to try; all of them by default.

    Raises:
        Unreadable: a package for it is missing.
        OSError: it is no picture; damaged ones raise one of BROKEN_PICTURE.
    """
    if suffix(path) in HEIF:
        register_heif()
    try:
        picture = patches._image_open(path, formats=formats)
    except Image.DecompressionBombError:
        with UNLIMITED:
            limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                picture = patches._image_open(path, formats=formats)
            finally:
                Image.MAX_IMAGE_PIXELS = limit
    with picture:
        yield picture


def checked_header(picture: Image.Image, kind: str) -> Header:
    """Return the header of an open picture; Unreadable when it says more pixels than are allowed.

    Args:
        picture: what `open_picture` gave.
        kind: the suffix of its name, by which the decoder is chosen.
    """
    pages = getattr(picture, "n_frames", 1) if kind in PAGED else 1
    header = Header(*picture.size, picture.mode, pages)
    check_pixels(header, pages if kind in TIFF else 1)
    return header


def check_pixels(header: Header, pages: int) -> None:
    """Raise Unreadable when so many pages have more pixels than are allowed."""
    megapixels = -(-header.width * header.height * pages // 10**6)
    if megapixels <= LIMIT["megapixels"]:
        return
    many = f"{pages} pages of " if pages > 1 else ""
    if megapixels > MOST_MEGAPIXELS:
        reason = f"the {MOST_MEGAPIXELS} million that can be decoded"
    else:
        reason = f"the {LIMIT['megapixels']} million allowed: give --megapixels {megapixels}"
    raise Unreadable(f"{many}{header.width}x{header.height} pixels, more than {reason}")


def allow_megapixels(count: int) -> None:
    """Let pictures of up to so many million pixels be read from now on: 1 to MOST_MEGAPIXELS."""
    LIMIT["megapixels"] = count


def is_readable(path: Path) -> bool:
    """Return whether a picture can be decoded."""
    try:
        read_picture(path)
    except Unreadable:
        return False
    return True


def is_picture(path: str | Path) -> bool:
    """Return whether a name is one of a picture; that of a file without suffix is when its first bytes say so."""
    return suffix(path) in PICTURES or (not suffix(path) and begins_as_picture(path))


def is_video(path: str | Path) -> bool:
    """Return whether a name is one of a video; a GIF's is."""
    return suffix(path) in VIDEOS


def begins_as_picture(path: str | Path) -> bool:
    """Return whether a file begins as a picture of one of our formats does, whatever its name."""
    if why_no_file(path):
        return False
    try:
        with open_picture(path, formats=picture_formats()):
            return True
    except BROKEN_PICTURE:
        return False


@cache
def picture_formats() -> tuple[str, ...]:
    """Return Pillow's names of the formats of PICTURES."""
    formats = {Image.registered_extensions().get(f".{ending}") for ending in PICTURES}
    return tuple(name for name in Image.OPEN if name in formats)


def suffix(path: str | Path) -> str:
    """Return the suffix of a name in small letters and without its dot."""
    return Path(path).suffix[1:].lower()


def register_heif() -> None:
    """Have Pillow read HEIC, as telephones write it; Unreadable when the package for it is missing."""
    try:
        from pillow_heif import register_heif_opener  # noqa: PLC0415 (optional)
    except ModuleNotFoundError as error:
        raise Unreadable("HEIC needs the package pillow-heif: pip install pillow-heif") from error
    register_heif_opener()


def silence_opencv() -> None:
    """Have OpenCV log nothing; until 4.11 its function for that is another one."""
    set_level = getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel
    set_level(0)


warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `checked_header` is stricter
patch_ultralytics()
silence_opencv()
