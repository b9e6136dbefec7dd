"""The built-in data set: circles, squares, triangles and stars on crops of two real photographs.

It is learnt in minutes: a demonstration, not a benchmark. `utils/data/drawn.py` says how a set is drawn and where its
pictures and labels are.

    <root>/images/{train,val,test}/0000.jpg    160×160 pixels, 2 to 5 objects, every 24th picture without any
    <root>/labels/{train,val,test}/0000.txt    YOLO rows: class and outline, x1 y1 x2 y2 …, as parts of the side
    <root>/cutouts/{train,val,test}/<class>/   the objects alone, cut out with a margin, in folders by class
    <root>/shapes.mp4                          the same objects in motion, 320×320
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np

from utils.data.drawn import (
    SPLITS,
    DrawnSet,
    Frame,
    centred,
    crop,
    ensure_drawn,
    fill,
    load_photos,
    ring,
    shrink,
    star,
    write_jpeg,
    write_labels,
)

NAMES = ("circle", "square", "triangle", "star")
PALETTE = (  # RGB
    (0xEF, 0x44, 0x44),
    (0xF9, 0x73, 0x16),
    (0xFA, 0xCC, 0x15),
    (0x84, 0xCC, 0x16),
    (0x16, 0xA3, 0x4A),
    (0x14, 0xB8, 0xA6),
    (0x38, 0xBD, 0xF8),
    (0x3B, 0x5B, 0xF6),
    (0x8B, 0x5C, 0xF6),
    (0xEC, 0x48, 0x99),
)
WHITE, INK = (255, 255, 255), (40, 32, 32)  # BGR of the two outlines
FILM = "shapes.mp4"


@dataclass(frozen=True)
class Recipe(DrawnSet):
    """Everything the set depends on; when any of it changes, the set is drawn again."""

    name: ClassVar[str] = "shapes"
    extras: ClassVar[tuple[str, ...]] = (FILM, "cutouts")

    version: int = 8
    seed: int = 20
    side: int = 160
    train: int = 384
    val: int = 96
    test: int = 32
    background_every: int = 24  # one picture in so many has no object
    film_side: int = 320  # pixels
    film_frames: int = 300

    def pieces(self, root: Path) -> list[Callable[[], None]]:
        """Return what is to be done: the film first, which takes longest, and the pictures."""
        return [partial(write_video, root / FILM, self, load_photos()), *super().pieces(root)]

    def write_picture(self, root: Path, split: str, number: int) -> None:
        """Draw one picture and write it, its label file and its cut-outs."""
        pixels, rows = picture(load_photos(), self, split, number)
        write_jpeg(root / "images" / split / f"{number:04}.jpg", pixels)
        write_labels(root / "labels" / split / f"{number:04}.txt", rows)
        for i, (kind, cut) in enumerate(cut_outs(pixels, rows)):
            write_jpeg(root / "cutouts" / split / NAMES[kind] / f"{number:04}-{i}.jpg", cut)


@dataclass(frozen=True)
class Shape:
    """One object to draw: where, how large (longer side when upright, in pixels), turned by `angle` radians."""

    kind: int
    x: float
    y: float
    size: float
    angle: float
    colour: tuple[int, int, int]  # BGR
    outline: tuple[int, int, int] | None = None


# Drawing ----------


POLYGONS = tuple(map(centred, (ring(72), ring(4, math.pi / 4), ring(3), star())))  # of each class


def corners(shape: Shape, scale: float = 1.0) -> np.ndarray:
    """Return the corners of `shape`, (corners, 2), in pixels of the picture."""
    cos, sin = math.cos(shape.angle), math.sin(shape.angle)
    turned = POLYGONS[shape.kind] @ np.array([[cos, sin], [-sin, cos]])
    return turned * shape.size * scale + (shape.x, shape.y)


def window(shape: Shape, picture: np.ndarray) -> Frame:
    """Return the part of `picture` that `shape` can touch, as left, top, right, bottom in whole pixels."""
    points, (height, width) = corners(shape), picture.shape[:2]
    left, top = np.clip(np.floor(points.min(0)) - 1, 0, (width, height)).astype(int)
    right, bottom = np.clip(np.ceil(points.max(0)) + 2, 0, (width, height)).astype(int)
    return int(left), int(top), int(right), int(bottom)


def mask(shape: Shape, frame: Frame, scale: float = 1.0) -> np.ndarray:
    """Return what `shape` covers of the window `frame`, as `fill` does."""
    return fill(corners(shape, scale), frame)


def contour(shape: Shape, height: int, width: int) -> np.ndarray:
    """Return the polygon around the part of `shape` inside of a picture, (points, 2), in pixels.

    This is Sutherland and Hodgman's clipping (1974): where the shape leaves the picture, the polygon follows its edge.
    """
    points = corners(shape)
    for axis, limit, towards in ((0, 0, 1), (0, width, -1), (1, 0, 1), (1, height, -1)):
        depth = (points[:, axis] - limit) * towards  # how far inside of this edge of the picture
        following, next_depth = np.roll(points, -1, axis=0), np.roll(depth, -1)
        crosses = (depth >= 0) != (next_depth >= 0)
        part = (depth / np.where(crosses, depth - next_depth, 1))[:, None]  # of the way to the following point
        both = np.stack([points, points + part * (following - points)], 1)
        points = both[np.stack([depth >= 0, crosses], 1)]
    return points


def draw_shape(picture: np.ndarray, shape: Shape) -> np.ndarray | None:
    """Draw `shape` into `picture` (H, W, 3 uint8 BGR) and return its `contour`, None if all of it lies outside."""
    frame = left, top, right, bottom = window(shape, picture)
    if left >= right or top >= bottom:
        return None
    whole = mask(shape, frame)
    layers = [(whole, shape.outline), (mask(shape, frame, 0.84), shape.colour)] if shape.outline else []
    region = picture[top:bottom, left:right]
    for covered, colour in layers or [(whole, shape.colour)]:
        alpha = shrink(covered)[..., None] / np.float32(255)
        light = np.linspace(1.1, 0.86, bottom - top, dtype=np.float32)[:, None, None]  # from above
        paint = np.clip(np.array(colour, np.float32) * light, 0, 255)
        region[:] = np.rint(region * (1 - alpha) + paint * alpha)
    return contour(shape, *picture.shape[:2]) if whole.any() else None


# Composing ----------


def random_shape(rng: np.random.Generator, height: int, width: int) -> Shape:
    """Return a nearly upright object of 0.3 to 0.6 of the short side, at most a tenth of it outside of the picture."""
    size = min(height, width) * rng.uniform(0.3, 0.6)
    x, y = (rng.uniform(0.4 * size, side - 0.4 * size) for side in (width, height))
    red, green, blue = (int(v) for v in np.clip(PALETTE[rng.integers(len(PALETTE))] + rng.integers(-14, 15, 3), 0, 255))
    outline = (None, None, WHITE, WHITE, INK)[rng.integers(5)]
    return Shape(int(rng.integers(len(NAMES))), x, y, size, rng.uniform(-0.05, 0.05), (blue, green, red), outline)


def covered_part(a: Shape, b: Shape) -> float:
    """Return how much of the smaller one's box lies in the other's, 0 to 1."""
    (ax, ay), (bx, by) = corners(a).min(0), corners(b).min(0)
    (ar, ab), (br, bb) = corners(a).max(0), corners(b).max(0)
    common = max(0.0, min(ar, br) - max(ax, bx)) * max(0.0, min(ab, bb) - max(ay, by))
    return common / min((ar - ax) * (ab - ay), (br - bx) * (bb - by))


def scene(rng: np.random.Generator, height: int, width: int, count: int) -> list[Shape]:
    """Return up to `count` objects that overlap a little at most; one that finds no room is left out."""
    shapes: list[Shape] = []
    for _ in range(count):
        for _ in range(20):
            shape = random_shape(rng, height, width)
            if all(covered_part(shape, other) <= 0.05 for other in shapes):
                shapes.append(shape)
                break
    return shapes


def label_row(kind: int, points: np.ndarray, side: int) -> str:
    """Return the YOLO row of a polygon: class and x1 y1 x2 y2 … as parts of `side`."""
    return f"{kind} {' '.join(f'{value / side:.5f}' for value in points.ravel())}\n"


def picture(photos: list[np.ndarray], recipe: Recipe, split: str, number: int) -> tuple[np.ndarray, str]:
    """Return picture `number` of `split`, (side, side, 3) uint8 BGR, and the text of its label file."""
    rng = recipe.generator(split, number)
    canvas = crop(photos, rng, recipe.side, least=recipe.side * 3 // 2)
    empty = number % recipe.background_every == recipe.background_every - 1
    shapes = [] if empty else scene(rng, recipe.side, recipe.side, int(rng.integers(1, 4)))
    contours = [(shape.kind, draw_shape(canvas, shape)) for shape in shapes]
    return canvas, "".join(label_row(kind, points, recipe.side) for kind, points in contours if points is not None)


def cut_outs(pixels: np.ndarray, rows: str) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the class and the picture (h, w, 3) of each object of a picture, by the text of its label file.

    Around its box is a margin of a tenth of its longer side, where the picture has that.
    """
    height, width = pixels.shape[:2]
    for row in rows.splitlines():
        kind, *values = row.split()
        points = np.array(values, np.float32).reshape(-1, 2) * (width, height)
        margin = 0.1 * np.ptp(points, axis=0).max()
        left, top = np.maximum(points.min(0) - margin, 0).astype(int)
        right, bottom = np.ceil(points.max(0) + margin).astype(int)
        yield int(kind), pixels[top:bottom, left:right]


def bounce(start: float, speed: float, low: float, high: float, moment: int) -> float:
    """Return where a ball is at `moment` that moves to and fro between two walls."""
    span = high - low
    way = (start - low + speed * moment) % (2 * span)
    return low + (way if way <= span else 2 * span - way)


def video_frames(photos: list[np.ndarray], recipe: Recipe) -> Iterator[np.ndarray]:
    """Yield the frames of the video, (side, side, 3) uint8 BGR: one object of each class, each in its own quarter.

    They are as large a part of the frame as those that the network learns from.
    """
    rng = np.random.default_rng([recipe.seed, len(SPLITS)])
    side, quarter = recipe.film_side, recipe.film_side / 2
    colours = rng.permutation(PALETTE)[: len(NAMES), ::-1].tolist()
    objects = [
        Shape(kind, kind % 2 * quarter, kind // 2 * quarter, quarter * rng.uniform(0.65, 0.8), 0, bgr, outline)
        for kind, (bgr, outline) in enumerate(zip(colours, (None, WHITE, INK, WHITE), strict=True))
    ]
    speeds = rng.uniform(0.3, 1.2, (len(objects), 2))
    photo = cv2.resize(photos[1], None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA)
    height, width = photo.shape[:2]
    for moment in range(recipe.film_frames):
        left = int(bounce(0, 1, 0, width - side, moment))
        canvas = photo[(height - side) // 2 :, left : left + side][:side].copy()
        for shape, speed in zip(objects, speeds, strict=True):
            low, high = shape.size / 2, quarter - shape.size / 2
            x, y = (bounce(low, pixels, low, high, moment) for pixels in speed)
            angle = 0.05 * math.sin(shape.kind + moment / 15)
            draw_shape(canvas, replace(shape, x=shape.x + x, y=shape.y + y, angle=angle))
        yield canvas


# Files ----------


def write_video(path: Path, recipe: Recipe, photos: list[np.ndarray]) -> None:
    """Write the video as MPEG-4 part 2, which OpenCV's wheels can write and read everywhere."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 30, (recipe.film_side, recipe.film_side))
    try:
        if not writer.isOpened():
            raise OSError(f"OpenCV cannot write {path.name}")
        for frame in video_frames(photos, recipe):
            writer.write(frame)
    finally:
        writer.release()


def ensure_shapes(root: Path, recipe: Recipe = Recipe()) -> Path:
    """Return `root` after drawing the shapes there, unless they are there already, as `ensure_drawn` does."""
    return ensure_drawn(root, recipe)
