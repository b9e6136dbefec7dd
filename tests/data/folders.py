"""Data sets of a few random pictures, as files and as the trainer reads them."""

import hashlib
from pathlib import Path

import cv2
import numpy as np
import yaml
from ultralytics.cfg import get_cfg

from utils.data.dataset import build_dataset
from utils.data.description import load_dataset


def write_picture(path: Path, height: int = 48, width: int = 64, seed: int = 0) -> Path:
    """Write a random picture whose format follows the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    assert cv2.imwrite(str(path), pixels)
    return path


def write_label(folder: Path, name: str, text: str) -> None:
    """Write the label file of a picture."""
    path = folder / "labels" / f"{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def write_yaml(folder: Path, **changes: object) -> Path:
    """Write the YAML of the data set in `folder`; a change to None leaves the key away."""
    described = {"path": ".", "train": "images/train", "val": "images/val", "names": {0: "cat", 1: "dog"}} | changes
    file = folder / "pets.yaml"
    file.write_text(yaml.safe_dump({k: v for k, v in described.items() if v is not None}, allow_unicode=True))
    return file


def options(**changes: object) -> object:
    """The trainer's options, at 64 pixels and without workers."""
    return get_cfg(overrides={"imgsz": 64, "task": "detect", "workers": 0} | changes)


def build(folder: Path, split: str = "train", mode: str = "train", **changes: object):
    """Build the dataset of one split."""
    data = load_dataset(write_yaml(folder))
    return build_dataset(options(**changes), data[split], 2, data, mode=mode)


def digest(folder: Path) -> str:
    """Return a hash over names, contents and times below `folder`."""
    parts = [
        f"{path} {path.lstat().st_mtime_ns}".encode() + (path.read_bytes() if path.is_file() else b"")
        for path in sorted(folder.rglob("*"))
    ]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()
