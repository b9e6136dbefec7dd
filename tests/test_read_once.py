"""Each file that a command is given is opened once."""

from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
import yaml

import detect
import export
import train
import val
from models import create_model
from tests.helpers import save, tiny
from tests.networks import NAMES, Disc, write_export
from tests.runs import stopped
from utils.checkpoint import file as checkpoint_file
from utils.comparison import train_ultralytics
from utils.train import trainer
from utils.train.run import resumed_run
from utils.train.trainer import Trainer


@pytest.fixture
def opened(monkeypatch):
    """Count by its name how often a file is read as YAML, as weights, or into a runtime."""
    count = Counter()

    def record(owner, name):
        original = getattr(owner, name)

        def wrapper(*args, **kwargs):
            count[Path(args[1] if owner is onnxruntime.InferenceSession else args[0]).name] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, wrapper)

    for owner, name in ((Path, "read_text"), (Path, "read_bytes"), (torch, "load"), (torch.jit, "load")):
        record(owner, name)
    record(onnxruntime.InferenceSession, "__init__")
    return count


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The YAML of a data set of four pictures."""
    folder = tmp_path_factory.mktemp("data")
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for name in "ab":
            cv2.imwrite(str(folder / f"images/{split}/{name}.png"), np.full((64, 96, 3), 90, np.uint8))
            (folder / f"labels/{split}/{name}.txt").write_text("1 0.5 0.5 0.4 0.4\n")
    file = folder / "few.yaml"
    splits = {split: f"images/{split}" for split in ("train", "val")}
    file.write_text(yaml.safe_dump({**splits, "names": list(NAMES.values())}))
    return file


def options(data, tmp_path, **changes):
    (tmp_path / "net.yaml").write_text(yaml.safe_dump(tiny(nc=3)))
    own = {"cfg": tmp_path / "net.yaml", "data": data, "epochs": 2, "imgsz": 64, "batch_size": 2, "noplots": True}
    return {**own, "project": tmp_path, **changes}


def test_a_new_training(data, tmp_path, opened):
    weights = save(create_model(tiny(nc=3)), tmp_path / "start.pt")
    args = train.make_parser().from_keywords(**options(data, tmp_path, weights=weights))
    Trainer(train.new_run(args))._setup_train()
    assert (opened["net.yaml"], opened["start.pt"], opened["few.yaml"]) == (1, 1, 1)


@pytest.mark.slow
def test_a_resumed_training(data, tmp_path, opened, monkeypatch):
    with stopped(monkeypatch, "on_train_epoch_start", epoch=1):
        train.run(**options(data, tmp_path))
    opened.clear()
    checked = []
    for module in (checkpoint_file, trainer):
        monkeypatch.setattr(module, "check_tensors", lambda state, network, field: checked.append(field))
    Trainer(resumed_run(tmp_path / "exp/weights/last.pt"))._setup_train()
    assert (opened["last.pt"], opened["args.yaml"], opened["few.yaml"]) == (1, 1, 1)
    assert sorted(checked) == ["ema", "model"]


def test_a_training_by_ultralytics(data, tmp_path, opened, monkeypatch):
    given = []

    class NoTrainer:
        def __init__(self, content, data, options):
            given.append(content)

        def train(self):
            pass

    monkeypatch.setattr(train_ultralytics, "TRAINERS", {"detect": NoTrainer})
    train_ultralytics.run(cfg="yolo11n", data=data, imgsz=64, project=tmp_path)
    assert (opened["yolo11.yaml"], opened["few.yaml"]) == (1, 1)
    assert (given[0]["yaml_file"], given[0]["scale"]) == ("yolo11n.yaml", "n")


def test_a_yaml_that_is_exported_knows_its_file(tmp_path, opened):
    file = tmp_path / "net.yaml"
    file.write_text(yaml.safe_dump(tiny()))
    model, path, _ = export.load_model(export.make_parser().from_keywords(cfg=file, output=tmp_path))
    assert (path, model.spec.file, opened["net.yaml"]) == (file, file, 1)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["onnx", "torchscript"])
def test_an_exported_file(data, tmp_path, opened, suffix):
    weights = write_export(tmp_path, Disc(masks=False), suffix)
    opened.clear()
    detect.run(weights=weights, source=data.parent / "images/val", project=tmp_path / "detect")
    times = 2 if suffix == "torchscript" else 1  # once more for the SHA-256 of a program
    assert opened[weights.name] == times
    val.run(weights=weights, data=data, project=tmp_path / "val")
    assert opened[weights.name] == 2 * times


@pytest.mark.slow
def test_a_checkpoint(data, tmp_path, opened):
    weights = save(create_model(tiny(nc=3)), tmp_path / "best.pt")
    detect.run(weights=weights, source=data.parent / "images/val", imgsz=64, project=tmp_path / "detect")
    assert opened["best.pt"] == 1
    val.run(weights=weights, data=data, imgsz=64, project=tmp_path / "val")
    assert opened["best.pt"] == 2
