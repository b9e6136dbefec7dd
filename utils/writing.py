"""Files that are replaced as a whole: after a crash, a kill or a stop there is the old content or the new one."""

from __future__ import annotations

import fcntl
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Any

from models.files import why_no_file

PARTIAL = ".partial"  # the end of the names of files that are being written
HELD: list[list[int]] = []  # the signals that wait, of each `signals_held` that is under way


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Give a file to write to, which takes the place of `path` at the end, when its content is on the disk.

    Signals that Python handles wait until the file has its name: an exception that a handler raises can get lost in
    the middle of a library's writer, which then takes the file for complete.

    Raises:
        OSError: the disk is full or the folder cannot be written; nothing is left of the attempt.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    with signals_held():
        try:
            with partial.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        sync(path.parent)


def sync(path: Path) -> None:
    """Write a file, or the names in a folder, to the disk, so that it survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8 to `path`, as a whole."""
    with replacing(path) as file:
        file.write(text.encode())


def open_log(path: Path) -> IO[bytes]:
    """Open a file to add to its end; a link, or what is no file, is replaced by one and not written to."""
    if path.is_symlink() or why_no_file(path):
        path.unlink(missing_ok=True)
    return path.open("ab")


def remove_partials(folder: Path) -> None:
    """Remove what killed processes have left of files that they were writing into a folder.

    Files of a process that still runs stay, as far as the system says which process runs.
    """
    for partial in folder.glob(f".*{PARTIAL}"):
        number = partial.name.removesuffix(PARTIAL).rpartition(".")[2]
        if number.isdecimal() and not is_running(int(number)):
            partial.unlink(missing_ok=True)


def lock_folder(folder: Path, wait: bool = True) -> int:
    """Lock a folder against other processes until the descriptor that this returns is closed, or the process ends.

    Raises:
        OSError: another process holds the lock, and `wait` is false; or the folder is not there.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        if not wait:
            os.close(descriptor)
            raise
    return descriptor


def hold_folder(folder: Path) -> int:
    """Lock a folder as `lock_folder` does; say so where another process has to end first.

    Raises:
        OSError: the folder is not there, or its file system knows no locks.
    """
    try:
        return lock_folder(folder, wait=False)
    except BlockingIOError:
        from ultralytics.utils import LOGGER  # noqa: PLC0415 (what measures operators on a board has no ultralytics)

        from utils.text import printable  # noqa: PLC0415 (likewise)

        LOGGER.info(printable(f"another process works on {folder}: waiting until it ends"))
        return lock_folder(folder)


def is_running(process: int) -> bool:
    """Return whether there is another process of this number."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def signals_held() -> Iterator[None]:
    """Let the signals for which Python has a handler wait until the end, and deliver them then, in their order."""
    if threading.current_thread() is not threading.main_thread():
        yield  # handlers run in the main thread alone
        return
    came: list[int] = []
    former: dict[int, Any] = {}
    holding = True

    def hold(number: int, frame: FrameType | None) -> None:
        if holding:
            came.append(number)
        else:
            former[number](number, frame)

    HELD.append(came)
    try:
        for number in map(int, signal.valid_signals()):
            if callable(handler := signal.getsignal(number)) and not isinstance(handler, signal.Handlers):
                former[number] = handler
                signal.signal(number, hold)
        yield
    finally:
        try:
            for number, handler in former.items():
                signal.signal(number, handler)
        finally:
            holding = False
            HELD.pop()
        for number in came:
            signal.raise_signal(number)


def are_signals_held() -> bool:
    """Return whether signals wait for the end of what is being written."""
    return bool(HELD)
