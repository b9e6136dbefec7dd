"""export.py --data from end to end: a trained network, its files, their errors and mAP on the built-in data."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import onnx
import pytest
import yaml
from helpers import TINY_BACKBONE, tiny, write
from onnx import numpy_helper

import export as script
import train
import utils.export
import val
from utils import cli
from utils.shapes import NAMES, Recipe, ensure_shapes

ROOT = Path(script.__file__).parent
TINY = tiny(backbone=TINY_BACKBONE, width_multiple=1.0)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a small set of shapes and a network that was trained on it for a short while."""
    folder = tmp_path_factory.mktemp("trained")
    ensure_shapes(folder / "shapes", Recipe(side=96, train=48, val=24, test=4, film_side=64, film_frames=2))
    splits = {split: f"images/{split}" for split in ("train", "val", "test")}
    described = {"path": str(folder / "shapes"), **splits, "names": list(NAMES)}
    (folder / "data.yaml").write_text(yaml.safe_dump(described))
    cfg = write(folder, TINY, "tiny.yaml")
    options = {"epochs": 12, "imgsz": 96, "batch_size": 8, "project": folder / "runs", "name": "a"}
    train.run(cfg=cfg, data=folder / "data.yaml", **options)
    return folder


def report_of(folder, name="best.export.json"):
    return json.loads((folder / name).read_text(encoding="utf-8"))


def test_every_file_is_as_good_as_the_model(trained, tmp_path):
    best = trained / "runs/a/weights/best.pt"
    words = [
        "--weights",
        best,
        "--data",
        trained / "data.yaml",
        "--output",
        tmp_path,
        "--include",
        "torchscript",
        "onnx",
    ]
    done = subprocess.run(
        [sys.executable, ROOT / "export.py", *map(str, words)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "On 24 pictures of" in done.stdout
    measured = val.run(weights=best, data=trained / "data.yaml", project=tmp_path, name="val")
    for entry in report_of(tmp_path)["formats"].values():
        found = entry["survey"]
        assert found["pictures"] == 24
        assert (
            0 < found["box_error_px"]["median"] <= found["box_error_px"]["p99"] <= found["box_error_px"]["max"] < 0.01
        )
        assert found["detections"]["matched"] == found["detections"]["reference"]
        assert found["accuracy"]["unfused"]["map"] == pytest.approx(measured["metrics/mAP50-95(B)"], abs=2e-3)
        assert found["accuracy"]["this"]["map"] > 0.01, "a network that finds nothing would prove nothing"
        assert abs(found["accuracy"]["drop_points"]) < 0.1
    picture = cv2.imread(str(tmp_path / "best.export.jpg"))
    assert picture.shape[1] > 2 * 600


def test_a_file_that_is_wrong_is_refused_and_its_row_named(trained, tmp_path, monkeypatch, caplog):
    original = utils.export.write

    def spoil(deploy, path, options):
        written = original(deploy, path, options)
        graph = onnx.load(path)
        (weight,) = (tensor for tensor in graph.graph.initializer if tensor.name == "model.2.cv3.conv.weight")
        weight.CopyFrom(numpy_helper.from_array(1.5 * numpy_helper.to_array(weight), weight.name))
        onnx.save(graph, path)
        return written

    monkeypatch.setattr(utils.export, "write", spoil)
    words = ["--weights", trained / "runs/a/weights/best.pt", "--include", "onnx", "--output", tmp_path]
    words += ["--data", trained / "data.yaml"]
    assert cli.run_script(script.main, script.make_parser(), list(map(str, words))) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.export-failed.jpg", "best.export-failed.json"]
    found = report_of(tmp_path, "best.export-failed.json")["formats"]["onnx"]["divergence"]
    assert (found["by"], found["row"], found["word"], found["module"]) == ("file", 2, "C3", "model.2.cv3.conv")
    assert found["text"] in caplog.text
