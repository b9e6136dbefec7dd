"""The files that detect.py writes: pictures, videos, labels, crops and a table. A write that fails is an error.

Nothing here trusts a name (see utils/detect/names.py), and file names may hold any bytes. Nothing is written through a
link: what has the name of an output file is replaced, not what it links to.
"""

from __future__ import annotations

import csv
import errno
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from ultralytics.engine.results import Results
from ultralytics.utils.plotting import save_one_box

from models.errors import UserError
from utils.detect.frame import Frame
from utils.detect.names import extend, relative_path, safe_cell, safe_name
from utils.text import printable

JPEG_SIDE = 65500  # pixels; a JPEG cannot be wider or higher
CSV_HEADER = ("file", "frame", "class", "confidence", "x1", "y1", "x2", "y2", "track")


@dataclass(frozen=True)
class Wanted:
    """Which files a run writes, and how."""

    pictures: bool = True
    labels: bool = False
    crops: bool = False
    table: bool = False
    confidence: bool = False  # a sixth column in the labels
    corners: bool = False  # labels as x1 y1 x2 y2, not as centre, width and height, or as the outlines of masks
    line_width: int | None = None  # pixels; None goes with the size of the picture
    draw_names: bool = True
    draw_confidence: bool = True
    features: bool = False  # written by utils/detect/feature_maps.py into the same folder

    @property
    def anything(self) -> bool:
        """Whether there is a file to write at all."""
        return self.pictures or self.labels or self.crops or self.table or self.features


class Writers:
    """The files of one run; a context manager that finishes the videos and the table.

    Files of an earlier run in the same folder are replaced, never appended to.

    Attributes:
        label_files: how many label files were written.
    """

    def __init__(self, folder: Path, wanted: Wanted) -> None:
        self.folder = folder
        self.wanted = wanted
        self.label_files = 0
        self._names = CropNames()
        self._videos: dict[str, Video] = {}
        self._table: Table | None = None

    def __enter__(self) -> Writers:
        if self.wanted.table:
            self._table = Table(self.folder / "predictions.csv")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self._finish_videos()
        finally:
            if self._table:
                self._table.close()

    def save(self, frame: Frame, result: Results) -> None:
        """Write what is wanted of one frame. `result` holds its boxes as numpy arrays."""
        stem = frame.output_name
        if self.wanted.pictures:
            image = draw(result, self.wanted)
            if frame.number is None:
                write_image(self.folder / f"{stem}{'.png' if max(image.shape) > JPEG_SIDE else '.jpg'}", image)
            else:
                self._video(frame, stem).write(image)
        if frame.number is not None:
            stem = extend(stem, f"_{frame.number}")
        if self.wanted.labels:
            self._write_labels(self.folder / "labels" / f"{stem}.txt", result)
        if self.wanted.crops:
            self._write_crops(frame, stem, result)
        if self._table:
            self._table.add(frame, result)

    def _video(self, frame: Frame, stem: str) -> Video:
        """Return the video that a frame belongs to; files come one after the other, streams side by side."""
        if stem not in self._videos:
            if not frame.live:
                self._finish_videos()
            size = frame.image.shape[1::-1]
            self._videos[stem] = Video(self.folder, f"{stem}.mp4", frame.fps, size)
        return self._videos[stem]

    def _finish_videos(self) -> None:
        while self._videos:
            self._videos.popitem()[1].close()

    def _write_labels(self, path: Path, result: Results) -> None:
        lines = label_lines(result, self.wanted.confidence, self.wanted.corners)
        if not lines:
            path.unlink(missing_ok=True)  # an earlier run may have seen something
            return
        write_bytes(path, "".join(f"{line}\n" for line in lines).encode())
        self.label_files += 1

    def _write_crops(self, frame: Frame, stem: str, result: Results) -> None:
        for box, label in zip(result.boxes.xyxy, result.boxes.cls, strict=True):
            crop = save_one_box(box, result.orig_img, BGR=True, save=False)
            folder = self.folder / "crops" / safe_name(result.names[int(label)])
            self._write_crop(folder, frame, stem, crop)

    def _write_crop(self, folder: Path, frame: Frame, stem: str, crop: np.ndarray) -> None:  # noqa: ARG002
        path = self._names.take(folder, stem)
        if crop.size:
            write_image(path, crop)


class CropNames:
    """Paths for crops, of which no two are alike."""

    def __init__(self) -> None:
        self._taken: set[Path] = set()

    def take(self, folder: Path, stem: str) -> Path:
        """Return the first path in `folder` that is free: stem.jpg, stem2.jpg and so on."""
        path, n = folder / f"{stem}.jpg", 1
        while path in self._taken:
            n += 1
            path = folder / f"{extend(stem, str(n))}.jpg"
        self._taken.add(path)
        return path


# One kind of file each ------------------------------------------------------------------------------------------------
class Video:
    """An MP4 that takes its final name only when every frame is in it."""

    def __init__(self, folder: Path, name: str, fps: float, size: tuple[int, int]) -> None:
        self.final = folder / name
        self.partial = folder / f".{uuid.uuid4().hex}.mp4"  # OpenCV ends the process over a name that is not UTF-8
        self.size = size  # width, height
        self.frames = 0
        self.writer = cv2.VideoWriter(str(self.partial), cv2.VideoWriter.fourcc(*"mp4v"), fps, size)
        if not self.writer.isOpened():
            raise UserError(f"the video {self.final} cannot be written")

    def write(self, image: np.ndarray) -> None:
        """Append a frame of (H, W, 3) uint8 in BGR."""
        self.writer.write(image if image.shape[1::-1] == self.size else cv2.resize(image, self.size))
        self.frames += 1

    def close(self) -> None:
        """Finish the file; OSError when it holds fewer frames than were written, as on a full disk."""
        self.writer.release()
        check = cv2.VideoCapture(str(self.partial))
        complete = check.isOpened() and int(check.get(cv2.CAP_PROP_FRAME_COUNT)) >= self.frames
        check.release()
        if not complete:
            self.partial.unlink(missing_ok=True)
            raise OSError(errno.ENOSPC, "the video came out incomplete, is the disk full?", str(self.final))
        with naming(self.final):
            self.partial.replace(self.final)


class Table:
    """predictions.csv: a row for each box, or for each of the five most probable classes, without corners.

    Its columns are the file, relative to the current folder where it lies below that, the number of the frame (empty
    for a picture), the class, the confidence, the corners in pixels and the number of an object that is followed.
    """

    header: tuple[str, ...] = CSV_HEADER

    def __init__(self, path: Path) -> None:
        self.path = path
        with naming(path):
            path.unlink(missing_ok=True)
            self.file = path.open("x", newline="", encoding="utf-8", errors="surrogateescape")
        self.rows = csv.writer(self.file, lineterminator="\n")
        if self.header:
            self.rows.writerow(self.header)

    def add(self, frame: Frame, result: Results) -> None:
        """Append the boxes of one picture."""
        start = self.start_of_row(frame)
        with naming(self.path):
            for label, confidence, corners, track in table_rows(result):
                kind = safe_cell(printable(result.names[label]))
                self.rows.writerow((*start, kind, f"{confidence:g}", *corners, track))

    def start_of_row(self, frame: Frame) -> tuple[object, ...]:
        """Return the cells that all rows of a frame begin with."""
        return (safe_cell(frame.path.name if frame.live else relative_path(frame.path)), frame.number)

    def close(self) -> None:
        """Write what is left."""
        with naming(self.path):
            self.file.close()


def table_rows(result: Results) -> Iterator[tuple[int, float, Sequence[str], int | str]]:
    """Yield class, confidence, corners and number in the row of a table, of each thing that was found."""
    if result.probs is not None:
        yield from ((kind, confidence, [""] * 4, "") for kind, confidence in most_probable(result))
        return
    boxes = result.boxes
    for kind, confidence, corners, track in zip(boxes.cls, boxes.conf, boxes.xyxy, track_numbers(result), strict=True):
        yield int(kind), confidence, [f"{x:.2f}" for x in corners], track


def draw(result: Results, wanted: Wanted) -> np.ndarray:
    """Return the picture with its boxes and masks, as (H, W, 3) uint8 in BGR."""
    fitting = max(round(0.0015 * sum(result.orig_shape)), 1)  # 3 for a photograph of 1080x810, 1 for a thumbnail
    return result.plot(
        line_width=wanted.line_width or fitting,
        labels=wanted.draw_names,
        conf=wanted.draw_names and wanted.draw_confidence,
    )


def label_lines(result: Results, confidence: bool = False, corners: bool = False) -> list[str]:
    """Return a line for each object, as fractions of the picture.

    `class cx cy w h [confidence]`, with `corners` `class x1 y1 x2 y2 [confidence]`; for masks their outlines,
    `class x1 y1 x2 y2 x3 y3 … [confidence]`. Objects that are followed have their number at the end. Of a classifier
    each of the five most probable classes has a line, `probability name`, as ultralytics writes them.
    """
    if result.probs is not None:
        return [f"{confidence:.2f} {printable(result.names[kind])}" for kind, confidence in most_probable(result)]
    boxes = result.boxes
    places = boxes.xyxyn if corners else outlines(result) if result.masks is not None else boxes.xywhn
    ends = boxes.conf[:, None] if confidence else np.empty((len(boxes), 0))
    if boxes.is_track:
        ends = np.concatenate([ends, boxes.id[:, None]], 1)
    rows = ((kind, *place, *end) for kind, place, end in zip(boxes.cls, places, ends, strict=True))
    return [" ".join(f"{x:g}" for x in row) for row in rows]


def most_probable(result: Results) -> list[tuple[int, float]]:
    """Return the five most probable classes of a picture, by number, with their probabilities."""
    return [(kind, float(result.probs.data[kind])) for kind in result.probs.top5]


def track_numbers(result: Results) -> list[int | str]:
    """Return the number of each object that is followed, or nothing for each."""
    return list(map(int, result.boxes.id)) if result.boxes.is_track else [""] * len(result.boxes)


def outlines(result: Results) -> list[np.ndarray]:
    """Return x1 y1 x2 y2 … around each mask; around the box where a mask is too small to have three points."""
    corners = result.boxes.xyxyn[:, [0, 1, 2, 1, 2, 3, 0, 3]]
    polygons = (polygon.ravel() for polygon in result.masks.xyn)
    return [p if len(p) >= 6 else box for p, box in zip(polygons, corners, strict=True)]


def write_image(path: Path, image: np.ndarray) -> None:
    """Encode (H, W, 3) uint8 in BGR by the suffix of `path` and write it; the name may hold any bytes."""
    ok, data = cv2.imencode(path.suffix, image)
    if not ok:
        raise UserError(f"the picture {path} of {image.shape[1]}x{image.shape[0]} pixels cannot be encoded")
    write_bytes(path, data.tobytes())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file, and its folder if need be; leave nothing half-written, and what was there until then."""
    partial = path.with_name(f".{uuid.uuid4().hex}")
    with naming(path):
        path.parent.mkdir(exist_ok=True, parents=True)
        try:
            partial.write_bytes(data)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the path into an OSError, which a full disk leaves out."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
