"""How a script ends at Ctrl-C or SIGTERM while it still imports libraries, and after its work: at once, in one line.

During the work `utils.cli.stop_signals` has them raise exceptions. In other programs nothing is changed.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from contextlib import suppress
from typing import NoReturn

from models.versions import is_script

STOPS: dict[int, str] = {signal.SIGTERM: "terminated", signal.SIGINT: "interrupted"}


def end(number: int, *_: object) -> NoReturn:
    """End the process as one that a signal of this number has stopped; a handler of signals too."""
    with suppress(OSError):
        os.write(2, f"ERROR: {STOPS[number]}\n".encode())
    os._exit(128 + number)


def end_at_stops() -> None:
    """Have the stops end this process where it is one of our scripts and their handlers are those of Python."""
    if is_script() and multiprocessing.parent_process() is None:
        for number in STOPS:
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                signal.signal(number, end)
