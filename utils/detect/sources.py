"""Where detect.py's pictures come from: files, folders, patterns, lists, videos and live streams, as one row of frames.

A file that cannot be read never ends a run: it is skipped and its name and reason are kept in `source.unreadable`.
"""

from __future__ import annotations

import glob
import os
import queue
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import cv2

from models.errors import UserError, did_you_mean
from models.files import why_no_file
from models.stops import start_reader
from utils.data.files import folders_below
from utils.data.pictures import Unreadable, is_picture, is_video, read_picture
from utils.detect.frame import Frame
from utils.detect.names import output_names
from utils.detect.streams import PATIENCE, Screen, Streams, is_live, read_addresses
from utils.paths import is_utf8, spellings
from utils.text import decode, shorten

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
        names: file → name of its output files, without suffix.
        share: number of this process and how many there are, each of which reads every n-th file.
    """

    live = False
    share = (0, 1)

    def __init__(self, *names: str | Path, vid_stride: int = 1) -> None:
        self.unreadable: dict[Path, str] = {}
        self.vid_stride = vid_stride
        files = list(dict.fromkeys(file for name in names for file in self._find(Path(name))))  # named twice: once
        self.pictures = [f for f in files if is_picture(f)]
        self.videos = [f for f in files if is_video(f)]
        self.names = output_names(self.pictures, self.videos)
        if not self.pictures and not self.videos:
            raise UserError(f"there is no picture and no video in the source {' '.join(map(str, names))}")

    @property
    def files(self) -> list[Path]:
        """All of them, in the order in which they are read."""
        return self.pictures + self.videos

    def __len__(self) -> int:
        """Number of files."""
        return len(self.files)

    def __iter__(self) -> Iterator[Frame]:
        own, processes = self.share
        for i, path in [*enumerate(self.files, 1)][own::processes]:
            try:
                if i <= len(self.pictures):
                    title = f"image {i}/{len(self)} {path}: "
                    yield Frame(read_picture(path), path, title, index=i, name=self.names[path])
                else:
                    yield from self._frames(path, i)
            except Unreadable as reason:
                self.unreadable[path] = str(reason)

    def _find(self, source: Path) -> list[Path]:
        """Return the files that `source` names; those on a list that are missing count as unreadable."""
        if source.suffix.lower() != ".txt" or os.path.isdir(source) or not os.path.lexists(source):  # noqa: PTH112
            return expand_source(source)
        files = []
        for name in read_source_list(source):
            try:
                found = expand_source(name)
            except UserError:
                self.unreadable[name] = "does not exist"
                continue
            files += found
            if not found:
                self.unreadable[name] = "stands for no file"
        return files

    def _frames(self, path: Path, index: int) -> Iterator[Frame]:
        """Yield every `vid_stride`-th frame, numbered as in the video; raise Unreadable at the end when it was cut."""
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
                    line = f"video {index}/{len(self)} ({grabbed}/{total}) {path}: "
                    yield Frame(image, path, line, grabbed, fps, index=index, name=self.names[path])
        if grabbed == 0 or grabbed < int(total * COMPLETE):
            raise Unreadable(f"broken video: {grabbed} of {total or 'an unknown number of'} frames could be read")


def expand_source(name: Path) -> list[Path]:
    """Return what a path, a folder (its own files only) or a pattern with * stands for, sorted.

    That may be a pipe, or a link to nothing: only what is a file is opened later.
    """
    path = name.absolute()
    if os.path.isdir(path):  # noqa: PTH112 (False for any name that no folder can have)
        return sorted(p for p in path.glob("*") if not p.name.startswith("."))
    if os.path.lexists(path):
        return [path]
    if "*" in str(path):
        return sorted(map(Path, find_matches(str(path))))
    folder = str(path.parent)
    near = did_you_mean(path.name, os.listdir(folder) if os.path.isdir(folder) else [])  # noqa: PTH112, PTH208
    raise UserError(f"the source {shorten(name)} does not exist{near}")


def find_matches(pattern: str) -> set[str]:
    """Return the paths that fit a pattern, in which `**` stands for any number of folders, each of which counts once.

    glob's own `**` would follow links in a circle.
    """
    before, stars, after = pattern.partition(f"{os.sep}**{os.sep}")
    if not stars and pattern.endswith(f"{os.sep}**"):
        before, stars, after = pattern[:-3], "**", "*"
    if not stars:
        return set(glob.glob(pattern))  # noqa: PTH207 (any part may hold the *)
    roots = glob.glob(before or os.sep)  # noqa: PTH207
    folders = (folder for root in roots for folder, _ in folders_below(root))
    return {path for folder in folders for path in find_matches(os.path.join(glob.escape(folder), after))}  # noqa: PTH118


def read_source_list(path: Path) -> list[Path]:
    """Return the names on a list file, one on each line; relative ones are below the current folder or the list's."""
    if problem := why_no_file(path):
        raise UserError(f"the list {path} {problem}")
    try:
        text = decode(path.read_bytes(), errors="surrogateescape")
    except ValueError as error:
        raise UserError(f"the list {path} {error}") from error
    lines = sorted({line.strip() for line in text.splitlines() if line.strip()}, key=Path)
    return [listed_source(line, path.absolute().parent) for line in lines]


def listed_source(line: str, folder: Path) -> Path:
    """Return what a line of a list in `folder` means."""
    names = [Path(name) for name in spellings(line)]
    if "*" in line:
        return next((name for name in names if find_matches(str(name.absolute()))), names[0])
    choices = [path for name in names for path in (name, folder / name)]
    return next(filter(os.path.lexists, choices), folder / names[0])


def has_pictures(folder: Path) -> bool:
    """Whether a folder holds a picture or a video."""
    return folder.is_dir() and any(is_picture(path) or is_video(path) for path in expand_source(folder))


@contextmanager
def open_video(path: Path) -> Iterator[cv2.VideoCapture]:
    """Open a video and close it at the end; raise Unreadable when it is none."""
    if problem := why_no_file(path):
        raise Unreadable(problem)
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
    """Yield the items, none of which is None, while a thread fetches the next one.

    The end of the items does not wait for that thread, which a file on a share that is gone may hold up for ever.
    """
    jobs: queue.SimpleQueue[Future[T | None] | None] = queue.SimpleQueue()

    def fetch() -> Future[T | None]:
        ahead: Future[T | None] = Future()
        jobs.put(ahead)
        return ahead

    start_reader("reader", _work, jobs, lambda: next(items, None))
    try:
        ahead = fetch()
        while (item := ahead.result()) is not None:
            ahead = fetch()
            yield item
    finally:
        jobs.put(None)


def _work(jobs: queue.SimpleQueue[Future | None], job: Callable[[], Any]) -> None:
    """Give each future that comes what `job` returns or raises, until None comes."""
    while (future := jobs.get()) is not None:
        try:
            future.set_result(job())
        except BaseException as error:  # raised where the result is asked for
            future.set_exception(error)
