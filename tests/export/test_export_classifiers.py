"""Classifiers as files: written in every format that runs here, compared by their probabilities, read by val.py."""

import json
import re

import onnx
import pytest
import torch

import val
from models import create_model
from tests.exporting import command, names_in, report_in, sides_of
from tests.helpers import random_model, save, tell_apart_, tiny
from tests.runs import make_folders
from utils.data.samples import make_pictures
from utils.deploy.run import load_runner
from utils.deploy.write import WriteOptions
from utils.deploy.write import write as write_file
from utils.export import pipeline
from utils.prove.classes import measure_classes
from utils.prove.compare import Tolerance

TINY = tiny(nc=3, head=[[-1, 1, "Classify", ["nc"]]])
HERE = {"torchscript": None, "onnx": None, "openvino": None, "ncnn": "ncnn", "mnn": "MNN"}  # format: its package


def make_classifier(seed=0):
    """Return a classifier that takes the photographs for different classes."""
    model = random_model(TINY, seed)
    model.imgsz = 32
    return tell_apart_(model, torch.stack(list(make_pictures((32, 32)).values())))


@pytest.fixture(scope="module")
def best(tmp_path_factory):
    return save(make_classifier(), tmp_path_factory.mktemp("classifier") / "best.pt")


@pytest.mark.parametrize("name", HERE)
def test_a_file_gives_the_probabilities_of_the_model(name, best, tmp_path):
    if HERE[name]:
        pytest.importorskip(HERE[name])
    assert command("--weights", best, "--output", tmp_path, "--include", name) == 0
    found = report_in(tmp_path)["formats"][name]
    assert found["max_score_error"] < 1e-4
    assert found["detections"]["reference"] == found["detections"]["matched"] > 4
    place = next(path for path in tmp_path.iterdir() if path.name == found["file"])
    images = make_pictures((32, 32))["noise"][None]
    (got,) = load_runner(place)(images)
    with torch.no_grad():
        want = make_classifier()(images)[0]
    assert got.shape == (1, 3)
    assert torch.allclose(got, want, atol=1e-4)


def test_sides_that_are_free_have_names(best, tmp_path):
    assert command("--weights", best, "--output", tmp_path, "--include", "onnx", "--dynamic") == 0
    graph = onnx.load(tmp_path / "best.onnx").graph
    assert sides_of(graph.input) == {"images": ["batch", 3, "height", "width"]}
    assert sides_of(graph.output) == {"output0": ["batch", 3]}


@pytest.mark.parametrize("words", [["--half"], ["--dynamic", "batch", "--preprocess", "bgr"]], ids=" ".join)
def test_other_forms_of_onnx_are_proven(words, best, tmp_path):
    assert command("--weights", best, "--output", tmp_path, "--include", "onnx", *words) == 0


def test_a_file_of_another_classifier_is_refused(best, tmp_path, monkeypatch, caplog):
    def write_other(deploy, path, options):
        return write_file(make_classifier(seed=1).fuse(), path, options)

    monkeypatch.setattr(pipeline, "write", write_other)
    assert command("--weights", best, "--output", tmp_path, "--include", "torchscript") == 1
    assert names_in(tmp_path) == ["best.export-failed.json"]
    assert not json.loads((tmp_path / "best.export-failed.json").read_text())["ok"]
    assert "the files disagree with the model" in caplog.text


def test_what_is_for_boxes_is_refused(best, tmp_path, capsys):
    assert command("--weights", best, "--output", tmp_path, "--include", "onnx", "--nms") == 2
    assert "a classifier has no boxes" in capsys.readouterr().err


def test_an_exported_classifier_is_as_accurate_as_its_weights(best, tmp_path, caplog):
    data = make_folders(tmp_path / "colours", train=1, val=3)
    assert command("--weights", best, "--output", tmp_path, "--data", data, "--include", "onnx") == 0
    proven = report_in(tmp_path)["formats"]["onnx"]["survey"]
    assert proven["pictures"] == 9
    assert proven["accuracy"]["unfused"] == proven["accuracy"]["this"]
    assert re.search(r"same classes .* top-1 +top-5", caplog.text)
    options = {"data": data, "project": tmp_path / "val", "workers": 0}
    found = [val.run(weights=weights, **options) for weights in (best, tmp_path / "best.onnx")]
    assert found[0] == found[1]
    names = {"top1": "metrics/accuracy_top1", "top5": "metrics/accuracy_top5"}
    assert {key: found[0][name] for key, name in names.items()} == pytest.approx(proven["accuracy"]["this"])


def test_int8_is_calibrated_on_class_folders_and_judged_by_top1(best, tmp_path, caplog, capsys):
    words = ["--weights", best, "--output", tmp_path, "--include", "onnx", "--int8"]
    data = make_folders(tmp_path / "colours", train=2, val=3)
    assert command(*words, "--data", data, "--max-drop", 100) == 0
    found = report_in(tmp_path)["int8"]["onnx"]
    assert found["calibration_pictures"] == 6
    assert all(0 <= point["top1"] <= point["top5"] == 100 for point in found["curve"])
    assert found["share"]["operations"] > 0.9
    assert "The worst layers in float, top-1 in points" in caplog.text
    assert load_runner(tmp_path / "best-int8.onnx")(torch.rand(1, 3, 32, 32))[0].shape == (1, 3)
    assert command(*words, "--data", data, "--imgsz", 32, 64) == 2
    assert "--int8 is judged by top-1, on square pictures" in capsys.readouterr().err


def test_probabilities_are_compared_one_by_one():
    sure, tie = torch.tensor([[0.9, 0.1, 0.0]]), torch.tensor([[0.4, 0.4 - 1e-6, 0.2 + 1e-6]])
    other = torch.tensor([[0.1, 0.9, 0.0]])
    swapped = tie[:, [1, 0, 2]]
    same, _ = measure_classes((sure,), (sure + 1e-5,), Tolerance())
    assert same.within(Tolerance())
    assert (same.reference, same.matched) == (1, 1)
    wrong, errors = measure_classes((sure,), (other,), Tolerance())
    assert not wrong.within(Tolerance())
    assert (wrong.wrong, len(errors.score)) == (1, 3)
    undecidable, _ = measure_classes((tie,), (swapped,), Tolerance())
    assert undecidable.within(Tolerance())
    assert (undecidable.matched, undecidable.undecidable, undecidable.wrong) == (0, 1, 0)
    assert "puts out (1, 3)" in measure_classes((sure[:, :2],), (sure,), Tolerance())[0].problem


def test_a_file_is_written_for_every_family(tmp_path):
    deploy = create_model("riformer-cls.yaml", nc=3).eval().fuse()
    written = write_file(deploy, tmp_path / "x.onnx", WriteOptions(size=(64, 96)))
    assert load_runner(written.path)(torch.rand(1, 3, 64, 96))[0].shape == (1, 3)
