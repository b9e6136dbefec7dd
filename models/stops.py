"""How a script ends at Ctrl-C or SIGTERM while it still imports libraries, and after its work: at once, in one line.

During the work `utils.cli.stop_signals` has them raise exceptions. In other programs nothing is changed, but that they
wait a little for readers as well.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from models.versions import is_script

STOPS: dict[int, str] = {signal.SIGTERM: "terminated", signal.SIGINT: "interrupted"}
READERS: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
GRACE = 2.0  # seconds in which readers come back from the libraries that they are in


def end(number: int, *_: object) -> NoReturn:
    """End the process as one that a signal of this number has stopped; a handler of signals too."""
    with suppress(OSError):
        os.write(2, f"ERROR: {STOPS[number]}\n".encode())
    os._exit(128 + number)


def is_main_script() -> bool:
    """Return whether this process runs one of our scripts and is no worker of another process."""
    return is_script() and multiprocessing.parent_process() is None


def end_at_stops() -> None:
    """Have the stops end this process where it is one of our scripts and their handlers are those of Python."""
    if is_main_script():
        for number in STOPS:
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                signal.signal(number, end)


# Readers --------------------------------------------------------------------------------------------------------------
def start_reader(name: str, target: Callable[..., object], *args: object) -> threading.Thread:
    """Start a thread that reads from files or the network, where a library may wait for ever, and return it.

    It is a daemon, so that it does not keep the process from ending. A daemon that comes back from a library into an
    interpreter that is taken down is unwound through frames of C++, which abort the process; so the end waits for
    readers, though no longer than GRACE. Who starts one tells it to end.
    """
    thread = threading.Thread(target=target, args=args, name=name, daemon=True)
    thread.start()
    READERS.add(thread)
    return thread


@atexit.register
def _wait_for_readers() -> None:
    end = time.monotonic() + GRACE
    for thread in list(READERS):
        thread.join(max(0.0, end - time.monotonic()))
