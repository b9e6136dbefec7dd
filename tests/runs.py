"""Small data sets, and trainings that are stopped on purpose."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from utils.train.trainer import Trainer

NAMES = ["a", "b"]
COLOURS = {"blue": (200, 60, 60), "green": (60, 200, 60), "red": (60, 60, 200)}  # BGR


def make_data(folder: Path, train: int = 3, **changes) -> Path:
    """Make a data set with so many pictures to train on, one object each, and return its YAML."""
    for split, count in (("train", train), ("val", 2)):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            cv2.imwrite(str(folder / f"images/{split}/{i}.png"), np.full((64, 64, 3), 90, np.uint8))
            (folder / f"labels/{split}/{i}.txt").write_text("1 0.5 0.5 0.4 0.4\n")
    file = folder / "data.yaml"
    splits = {split: f"images/{split}" for split in ("train", "val")}
    file.write_text(yaml.safe_dump({**splits, "names": NAMES, **changes}))
    return file


def make_folders(root: Path, train: int = 24, val: int = 4) -> Path:
    """Make a data set of noisy pictures in folders by their colour."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for name, colour in COLOURS.items():
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                noise = rng.integers(-40, 40, (24, 40, 3))
                cv2.imwrite(str(root / split / name / f"{i}.png"), np.clip(noise + colour, 0, 255).astype(np.uint8))
    return root


@contextmanager
def stopped(monkeypatch, event: str, epoch: int):
    """Let every training within be interrupted as by Ctrl-C, at an event of the epoch with this number, from 0."""

    def stop(trainer):
        if trainer.epoch == epoch:
            raise KeyboardInterrupt

    original = Trainer.__init__

    def with_stop(self, *args, **kwargs):
        original(self, *args, **kwargs)
        self.add_callback(event, stop)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "__init__", with_stop)
        with pytest.raises(KeyboardInterrupt):
            yield
