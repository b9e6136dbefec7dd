"""A sign of life of each process, in a store that all read, by which one that is frozen is told from one that is busy.

A thread gives the sign, so that a process is alive however long its main thread computes, reads or awaits the others. A
process that is stopped, or whose interpreter is blocked, gives none. The others on its machine then end it, which
closes its connections, and so ends the waiting of all.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from contextlib import suppress

import psutil
from torch import distributed as dist
from ultralytics.utils import LOGGER

BEAT = 2.0  # seconds from one sign to the next
SILENCE = float(os.environ.get("REPYOLO_SILENCE_TIMEOUT", "30"))  # seconds without a sign after which one is frozen


class Heartbeat:
    """Gives the signs of this process and looks for those of others; a context manager.

    Time is counted in beats of this process: one that was frozen itself, as all are when a laptop sleeps, accuses none.

    Args:
        store: that all processes read and write.
        own: number of this process.
        watched: numbers of the others on this machine.
        silence: seconds without a sign after which a process is ended.
    """

    def __init__(self, store: dist.Store, own: int, watched: Sequence[int], silence: float = SILENCE) -> None:
        self.store, self.own, self.watched = store, own, [rank for rank in watched if rank != own]
        self.every = min(BEAT, silence / 4)
        self.most = round(silence / self.every)  # beats without a sign
        self.count = 0
        self.last: dict[int, bytes] = {}
        self.silent = dict.fromkeys(self.watched, 0)
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.run, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        self.give_sign()
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join(self.every)

    def run(self) -> None:
        """Give signs and look for others until the end, or until the store is gone with the process that keeps it."""
        with suppress(RuntimeError):  # of the store; what it means, the main thread finds out as well
            while not self.over.wait(self.every):
                self.beat()

    def give_sign(self) -> None:
        """Give a sign, with the number that the system has for this process."""
        self.count += 1
        self.store.set(f"alive{self.own}", f"{self.count} {os.getpid()}")

    def beat(self) -> None:
        """Give a sign, and end the processes that have given none for too long."""
        self.give_sign()
        for rank in self.watched:
            key = f"alive{rank}"
            sign = self.store.get(key) if self.store.check([key]) else b""
            self.silent[rank] = self.silent[rank] + 1 if sign == self.last.get(rank, b"") else 0
            self.last[rank] = sign
            if sign and self.silent[rank] == self.most:
                end_frozen(rank, int(sign.split()[1]), self.most * self.every)


def end_frozen(rank: int, pid: int, seconds: float) -> None:
    """End a process that does not answer, if it is still there: one that the launcher of this process has started.

    Args:
        rank: its number in the group.
        pid: of the system.
        seconds: that it has given no sign.
    """
    siblings = {process.pid: process for process in psutil.Process(os.getppid()).children()}
    if pid in siblings and siblings[pid].status() != psutil.STATUS_ZOMBIE:
        LOGGER.error(f"process {rank} has not answered for {seconds:.0f} seconds and is ended")
        os.kill(pid, signal.SIGKILL)
