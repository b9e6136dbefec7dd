"""Data sets that are drawn at their first use: nothing is downloaded, and every run draws the same.

Each picture has its own random generator, seeded by the recipe, its split and its number: neither the order in which
pictures are drawn nor the number of threads changes them. The photographs in them ship inside the ultralytics package.

    <root>/images/{train,val,test}/0000.jpg
    <root>/labels/{train,val,test}/0000.txt    rows as YOLO has them
    <root>/<name>.json                         the recipe; written last, it says that the set is complete
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
from ultralytics.utils import ASSETS, TQDM

from models.environment import config_dir, cpu_cores
from models.errors import UserError
from utils.writing import hold_folder

SPLITS = ("train", "val", "test")
PHOTO_NAMES = ("bus.jpg", "zidane.jpg")
SUPERSAMPLING = 4  # masks are drawn this much larger, then averaged: smooth edges
Frame = tuple[int, int, int, int]  # a part of a picture: left, top, right, bottom in whole pixels


@dataclass(frozen=True)
class DrawnSet(ABC):
    """The recipe of a set, everything that it depends on; when any of it changes, the set is drawn again."""

    name: ClassVar[str]  # of its folder
    extras: ClassVar[tuple[str, ...]] = ()  # what its folder holds besides pictures, labels and the recipe

    version: int  # of the code that draws
    seed: int
    side: int  # width and height of the pictures in pixels
    train: int  # pictures
    val: int
    test: int

    @abstractmethod
    def write_picture(self, root: Path, split: str, number: int) -> None:
        """Draw one picture and write its files; several threads do so at once."""

    def generator(self, split: str, number: int) -> np.random.Generator:
        """Return the random generator of one picture."""
        return np.random.default_rng([self.seed, SPLITS.index(split), number])

    def pieces(self, root: Path) -> list[Callable[[], None]]:
        """Return what is to be done to draw the set into `root`, independent of each other."""
        return [
            partial(self.write_picture, root, split, number) for split in SPLITS for number in range(self.count(split))
        ]

    def count(self, split: str) -> int:
        """Return the number of pictures of a split."""
        return int(getattr(self, split))

    @property
    def manifest(self) -> str:
        """The name of the file that holds the recipe."""
        return f"{self.name}.json"


# Drawing ----------


@cache
def load_photos() -> list[np.ndarray]:
    """Return the photographs, each (H, W, 3) uint8 BGR."""
    return [np.asarray(cv2.imdecode(np.fromfile(ASSETS / name, np.uint8), cv2.IMREAD_COLOR)) for name in PHOTO_NAMES]


def crop(photos: list[np.ndarray], rng: np.random.Generator, side: int, least: int) -> np.ndarray:
    """Return a random square of a random photograph, scaled to `side` pixels, mirrored half of the time.

    Args:
        photos: each (H, W, 3).
        rng: what decides.
        side: of the square that is returned.
        least: side of the smallest square in the photograph, in pixels.
    """
    photo = photos[rng.integers(len(photos))]
    extent = int(rng.integers(least, min(photo.shape[:2])))
    top, left = (int(rng.integers(length - extent + 1)) for length in photo.shape[:2])
    square = photo[top : top + extent, left : left + extent]
    return np.ascontiguousarray(
        cv2.resize(square, (side, side), interpolation=cv2.INTER_AREA)[:, :: rng.choice((1, -1))]
    )


def ring(corners: int, start: float = -math.pi / 2) -> np.ndarray:
    """Return the corners of a regular polygon around the origin, (corners, 2), the first at the angle `start`."""
    angles = start + np.arange(corners) * 2 * math.pi / corners
    return np.stack([np.cos(angles), np.sin(angles)], 1)


def star() -> np.ndarray:
    """Return the corners of a star of five points around the origin, (10, 2)."""
    points = ring(10)
    points[1::2] *= 0.48
    return points


def centred(points: np.ndarray | list[tuple[float, float]]) -> np.ndarray:
    """Return a polygon, (corners, 2), so that its box is around the origin and the longer side of that is 1."""
    points = np.asarray(points, np.float64)
    points = points - (points.max(0) + points.min(0)) / 2
    return points / np.ptp(points, axis=0).max()


def fill(points: np.ndarray, frame: Frame) -> np.ndarray:
    """Return what the polygon `points`, (corners, 2) in pixels, covers of a part of a picture.

    Returns:
        (h, w) uint8, 0 or 255, `SUPERSAMPLING` times larger than `frame`.
    """
    left, top, right, bottom = frame
    covered = np.zeros(((bottom - top) * SUPERSAMPLING, (right - left) * SUPERSAMPLING), np.uint8)
    return cv2.fillPoly(covered, [np.rint((points - (left, top)) * SUPERSAMPLING - 0.5).astype(np.int32)], 255)


def shrink(covered: np.ndarray) -> np.ndarray:
    """Return how much of each pixel is covered, 0 to 255, from what `fill` returns."""
    height, width = (length // SUPERSAMPLING for length in covered.shape)
    return cv2.resize(covered, (width, height), interpolation=cv2.INTER_AREA)


def write_jpeg(path: Path, pixels: np.ndarray, quality: int = 92) -> None:
    """Write a picture (H, W, 3) uint8 BGR, and the folder that it belongs into."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _, jpeg = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
    path.write_bytes(jpeg.tobytes())


def write_labels(path: Path, rows: str) -> None:
    """Write the label file of a picture, and the folder that it belongs into."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(rows, encoding="utf-8")


# The set as a whole ----------


def drawn_folder(data: Path, recipe: DrawnSet) -> Path:
    """Return where a set belongs: in the folder `data`, or in the user's cache when that is read-only."""
    beside = data / recipe.name
    return beside if is_complete(beside, recipe) or os.access(data, os.W_OK) else config_dir() / recipe.name


def ensure_drawn(root: Path, recipe: DrawnSet) -> Path:
    """Return `root` after drawing a set there, unless it is already complete: all of it appears at once, or nothing.

    One process draws; others that want a set in the same place wait until it has ended.

    Raises:
        UserError: `root` holds something else, or cannot be written.
    """
    if is_complete(root, recipe):
        return root
    if root.exists() and not (root.is_dir() and ((root / recipe.manifest).is_file() or not any(root.iterdir()))):
        raise UserError(f"the built-in data set wants to be made in {root}, but something else is there: move it away")
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with alone(root.parent) as locked:
            if locked:
                remove_leftovers(root.parent, recipe)
            if not is_complete(root, recipe):
                draw(root, recipe)
    except OSError as error:
        raise UserError(f"the built-in data set could not be written to {root}: {error.strerror or error}") from error
    return root


def draw(root: Path, recipe: DrawnSet) -> None:
    """Draw a set into a temporary folder beside `root`, a picture on each core, and rename that when it is complete."""
    with tempfile.TemporaryDirectory(
        prefix=f".{recipe.name}-", dir=root.parent, ignore_cleanup_errors=True
    ) as temporary:
        made = Path(temporary) / "new"
        made.mkdir()
        pieces = recipe.pieces(made)
        pool = ThreadPoolExecutor(cpu_cores(), thread_name_prefix="drawing")
        try:
            futures = [pool.submit(piece) for piece in pieces]
            with TQDM(total=len(pieces), desc=f"Drawing the built-in data set to {root}") as bar:
                for future in as_completed(futures):
                    future.result()
                    bar.update()
        finally:
            pool.shutdown(cancel_futures=True)  # no thread writes any more when the folder is removed
        (made / recipe.manifest).write_text(json.dumps(asdict(recipe), indent=1) + "\n", encoding="utf-8")
        put_in_place(made, root, recipe)


def is_complete(root: Path, recipe: DrawnSet) -> bool:
    """Return whether `root` holds the whole set of this very recipe."""
    try:
        same = json.loads((root / recipe.manifest).read_text(encoding="utf-8")) == asdict(recipe)
        counts = all(
            sum(entry.suffix == suffix for entry in (root / kind / split).iterdir()) == recipe.count(split)
            for kind, suffix in (("images", ".jpg"), ("labels", ".txt"))
            for split in SPLITS
            if recipe.count(split)
        )
        return same and counts and all((root / extra).exists() for extra in recipe.extras)
    except (OSError, ValueError):
        return False


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[bool]:
    """Let one process at a time draw into `folder`; give whether that is certain: not all file systems know locks."""
    try:
        lock = hold_folder(folder)
    except OSError:
        yield False
        return
    try:
        yield True
    finally:
        os.close(lock)


def remove_leftovers(parent: Path, recipe: DrawnSet) -> None:
    """Remove the temporary folders of processes that were killed while they drew; nobody may draw there now."""
    for folder in parent.glob(f".{recipe.name}-*"):
        shutil.rmtree(folder, ignore_errors=True)


def put_in_place(made: Path, root: Path, recipe: DrawnSet) -> None:
    """Rename the finished set to `root`, unless another process was first; an older set gives way."""
    if is_complete(root, recipe):
        return
    with contextlib.suppress(FileNotFoundError):
        root.rename(made.with_name("old"))
    try:
        made.rename(root)
    except OSError:
        if not is_complete(root, recipe):
            raise
