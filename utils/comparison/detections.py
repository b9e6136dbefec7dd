"""What a network finds in each picture of a split, and what is there: enough to measure its accuracy on any of them."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import UserError, cause
from models.files import why_no_file
from models.spec import MAX_CLASSES
from utils.data.description import load_dataset, write_data_yaml
from utils.deploy.opened import open_weights
from utils.evaluate.accuracy import VAL_CONF, VAL_IOU, VAL_MAX_DET
from utils.evaluate.validator import SIZE_KEYS, VALIDATORS
from utils.writing import remove_partials, replacing

Numbers = NDArray[np.float64]
IOUS = tuple(i / 100 for i in range(50, 100, 5))  # at which a detection may be right
ARRAYS = {"tp": "b", "conf": "f", **dict.fromkeys(("cls", "picture", "true_cls", "true_picture"), "i"), "names": "U"}
MAX_BYTES = 1 << 31  # of a file, unpacked


@dataclass(frozen=True)
class Detections:
    """What one network found in the pictures of a split, and what is there.

    Attributes:
        tp: (n, 10) whether each detection is right at the IoUs of IOUS.
        conf: (n,) scores in [0, 1].
        cls: (n,) classes.
        picture: (n,) numbers of the pictures they are in.
        true_cls: (m,) classes of the objects that are there.
        true_picture: (m,) numbers of the pictures they are in.
        names: of the pictures.
    """

    tp: NDArray[np.bool_]
    conf: Numbers
    cls: NDArray[np.int64]
    picture: NDArray[np.int64]
    true_cls: NDArray[np.int64]
    true_picture: NDArray[np.int64]
    names: list[str]

    @classmethod
    def collect(cls, stats: Mapping[str, Sequence[NDArray[np.generic]]], names: Sequence[str]) -> Detections:
        """Return what ultralytics' metrics gathered, a list with an array for each picture, under each of its names."""

        def numbers(of: str) -> NDArray[np.int64]:
            return np.repeat(np.arange(len(names)), [len(part) for part in stats[of]])

        def joined(of: str) -> NDArray[np.generic]:
            return np.concatenate([np.asarray(part) for part in stats[of]])

        tp, conf = joined("tp").astype(bool), joined("conf").astype(float)
        found, true = joined("pred_cls").astype(int), joined("target_cls").astype(int)
        return cls(tp, conf, found, numbers("conf"), true, numbers("target_cls"), list(names))

    def save(self, path: Path) -> None:
        """Write it to a .npz file."""
        with replacing(path) as file:
            np.savez_compressed(file, **{**vars(self), "names": np.array(self.names, dtype=str)})

    @classmethod
    def load(cls, path: Path) -> Detections:
        """Return what `save` wrote.

        Raises:
            UserError: the file is not there, or damaged.
        """
        if problem := why_no_file(path):
            raise UserError(f"{path} {problem}")
        try:
            with zipfile.ZipFile(path) as archive:
                if sum(entry.file_size for entry in archive.infolist()) > MAX_BYTES:
                    raise ValueError(f"it unpacks to more than {MAX_BYTES:,} bytes")
            with np.load(path, allow_pickle=False) as file:
                arrays = {key: file[key] for key in ARRAYS}
        except Exception as error:  # damaged archives and arrays make their readers fail in any way there is
            raise UserError(f"{path} is damaged: {cause(error)}") from error
        if others := [key for key, kind in ARRAYS.items() if arrays[key].dtype.kind != kind]:
            raise UserError(f"{path} is damaged: {others[0]} holds values of another type")
        found = cls(**{**arrays, "names": arrays["names"].ravel().tolist()})
        if not found.is_sound():
            raise UserError(f"{path} is damaged: its arrays do not fit each other")
        return found

    def is_sound(self) -> bool:
        """Return whether its arrays fit each other."""
        count, found, true = len(self.names), self.conf.size, self.true_cls.size
        lists = {"conf": found, "cls": found, "picture": found, "true_cls": true, "true_picture": true}
        shapes = all(getattr(self, key).shape == (length,) for key, length in lists.items())
        if not (count and shapes and self.tp.shape == (found, len(IOUS)) and np.isfinite(self.conf).all()):
            return False
        numbers = (
            (self.picture, count),
            (self.true_picture, count),
            (self.cls, MAX_CLASSES),
            (self.true_cls, MAX_CLASSES),
        )
        return all(((array >= 0) & (array < bound)).all() for array, bound in numbers)

    def sorted(self) -> Detections:
        """Return it with the detections of the highest scores first."""
        order = np.argsort(-self.conf, kind="stable")
        parts = {key: getattr(self, key)[order] for key in ("tp", "conf", "cls", "picture")}
        return Detections(**{**vars(self), **parts})

    def f1(self, conf: float = 0.25) -> Numbers:
        """Return the F1 score of each picture, at IoU 0.5: 1 where there is nothing to find and nothing found."""
        kept = self.conf >= conf
        count = len(self.names)
        right = np.bincount(self.picture[kept], weights=self.tp[kept, 0], minlength=count)
        found = np.bincount(self.picture[kept], minlength=count)
        there = np.bincount(self.true_picture, minlength=count)
        return np.where(found + there > 0, 2 * right / np.maximum(found + there, 1), 1.0)


def find_objects(path: Path, data: str, side: int, folder: Path) -> tuple[float, dict[str, float], Detections]:
    """Return the mAP50-95 in [0, 1] of a file on the val split of a data set, that of each size, and what it finds.

    Sizes are COCO's and measured by its rules; one of which there are no objects is left out.

    Args:
        path: a checkpoint or an export.
        data: the YAML of the data set.
        side: of its square pictures, in pixels.
        folder: for what ultralytics writes.
    """
    weights = open_weights(path, device="cpu")
    dataset = load_dataset(data)
    weights.name_classes(dataset["names"])
    folder.mkdir(parents=True, exist_ok=True)
    remove_partials(folder)
    write_data_yaml(dataset, folder / "data.yaml")
    options = {"mode": "val", "task": weights.task, "data": str(folder / "data.yaml"), "split": "val", "imgsz": side}
    options |= {
        "conf": VAL_CONF,
        "iou": VAL_IOU,
        "max_det": VAL_MAX_DET,
        "device": "cpu",
        "rect": False,
        "plots": False,
    }
    validator: Any = VALIDATORS[weights.task](save_dir=folder, args=options)
    kept: dict[str, list[Any]] = {}  # ultralytics empties its own lists at the end
    validator.add_callback("on_val_batch_end", lambda now: kept.update({k: [*v] for k, v in now.metrics.stats.items()}))
    found = validator(model=weights.network)
    sizes = {size: float(found[key]) for size, key in SIZE_KEYS.items() if key in found}
    return float(found["metrics/mAP50-95(B)"]), sizes, Detections.collect(kept, validator.dataloader.dataset.im_files)
