"""Fixtures of several tests of data sets."""

import pytest

from tests.data.folders import write_label, write_picture
from utils.data import dataset


@pytest.fixture
def private_cache(tmp_path_factory, monkeypatch):
    """Keep label caches of tests out of the user's folder."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(folder))
    return folder


@pytest.fixture
def logged(monkeypatch):
    """The lines that are logged, as a list."""
    lines = []
    for level in ("info", "warning"):
        monkeypatch.setattr(dataset.LOGGER, level, lines.append)
    return lines


@pytest.fixture
def folder(tmp_path):
    """A data set of four training pictures and two for validation, with two classes."""
    for i, name in enumerate(("train/a", "train/b", "train/c", "train/d", "val/a", "val/b")):
        write_picture(tmp_path / "set" / "images" / f"{name}.jpg", seed=i)
        write_label(tmp_path / "set", name, f"{i % 2} 0.5 0.5 0.25 0.{i + 1}\n")
    return tmp_path / "set"
