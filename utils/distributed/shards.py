"""Which pictures of a batch each process has."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Sampler
from ultralytics.data.build import InfiniteDataLoader, seed_worker
from ultralytics.utils import RANK, WORLD_SIZE

from models.errors import UserError


def share_of_batch(batch: int, processes: int = WORLD_SIZE) -> int:
    """Return how many pictures of a batch each process has.

    Raises:
        UserError: not all can have as many.
    """
    if batch == -1 and processes > 1:
        raise UserError("--batch-size -1 is for one GPU: give the number of pictures that all processes share")
    if batch % max(processes, 1):
        less = batch // processes * processes
        near = f"{less} or {less + processes}" if less else f"{processes}"
        raise UserError(f"--batch-size {batch} cannot be shared by {processes} processes: give {near}, for instance")
    return batch // max(processes, 1)


class Shard(Sampler[int]):
    """The pictures of one process: its part of each batch, the same for all but the last one.

    All processes draw the same order of all pictures, which is that of a single process with the same seed.

    Args:
        pictures: of the data set.
        batch: pictures that all processes take at a time.
        shuffle: take them in another order each time.
        least: pictures that each process needs of a batch; the last batch is left out where one would have fewer.
        rank: number of the process.
        processes: how many there are.
    """

    def __init__(
        self,
        pictures: int,
        batch: int,
        shuffle: bool,
        least: int,
        rank: int = RANK,
        processes: int = WORLD_SIZE,
    ) -> None:
        self.batch, self.shuffle, self.rank, self.processes = batch, shuffle, rank, processes
        left = pictures % batch
        self.dropped = left if left // processes < least else 0
        self.pictures = pictures
        self.generator = torch.Generator()

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: the order is that of `start`. ultralytics calls it."""

    def start(self, seed: int) -> None:
        """Draw what follows from a seed, as the loader of a single process does, which first draws one for workers."""
        self.generator.manual_seed(seed)
        torch.empty((), dtype=torch.int64).random_(generator=self.generator)

    def __iter__(self) -> Iterator[int]:
        """Yield the pictures of this process, batch by batch."""
        order = torch.arange(self.pictures)
        if self.shuffle:
            order = torch.randperm(self.pictures, generator=self.generator)
        for batch in order[: self.pictures - self.dropped].split(self.batch):
            yield from batch.tensor_split(self.processes)[self.rank].tolist()

    def __len__(self) -> int:
        """Return how many pictures this process has."""
        full, left = divmod(self.pictures - self.dropped, self.batch)
        return full * (self.batch // self.processes) + left // self.processes + (self.rank < left % self.processes)


def shard_loader(dataset: Any, sampler: Shard, workers: int, device: torch.device) -> InfiniteDataLoader:
    """Return the loader of one process, as ultralytics makes them.

    Args:
        dataset: that all processes have.
        sampler: what this one takes of it.
        workers: processes that read pictures, at most; none for the CPU.
        device: that computes.
    """
    batch = sampler.batch // sampler.processes
    batches = math.ceil(len(sampler) / batch)
    on_gpu = device.type == "cuda"
    cores = (os.cpu_count() or 1) // max(torch.cuda.device_count(), 1)
    workers = min(cores, workers, batches if batches > 1 else 0) if on_gpu else 0
    return InfiniteDataLoader(
        dataset=dataset,
        batch_size=batch,
        sampler=sampler,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=on_gpu,
        collate_fn=getattr(dataset, "collate_fn", None),
        worker_init_fn=seed_worker,
        generator=torch.Generator(),
    )
