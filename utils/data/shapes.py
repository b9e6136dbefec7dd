"""The built-in data set: circles, squares, triangles and stars on crops of two real photographs.

The photographs ship inside the ultralytics package and everything else is drawn, so nothing is downloaded. Each picture
has its own random generator, seeded by the recipe, its split and its number: the same recipe gives the same pixels and
the same labels on every run. It is learnt in minutes: a demonstration, not a benchmark.

    <root>/images/{train,val,test}/0000.jpg    160×160 pixels, 2 to 5 objects, every 24th picture without any
    <root>/labels/{train,val,test}/0000.txt    YOLO rows: class and outline, x1 y1 x2 y2 …, as parts of the side
    <root>/cutouts/{train,val,test}/<class>/   the objects alone, cut out with a margin, in folders by class
    <root>/shapes.mp4                          the same objects in motion, 320×320
    <root>/shapes.json                         the recipe; written last, it says that the set is complete
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from ultralytics.utils import ASSETS, TQDM

from models.environment import config_dir
from models.errors import UserError

NAMES = ("circle", "square", "triangle", "star")
SPLITS = ("train", "val", "test")
PHOTO_NAMES = ("bus.jpg", "zidane.jpg")
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
SUPERSAMPLING = 4  # masks are drawn this much larger, then averaged: smooth edges
MANIFEST, FILM = "shapes.json", "shapes.mp4"
LEFTOVER_AGE = 3600.0  # seconds after which a temporary folder belongs to a killed process


@dataclass(frozen=True)
class Recipe:
    """Everything the set depends on; when any of it changes, the set is made again."""

    version: int = 8  # of the drawing below
    seed: int = 20
    side: int = 160  # pixels
    train: int = 384  # pictures
    val: int = 96
    test: int = 32
    background_every: int = 24  # one picture in so many has no object
    film_side: int = 320  # pixels
    film_frames: int = 300


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


def unit_polygons() -> tuple[np.ndarray, ...]:
    """Return the corners of each class, (corners, 2), around the origin, the longer side of their box being 1."""

    def ring(corners: int, start: float = -math.pi / 2) -> np.ndarray:
        angles = start + np.arange(corners) * 2 * math.pi / corners
        return np.stack([np.cos(angles), np.sin(angles)], 1)

    star = ring(10)
    star[1::2] *= 0.48
    polygons = ring(72), ring(4, math.pi / 4), ring(3), star
    centred = (p - (p.max(0) + p.min(0)) / 2 for p in polygons)
    return tuple(p / np.ptp(p, axis=0).max() for p in centred)


POLYGONS = unit_polygons()


def corners(shape: Shape, scale: float = 1.0) -> np.ndarray:
    """Return the corners of `shape`, (corners, 2), in pixels of the picture."""
    cos, sin = math.cos(shape.angle), math.sin(shape.angle)
    turned = POLYGONS[shape.kind] @ np.array([[cos, sin], [-sin, cos]])
    return turned * shape.size * scale + (shape.x, shape.y)


def window(shape: Shape, picture: np.ndarray) -> tuple[int, int, int, int]:
    """Return the part of `picture` that `shape` can touch, as left, top, right, bottom in whole pixels."""
    points, (height, width) = corners(shape), picture.shape[:2]
    left, top = np.clip(np.floor(points.min(0)) - 1, 0, (width, height)).astype(int)
    right, bottom = np.clip(np.ceil(points.max(0)) + 2, 0, (width, height)).astype(int)
    return int(left), int(top), int(right), int(bottom)


def mask(shape: Shape, frame: tuple[int, int, int, int], scale: float = 1.0) -> np.ndarray:
    """Return what `shape` covers of the window `frame`, 0 or 255, `SUPERSAMPLING` times larger than the picture."""
    left, top, right, bottom = frame
    covered = np.zeros(((bottom - top) * SUPERSAMPLING, (right - left) * SUPERSAMPLING), np.uint8)
    points = np.rint((corners(shape, scale) - (left, top)) * SUPERSAMPLING - 0.5).astype(np.int32)
    return cv2.fillPoly(covered, [points], 255)


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
        alpha = cv2.resize(covered, (right - left, bottom - top), interpolation=cv2.INTER_AREA)[..., None] / np.float32(
            255
        )
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


def load_photos() -> list[np.ndarray]:
    """Return the photographs, each (H, W, 3) uint8 BGR."""
    return [np.asarray(cv2.imdecode(np.fromfile(ASSETS / name, np.uint8), cv2.IMREAD_COLOR)) for name in PHOTO_NAMES]


def crop(photos: list[np.ndarray], rng: np.random.Generator, side: int) -> np.ndarray:
    """Return a random square of a random photograph, scaled to `side` pixels, mirrored half of the time."""
    photo = photos[rng.integers(len(photos))]
    extent = int(rng.integers(side * 3 // 2, min(photo.shape[:2])))
    top, left = (int(rng.integers(length - extent + 1)) for length in photo.shape[:2])
    square = photo[top : top + extent, left : left + extent]
    return np.ascontiguousarray(
        cv2.resize(square, (side, side), interpolation=cv2.INTER_AREA)[:, :: rng.choice((1, -1))]
    )


def label_row(kind: int, points: np.ndarray, side: int) -> str:
    """Return the YOLO row of a polygon: class and x1 y1 x2 y2 … as parts of `side`."""
    return f"{kind} {' '.join(f'{value / side:.5f}' for value in points.ravel())}\n"


def picture(photos: list[np.ndarray], recipe: Recipe, split: str, number: int) -> tuple[np.ndarray, str]:
    """Return picture `number` of `split`, (side, side, 3) uint8 BGR, and the text of its label file."""
    rng = np.random.default_rng([recipe.seed, SPLITS.index(split), number])
    canvas = crop(photos, rng, recipe.side)
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


def write_pictures(root: Path, recipe: Recipe, photos: list[np.ndarray], bar: TQDM) -> None:
    """Write the pictures and label files of all splits."""
    for split in SPLITS:
        images, labels = root / "images" / split, root / "labels" / split
        labels.mkdir(parents=True)
        for number in range(getattr(recipe, split)):
            pixels, rows = picture(photos, recipe, split, number)
            write_jpeg(images / f"{number:04}.jpg", pixels)
            (labels / f"{number:04}.txt").write_text(rows, encoding="utf-8")
            for i, (kind, cut) in enumerate(cut_outs(pixels, rows)):
                write_jpeg(root / "cutouts" / split / NAMES[kind] / f"{number:04}-{i}.jpg", cut)
            bar.update()


def write_jpeg(path: Path, pixels: np.ndarray) -> None:
    """Write a picture (H, W, 3) uint8 BGR, and the folder that it belongs into."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _, jpeg = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 92])
    path.write_bytes(jpeg.tobytes())


def write_video(path: Path, recipe: Recipe, photos: list[np.ndarray], bar: TQDM) -> None:
    """Write the video as MPEG-4 part 2, which OpenCV's wheels can write and read everywhere."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 30, (recipe.film_side, recipe.film_side))
    try:
        if not writer.isOpened():
            raise OSError(f"OpenCV cannot write {path.name}")
        for frame in video_frames(photos, recipe):
            writer.write(frame)
            bar.update()
    finally:
        writer.release()


def is_complete(root: Path, recipe: Recipe) -> bool:
    """Return whether `root` holds the whole set of this very recipe."""
    try:
        same = json.loads((root / MANIFEST).read_text(encoding="utf-8")) == asdict(recipe)
        counts = all(
            sum(entry.suffix == suffix for entry in (root / kind / split).iterdir()) == getattr(recipe, split)
            for kind, suffix in (("images", ".jpg"), ("labels", ".txt"))
            for split in SPLITS
        )
        return same and counts and (root / "cutouts").is_dir() and (root / FILM).is_file()
    except (OSError, ValueError):
        return False


def remove_leftovers(parent: Path) -> None:
    """Remove the temporary folders of makings that were killed."""
    for folder in parent.glob(".shapes-*"):
        if time.time() - folder.stat().st_mtime > LEFTOVER_AGE:
            shutil.rmtree(folder, ignore_errors=True)


def put_in_place(made: Path, root: Path, recipe: Recipe) -> None:
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


def shapes_folder(data: Path) -> Path:
    """Return where the set belongs: in the folder `data`, or in the user's cache when that is read-only."""
    beside = data / "shapes"
    return beside if is_complete(beside, Recipe()) or os.access(data, os.W_OK) else config_dir() / "shapes"


def ensure_shapes(root: Path, recipe: Recipe = Recipe()) -> Path:
    """Return `root` after making the set there, unless it is already complete: all of it appears at once, or nothing.

    Raises:
        UserError: `root` holds something else, or cannot be written.
    """
    if is_complete(root, recipe):
        return root
    if root.exists() and not (root.is_dir() and ((root / MANIFEST).is_file() or not any(root.iterdir()))):
        raise UserError(f"the built-in data set wants to be made in {root}, but something else is there: move it away")
    photos = load_photos()
    total = recipe.train + recipe.val + recipe.test + recipe.film_frames
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(root.parent)
        with tempfile.TemporaryDirectory(prefix=".shapes-", dir=root.parent, ignore_cleanup_errors=True) as folder:
            made = Path(folder) / "new"
            made.mkdir()
            with TQDM(total=total, desc=f"Drawing the built-in data set to {root}") as bar:
                write_pictures(made, recipe, photos, bar)
                write_video(made / FILM, recipe, photos, bar)
            (made / MANIFEST).write_text(json.dumps(asdict(recipe), indent=1) + "\n", encoding="utf-8")
            put_in_place(made, root, recipe)
    except OSError as error:
        raise UserError(f"the built-in data set could not be written to {root}: {error.strerror or error}") from error
    return root
