"""Detection by several processes: each reads some of the files, and what they write is that of one process.

Pictures, videos and labels belong to one file each. The rows of the table, and the names of crops, of which a picture
called bus2 and the second crop of bus want the same, depend on the order of all files: each process keeps its own in a
folder of its own, which the first one joins at the end.
"""

from __future__ import annotations

import csv
import heapq
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ultralytics.utils import LOGGER, RANK

from models.errors import UserError
from utils.detect.frame import Frame
from utils.detect.loop import Speed
from utils.detect.sources import AnySource, Files
from utils.detect.writers import CropNames, Table, Wanted, Writers, naming, write_image
from utils.distributed.group import await_all, gather_lists, group_size, is_first, is_shared, threads_of_process
from utils.latency import torch_threads

ONE_PROCESS = ("web", "view_img")  # options that need the one process that there is


def check_shareable(options: Any) -> None:
    """Raise UserError for an option that is for one process."""
    for name in ONE_PROCESS:
        if getattr(options, name):
            raise UserError(f"--{name.replace('_', '-')} is for one process: give --device one name, without torchrun")


def check_splits(source: AnySource) -> None:
    """Say where a source keeps fewer processes busy than there are.

    Raises:
        UserError: it is a stream or the screen.
    """
    if not is_shared():
        return
    if not isinstance(source, Files):
        raise UserError(f"a stream or the screen cannot be split among {group_size()} processes: start one for each")
    idle = group_size() - len(source)
    if idle > 0:
        LOGGER.warning(f"a file is not split, a video neither: {idle} of {group_size()} processes have nothing to do")


@contextmanager
def share_of_machine() -> Iterator[None]:
    """Let a process that is one of several compute on its share of the cores, and say what it finds."""
    if not is_shared():
        yield
        return
    spoken = [LOGGER, *LOGGER.handlers]
    former = [each.level for each in spoken]
    with torch_threads(threads_of_process()):
        for each in spoken:
            each.setLevel("INFO")  # ultralytics lets the first process alone speak
        try:
            yield
        finally:
            for each, level in zip(spoken, former, strict=True):
                each.setLevel(level)


@dataclass(frozen=True)
class Crop:
    """A crop that has no name yet."""

    index: int  # of its file
    folder: Path  # of its class
    stem: str  # that its name begins with
    file: Path | None  # where it is; None for one without pixels, which takes a name as well


class SharedWriters(Writers):
    """The files of one of several processes; `join`, which all call at the end, makes those of the run of them."""

    def __init__(self, folder: Path, wanted: Wanted) -> None:
        super().__init__(folder, wanted)
        self.part = part_folder(folder, RANK)
        self.kept: list[Crop] = []

    def __enter__(self) -> SharedWriters:
        shutil.rmtree(self.part, ignore_errors=True)
        if self.wanted.table or self.wanted.crops:
            self.part.mkdir()
        if self.wanted.table:
            self._table = PartOfTable(self.part / "predictions.csv")
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            super().__exit__(kind, *rest)
        finally:
            if kind is not None:  # nothing will be joined
                shutil.rmtree(self.part, ignore_errors=True)

    def _write_crop(self, folder: Path, frame: Frame, stem: str, crop: np.ndarray) -> None:
        file = self.part / f"{len(self.kept)}.jpg" if crop.size else None
        if file:
            write_image(file, crop)
        self.kept.append(Crop(frame.index, folder, stem, file))

    def join(self) -> None:
        """Give the rows of all processes their table, and their crops their names."""
        crops = gather_lists(self.kept)
        self.label_files = sum(gather_lists([self.label_files]))
        if is_first() and self.wanted.table:
            parts = [part_folder(self.folder, rank) / "predictions.csv" for rank in range(group_size())]
            join_tables(parts, self.folder / "predictions.csv")
        if is_first():
            name_crops(crops)
        await_all()
        shutil.rmtree(self.part, ignore_errors=True)


def part_folder(folder: Path, rank: int) -> Path:
    """Return where a process keeps what is joined at the end."""
    return folder / f".process-{rank}"


class PartOfTable(Table):
    """Rows that begin with the number of their file, and have no header."""

    header = ()

    def start_of_row(self, frame: Frame) -> tuple[object, ...]:
        """Return the cells that all rows of a frame begin with."""
        return (frame.index, *super().start_of_row(frame))


def join_tables(parts: Sequence[Path], path: Path) -> None:
    """Write a table with the rows of several, in the order of their files."""
    with ExitStack() as stack:
        files = [
            stack.enter_context(part.open(newline="", errors="surrogateescape", encoding="utf-8")) for part in parts
        ]
        table = Table(path)
        stack.callback(table.close)
        with naming(path):
            rows = heapq.merge(*map(csv.reader, files), key=lambda row: int(row[0]))
            table.rows.writerows(row[1:] for row in rows)


def name_crops(crops: Sequence[Crop]) -> None:
    """Give crops the names that they have where one process finds them in the order of all files."""
    names = CropNames()
    for crop in sorted(crops, key=lambda crop: crop.index):
        path = names.take(crop.folder, crop.stem)
        if crop.file:
            with naming(path):
                path.parent.mkdir(exist_ok=True, parents=True)
                crop.file.replace(path)


def join_findings(speed: Speed, source: AnySource, outputs: Writers) -> Speed:
    """Return how fast all processes were, and give the first one what they have written and could not read."""
    if not isinstance(outputs, SharedWriters):
        return speed
    outputs.join()
    speeds = gather_lists([speed])
    unreadable = dict(gather_lists([*source.unreadable.items()]))
    order = {path: i for i, path in enumerate(source.files, 1)}
    source.unreadable.update(sorted(unreadable.items(), key=lambda item: order.get(item[0], 0)))
    return sum(speeds[1:], speeds[0]) if speeds else speed
