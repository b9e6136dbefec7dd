"""The latencies of what was compared, all of them measured in one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ultralytics.utils import TQDM

from utils.data.samples import timed_picture
from utils.deploy.opened import open_runner
from utils.latency import Latency, measure, torch_threads


class Timed(NamedTuple):
    """The files of a network that are timed, by their form, and [channels, height, width] of their input."""

    files: Mapping[str, Path]
    input: Sequence[int]


def time_files(
    networks: Mapping[str, Timed], threads: Sequence[int], rounds: int
) -> dict[str, dict[int, dict[str, Latency]]]:
    """Return network → threads → form → latency on one picture; with the same threads all files are timed in turns.

    Args:
        networks: what is timed.
        threads: of the CPU, each number by itself.
        rounds: how many times each file is timed.
    """
    found: dict[str, dict[int, dict[str, Latency]]] = {name: {} for name in networks}
    with TQDM(total=rounds * len(threads), desc="timing") as bar:
        for count in threads:
            runs = {}
            for name, (files, (channels, height, width)) in networks.items():
                images = timed_picture((height, width), channels)
                for form, path in files.items():
                    runs[name, form] = open_runner(path, images, count)
            with torch_threads(count):
                latency = measure(runs, rounds, after_round=bar.update)
            for name, timed in networks.items():
                found[name][count] = {form: latency[name, form] for form in timed.files}
    return found
