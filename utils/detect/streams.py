"""Pictures that arrive by themselves: cameras, addresses of streams, lists of them, and the screen.

Each stream is read on a thread of its own, which keeps the newest frame only: what is looked at is never old, and a
slow stream never holds up another one. A stream that is lost is connected to again, with longer and longer pauses, and
gives no frames meanwhile. One with an end, such as a video behind an address, is read frame by frame instead.
"""

from __future__ import annotations

import importlib.util
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, repeat
from pathlib import Path
from urllib.parse import urlsplit

import cv2
import numpy as np
from ultralytics.data.loaders import LoadScreenshots
from ultralytics.utils import LOGGER

from models.errors import UserError
from models.files import why_no_file
from models.secrets import without_secrets
from models.stops import start_reader
from utils.data.pictures import PICTURES, is_video, suffix
from utils.detect.frame import Frame
from utils.text import decode, shorten

SCHEMES = ("rtsp", "rtsps", "rtmp", "tcp", "udp", "http", "https")
YOUTUBE = ("youtube.com", "www.youtube.com", "m.youtube.com", "youtu.be")
PATIENCE = 300.0  # seconds for which a lost stream is connected to again
PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)  # seconds between the tries; the last one from then on
SILENCE = 10_000  # milliseconds without an answer or a frame, after which a stream counts as lost
MAX_STREAM_NAME = 100  # characters of a stream's files


class Stream:
    """One camera or address, read on a thread of its own until it ends or is closed.

    Args:
        address: of a network stream, or a camera's number, or a video's path.
        shown: the address as messages have it.
        name: for files.
        title: of its frames.
        vid_stride: take every n-th frame.
        patience: seconds for which it is connected to again when it is lost; 0 takes that for its end.
        news: notified of new frames and of the end; shared by the streams that are read side by side.

    Attributes:
        number: of the newest frame that was taken: in the stream where that has an end, else among those taken.
        fps: frames per second, after skipping.
        ended: it gives no more frames.
        failure: why it ended, where that was not its own end.
    """

    def __init__(
        self,
        address: str,
        shown: str,
        name: str,
        title: str,
        vid_stride: int,
        patience: float,
        news: threading.Condition,
    ) -> None:
        self.address = address
        self.shown = shown
        self.name = name
        self.title = title
        self.vid_stride = vid_stride
        self.patience = patience
        self.news = news
        self.frame: np.ndarray | None = None  # the newest one that was not taken yet
        self.number = 0
        self.fps = 30.0
        self.ended = False
        self.failure = ""
        self._total = 0  # frames, of a stream that has an end
        self._grabbed = 0  # number in the connection of the frame that was not taken yet
        self._closed = threading.Event()
        self._thread = start_reader(f"stream {name}", self._run)

    def take(self) -> Frame | None:
        """Return the newest frame, if there is one that was not taken yet. `news` must be held."""
        image, self.frame = self.frame, None
        if image is None:
            return None
        self.number = self._grabbed if self._total else self.number + 1
        self.news.notify_all()  # a stream with an end waits for this
        return Frame(image, Path(self.name), self.title, self.number, self.fps, live=True)

    def close(self) -> None:
        """Stop reading. A thread that waits for the network is left alone until the program ends."""
        self._closed.set()
        with self.news:
            self.news.notify_all()
        self._thread.join(timeout=1)

    def _run(self) -> None:
        try:
            self.failure = self._read_all()
        except (cv2.error, OverflowError):  # a number that no camera has
            self.failure = "it cannot be opened"
        finally:
            with self.news:
                self.ended = True
                self.news.notify_all()

    def _read_all(self) -> str:
        """Read until the stream ends for good, and return why, or nothing if that was its own end."""
        seen = False
        lost: float | None = None  # since when
        pauses: Iterator[float] = iter(())
        while True:
            for number, image in self._connection():
                seen = True
                if lost is not None:
                    LOGGER.info(f"the stream {self.shown} is back after {time.monotonic() - lost:.0f} s")
                    lost = None
                self._offer(image, number)
            if not seen:
                return "it cannot be opened"
            if self._closed.is_set() or self._total or not self.patience:
                return ""
            if lost is None:
                lost, pauses = time.monotonic(), chain(PAUSES, repeat(PAUSES[-1]))
                LOGGER.warning(f"the stream {self.shown} is lost, connecting again for up to {self.patience:.0f} s")
            left = lost + self.patience - time.monotonic()
            if left <= 0:
                return f"lost, and not back within {self.patience:.0f} s"
            self._closed.wait(min(next(pauses), left))

    def _connection(self) -> Iterator[tuple[int, np.ndarray]]:
        """Connect, and yield the frames with their numbers until the connection breaks or the stream is closed."""
        if self._closed.is_set():
            return
        video = connect(self.address)
        try:
            fps = video.get(cv2.CAP_PROP_FPS)  # 0, or a clock's rate, where it is not known
            self.fps = (fps if 0 < fps < 1000 else 30.0) / self.vid_stride
            self._total = int(max(video.get(cv2.CAP_PROP_FRAME_COUNT), 0))
            grabbed = 0
            while not self._closed.is_set() and video.grab():
                grabbed += 1
                if grabbed % self.vid_stride == 0:
                    ok, image = video.retrieve()
                    if ok and image is not None:
                        yield grabbed, image
        finally:
            video.release()

    def _offer(self, image: np.ndarray, number: int) -> None:
        """Let a frame be taken: in place of the last one, or, where the stream has an end, after it."""
        with self.news:
            if self._total:
                self.news.wait_for(lambda: self.frame is None or self._closed.is_set())
            self.frame, self._grabbed = image, number
            self.news.notify_all()


class Streams:
    """Streams side by side, until the last of them ends.

    Args:
        addresses: of the streams: cameras' numbers, network addresses, paths of videos.
        vid_stride: take every n-th frame.
        patience: seconds for which a lost stream is connected to again.

    Attributes:
        unreadable: stream → reason, for those that were lost for good. Grows while the frames are read.

    Raises:
        UserError: one of them cannot be opened, or would have to be downloaded.
    """

    live = True

    def __init__(self, addresses: Sequence[str], vid_stride: int = 1, patience: float = PATIENCE) -> None:
        self.unreadable: dict[Path, str] = {}
        self.news = threading.Condition()
        found = [find_stream(address) for address in addresses]
        shown = list(map(without_secrets, addresses))
        names = distinct(map(stream_name, shown))
        self.streams = [
            Stream(*texts, f"{i}: ", vid_stride, patience, self.news)
            for i, texts in enumerate(zip(found, shown, names, strict=True))
        ]
        try:
            self._wait(lambda: all(stream.frame is not None or stream.ended for stream in self.streams))
            for stream in self.streams:
                if stream.frame is None:
                    raise UserError(f"the stream {stream.shown} cannot be opened")
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        """Number of streams."""
        return len(self.streams)

    def __iter__(self) -> Iterator[Frame]:
        try:
            while frames := self._next():
                yield from frames
            self.unreadable = {Path(s.name): s.failure for s in self.streams if s.failure}
        finally:
            self.close()

    @property
    def files(self) -> list[Path]:
        """The files that are read as streams."""
        return [Path(stream.address) for stream in self.streams if _scheme(stream.address) not in SCHEMES]

    def close(self) -> None:
        """Stop reading."""
        for stream in self.streams:
            stream.close()

    def _next(self) -> list[Frame]:
        """Wait for new frames and return one of each stream that has one; none when all streams have ended."""
        self._wait(lambda: any(s.frame is not None for s in self.streams) or all(s.ended for s in self.streams))
        with self.news:
            return [frame for stream in self.streams if (frame := stream.take())]

    def _wait(self, ready: Callable[[], bool]) -> None:
        """Wait until `ready` after some news; Ctrl-C is seen meanwhile, on Windows only because of the timeout."""
        with self.news:
            while not self.news.wait_for(ready, timeout=1):
                pass


class Screen:
    """The screen, or a part of it, again and again until Ctrl-C.

    Args:
        source: `screen`, `screen number`, `screen left top width height` or `screen number left top width height`, in
            pixels.

    Raises:
        UserError: the package for it is missing, there is no such screen, or it cannot be read.
    """

    live = True
    files: tuple[Path, ...] = ()  # none is read

    def __init__(self, source: str) -> None:
        self.unreadable: dict[Path, str] = {}
        if importlib.util.find_spec("mss") is None:
            raise UserError("--source screen needs the package mss: pip install mss")
        from mss.exception import ScreenShotError  # noqa: PLC0415 (optional)

        try:
            self.loader = LoadScreenshots(source)
            next(self.loader)
        except ScreenShotError as error:
            raise UserError(f"the screen cannot be read: {error}") from error
        except (ValueError, IndexError) as error:
            raise UserError(f"'{source}' is no screen: expected screen [number] [left top width height]") from error

    def __len__(self) -> int:
        """Number of screens."""
        return 1

    def __iter__(self) -> Iterator[Frame]:
        for number, ([name], [image], _) in enumerate(self.loader, 1):
            yield Frame(np.ascontiguousarray(image), Path(f"screen{name}"), "0: ", number, live=True)


# Addresses ------------------------------------------------------------------------------------------------------------
def is_live(source: str) -> bool:
    """Whether `source` is a camera's number, a stream's address, or a list of them."""
    return source.isdecimal() or source.lower().endswith(".streams") or _scheme(source) in SCHEMES


def read_addresses(source: str) -> list[str]:
    """Return the addresses on a *.streams file, one on each line; any other source is one itself.

    Raises:
        UserError: there is no such file, or nothing on it, or a line that is no address.
    """
    if not source.lower().endswith(".streams") or _scheme(source) in SCHEMES:
        return [source]
    if problem := why_no_file(source):
        raise UserError(f"the source {source} {problem}")
    try:
        addresses = decode(Path(source).read_bytes(), errors="replace").split()
    except ValueError as error:
        raise UserError(f"the source {source} {error}") from error
    if not addresses:
        raise UserError(f"there is no stream in {source}, where one on each line is expected")
    return [_check_line(address, source) for address in addresses]


def _check_line(address: str, source: str) -> str:
    """Return an address of a list as OpenCV may take it: a camera's number, a scheme that is known, or a video's path.

    FFmpeg knows many more, such as `concat:` and `subfile:`, by which a list would choose what is opened.

    Raises:
        UserError: it is none of them.
    """
    if address.isdecimal() or _scheme(address) in SCHEMES:
        return address
    if is_video(address) and not why_no_file(address):
        return str(Path(address).absolute())  # which has no scheme
    if os.path.lexists(address) and (problem := why_no_file(address)):
        raise UserError(f"{source} has the line {shorten(without_secrets(address))}, which {problem}")
    known = ", ".join(f"{scheme}://" for scheme in SCHEMES)
    raise UserError(
        f"{source} has the line {shorten(address)}, where a camera's number, the path of a video, or "
        f"an address with one of {known} is expected"
    )


def find_stream(address: str) -> str:
    """Return what OpenCV opens for an address: itself, or what YouTube plays it from.

    Raises:
        UserError: it is no address, or a picture, which would have to be downloaded, or YouTube does not give it.
    """
    if _scheme(address) not in ("http", "https"):
        return address
    try:
        parts = urlsplit(address)
    except ValueError as error:
        raise UserError(f"the stream {address} is no address: {error}") from error
    if suffix(parts.path) in PICTURES:
        raise UserError(f"--source does not download pictures: save {address} as a file first")
    return find_youtube(address) if parts.hostname in YOUTUBE else address


def find_youtube(address: str) -> str:
    """Return the address of a YouTube page's video; UserError when it gives none, or the package is missing."""
    try:
        from yt_dlp import YoutubeDL  # noqa: PLC0415 (optional)
        from yt_dlp.utils import YoutubeDLError  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise UserError(f"{address} needs the package yt-dlp: pip install yt-dlp") from error
    options = {"format": "best[vcodec!=none]", "noplaylist": True, "quiet": True, "no_warnings": True, "logger": Mute()}
    try:
        with YoutubeDL(options) as page:
            return page.extract_info(address, download=False)["url"]
    except YoutubeDLError as error:
        reason = shorten(" ".join(str(error).split()), 200)
        raise UserError(f"YouTube does not give {address}: {reason}") from error


class Mute:
    """A log that keeps silent; what goes wrong comes as an error as well."""

    def debug(self, message: str) -> None:
        """Take no notice."""

    info = warning = error = debug


def connect(address: str) -> cv2.VideoCapture:
    """Open a camera by its number, or a stream or a video by its address; see `isOpened` of what comes back."""
    if address.isdecimal():
        return cv2.VideoCapture(int(address))
    if _scheme(address) not in SCHEMES:
        return cv2.VideoCapture(address)
    limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, SILENCE, cv2.CAP_PROP_READ_TIMEOUT_MSEC, SILENCE]
    return cv2.VideoCapture(address, cv2.CAP_FFMPEG, limits)


def stream_name(address: str) -> str:
    """Return an address as the start of its files' names: only what every system accepts."""
    return re.sub(r"[^\w.@-]+", "_", address).strip("_.")[:MAX_STREAM_NAME] or "stream"


def distinct(names: Iterable[str]) -> list[str]:
    """Return names of which no two are alike: a second `cam` becomes `cam-2`."""
    taken: list[str] = []
    for name in names:
        other, n = name, 1
        while other in taken:
            n += 1
            other = f"{name}-{n}"
        taken.append(other)
    return taken


def _scheme(address: str) -> str:
    """Return the part of an address before ://, in small letters; nothing for a path."""
    scheme, separator, _ = address.partition("://")
    return scheme.lower() if separator else ""
