"""The scan of a data set: every picture is decoded once, its label file checked, and what was found kept in a cache.

The data set's folder is only read, and nothing in it is unpickled: ultralytics' `labels/train.cache` is not opened. The
records are kept in the user's own cache folder, so that the next run looks again only at the files that changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import UnidentifiedImageError
from ultralytics.utils import LOGGER, NUM_THREADS, TQDM
from ultralytics.utils.ops import segments2boxes
from ultralytics.utils.patches import imread

from models.environment import config_dir
from models.files import why_no_file
from utils.data.pictures import BROKEN_PICTURE, LIMIT, Unreadable, checked_header, open_picture, suffix
from utils.text import decode, printable

MIN_PICTURE_SIDE = 10  # pixels
COORDINATE_TOLERANCE = 0.01  # coordinates may lie this far outside of [0, 1]
MAX_LABELS = 64 << 20  # bytes of a label file
MAX_NAMED = 10  # files that a warning names
CACHE_VERSION = 1  # of the records below
BROKEN_CACHE = (OSError, ValueError, TypeError, LookupError, EOFError, zlib.error, zipfile.BadZipFile)


# The scan -------------------------------------------------------------------------------------------------------------
@dataclass
class Record:
    """What the scan found out about one picture and its label file."""

    path: str
    stamp: tuple[int, int, int, int]  # size and time of the picture, then of the label file, -1 where there is none
    state: str = "labelled"  # or 'empty' (label file without rows), 'missing' (no label file), 'rejected'
    shape: tuple[int, int] = (0, 0)  # height, width as decoded
    rows: np.ndarray = field(default_factory=lambda: np.zeros((0, 5), np.float32))  # class, x, y, w, h in [0, 1]
    segments: list[np.ndarray] = field(default_factory=list)  # (points, 2) each; as many as rows, 0 points for a box
    note: str = ""  # why it was rejected, or what was left out


@dataclass(frozen=True)
class Settings:
    """What a record depends on beside the files."""

    nc: int  # classes; with single_cls any class number is accepted
    channels: int
    single_cls: bool
    keypoint_columns: int = 0  # columns after the box that a data set with keypoints has, and detection ignores

    @classmethod
    def of(cls, data: dict[str, Any], single_cls: bool) -> Settings:
        """Return those of what `load_dataset` returned."""
        keypoints, dimensions = data.get("kpt_shape", (0, 0))
        return cls(len(data["names"]), data["channels"], single_cls, keypoints * dimensions)


def stamp_of(image: str, label: str) -> tuple[int, int, int, int]:
    """Return size and time of both files; the later of modification and change, as the former can be set back."""
    return *size_and_time(image), *size_and_time(label)


def size_and_time(path: str) -> tuple[int, int]:
    """Return the size of a file in bytes and its time in ns, -1 and -1 when it is not there."""
    try:
        stat = Path(path).stat()
    except OSError:
        return -1, -1
    return stat.st_size, max(stat.st_mtime_ns, stat.st_ctime_ns)


def picture_shape(path: str, channels: int) -> tuple[int, int]:
    """Return height and width in pixels, decoded as training will; ValueError says why a picture cannot be used."""
    try:
        with open_picture(path) as header:
            checked_header(header, suffix(path))
            if header.format in ("JPEG", "MPO") and not ends_as_jpeg(path):
                header.load()  # fails when the end is missing; junk after it is harmless
            elif header.format == "PNG":
                header.verify()  # its checksums
            claim = f"{header.width}×{header.height} {header.format}"
    except UnidentifiedImageError as error:
        raise ValueError("not a picture of a known format") from error
    except Unreadable as error:
        raise ValueError(str(error)) from error
    except BROKEN_PICTURE as error:
        raise ValueError(str(error) or type(error).__name__) from error
    return decoded_shape(path, channels, claim)


def ends_as_jpeg(path: str) -> bool:
    """Return whether the last two bytes are JPEG's end mark."""
    with Path(path).open("rb") as file:
        file.seek(-2, os.SEEK_END)
        return file.read() == b"\xff\xd9"


def decoded_shape(path: str, channels: int, claim: str) -> tuple[int, int]:
    """Return height and width of the decoded picture, whose header claims to be `claim`."""
    try:
        pixels = imread(path, flags=decoder_flag(channels))
    except cv2.error as error:
        raise ValueError(f"the header says {claim}, but the decoder fails: {error.err}") from error
    if pixels is None:
        raise ValueError(f"the header says {claim}, but the pixels cannot be decoded")
    height, width = pixels.shape[:2]
    if min(height, width) < MIN_PICTURE_SIDE:
        raise ValueError(f"{width}×{height} pixels are too few, {MIN_PICTURE_SIDE}×{MIN_PICTURE_SIDE} is the least")
    if pixels.shape[2] != channels:
        raise ValueError(f"it has {pixels.shape[2]} channels, the data set {channels}")
    return height, width


def decoder_flag(channels: int) -> int:
    """Return OpenCV's flag for pictures of so many channels, as ultralytics chooses it."""
    return {1: cv2.IMREAD_GRAYSCALE, 3: cv2.IMREAD_COLOR}.get(channels, cv2.IMREAD_UNCHANGED)


def read_labels(file: Path, settings: Settings) -> tuple[np.ndarray, list[np.ndarray], str]:
    """Return what `parse_labels` finds in `file`; ValueError names the file and the line, or says why it is none."""
    if problem := why_no_file(file):
        raise ValueError(f"its label file {file.name} {problem}")
    if file.stat().st_size > MAX_LABELS:
        raise ValueError(f"its label file {file.name} has more than {MAX_LABELS >> 20} MB")
    try:
        text = decode(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"its label file {file.name} {error}") from error
    try:
        return parse_labels(text, settings)
    except ValueError as error:
        raise ValueError(f"{file.name}, {error}") from error


def parse_labels(text: str, settings: Settings) -> tuple[np.ndarray, list[np.ndarray], str]:
    """Return the rows (n, 5) `class x y w h`, the polygons if there are any, and a note on what was left out.

    A row holds a box or a polygon, each as it likes. There are as many polygons as rows, those of boxes being empty,
    or none at all.

    Raises:
        ValueError: a row is malformed; the message names the line.
    """
    numbered = [(number, line.split()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    parsed = [parse_row(words, number, settings) for number, words in numbered]
    unique = list(dict.fromkeys(parsed))
    segments = [np.array(row[1:] if len(row) > 5 else (), np.float32).reshape(-1, 2) for row in unique]
    boxes = [segments2boxes([s])[0] if len(s) else row[1:] for row, s in zip(unique, segments, strict=True)]
    rows = np.array([(row[0], *box) for row, box in zip(unique, boxes, strict=True)], np.float32).reshape(-1, 5)
    kept = np.flatnonzero((rows[:, 3:] > 0).all(1))
    notes = [
        f"{count} {what} left out"
        for count, what in (
            (len(parsed) - len(unique), "repeated rows"),
            (len(unique) - len(kept), "boxes without area"),
        )
        if count
    ]
    return rows[kept], [segments[i] for i in kept] if any(map(len, segments)) else [], ", ".join(notes)


def parse_row(words: list[str], number: int, settings: Settings) -> tuple[float, ...]:
    """Return the numbers of one row: class and box (5), or class and polygon (7, 9, …)."""
    if settings.keypoint_columns and len(words) == 5 + settings.keypoint_columns:
        words = words[:5]
    check_columns(len(words), number)
    try:
        kind, *coordinates = map(float, words)
    except ValueError as error:
        raise ValueError(f"line {number} holds something that is not a number") from error
    if not kind.is_integer() or kind < 0:
        raise ValueError(f"line {number} has the class {words[0]}, which is no class number")
    if kind >= settings.nc and not settings.single_cls:
        raise ValueError(f"line {number} has the class {words[0]}, but the classes are 0 to {settings.nc - 1}")
    if not all(-COORDINATE_TOLERANCE <= value <= 1 + COORDINATE_TOLERANCE for value in coordinates):
        raise ValueError(f"line {number} has coordinates that are not from 0 to 1")
    if len(words) == 5 and min(coordinates[2:]) < 0:
        raise ValueError(f"line {number} has a negative width or height")
    return kind, *coordinates


def check_columns(count: int, number: int) -> None:
    """Raise ValueError for a row that is neither a box nor a polygon."""
    if count < 5:
        raise ValueError(f"line {number} has {count} columns instead of the 5 of class x y w h")
    if count == 6:
        raise ValueError(
            f"line {number} has 6 columns: class x y w h are 5, and a polygon of 3 points and its class are 7"
        )
    if count % 2 == 0:
        raise ValueError(f"line {number} has a polygon with an odd number of coordinates, {count - 1}")


def examine(image: str, label: str, stamp: tuple[int, int, int, int], settings: Settings) -> Record:
    """Look at one picture and its label file."""
    record = Record(image, stamp)
    try:
        if problem := why_no_file(image):
            raise ValueError(f"it {problem}")
        if stamp[0] == 0:
            raise ValueError("the file is empty")
        record.shape = picture_shape(image, settings.channels)
        if not os.path.lexists(label):
            record.state = "missing"
            return record
        record.rows, record.segments, record.note = read_labels(Path(label), settings)
        record.state = "labelled" if len(record.rows) else "empty"
    except OSError as error:
        record.state, record.note = "rejected", f"its label file cannot be read: {error.strerror}"
    except ValueError as error:
        record.state, record.note = "rejected", printable(error)
    return record


def scan(images: list[str], labels: list[str], settings: Settings, cache: Path, prefix: str) -> list[Record]:
    """Return a record for each picture; only what is not in `cache`, changed or was rejected is looked at.

    Args:
        images: paths of the pictures.
        labels: paths of their label files, in the same order.
        settings: what the records depend on.
        cache: file of records, in the user's own cache folder; read and rewritten.
        prefix: how lines of the log start, for instance 'train: '.
    """
    known = {record.path: record for record in load_records(cache) if record.state != "rejected"}
    stamps = [stamp_of(*pair) for pair in zip(images, labels, strict=True)]
    todo = [
        (image, label, stamp, settings)
        for image, label, stamp in zip(images, labels, stamps, strict=True)
        if image not in known or known[image].stamp != stamp
    ]
    if todo:
        with warnings.catch_warnings(), ThreadPool(NUM_THREADS) as pool:
            warnings.simplefilter("ignore")  # Pillow's, about size and metadata
            results = pool.imap(lambda job: examine(*job), todo, chunksize=8)
            known |= {
                record.path: record for record in TQDM(results, desc=f"{prefix}looking at pictures", total=len(todo))
            }
        save_records(cache, list({path: known[path] for path in images}.values()))
    return [known[path] for path in images]


# The cache of the scan ------------------------------------------------------------------------------------------------
def cache_file(source: str | Sequence[str], settings: Settings, fraction: float) -> Path:
    """Return the file that keeps the records of a split: in our private folder, never in the data set's."""
    identity = json.dumps([CACHE_VERSION, source, repr(settings), fraction, LIMIT["megapixels"]])
    folder = Path(os.environ.get("YOLO_CONFIG_DIR") or config_dir()) / "labels"
    return folder / f"{hashlib.sha256(identity.encode()).hexdigest()[:24]}.npz"


def save_records(file: Path, records: list[Record]) -> None:
    """Write the records as plain arrays and JSON; all of the file appears, or nothing. A full disk only costs time."""
    text = json.dumps(
        {
            "version": CACHE_VERSION,
            "paths": [r.path for r in records],
            "states": [r.state for r in records],
            "notes": [r.note for r in records],
        }
    )
    segments = [segment for r in records for segment in r.segments]
    arrays = {
        "text": np.frombuffer(text.encode(), np.uint8),
        "stamps": np.array([r.stamp for r in records], np.int64),
        "shapes": np.array([r.shape for r in records], np.int64),
        "row_counts": np.array([len(r.rows) for r in records], np.int64),
        "rows": np.concatenate([r.rows for r in records]),
        "segment_counts": np.array([len(r.segments) for r in records], np.int64),
        "point_counts": np.array([len(s) for s in segments], np.int64),
        "points": np.concatenate([np.zeros((0, 2), np.float32), *segments]),
    }
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent) as folder:
            partial = Path(folder) / file.name
            np.savez(partial, allow_pickle=False, **arrays)
            partial.replace(file)
    except OSError as error:
        LOGGER.warning(f"the label cache {file} was not written, the next run looks again: {error.strerror}")


def load_records(file: Path) -> list[Record]:
    """Return the records in `file`; none when it is missing, damaged or of another version."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            arrays = dict(stored)
        text = json.loads(arrays["text"].tobytes())
        if text["version"] != CACHE_VERSION:
            return []
        rows = split_by(arrays["rows"], arrays["row_counts"])
        points = split_by(arrays["points"], arrays["point_counts"])
        ends = np.cumsum(arrays["segment_counts"])
        starts = ends - arrays["segment_counts"]
        columns = (
            text["paths"],
            map(tuple, arrays["stamps"].tolist()),
            text["states"],
            map(tuple, arrays["shapes"].tolist()),
            rows,
            (points[start:end] for start, end in zip(starts, ends, strict=True)),
            text["notes"],
        )
        return [Record(*values) for values in zip(*columns, strict=True)]
    except BROKEN_CACHE:
        return []


def split_by(array: np.ndarray, counts: np.ndarray) -> list[np.ndarray]:
    """Return `array` cut into pieces of so many rows."""
    ends = np.cumsum(counts)
    return [array[start:end] for start, end in zip(ends - counts, ends, strict=True)]


def log_scan(records: list[Record], labels: Sequence[str], prefix: str) -> None:
    """Log how many pictures there are of each kind, and name some that were rejected or changed.

    Args:
        records: of the pictures.
        labels: paths of their label files, in the same order.
        prefix: how lines of the log start, for instance 'train: '.
    """
    states = Counter(r.state for r in records)
    LOGGER.info(
        f"{prefix}{len(records)} pictures: {states['labelled']} with objects, {states['empty']} with an empty label "
        f"file, {states['missing']} without a label file, {states['rejected']} rejected"
    )
    if states["missing"]:
        example = next(label for r, label in zip(records, labels, strict=True) if r.state == "missing")
        LOGGER.info(
            f"{prefix}pictures without a label file count as without objects; there is no {printable(example)}, for one"
        )
    rejected = [r for r in records if r.state == "rejected"]
    changed = [r for r in records if r.state != "rejected" and r.note]
    for title, some in (("rejected", rejected), ("labels corrected", changed)):
        if some:
            named = "".join(f"\n  {printable(r.path)}: {r.note}" for r in some[:MAX_NAMED])
            more = f"\n  and {len(some) - MAX_NAMED} more" if len(some) > MAX_NAMED else ""
            LOGGER.warning(f"{prefix}{len(some)} {title}:{named}{more}")
