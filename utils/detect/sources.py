"""Where detect.py's pictures come from: files, folders, patterns, lists, videos and live streams, as one row of frames.

A file that cannot be read never ends a run: it is skipped and its name and reason are kept in `source.unreadable`.
"""

from __future__ import annotations

import glob
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import cv2
from ultralytics.data.utils import VID_FORMATS

from models.errors import UserError, did_you_mean
from utils.data.pictures import Unreadable, is_picture, read_picture, suffix
from utils.detect.frame import Frame
from utils.detect.streams import PATIENCE, Screen, Streams, is_live, read_addresses
from utils.paths import is_utf8

COMPLETE = 0.95  # a video that gives fewer of its frames than this is broken; containers only estimate their count
Named = str | Path | Sequence[str | Path]
T = TypeVar("T")


# Files ----------------------------------------------------------------------------------------------------------------
class Files:
    """Pictures first, then videos; each in the order of its name.

    Args:
        names: files, folders, patterns with * and lists.
        vid_stride: take every n-th frame of a video.

    Attributes:
        unreadable: file → reason, for pictures that gave nothing and videos that gave less than they promised. Grows
            while the frames are read.
    """

    live = False

    def __init__(self, *names: str | Path, vid_stride: int = 1) -> None:
        self.unreadable: dict[Path, str] = {}
        self.vid_stride = vid_stride
        files = list(dict.fromkeys(file for name in names for file in self._find(Path(name))))  # named twice: once
        self.pictures = [f for f in files if is_picture(f)]
        self.videos = [f for f in files if is_video(f)]
        if not self.pictures and not self.videos:
            raise UserError(f"there is no picture and no video in the source {' '.join(map(str, names))}")

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
            return expand_source(source)
        files = []
        for name in read_source_list(source):
            try:
                files += expand_source(name)
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


def expand_source(name: Path) -> list[Path]:
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


def read_source_list(path: Path) -> list[Path]:
    """Return the names on a list file, one on each line; relative ones are below the current folder or the list's."""
    text = path.read_bytes().decode("utf-8-sig", errors="surrogateescape")
    names = sorted({Path(line.strip()) for line in text.splitlines() if line.strip()})
    return [n if "*" in str(n) or n.exists() else path.absolute().parent / n for n in names]


def has_pictures(folder: Path) -> bool:
    """Whether a folder holds a picture or a video."""
    return folder.is_dir() and any(is_picture(path) or is_video(path) for path in expand_source(folder))


def is_video(path: Path) -> bool:
    """Return whether a name is one of a video; a GIF's is."""
    return suffix(path) in VID_FORMATS


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


# All of them ----------------------------------------------------------------------------------------------------------
AnySource = Files | Streams | Screen


def open_source(source: Named, vid_stride: int = 1, patience: float = PATIENCE) -> AnySource:
    """Return the frames of a source, or of several: all of them files, or all of them streams.

    Args:
        source: a file, folder, pattern, list, camera number, address, list of streams or the screen.
        vid_stride: take every n-th frame of a video or stream.
        patience: seconds for which a lost stream is connected to again.

    Raises:
        UserError: it does not exist, holds no picture and no video, or would have to be downloaded.
    """
    names = [source] if isinstance(source, (str, Path)) else list(source)
    words = list(map(str, names))
    if words[0].lower().split()[:1] == ["screen"]:
        return Screen(" ".join(words))
    live = [word for word in words if is_live(word)]
    if not live:
        return Files(*names, vid_stride=vid_stride)
    if len(live) < len(words):
        raise UserError(f"--source takes files or streams, not both at once: {live[0]} is a stream")
    return Streams([a for word in words for a in read_addresses(word)], vid_stride, patience)


def prefetch(items: Iterator[T]) -> Iterator[T]:
    """Yield the items, none of which is None, while a thread fetches the next one."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="reader") as reader:
        ahead = reader.submit(next, items, None)
        while (item := ahead.result()) is not None:
            ahead = reader.submit(next, items, None)
            yield item
