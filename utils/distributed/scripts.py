"""Scripts of ours in processes of their own, which hold a lock and write what they say into a file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ultralytics.utils import LOGGER

from utils.paths import ROOT
from utils.writing import hold_folder, open_log

ERROR = "ERROR: "  # how a script tells what is wrong
MOST_LINES = 20  # in the end of what it says, where that stands


def start_script(
    words: Sequence[str], log: Path, lock: int, environment: Mapping[str, str] | None = None, folder: Path | None = None
) -> subprocess.Popen[bytes]:
    """Start a script, which holds a lock until it ends, even if this process is killed.

    Args:
        words: its file, below the folder of this repository, and its options; or -m, a module of this repository and
            its options, in which paths are absolute, as a module is found from that folder.
        log: what it says is added to this file.
        lock: the descriptor of the lock, as `lock_folder` returned it.
        environment: variables that it gets where this process has none of that name.
        folder: that a file runs in; the current one by default.
    """
    is_module = words[0] == "-m"
    with open_log(log) as output:
        return subprocess.Popen(
            [sys.executable, *(words if is_module else (str(ROOT / words[0]), *words[1:]))],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**(environment or {}), **os.environ},
            cwd=ROOT if is_module else folder,
            pass_fds=(lock,),
        )


@contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """End a process at the end of a block, and wait until it has."""
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


@contextmanager
def held(folder: Path, go_on: str) -> Iterator[int]:
    """Hold the folder of something that can go on after a stop, say by which command if one comes; give the lock."""
    lock = hold_folder(folder)
    try:
        yield lock
    except KeyboardInterrupt:
        LOGGER.info(f"\nstopped; continue with: {go_on}")
        raise
    finally:
        os.close(lock)


def why_ended(log: Path, code: int) -> str:
    """Return why a script ended with an exit code other than 0: the error that it told, its last line, or a signal."""
    if code < 0:
        return f"its process was ended by {signal.Signals(-code).name}"
    said = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").strip().splitlines()
    errors = [line.removeprefix(ERROR) for line in said[-MOST_LINES:] if line.startswith(ERROR)]
    return (errors or said[-1:] or [f"its process ended with {code}"])[-1]


def advance(bar: Any, epochs: int) -> None:
    """Have a progress bar show so many epochs, if those are more than before."""
    if epochs > bar.n:
        bar.update(epochs - bar.n)
