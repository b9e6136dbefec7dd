"""export.py --data from end to end: the files of a network, their errors and their mAP on labelled pictures."""

import json

import cv2
import onnx
import pytest
import torch
from onnx import numpy_helper

import export as script
import utils.export.pipeline
import val
from models import create_model
from tests.helpers import randomize_, tiny, write
from utils import cli
from utils.checkpoint import pack_model, save_checkpoint
from utils.data.samples import load_picture, make_pictures
from utils.data.shapes import NAMES, Recipe, ensure_shapes
from utils.deploy.fresh import calibrate_batch_norms
from utils.prove.compare import detections
from utils.prove.reference import run_eager

# isort: split
from ultralytics.utils.ops import xyxy2xywhn

SIZE = (96, 96)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint, best.pt, and data.yaml: pictures of shapes, labelled with what the unfused network sees in them."""
    place = tmp_path_factory.mktemp("scale")
    ensure_shapes(place / "shapes", Recipe(side=96, train=4, val=24, test=4, film_side=64, film_frames=2))
    splits = {split: f"images/{split}" for split in ("train", "val", "test")}
    write(place, {"path": str(place / "shapes"), **splits, "names": list(NAMES)}, "data.yaml")
    model = randomize_(create_model(tiny(nc=len(NAMES))))
    calibrate_batch_norms(model, torch.stack(list(make_pictures(SIZE).values())))
    model.names, model.imgsz = dict(enumerate(NAMES)), SIZE[0]
    save_checkpoint({**pack_model(model), "ema": model.state_dict()}, place / "best.pt")
    for picture in (place / "shapes/images/val").iterdir():
        output = run_eager(model, load_picture(picture, SIZE)[None])[0]
        (found,) = detections(output, len(NAMES), False, max_det=5)
        boxes = xyxy2xywhn(found[:, :4], *SIZE, clip=True)
        rows = [
            f"{int(kind)} {' '.join(f'{x:.6f}' for x in box)}" for kind, box in zip(found[:, 5], boxes, strict=True)
        ]
        (place / "shapes/labels/val" / f"{picture.stem}.txt").write_text("\n".join(rows))
    return place


def report_of(folder, name="best.export.json"):
    return json.loads((folder / name).read_text(encoding="utf-8"))


def test_every_file_is_as_good_as_the_model(folder, tmp_path, caplog):
    best = folder / "best.pt"
    words = [
        "--weights",
        best,
        "--data",
        folder / "data.yaml",
        "--output",
        tmp_path,
        "--include",
        "torchscript",
        "onnx",
    ]
    with caplog.at_level("INFO", logger="ultralytics"):
        assert cli.run_script(script.main, script.make_parser(), list(map(str, words))) == 0
    assert "On 24 pictures of" in caplog.text
    measured = val.run(weights=best, data=folder / "data.yaml", project=tmp_path, name="val")
    for entry in report_of(tmp_path)["formats"].values():
        found = entry["survey"]
        assert found["pictures"] == 24
        assert (
            0 < found["box_error_px"]["median"] <= found["box_error_px"]["p99"] <= found["box_error_px"]["max"] < 0.01
        )
        assert found["detections"]["matched"] == found["detections"]["reference"]
        assert found["accuracy"]["unfused"]["map"] == pytest.approx(measured["metrics/mAP50-95(B)"], abs=2e-3)
        assert found["accuracy"]["this"]["map50"] > 0.2, "a network that finds nothing would prove nothing"
        assert abs(found["accuracy"]["drop_points"]) < 0.1
    picture = cv2.imread(str(tmp_path / "best.export.jpg"))
    assert picture.shape[1] > 2 * 600


def test_a_file_that_is_wrong_is_refused_and_its_row_named(folder, tmp_path, monkeypatch, caplog):
    original = utils.export.pipeline.write

    def spoil(deploy, path, options):
        written = original(deploy, path, options)
        graph = onnx.load(path)
        (weight,) = (tensor for tensor in graph.graph.initializer if tensor.name == "model.2.cv3.conv.weight")
        weight.CopyFrom(numpy_helper.from_array(1.5 * numpy_helper.to_array(weight), weight.name))
        onnx.save(graph, path)
        return written

    monkeypatch.setattr("utils.export.pipeline.write", spoil)
    words = ["--weights", folder / "best.pt", "--include", "onnx", "--output", tmp_path]
    words += ["--data", folder / "data.yaml"]
    assert cli.run_script(script.main, script.make_parser(), list(map(str, words))) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.export-failed.jpg", "best.export-failed.json"]
    found = report_of(tmp_path, "best.export-failed.json")["formats"]["onnx"]["divergence"]
    assert (found["by"], found["row"], found["word"], found["module"]) == ("file", 2, "C3", "model.2.cv3.conv")
    assert found["text"] in caplog.text
