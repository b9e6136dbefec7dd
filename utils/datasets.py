"""Data sets: the YAML that describes one, the scan of its pictures and labels, and the dataset that training reads.

A data set is data from a stranger. Its YAML is checked and runs nothing (`download:` is ignored), its folder is only
read, and nothing in it is unpickled: ultralytics' `labels/train.cache` is not opened, and an `.npy` file beside a
picture does not stand in for it. What the scan found is kept in the user's own cache, so that the next run looks again
only at the files that changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import reprlib
import struct
import tempfile
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, TypeGuard

import cv2
import numpy as np
import yaml
from PIL import Image, UnidentifiedImageError
from ultralytics.data.dataset import YOLODataset
from ultralytics.data.utils import IMG_FORMATS, get_split_fraction, img2label_paths
from ultralytics.utils import LOCAL_RANK, LOGGER, NUM_THREADS, TQDM, IterableSimpleNamespace, colorstr
from ultralytics.utils.ops import segments2boxes
from ultralytics.utils.patches import _image_open as open_header  # Image.open itself is patched to install packages
from ultralytics.utils.patches import imread

from models.environment import config_dir
from models.errors import UserError, did_you_mean
from utils.paths import ROOT, find_file
from utils.shapes import ensure_shapes, shapes_folder
from utils.text import printable

BUILT_IN = ROOT / "data" / "shapes.yaml"
KEYS = ("path", "train", "val", "test", "names", "nc", "channels", "kpt_shape", "flip_idx", "download")
MAX_YAML = 1 << 20  # bytes
MAX_PATH, MAX_NAME = 2048, 255  # characters of a path in a YAML, bytes of one name in it
MAX_PIXELS = 100_000_000  # of one picture; a small file can claim many more and fill the memory
MIN_SIDE = 10  # pixels
TOLERANCE = 0.01  # coordinates may lie this far outside of [0, 1]
MAX_NAMED = 10  # files that a warning names
MAX_TRIES = 100  # pictures in a row that may fail to load during training
CACHE_VERSION = 1  # of the records below
TOO_LARGE = f"it claims to have more than {MAX_PIXELS // 1_000_000} million pixels"
NO_FILE = Path(os.devnull) / "none"  # a path that cannot exist
BROKEN_PICTURE = (  # what Pillow raises for one
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    OverflowError,
    struct.error,
    zlib.error,
)
BROKEN_CACHE = (OSError, ValueError, TypeError, LookupError, EOFError, zlib.error, zipfile.BadZipFile)


# The YAML -------------------------------------------------------------------------------------------------------------
def load_dataset(data: str | Path, split: str = "val") -> dict[str, Any]:
    """Return the checked description of a data set, in the form that ultralytics keeps in `self.data`.

    Args:
        data: a YAML file, or its bare name in this repository's data folder (`shapes`, `coco128.yaml`). The built-in
            set is made when it is not there yet.
        split: the split that will be validated; 'test' must then be described as well as 'train' and 'val'.

    Returns:
        train, val, test: absolute path of a folder or a list file, or a list of them (test may be None); nc; names
        {int: str}; channels; path: the root folder; yaml_file; kpt_shape where the file has it.

    Raises:
        UserError: anything is wrong or missing; the message names the file and the key.
    """
    file = find_file(data, "data").resolve()
    described = read_yaml(file)
    if "download" in described:
        LOGGER.warning(f"{file.name}: the key 'download' is ignored, nothing is downloaded or run")
    if file == BUILT_IN:
        described["path"] = str(ensure_shapes(shapes_folder(file.parent)))
    required = ("train", "val", "test") if split == "test" else ("train", "val")
    check_keys(described, (*required, "names"), file)
    names = check_names(described["names"], file)
    check_nc(described.get("nc"), len(names), file)
    roots = find_roots(described.get("path"), file)
    found = {key: find_split(described.get(key), key, roots, file, key in required) for key in ("train", "val", "test")}
    keypoints = {"kpt_shape": check_kpt_shape(described["kpt_shape"], file)} if "kpt_shape" in described else {}
    return {
        **found,
        **keypoints,
        "nc": len(names),
        "names": names,
        "channels": check_channels(described.get("channels", 3), file),
        "path": roots[0],
        "yaml_file": str(file),
    }


def read_yaml(file: Path, what: str = "data set", keys: str = "train, val and names") -> dict[str, Any]:
    """Return the mapping in `file`, read as plain data.

    Args:
        file: one that is there.
        what: it should describe, for messages.
        keys: examples of those that it should have.

    Raises:
        UserError: it is no YAML, or no mapping.
    """
    if file.stat().st_size > MAX_YAML:
        raise UserError(f"{file} is larger than {MAX_YAML >> 20} MB, so it is not the YAML of a {what}")
    try:
        described = yaml.safe_load(file.read_bytes())
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise UserError(f"{file} is not valid YAML: {line}{error.problem}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{file} is not valid YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(described, dict):
        raise UserError(f"{file}: expected keys such as {keys}, got {kind_of(described)}")
    return described


def kind_of(value: object) -> str:
    """Return a short description of a value that a YAML file holds, for a message."""
    return "nothing" if value is None else f"{type(value).__name__} {reprlib.repr(value)}"


def check_keys(described: dict[str, Any], required: Iterable[str], file: Path) -> None:
    """Raise UserError when a required key is missing, with the key that was perhaps meant to be it."""
    for key in required:
        if described.get(key) is None:
            unknown = (str(k) for k in described if k not in KEYS)
            guesses = (f"; '{k}' is unknown{hint}" for k in unknown if (hint := did_you_mean(k, KEYS)))
            state = "is empty" if key in described else "is missing"
            raise UserError(f"{file}: the key '{key}' {state}{next(guesses, '')}")


def check_names(names: object, file: Path) -> dict[int, str]:
    """Return the class names as {0: name, 1: name, …}."""
    if not isinstance(names, (list, dict)) or not names:
        raise UserError(f"{file}: names must be a list, or a mapping from 0, 1, … to names, not {kind_of(names)}")
    names = dict(enumerate(names)) if isinstance(names, list) else names
    for key in names:
        if not isinstance(key, int) or isinstance(key, bool) or not 0 <= key < len(names):
            raise UserError(
                f"{file}: names must be numbered from 0 to {len(names) - 1} without gaps, but has {kind_of(key)}"
            )
    ordered = {key: check_name(names[key], key, file) for key in sorted(names)}
    name, count = Counter(ordered.values()).most_common(1)[0]
    if count > 1:
        raise UserError(f"{file}: names has '{name}' {count} times, so its classes cannot be told apart")
    return ordered


def check_name(name: object, key: int, file: Path) -> str:
    """Return one class name as text; a whole number is a name too, such as a digit's."""
    if isinstance(name, bool):
        raise UserError(
            f"{file}: class {key} of names is {str(name).lower()}, so put it in quotes: YAML takes yes, no, on and off "
            "for true and false"
        )
    if not isinstance(name, (str, int)) or not str(name).strip():
        raise UserError(f"{file}: class {key} of names must be a text, not {kind_of(name)}")
    if not str(name).isprintable():
        raise UserError(f"{file}: class {key} of names holds characters that cannot be printed: {name!r}")
    return str(name)


def check_nc(nc: object, count: int, file: Path) -> None:
    """Raise UserError when the file says another number of classes than it names."""
    if nc is not None and (isinstance(nc, bool) or nc != count):
        raise UserError(f"{file}: nc is {reprlib.repr(nc)}, but names has {count} classes")


def check_channels(channels: object, file: Path) -> int:
    """Return the number of channels of the pictures."""
    if not isinstance(channels, int) or isinstance(channels, bool) or channels < 1:
        raise UserError(f"{file}: channels must be a whole number of at least 1, not {kind_of(channels)}")
    return channels


def check_kpt_shape(shape: object, file: Path) -> list[int]:
    """Return the number of keypoints and of their coordinates; detection skips those columns of the labels."""
    if isinstance(shape, list) and len(shape) == 2 and all(type(n) is int and n > 0 for n in shape):
        return shape
    raise UserError(f"{file}: kpt_shape must be two whole numbers, such as [17, 3], not {kind_of(shape)}")


def find_roots(path: object, file: Path) -> list[Path]:
    """Return the folders that splits may be relative to: beside the file first, then as YOLOv5 understands `path`."""
    if path is not None and not is_path(path):
        raise UserError(f"{file}: path must be the data set's folder, not {kind_of(path)}")
    candidates = [(base / Path(path or "").expanduser()).resolve() for base in (file.parent, Path.cwd(), ROOT)]
    roots = [folder for folder in dict.fromkeys(candidates) if folder.is_dir()]
    if not roots:
        looked = " and ".join(map(str, dict.fromkeys(candidates)))
        raise UserError(f"{file}: the data set's folder (path: {path}) is not there; looked for {looked}")
    return roots


def is_path(value: object) -> TypeGuard[str]:
    """Return whether `value` is a text that the system takes for a path."""
    if not isinstance(value, str) or not value.strip() or len(value) > MAX_PATH:
        return False
    refused = any(c == "\0" or "\ud800" <= c <= "\udfff" for c in value)
    return not refused and all(len(part.encode()) <= MAX_NAME for part in Path(value).parts)


def find_split(value: object, key: str, roots: list[Path], file: Path, required: bool) -> str | list[str] | None:
    """Return the absolute path or paths of a split; one that is not required may be missing."""
    if value is None:
        return None
    paths = []
    for entry in (value if isinstance(value, list) else [value]) or [value]:
        if not is_path(entry):
            raise UserError(f"{file}: {key} must be a folder, a list file or a list of them, not {kind_of(entry)}")
        paths.append(find_source(entry, key, roots, file, required))
    return paths if isinstance(value, list) else paths[0]


def find_source(entry: str, key: str, roots: list[Path], file: Path, required: bool) -> str:
    """Return the absolute path of one folder or list file of a split."""
    choices = [root / part for root in roots for part in (entry, entry.removeprefix("../"))]  # Roboflow's ../train
    path = next((choice for choice in choices if choice.exists()), choices[0]).resolve()
    if required and not path.exists():
        near = did_you_mean(path.name, [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else [])
        raise UserError(f"{file}: {key} names {path}, which is not there{near}")
    if path.is_file() and path.suffix.lower() != ".txt":
        raise UserError(f"{file}: {key} must be a folder of pictures or a .txt list of them, not {path}")
    return str(path)


# Pictures and labels on the disk --------------------------------------------------------------------------------------
def list_images(source: str | Sequence[str], root: str | Path = "") -> list[str]:
    """Return the sorted paths of all pictures of a split.

    Args:
        source: a folder, searched in depth; a `.txt` file with one path a line, relative to the list, to the data set
            or to the current folder; or several of them.
        root: the data set's folder.
    """
    sources = [source] if isinstance(source, str) else source
    files = (path for one in sources for path in (walk(one) if Path(one).is_dir() else read_list(Path(one), root)))
    images = sorted(path for path in files if path.rpartition(".")[2].lower() in IMG_FORMATS)
    if not images:
        raise UserError(f"there are no pictures in {', '.join(sources)} (looked for {', '.join(sorted(IMG_FORMATS))})")
    return images


def walk(folder: str) -> Iterable[str]:
    """Yield the files below `folder`, through links, without hidden ones."""
    visited = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        real = os.path.realpath(parent)
        if real in visited:  # a link to a folder above
            folders.clear()
            continue
        visited.add(real)
        yield from (os.path.join(parent, name) for name in files if not name.startswith("."))  # noqa: PTH118


def read_list(file: Path, root: str | Path) -> Iterable[str]:
    """Yield the paths that a list of pictures names; where none of the folders has one, that of the current folder.

    Those that begin with `./` are relative to the list, as in YOLOv5.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the list of pictures {file} cannot be read: {error}") from error
    for line in filter(None, map(str.strip, lines)):
        beside = file.parent / line
        choices = (Path(line), beside, Path(root) / line)
        yield str(beside if line.startswith("./") else next((path for path in choices if path.exists()), line))


def check_images(data: dict[str, Any], splits: Iterable[str] = ("train", "val")) -> None:
    """Raise UserError when a split has no pictures, or no label file for any of them; before any model is built.

    Args:
        data: what `load_dataset` returned.
        splits: the splits that will be used.
    """
    for split in splits:
        if not data.get(split):
            raise UserError(f"{data['yaml_file']} describes no {split} split")
        labels = img2label_paths(list_images(data[split], data["path"]))
        if not any(map(os.path.isfile, labels)):
            more = f" and {len(labels) - 1} more" if len(labels) > 1 else ""
            raise UserError(f"no labels found for the {split} split: looked for {labels[0]}{more}")


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
        with open_header(path) as header:
            width, height = header.size
            if width * height > MAX_PIXELS:
                raise ValueError(TOO_LARGE)
            if header.format in ("JPEG", "MPO") and not ends_as_jpeg(path):
                header.load()  # fails when the end is missing; junk after it is harmless
            elif header.format == "PNG":
                header.verify()  # its checksums
            claim = f"{width}×{height} {header.format}"
    except UnidentifiedImageError as error:
        raise ValueError("not a picture of a known format") from error
    except Image.DecompressionBombError as error:
        raise ValueError(TOO_LARGE) from error
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
    if min(height, width) < MIN_SIDE:
        raise ValueError(f"{width}×{height} pixels are too few, {MIN_SIDE}×{MIN_SIDE} is the least")
    if pixels.shape[2] != channels:
        raise ValueError(f"it has {pixels.shape[2]} channels, the data set {channels}")
    return height, width


def decoder_flag(channels: int) -> int:
    """Return OpenCV's flag for pictures of so many channels, as ultralytics chooses it."""
    return {1: cv2.IMREAD_GRAYSCALE, 3: cv2.IMREAD_COLOR}.get(channels, cv2.IMREAD_UNCHANGED)


def read_labels(file: Path, settings: Settings) -> tuple[np.ndarray, list[np.ndarray], str]:
    """Return what `parse_labels` finds in `file`; ValueError names the file and the line."""
    text = file.read_text(encoding="utf-8-sig")
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
    if not all(-TOLERANCE <= value <= 1 + TOLERANCE for value in coordinates):
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
        if stamp[0] <= 0:
            raise ValueError("the file is empty" if stamp[0] == 0 else "there is no such file")
        record.shape = picture_shape(image, settings.channels)
        if stamp[2] < 0:
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
    identity = json.dumps([CACHE_VERSION, source, repr(settings), fraction])
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


# The dataset ----------------------------------------------------------------------------------------------------------
class SafeYOLODataset(YOLODataset):
    """ultralytics' dataset, with a scan that reads only, and pictures that may fail.

    Attributes:
        rejected: path and reason of each picture that is left out.
        im_files: paths of the pictures that are used.
    """

    im_files: list[str]

    def __init__(self, *args: Any, data: dict[str, Any], task: str = "detect", **kwargs: Any) -> None:
        if task not in ("detect", "segment"):
            raise UserError(f"data sets are read for the tasks detect and segment, not for {task}")
        self.rejected: list[tuple[str, str]] = []
        super().__init__(*args, data=data, task=task, **kwargs)

    def get_img_files(self, img_path: str | list[str]) -> list[str]:
        """Return the pictures of the split, or the first ones when only a fraction or a number is wanted."""
        images = list_images(img_path, self.data["path"])
        count = self.fraction if isinstance(self.fraction, int) else max(1, round(len(images) * self.fraction))
        return images[:count]

    def get_labels(self) -> list[dict[str, Any]]:
        """Scan the split and return ultralytics' label dictionaries of the pictures that can be used."""
        self.label_files = img2label_paths(self.im_files)
        keypoints, dimensions = self.data.get("kpt_shape", (0, 0))
        settings = Settings(len(self.data["names"]), self.channels, self.single_cls, keypoints * dimensions)
        cache = cache_file(self.img_path, settings, self.fraction)
        records = scan(self.im_files, self.label_files, settings, cache, self.prefix)
        self.rejected = [(r.path, r.note) for r in records if r.state == "rejected"]
        used = [r for r in records if r.state != "rejected"]
        if LOCAL_RANK in (-1, 0):
            report(records, self.prefix)
        if not used:
            path, reason = self.rejected[0]
            raise UserError(f"none of the {len(records)} pictures can be used: {path}: {reason}, and so on")
        self.im_files = [r.path for r in used]
        keep_segments = self.all_have_polygons(used) or self.use_segments
        return [label_dict(r, keep_segments) for r in used]

    def all_have_polygons(self, records: list[Record]) -> bool:
        """Return whether each object has a polygon; segmentation makes do with some, and cannot do without any."""
        objects = sum(len(r.rows) for r in records)
        boxes = objects - sum(len(segment) > 0 for r in records for segment in r.segments)
        if boxes and self.use_segments:
            if boxes == objects:
                raise UserError(
                    f"segmentation needs polygons, rows of class x1 y1 x2 y2 x3 y3 …, but the labels of "
                    f"{self.img_path} are boxes only"
                )
            LOGGER.warning(f"{self.prefix}{boxes} of {objects} objects have no polygon, their mask is their box")
        return not boxes

    def load_image(
        self, i: int, rect_mode: bool = True, resize_short: bool = False
    ) -> tuple[np.ndarray, tuple[int, int], tuple[int, int]]:
        """Return picture `i`, its size and its size after resizing; the next one stands in for one that fails."""
        for step in range(1, min(len(self.im_files), MAX_TRIES) + 1):
            self.npy_files[i] = NO_FILE  # the pixels come from the picture, whatever lies beside it
            try:
                return super().load_image(i, rect_mode, resize_short)
            except (OSError, cv2.error):
                self.replace(i, (i + step) % len(self.im_files))
        raise UserError(f"the pictures of {self.img_path} cannot be read any more")

    def replace(self, i: int, j: int) -> None:
        """Put picture `j` and its labels in the place of picture `i`."""
        LOGGER.warning(
            f"{self.prefix}{printable(self.im_files[i])} cannot be read any more, "
            f"{printable(self.im_files[j])} takes its place"
        )
        self.im_files[i], self.labels[i] = self.im_files[j], self.labels[j]

    def get_image_and_label(self, index: int) -> dict[str, Any]:
        """Return picture and labels `index`; both are another one's when the picture cannot be read any more."""
        sample = super().get_image_and_label(index)
        replaced = sample["im_file"] != self.im_files[index]  # while it was loaded, after its labels were taken
        return super().get_image_and_label(index) if replaced else sample

    def check_cache_disk(self, safety_margin: float = 0.1) -> bool:  # noqa: ARG002
        """Return False: ultralytics would write `.npy` files beside the pictures, and the data is only read."""
        LOGGER.warning(f"{self.prefix}pictures are not cached on disk, as their folder is only read; 'ram' is possible")
        self.cache = None
        return False


def label_dict(record: Record, with_segments: bool) -> dict[str, Any]:
    """Return a record as the dictionary that ultralytics' augmentations take, where all objects or none have polygons.

    Args:
        record: what the scan found out about the picture.
        with_segments: give the polygons, which are their corners for boxes.
    """
    segments = record.segments or [np.zeros((0, 2), np.float32)] * len(record.rows)
    polygons = [s if len(s) else box_corners(row[1:]) for s, row in zip(segments, record.rows, strict=True)]
    return {
        "im_file": record.path,
        "shape": record.shape,
        "cls": record.rows[:, :1].copy(),
        "bboxes": record.rows[:, 1:].copy(),
        "segments": polygons if with_segments else [],
        "keypoints": None,
        "normalized": True,
        "bbox_format": "xywh",
    }


def box_corners(box: np.ndarray) -> np.ndarray:
    """Return the corners, (4, 2), of a box `x y w h`."""
    x, y, w, h = box
    return np.array([(x - w / 2, y - h / 2), (x + w / 2, y - h / 2), (x + w / 2, y + h / 2), (x - w / 2, y + h / 2)])


def report(records: list[Record], prefix: str) -> None:
    """Log how many pictures there are of each kind, and name some that were rejected or changed."""
    states = Counter(r.state for r in records)
    backgrounds = states["empty"] + states["missing"]
    LOGGER.info(
        f"{prefix}{len(records)} pictures: {states['labelled']} with objects, {backgrounds} without, "
        f"{states['rejected']} rejected"
    )
    rejected = [r for r in records if r.state == "rejected"]
    changed = [r for r in records if r.state != "rejected" and r.note]
    for title, some in (("rejected", rejected), ("labels corrected", changed)):
        if some:
            named = "".join(f"\n  {printable(r.path)}: {r.note}" for r in some[:MAX_NAMED])
            more = f"\n  and {len(some) - MAX_NAMED} more" if len(some) > MAX_NAMED else ""
            LOGGER.warning(f"{prefix}{len(some)} {title}:{named}{more}")


def build_dataset(
    args: IterableSimpleNamespace,
    img_path: str | list[str],
    batch: int,
    data: dict[str, Any],
    mode: str = "train",
    rect: bool = False,
    stride: int = 32,
    fraction: float | None = None,
) -> SafeYOLODataset:
    """Build the dataset of a split; takes the place of `ultralytics.data.build.build_yolo_dataset`.

    Args:
        args: the trainer's or validator's options.
        img_path: folder, list file or several of them: `data['train']`, for instance.
        batch: pictures a batch, for rectangular batches.
        data: what `load_dataset` returned.
        mode: 'train' augments; anything else does not.
        rect: make rectangular batches, as `args.rect` does too.
        stride: largest stride of the model, in pixels.
        fraction: part (float) or number (int) of the pictures; that of `args` when None.
    """
    train = mode == "train"
    if fraction is None:
        fraction = get_split_fraction(args.fraction, "train" if train else args.split)
    return SafeYOLODataset(
        img_path=img_path,
        imgsz=args.imgsz,
        batch_size=batch,
        augment=train,
        hyp=args,
        rect=args.rect or rect,
        cache=args.cache or None,
        single_cls=args.single_cls or False,
        stride=stride,
        pad=0.0,  # validate in the shapes that detection letterboxes to
        prefix=colorstr(f"{mode}: "),
        task=args.task,
        classes=args.classes,
        data=data,
        fraction=fraction,
    )
