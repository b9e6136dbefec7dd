"""val.py on exported files: which size, which names, which data set."""

import json
import shutil

import cv2
import numpy as np
import pytest
import yaml
from ultralytics.utils.metrics import ConfusionMatrix

import export
import val
from models import create_model
from models.errors import UserError
from tests.helpers import save, tiny
from tests.networks import NAMES, Disc, write_export
from utils.evaluate.coco import find_package
from utils.evaluate.validator import Validator


@pytest.fixture
def data(tmp_path):
    """The YAML of a data set whose pictures hold what `Disc` finds."""
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    cv2.imwrite(str(tmp_path / "images/a.png"), np.full((96, 96, 3), 90, np.uint8))
    (tmp_path / "labels/a.txt").write_text("1 0.5 0.5 0.75 0.75\n")
    file = tmp_path / "few.yaml"
    file.write_text(yaml.safe_dump({"train": "images", "val": "images", "names": list(NAMES.values())}))
    return file


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["onnx", "torchscript"])
def test_a_file_without_names_takes_those_of_the_data_set(data, tmp_path, suffix, log):
    network = Disc(height=96, masks=False)
    network.metadata = {}
    weights = write_export(tmp_path, network, suffix)
    metrics = val.run(weights=weights, data=data, imgsz=96, project=tmp_path / "val", coco_json=True)
    assert metrics["metrics/mAP50(B)"] > 0.9
    assert metrics["metrics/mAP_medium(B)"] > 0.5  # of its 72x72 pixels
    assert not {"metrics/mAP_small(B)", "metrics/mAP_large(B)"} & metrics.keys()
    assert json.loads((tmp_path / "val/exp/predictions.json").read_text())[0]["image_id"] == "a"
    if find_package():
        assert metrics["coco/APm"] == pytest.approx(metrics["metrics/mAP_medium(B)"], abs=1e-6)
    else:
        assert any("--coco-json writes predictions.json, but COCO's own code is not installed" in line for line in log)
    assert any(line.split()[:1] == [NAMES[1]] for line in log)


@pytest.mark.slow
@pytest.mark.parametrize("imgsz", [96, [96]])
def test_one_side_in_the_metadata(data, tmp_path, imgsz):
    weights = write_export(tmp_path, Disc(height=96, masks=False), "onnx", imgsz=imgsz)
    assert val.run(weights=weights, data=data, project=tmp_path / "val")["metrics/mAP50(B)"] > 0.9


@pytest.mark.slow
def test_free_shapes_are_measured_at_the_size_of_the_export(data, tmp_path, monkeypatch):
    weights = save(create_model(tiny(nc=3)), tmp_path / "best.pt")
    assert export.run(weights=weights, include=["onnx"], dynamic=True, imgsz=64) == 0
    shapes = []
    preprocess = Validator.preprocess

    def record(self, batch):
        shapes.append(tuple(batch["img"].shape[1:]))
        return preprocess(self, batch)

    monkeypatch.setattr(Validator, "preprocess", record)
    val.run(weights=weights.with_suffix(".onnx"), data=data, project=tmp_path / "val")
    assert max(shapes[0]) == 64


@pytest.mark.slow
def test_the_data_set_is_that_of_the_training(data, tmp_path, monkeypatch):
    """Not the built-in one, whose classes may be as many."""
    weights = save(create_model(tiny(nc=3)), tmp_path / "run/weights/best.pt")
    described = yaml.safe_load(data.read_text()) | {"path": str(tmp_path)}
    (tmp_path / "run/data.yaml").write_text(yaml.safe_dump(described))
    val.run(weights=weights, imgsz=64, project=tmp_path / "val")
    kept = yaml.safe_load((tmp_path / "val/exp/data.yaml").read_text())
    assert kept["val"] == str(tmp_path / "images")


@pytest.mark.slow
def test_plots_of_very_many_classes_are_left_out(data, tmp_path, monkeypatch, log):
    monkeypatch.setattr("utils.evaluate.validator.MOST_PLOTTED", 2)
    val.run(weights=save(create_model(tiny(nc=3)), tmp_path / "best.pt"), data=data, imgsz=64, project=tmp_path / "val")
    assert [path.name for path in (tmp_path / "val/exp").glob("*")] == ["data.yaml"]
    assert any("nothing is plotted: a confusion matrix of 3 classes" in line for line in log)


def test_the_data_set_is_never_written_into(data, tmp_path):
    weights = save(create_model(tiny(nc=len(NAMES))), tmp_path / "weights/best.pt")
    before = data.read_text()
    with pytest.raises(UserError, match="lies in the folder of the results"):
        val.run(weights=weights, data=data, project=tmp_path.parent, name=tmp_path.name, exist_ok=True, save_txt=True)
    assert data.read_text() == before and not (tmp_path / "data.yaml").exists()


@pytest.mark.parametrize("kind", ["labels", "label", "lists", "labels led to", "label led to", "another split"])
def test_files_of_the_data_set_are_never_in_the_folder_of_results(data, tmp_path, kind):
    results, labels = tmp_path / "val/exp", tmp_path / "labels"
    (results / "labels").mkdir(parents=True)
    described = yaml.safe_load(data.read_text()) | {"path": str(tmp_path)}
    if kind == "labels":
        (labels / "a.txt").rename(results / "labels/a.txt")
        labels.rmdir()
        labels.symlink_to(results / "labels")
    elif kind == "another split":
        shutil.copytree(tmp_path / "images", tmp_path / "train/images")
        (tmp_path / "train/labels").symlink_to(results / "labels")
        described["train"] = "train/images"
    elif kind == "label":
        (labels / "a.txt").rename(results / "labels/a.txt")
        (labels / "a.txt").symlink_to(results / "labels/a.txt")
    elif kind == "lists":
        (results / "val.txt").write_text(f"{tmp_path / 'images/a.png'}\n")
        described["val"] = [str(results / "val.txt")]
    elif kind == "labels led to":
        (results / "labels").rmdir()
        (results / "labels").symlink_to(labels)
    else:
        (results / "labels/a.txt").symlink_to(labels / "a.txt")
    data.write_text(yaml.safe_dump(described))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    weights = save(create_model(tiny(nc=len(NAMES))), tmp_path / "weights/best.pt")
    with pytest.raises(UserError, match="lies in the folder of the results"):
        val.run(weights=weights, data=data, project=tmp_path / "val", exist_ok=True, save_txt=True)
    assert {path: path.read_bytes() for path in before} == before


def test_a_dollar_in_a_class_name_is_no_formula(tmp_path):
    matrix = ConfusionMatrix({0: "$\\frac{$ 5", 1: "b"})
    matrix.plot(save_dir=tmp_path)
    assert (tmp_path / "confusion_matrix_normalized.png").stat().st_size > 1000
