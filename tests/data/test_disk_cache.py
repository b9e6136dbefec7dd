"""Decoded pictures on disk: beside no data set, right when a picture changes, and with their size said."""

from __future__ import annotations

import os
import shutil
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from ultralytics.cfg import get_cfg

from tests.runs import COLOURS, make_data, make_folders
from utils.data import disk_cache
from utils.data.classes import ClassFolders
from utils.data.dataset import build_dataset
from utils.data.description import load_dataset


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """Return the user's own folder of pictures."""
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path / "own"))
    return tmp_path / "own/pictures"


def build(file, mode: str = "val"):
    data = load_dataset(file)
    args = get_cfg(overrides={"cache": "disk", "task": "detect", "imgsz": 64})
    return build_dataset(args, data["train"], 2, data, mode=mode)


def paint(path, value: int) -> None:
    """Give a picture another content with the size and the time of its file as before, so far as a tool may."""
    before = path.stat()
    cv2.imwrite(str(path), np.full((64, 64, 3), value, np.uint8))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns - 10**9))  # older than the copy


def test_pixels_come_from_the_users_folder_and_are_written_once(tmp_path, place, log):
    file = make_data(tmp_path / "ds")
    for path in (tmp_path / "ds").rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    build(file)
    assert any(f"3 pictures take 0.04 MB in {place}, 0.04 MB of it new" in line for line in log)
    names = sorted(path.name for path in place.iterdir())
    assert len(names) == 3
    assert not list((tmp_path / "ds").rglob("*.npy"))
    for path in place.iterdir():
        np.save(path, np.full((64, 64, 3), 7, np.uint8))
    again = build(file)
    assert (again.load_image(0)[0] == 7).all(), "the copy is read"
    assert any("0.04 MB in" in line and ", 0.00 MB of it new" in line for line in log)
    assert sorted(path.name for path in place.iterdir()) == names


def test_a_picture_that_has_changed_is_read_anew_even_to_an_older_one(tmp_path, place):
    file = make_data(tmp_path / "ds")
    dataset = build(file)
    picture = tmp_path / "ds/images/train/0.png"
    assert (dataset.load_image(0)[0] == 90).all()
    paint(picture, 20)
    assert (dataset.load_image(0)[0] == 20).all(), "while it is used"
    assert (build(file).load_image(0)[0] == 20).all(), "and from the next run on"
    assert len(list(place.iterdir())) == 3, "the former copy is gone"


def test_a_damaged_copy_and_a_disk_without_room_only_cost_time(tmp_path, place, log, monkeypatch):
    file = make_data(tmp_path / "ds")
    dataset = build(file)
    dataset.npy_files[0].write_bytes(b"\x93NUMPY")
    assert (dataset.load_image(0)[0] == 90).all()
    shutil.rmtree(place)
    monkeypatch.setattr(disk_cache.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    dataset = build(file)
    assert (dataset.load_image(0)[0] == 90).all()
    assert not list(place.iterdir())
    assert any("0.00 MB are free: they are not cached" in line for line in log)


def test_pictures_of_class_folders_are_kept_as_well(tmp_path, place):
    root = make_folders(tmp_path / "ds", train=2, val=1)
    args = get_cfg(overrides={"cache": "disk", "task": "classify", "imgsz": 32})
    names = dict(enumerate(sorted(COLOURS)))
    folders = ClassFolders(str(root / "train"), args, augment=False, prefix="train", names=names)
    first = [folders[i]["img"] for i in range(len(folders))]
    assert len(list(place.iterdir())) == len(folders) == 6
    assert not list(root.rglob("*.npy"))
    assert all((folders[i]["img"] == first[i]).all() for i in range(6))
