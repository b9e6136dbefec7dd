"""How long networks take, measured in turns so that the noise of the machine hits all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

K = TypeVar("K")  # what names a network
PAUSE = 0.005  # seconds between two runs, in which the waiting threads of the one before fall asleep


@dataclass(frozen=True)
class Latency:
    """The times of one network, in milliseconds and in the order of the rounds."""

    times: tuple[float, ...]

    @property
    def median(self) -> float:
        """What one run takes as a rule, in milliseconds."""
        return statistics.median(self.times)

    @property
    def minimum(self) -> float:
        """What one run takes when nothing disturbs it, in milliseconds."""
        return min(self.times)


def measure(
    runs: Mapping[K, Callable[[], object]], rounds: int, after_round: Callable[[], object] | None = None
) -> dict[K, Latency]:
    """Return the latency of each function. A round calls every one once; each round starts with another one.

    Args:
        runs: name → what to time. Each is called once before the first round, to warm up.
        rounds: how many times each is timed, at least 1.
        after_round: called after every round, for instance to move a progress bar.
    """
    times: dict[K, list[float]] = {name: [] for name in runs}
    names = list(runs)
    with torch.inference_mode():
        for name in names:
            runs[name]()
        for turn in range(rounds):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                times[name].append(_milliseconds(runs[name]))
            if after_round:
                after_round()
    return {name: Latency(tuple(values)) for name, values in times.items()}


def _milliseconds(run: Callable[[], object]) -> float:
    time.sleep(PAUSE)
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1e3


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch compute on `count` threads, and put the former number back at the end."""
    former = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(former)
