"""Where detect.py's pictures come from: files, folders, patterns, lists, videos and live streams, as one row of frames.

A file that cannot be read never ends a run: it is skipped and its name and reason are kept in `source.unreadable`.
A picture's size is read from its header first, so that a small file cannot unfold to gigabytes.
"""

from __future__ import annotations

import glob
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import utils.environment  # noqa: F401
from models.errors import UserError, did_you_mean
from utils.cli import is_utf8

# isort: split
import cv2
import numpy as np
from PIL import Image
from ultralytics.data.loaders import LoadScreenshots, LoadStreams
from ultralytics.data.utils import IMG_FORMATS, VID_FORMATS
from ultralytics.utils import patches

MAX_PIXELS = 100_000_000  # a larger picture is refused from its header
COMPLETE = 0.95  # a video that gives fewer of its frames than this is broken; containers only estimate their count
STREAMS = ("rtsp://", "rtmp://", "tcp://")
T = TypeVar("T")


class Unreadable(Exception):
    """A file that cannot be decoded; the message is the reason, without the name."""


@dataclass(frozen=True)
class Frame:
    """One picture on its way to the network."""

    image: np.ndarray  # (H, W, 3) uint8, BGR
    path: Path  # of the file; for a stream a name without separators
    title: str  # start of the line that is printed: "image 1/2 /path/bus.jpg: "
    number: int | None = None  # of the video's or stream's frame, from 1; None for a picture
    fps: float = 30.0  # frames per second of the video that this belongs to, after skipping
    live: bool = False  # one of several streams that run side by side


# Files ----------------------------------------------------------------------------------------------------------------
class Files:
    """Pictures first, then videos; each in the order of its name.

    Attributes:
        unreadable: file → reason, for pictures that gave nothing and videos that gave less than they promised. Grows
            while the frames are read.
    """

    live = False

    def __init__(self, source: str | Path, vid_stride: int = 1) -> None:
        self.unreadable: dict[Path, str] = {}
        self.vid_stride = vid_stride
        files = list(dict.fromkeys(self._find(Path(source))))  # a list may name a file twice
        self.pictures = [f for f in files if _suffix(f) in IMG_FORMATS]
        self.videos = [f for f in files if _suffix(f) in VID_FORMATS]
        if not self.pictures and not self.videos:
            raise UserError(f"there is no picture and no video in the source {source}")

    def __len__(self) -> int:
        """Number of files."""
        return len(self.pictures) + len(self.videos)

    def __iter__(self) -> Iterator[Frame]:
        for i, path in enumerate(self.pictures + self.videos, 1):
            try:
                if i <= len(self.pictures):
                    yield Frame(read_picture(path), path, f"image {i}/{len(self)} {path}: ")
                else:
                    yield from self._frames(path, f"video {i}/{len(self)}")
            except Unreadable as reason:
                self.unreadable[path] = str(reason)

    def _find(self, source: Path) -> list[Path]:
        """Return the files that `source` names; those on a list that are missing count as unreadable."""
        if source.suffix.lower() != ".txt" or not source.is_file():
            return expand(source)
        files = []
        for name in read_list(source):
            try:
                files += expand(name)
            except UserError:
                self.unreadable[name] = "does not exist"
        return files

    def _frames(self, path: Path, title: str) -> Iterator[Frame]:
        """Yield every `vid_stride`-th frame; raise Unreadable at the end when the video was cut short."""
        with open_video(path) as video:
            total = int(max(video.get(cv2.CAP_PROP_FRAME_COUNT), 0))  # 0: the container does not say
            fps = video.get(cv2.CAP_PROP_FPS)
            fps = (fps if 0 < fps < 1000 else 30.0) / self.vid_stride
            grabbed = 0
            while video.grab():
                grabbed += 1
                if grabbed % self.vid_stride:
                    continue
                ok, image = video.retrieve()
                if ok and image is not None:
                    n = grabbed // self.vid_stride
                    yield Frame(image, path, f"{title} ({n}/{total // self.vid_stride}) {path}: ", n, fps)
        if grabbed == 0 or grabbed < int(total * COMPLETE):
            raise Unreadable(f"broken video: {grabbed} of {total or 'an unknown number of'} frames could be read")


def expand(name: Path) -> list[Path]:
    """Return the files that a path, a folder (its own files only) or a pattern with * stands for, sorted."""
    path = name.absolute()
    if "*" in str(path):
        return sorted(Path(p) for p in glob.glob(str(path), recursive=True))  # noqa: PTH207 (any part may hold the *)
    if path.is_dir():
        return sorted(p for p in path.glob("*.*") if not p.name.startswith("."))
    if path.is_file():
        return [path]
    near = did_you_mean(path.name, [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else [])
    raise UserError(f"the source {name} does not exist{near}")


def read_list(path: Path) -> list[Path]:
    """Return the names on a list file, one on each line; relative ones are below the current folder or the list's."""
    text = path.read_bytes().decode("utf-8-sig", errors="surrogateescape")
    names = sorted({Path(line.strip()) for line in text.splitlines() if line.strip()})
    return [n if "*" in str(n) or n.exists() else path.absolute().parent / n for n in names]


def has_pictures(folder: Path) -> bool:
    """Whether a folder holds a picture or a video."""
    return folder.is_dir() and any(_suffix(path) in IMG_FORMATS | VID_FORMATS for path in expand(folder))


def _suffix(path: Path) -> str:
    return path.suffix[1:].lower()


# Decoding -------------------------------------------------------------------------------------------------------------
def restore_pillow() -> None:
    """Give PIL.Image.open back: ultralytics' version tries to install a package for every file it cannot read."""
    Image.open = patches._image_open


def read_picture(path: Path) -> np.ndarray:
    """Return a picture as (H, W, 3) uint8 in BGR, decoded as for training.

    Raises:
        Unreadable: it is no picture, it is damaged, or it has more than MAX_PIXELS pixels.
    """
    check_size(path)
    try:
        image = patches.imread(path)
    except cv2.error as error:
        raise Unreadable("damaged picture") from error
    if image is None:
        raise Unreadable("damaged picture")
    return image if image.shape[2] == 3 else cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)


def check_size(path: Path) -> None:
    """Raise Unreadable when the header is none of a picture's, or tells of more than MAX_PIXELS pixels."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # this function is the stricter check
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise Unreadable("not a file")
        with patches._image_open(path) as picture:
            pages = getattr(picture, "n_frames", 1) if _suffix(path) in ("tif", "tiff") else 1
            width, height = picture.size
    except FileNotFoundError as error:
        raise Unreadable("does not exist") from error
    except PermissionError as error:
        raise Unreadable("no permission to read it") from error
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise Unreadable("not a picture, or a damaged one" if path.stat().st_size else "empty file") from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    if width * height * pages > MAX_PIXELS:
        many = f"{pages} pages of " if pages > 1 else ""
        raise Unreadable(f"{many}{width}x{height} pixels, more than the {MAX_PIXELS // 10**6} million allowed")


@contextmanager
def open_video(path: Path) -> Iterator[cv2.VideoCapture]:
    """Open a video and close it at the end; raise Unreadable when it is none."""
    video = _capture(path)
    try:
        if not video.isOpened():
            raise Unreadable("broken video: it cannot be opened")
        yield video
    finally:
        video.release()


def _capture(path: Path) -> cv2.VideoCapture:
    """Open a video, through a link when OpenCV cannot take its name."""
    if is_utf8(path):
        return cv2.VideoCapture(str(path))
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / "video"
        link.symlink_to(path)
        return cv2.VideoCapture(str(link))


# Streams --------------------------------------------------------------------------------------------------------------
class Live:
    """A camera, a network stream, a list of them (*.streams), or the screen; ends when they do or with Ctrl-C."""

    live = True

    def __init__(self, source: str, vid_stride: int = 1) -> None:
        self.unreadable: dict[Path, str] = {}
        try:
            if source.startswith("screen"):
                self.loader = LoadScreenshots(source)
            else:
                self.loader = LoadStreams(source, vid_stride=vid_stride)
        except ModuleNotFoundError as error:
            raise UserError(f"--source screen needs the package {error.name}") from error
        except (ConnectionError, FileNotFoundError, cv2.error) as error:  # cv2.error: a number that no camera has
            raise UserError(f"the stream {source} cannot be opened") from error

    def __len__(self) -> int:
        """Number of streams."""
        return len(getattr(self.loader, "sources", [None]))

    def __iter__(self) -> Iterator[Frame]:
        try:
            for number, (names, images, _) in enumerate(self.loader, 1):
                for i, (name, image) in enumerate(zip(names, images, strict=True)):
                    yield Frame(np.ascontiguousarray(image), Path(name), f"{i}: ", number, live=True)
        finally:
            if isinstance(self.loader, LoadStreams):
                self.loader.close()


def is_live(source: str) -> bool:
    """Whether `source` is a camera's number, a stream's address, a list of streams, or the screen."""
    name = source.lower()
    screen = name == "screen" or name.startswith("screen ")
    return name.isdecimal() or name.startswith(STREAMS) or name.endswith(".streams") or screen


def open_source(source: str | Path, vid_stride: int = 1) -> Files | Live:
    """Return the frames of a source.

    Raises:
        UserError: it does not exist, holds no picture and no video, or would have to be downloaded.
    """
    source = str(source)
    named = [source]
    if source.lower().endswith(".streams"):
        if not Path(source).is_file():
            raise UserError(f"the source {source} does not exist")
        named = Path(source).read_text(encoding="utf-8", errors="replace").split()
    web = [name for name in named if name.lower().startswith(("http:", "https:"))]
    if web:
        raise UserError(f"--source does not download: save {web[0]} as a file first (rtsp, rtmp and tcp are read)")
    return Live(source, vid_stride) if is_live(source) else Files(source, vid_stride)


def prefetch(items: Iterator[T]) -> Iterator[T]:
    """Yield the items, none of which is None, while a thread fetches the next one."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="reader") as reader:
        ahead = reader.submit(next, items, None)
        while (item := ahead.result()) is not None:
            ahead = reader.submit(next, items, None)
            yield item


restore_pillow()
