"""The group of processes that `torchrun` or `--device 0,1` started, and what they tell each other.

The first one, of rank 0, reads, checks and writes; the others are told what they need. Alone, everything here does
nothing. What one process does alone for long, such as the scan of a data set, the others await with PATIENCE; in the
steps of a training they await each other with STEP_TIMEOUT, after which a process that hangs ends all of them. One that
is frozen is found by its `Heartbeat`, whatever the others wait for.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist
from ultralytics.utils import LOCAL_RANK, RANK, WORLD_SIZE

from models.environment import cpu_cores
from models.errors import UserError
from utils.distributed.heartbeat import Heartbeat

T = TypeVar("T")
LOCAL_SIZE = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # processes on this machine
STARTS = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))  # of this group by torchrun, before this one
STORE = "REPYOLO_STORE"  # the variable with the path of the file by which processes of one machine find each other
STEP_TIMEOUT = timedelta(seconds=float(os.environ.get("REPYOLO_STEP_TIMEOUT", "40")))
SETUP_TIMEOUT = timedelta(minutes=30)  # until all have started
PATIENCE = timedelta(days=7)
OWN_DEVICE: list[torch.device] = []  # of this process, while it is one of several
PATIENT: list[Any] = []  # the group whose members await each other with PATIENCE


class LostProcessError(RuntimeError):
    """Another process of the group has ended or does not answer."""


def is_shared() -> bool:
    """Return whether this process is one of several."""
    return RANK != -1


def is_first() -> bool:
    """Return whether this process is the one that writes."""
    return RANK in (-1, 0)


def group_size() -> int:
    """Return how many processes there are."""
    return max(WORLD_SIZE, 1)


def threads_of_process() -> int:
    """Return how many threads a process computes on, where those of a machine share its cores."""
    return max(cpu_cores() // LOCAL_SIZE, 1)


@contextmanager
def process_group(device: str) -> Iterator[torch.device | None]:
    """Join the other processes, and leave them at the end; give the device of this one, None where it is alone.

    Args:
        device: the `--device` of all: empty, cpu, or one CUDA number for each process of a machine.

    Raises:
        UserError: there are fewer devices than processes.
        LostProcessError: another process has ended or does not answer.
    """
    if not is_shared():
        yield None
        return
    own = device_of(device, LOCAL_RANK)
    if own.type == "cuda":
        torch.cuda.set_device(own)
    with lost_processes():
        backend = "cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo"
        store = dist.PrefixStore(f"start{STARTS}", shared_store())  # it may hold addresses of processes that failed
        dist.init_process_group(backend, store=store, rank=RANK, world_size=WORLD_SIZE, timeout=STEP_TIMEOUT)
        PATIENT.append(dist.new_group(backend="gloo", timeout=PATIENCE))
        OWN_DEVICE.append(own)
        with Heartbeat(store.clone(), RANK, range(RANK - LOCAL_RANK, RANK - LOCAL_RANK + LOCAL_SIZE)):
            yield own
            dist.barrier(PATIENT[-1])
    PATIENT.clear()
    OWN_DEVICE.clear()
    dist.destroy_process_group()


def shared_store() -> dist.Store:
    """Return what all processes of the group read and write: a file, or what torchrun has set up."""
    if path := os.environ.get(STORE):
        store = dist.FileStore(path, WORLD_SIZE)
        store.set_timeout(SETUP_TIMEOUT)
        return store
    return next(dist.rendezvous("env://", timeout=SETUP_TIMEOUT))[0]


def device_of(device: str, number: int) -> torch.device:
    """Return the device of the process with this number on its machine.

    Raises:
        UserError: the device of that process is none.
    """
    names = device.split(",") if device else [str(i) for i in range(torch.cuda.device_count())] or ["cpu"]
    if names[0] == "cpu":
        return torch.device("cpu")
    if number >= len(names) or names[0] == "mps":
        raise UserError(
            f"process {number + 1} of this machine has no device of its own: there are {', '.join(names)}; start one "
            f"process for each, or give --device cpu"
        )
    return torch.device("cuda", int(names[number]))


@contextmanager
def lost_processes() -> Iterator[None]:
    """Say in one sentence that another process is lost, where torch would describe its connections.

    Raises:
        LostProcessError: it is.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if not isinstance(error, dist.DistError) and not any(word in text for word in ("gloo", "Gloo", "NCCL")):
            raise
        raise LostProcessError("another process has ended, for the reason that it gives, or does not answer") from error


def await_all() -> None:
    """Wait until all processes are here, however long one of them is busy with what it does alone."""
    if is_shared():
        dist.barrier(PATIENT[-1])


@contextmanager
def first_before_others() -> Iterator[None]:
    """Let the first process of each machine do something before the others do it, which then find what it has left."""
    if LOCAL_RANK > 0:
        await_all()
    yield
    if LOCAL_RANK == 0:
        await_all()


def from_first(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what `work` returns in the first process: plain data and tensors, which the others are sent.

    Raises:
        UserError: `work` does, in the first process.
        SystemExit: it does there; the others end without a word.
    """
    if not is_shared():
        return work()
    if RANK != 0:
        content = receive()
        if content is None:
            raise SystemExit(2)
        return content
    try:
        content = work()
    except UserError:
        send(None)
        raise
    send(content)
    return content


def send(content: dict[str, Any] | None) -> None:
    """Send plain data and tensors to all other processes."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    data = torch.frombuffer(buffer.getbuffer(), dtype=torch.uint8)
    for part in (torch.tensor([len(data)]), data):
        dist.broadcast(part, 0, group=PATIENT[-1])


def receive() -> dict[str, Any] | None:
    """Return what the first process sends."""
    length = torch.zeros(1, dtype=torch.long)
    dist.broadcast(length, 0, group=PATIENT[-1])
    data = torch.zeros(int(length), dtype=torch.uint8)
    dist.broadcast(data, 0, group=PATIENT[-1])
    return torch.load(io.BytesIO(data.numpy().tobytes()), weights_only=True, map_location="cpu")


def is_true_of_all(fact: bool) -> bool:
    """Return whether something is true in all processes."""
    if not is_shared():
        return fact
    facts = torch.tensor([int(fact)])
    dist.all_reduce(facts, dist.ReduceOp.MIN, group=PATIENT[-1])
    return bool(facts)


def gather_lists(items: list[T]) -> list[T]:
    """Return the items of all processes in the first one, and none in the others; of one process its own."""
    if not is_shared():
        return items
    gathered: list[Any] = [None] * group_size()
    dist.gather_object(items, gathered if is_first() else None, 0, group=PATIENT[-1])
    return [item for some in gathered for item in some] if is_first() else []


def copy_from_first(tensors: Iterable[Tensor]) -> None:
    """Give tensors the values that they have in the first process."""
    if is_shared():
        for tensor in tensors:
            dist.broadcast(tensor.detach(), 0)
