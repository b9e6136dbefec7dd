"""The dataset that training and validation read: ultralytics', with our scan, and pictures that may fail.

An `.npy` file beside a picture does not stand in for it; those of `cache="disk"` are in a folder of their own.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from ultralytics.data.dataset import YOLODataset
from ultralytics.data.utils import get_split_fraction
from ultralytics.utils import LOCAL_RANK, LOGGER, IterableSimpleNamespace, colorstr
from ultralytics.utils.patches import imread

from models.errors import UserError
from utils.data.disk_cache import cached_file, make_room, write_cached
from utils.data.files import list_images
from utils.data.labels import POLYGONS_NEEDED, label_paths
from utils.data.scan import Record, Settings, cache_file, log_scan, scan
from utils.text import printable

MAX_TRIES = 100  # pictures in a row that may fail to load during training
NO_FILE = Path(os.devnull) / "none"  # a path that cannot exist


class SafeYOLODataset(YOLODataset):
    """ultralytics' dataset, with a scan that reads only, and pictures that may fail.

    Attributes:
        rejected: path and reason of each picture that is left out.
        im_files: paths of the pictures that are used.
        drawn: numbers of the pictures that an epoch shows in their place; None: each as it is.
    """

    im_files: list[str]
    drawn: list[int] | None = None

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
        self.label_files = label_paths(self.im_files)
        settings = Settings.of(self.data, self.single_cls)
        cache = cache_file(self.img_path, settings, self.fraction)
        records = scan(self.im_files, self.label_files, settings, cache, self.prefix)
        self.rejected = [(r.path, r.note) for r in records if r.state == "rejected"]
        used = [r for r in records if r.state != "rejected"]
        if LOCAL_RANK in (-1, 0):
            log_scan(records, self.label_files, self.prefix)
        if not used:
            path, reason = self.rejected[0]
            raise UserError(f"none of the {len(records)} pictures can be used: {path}: {reason}, and so on")
        if self.augment and not any(len(r.rows) for r in used):
            raise UserError(f"there is nothing to train on: the {len(used)} pictures that can be used have no objects")
        self.im_files = [r.path for r in used]
        keep_segments = self.all_have_polygons(used) or self.use_segments
        return [label_dict(r, keep_segments) for r in used]

    def set_rectangle(self) -> None:
        """Sort the pictures by shape, for rectangular batches, and keep the shapes, which anchors are fitted with."""
        shapes = {label["im_file"]: label["shape"] for label in self.labels}
        super().set_rectangle()
        for label in self.labels:
            label["shape"] = shapes[label["im_file"]]

    def all_have_polygons(self, records: list[Record]) -> bool:
        """Return whether each object has a polygon; segmentation makes do with some, and cannot do without any."""
        objects = sum(len(r.rows) for r in records)
        boxes = objects - sum(len(segment) > 0 for r in records for segment in r.segments)
        if boxes and self.use_segments:
            if boxes == objects:
                raise UserError(f"{POLYGONS_NEEDED}, but the labels of {self.img_path} are boxes only")
            LOGGER.warning(f"{self.prefix}{boxes} of {objects} objects have no polygon, their mask is their box")
        return not boxes

    def load_image(
        self, i: int, rect_mode: bool = True, resize_short: bool = False
    ) -> tuple[np.ndarray, tuple[int, int], tuple[int, int]]:
        """Return picture `i`, its size and its size after resizing; the next one stands in for one that fails."""
        for step in range(1, min(len(self.im_files), MAX_TRIES) + 1):
            self.npy_files[i] = self.pixels_of(i)  # whatever lies beside the picture
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

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return picture `index` with its labels, augmented, or the one that is shown in its place."""
        return super().__getitem__(index if self.drawn is None else self.drawn[index])

    def get_image_and_label(self, index: int) -> dict[str, Any]:
        """Return picture and labels `index`; both are another one's when the picture cannot be read any more."""
        sample = super().get_image_and_label(index)
        replaced = sample["im_file"] != self.im_files[index]  # while it was loaded, after its labels were taken
        return super().get_image_and_label(index) if replaced else sample

    def start_anew(self) -> None:
        """Forget the pictures that were loaded, as if none had been."""
        self.ims: list[np.ndarray | None] = [None] * len(self.im_files)
        self.buffer.clear()

    def pixels_of(self, i: int) -> Path:
        """Return the file that ultralytics may take the pixels of picture `i` from, as it is now."""
        return (cached_file(self.im_files[i], self.channels) if self.cache == "disk" else None) or NO_FILE

    def check_cache_disk(self, safety_margin: float = 0.1) -> bool:  # noqa: ARG002
        """Return whether there is room for the pixels of all pictures, and say how much they take."""
        sizes = [int(np.prod(label["shape"])) * self.channels for label in self.labels]
        if make_room(self.im_files, sizes, self.channels, self.prefix):
            self.npy_files = [self.pixels_of(i) for i in range(self.ni)]
            return True
        self.cache = None
        return False

    def cache_images_to_disk(self, i: int) -> None:
        """Write the pixels of picture `i` unless they are there; one that cannot be read is noticed when it is used."""
        if self.npy_files[i] is NO_FILE or self.npy_files[i].exists():
            return
        with suppress(OSError, cv2.error):
            pixels = imread(self.im_files[i], flags=self.cv2_flag)
            if pixels is not None:
                write_cached(self.npy_files[i], pixels)


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
