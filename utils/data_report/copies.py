"""Pictures that are there more than once, within a split or in two of them, where they make validation too good.

Exact copies are files of the same bytes. Near copies look alike when they are made small and grey: encoded anew,
resized, or the next frame of a film. Each picture gets 242 bits, which say where the mean of a part is brighter than
that of the part on its left, and of the part above it (a difference hash); of near copies at most MOST_BITS differ.
Those that are mirrored or turned are not found.

Of the pictures of BCCD at half the size and JPEG quality 40, 99 % differ in at most 6 bits from themselves, and other
pictures of the set in 68 or more, but for one pair of the same cells.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from ultralytics.utils import NUM_THREADS, TQDM

from utils.data.pictures import Unreadable, read_header, read_picture

GRID = 11  # differences in each direction, in as many rows
BITS = 2 * GRID * GRID
MARGIN = 6  # grey levels that neighbours must differ by, which noise in even areas does not
MOST_BITS = 10  # that may differ between near copies: one of BANDS parts of the bits is always the same
BANDS = MOST_BITS + 1
LEAST_SET = 10  # bits of a picture that is not too even to be told from others
ENLARGED = 3  # a picture is decoded to at least so many pixels for each mean
EVEN = np.zeros(-BITS % 64, bool)  # what fills the last 64
PAIRS_AT_ONCE = 500_000
REDUCED = {8: cv2.IMREAD_REDUCED_GRAYSCALE_8, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4, 2: cv2.IMREAD_REDUCED_GRAYSCALE_2}


@dataclass(frozen=True)
class Look:
    """What is kept of one picture; nothing but the reason where it cannot be read.

    Attributes:
        digest: of the bytes of the file.
        bits: of its difference hash, packed.
        size: width and height in pixels, before rotation.
        mode: Pillow's word for its channels and their depth.
        problem: why it cannot be read.
    """

    digest: bytes = b""
    bits: bytes = b""
    size: tuple[int, int] = (0, 0)
    mode: str = ""
    problem: str = ""


def look_at(paths: Sequence[str], prefix: str) -> list[Look]:
    """Return what is kept of pictures, in their order; several are read at once, and none is held.

    Args:
        paths: of the files.
        prefix: how the progress bar starts, for instance 'train: '.
    """
    with ThreadPool(NUM_THREADS) as pool:
        looks = pool.imap(look, paths, chunksize=8)
        return list(TQDM(looks, desc=f"{prefix}looking for copies", total=len(paths)))


def look(path: str) -> Look:
    """Return what is kept of a picture."""
    try:
        header = read_header(Path(path))
        content = Path(path).read_bytes()
        grey = small_grey(content, min(header.width, header.height))
        if grey is None:  # a format that OpenCV does not decode
            grey = read_picture(Path(path)).mean(2).astype(np.uint8)
    except Unreadable as error:
        return Look(problem=str(error))
    except OSError as error:
        return Look(problem=str(error.strerror))
    digest = hashlib.blake2b(content, digest_size=16).digest()
    return Look(digest, difference_hash(grey).tobytes(), (header.width, header.height), header.mode)


def small_grey(content: bytes, side: int) -> NDArray[np.uint8] | None:
    """Return a picture (H, W) in grey, decoded no larger than needed; None where OpenCV cannot.

    Args:
        content: of its file.
        side: its shorter one, in pixels.
    """
    part = next((part for part in REDUCED if side >= ENLARGED * GRID * part), 1)
    try:
        grey = cv2.imdecode(np.frombuffer(content, np.uint8), REDUCED.get(part, cv2.IMREAD_GRAYSCALE))
    except cv2.error:
        return None
    return None if grey is None else grey.astype(np.uint8, copy=False)


def difference_hash(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the BITS of a picture (H, W), packed: where a mean is brighter than the one on its left, or above it."""
    size = (GRID + 1, GRID)
    across, down = (cv2.resize(grey, one, interpolation=cv2.INTER_AREA).astype(np.int16) for one in (size, size[::-1]))
    brighter = [np.diff(across, axis=1) >= MARGIN, np.diff(down, axis=0) >= MARGIN]
    return np.packbits(np.concatenate([one.flatten() for one in brighter] + [EVEN]))


# Which are alike ------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Copies:
    """For each picture and each split a copy of it in there, or -1: (splits, pictures).

    Attributes:
        exact: files of the same bytes.
        near: pictures that look alike and are no exact copies.
    """

    exact: NDArray[np.int64]
    near: NDArray[np.int64]

    def count(self, kind: str, of: NDArray[np.bool_], split: int) -> int:
        """Return how many of some pictures have a copy of a kind, "exact" or "near", in a split.

        Of those that have both kinds there, only the exact one counts.
        """
        exact = (self.exact[split] >= 0) & of
        return int(exact.sum() if kind == "exact" else ((self.near[split] >= 0) & of & ~exact).sum())


def find_copies(looks: Sequence[Look], splits: NDArray[np.int64], count: int) -> Copies:
    """Return the copies among pictures.

    Args:
        looks: what is kept of each, of all splits.
        splits: (pictures,) the number of the split of each.
        count: number of splits.
    """
    exact, near = (np.full((count, len(looks)), -1, np.int64) for _ in range(2))
    readable = np.array([i for i, one in enumerate(looks) if not one.problem], np.int64)
    if not len(readable):
        return Copies(exact, near)
    digests = np.frombuffer(b"".join(looks[i].digest for i in readable), np.uint64).reshape(len(readable), 2)
    bits = np.frombuffer(b"".join(looks[i].bits for i in readable), np.uint8).reshape(len(readable), -1)
    for group in groups_of_equals(digests):
        members = readable[group]
        for split in np.unique(splits[members]):
            inside = members[splits[members] == split]
            exact[split, members] = inside[0]
            exact[split, inside[0]] = inside[1] if len(inside) > 1 else -1
    telling = np.flatnonzero(np.bitwise_count(bits).sum(1) >= LEAST_SET)
    for a, b in alike(bits[telling]):
        one, other = readable[telling[a]], readable[telling[b]]
        differ = (digests[telling[a]] != digests[telling[b]]).any(1)
        near[splits[other[differ]], one[differ]] = other[differ]
    return Copies(exact, near)


def alike(bits: NDArray[np.uint8]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield pairs (n,), (n,) of rows of bits of which at most MOST_BITS differ, both ways round, some more than once.

    Two such rows agree in one of BANDS parts at least, so that only rows that do are compared.

    Args:
        bits: (rows, bytes), packed; bytes are a multiple of 8.
    """
    words = np.ascontiguousarray(bits).view(np.uint64)
    places = np.array_split(np.arange(BITS), BANDS)
    for band in (np.packbits(np.unpackbits(bits, axis=1)[:, place], axis=1) for place in places):
        for group in groups_of_equals(band):
            step = max(1, PAIRS_AT_ONCE // len(group))
            for start in range(0, len(group), step):
                rows = group[start : start + step]
                differ = np.bitwise_count(words[rows, None] ^ words[None, group]).sum(2, dtype=np.int64)
                a, b = np.nonzero((differ <= MOST_BITS) & (rows[:, None] != group))
                yield rows[a], group[b]


def groups_of_equals(rows: NDArray) -> Iterator[NDArray[np.int64]]:
    """Yield the indices of rows (n, columns) that are the same, where there are two or more."""
    order = np.lexsort(rows.T)
    first = np.flatnonzero(np.r_[True, (np.diff(rows[order].astype(np.int64), axis=0) != 0).any(1)])
    for group in np.split(order, first[1:]):
        if len(group) > 1:
            yield group
