"""How much memory a network takes, measured in a process of its own."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import Tensor, nn

from models.environment import restored_environment
from utils.paths import ROOT

RUNS = 3  # of the network; its runtime keeps what the first one needed
PROCESS_PATIENCE = 300.0  # seconds that a process may take
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
SHARED = "utils.benchmark.shared"  # imports what the processes share, so that it is in none of the figures


def weights_size(module: nn.Module) -> int:
    """Return the bytes of the parameters and buffers of a module."""
    return sum(tensor.numel() * tensor.element_size() for tensor in (*module.parameters(), *module.buffers()))


def peak_memory(load: Callable[[], Callable[[Tensor], object]], shape: tuple[int, ...], threads: int) -> int | None:
    """Return by how many bytes the resident memory of a new process grows while it runs a network.

    What loading takes and gives back again is not counted, what stays of it is.

    Args:
        load: gives the function to run; it must be known by name, to be sent to the process.
        shape: of the network's input, (B, ch, H, W).
        threads: that torch computes on.

    Returns:
        None where the system does not report it (Linux does), or the network ran out of memory or time.
    """
    if not STATUS.exists():
        return None
    context = multiprocessing.get_context("forkserver")  # a copy of this process would have its memory and locks
    context.set_forkserver_preload([SHARED])
    with _importable():
        forkserver.ensure_running()
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(load, shape, threads, sender), daemon=True)
    process.start()
    sender.close()
    try:
        return receiver.recv() if receiver.poll(PROCESS_PATIENCE) else None
    except EOFError:  # it was killed, or failed
        return None
    finally:
        process.kill()
        process.join()
        receiver.close()


@contextmanager
def _importable() -> Iterator[None]:
    """Let a Python that is started meanwhile, in whatever folder, import what this one does.

    The fork server is told no path, and leaves out without a word what it cannot import.
    """
    former = os.environ.get("PYTHONPATH")
    with restored_environment():
        os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *([former] if former else [])])
        yield


def _measure(
    load: Callable[[], Callable[[Tensor], object]], shape: tuple[int, ...], threads: int, sender: Connection
) -> None:
    """Send the growth in bytes; runs in the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the parent, which ends this process
    torch.set_num_threads(threads)
    before = _status("VmRSS")
    run = load()
    _forget_peak()
    images = torch.rand(shape)
    with torch.inference_mode():
        for _ in range(RUNS):
            run(images)
    sender.send(max(0, _status("VmHWM") - before))


def _status(name: str) -> int:
    """Return an entry of /proc/self/status in bytes."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def _forget_peak() -> None:
    """Give freed memory back and let the peak start from what is left."""
    gc.collect()
    with suppress(OSError, AttributeError):  # a C library other than GNU's
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):  # a kernel that does not offer this counts the peak of loading as well
        CLEAR.write_text("5")
