"""export.py from the options to the files: what is written is proven, and what is not proven is not written."""

import copy
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import export as script
import utils.deploy.write
import utils.export.pipeline
from models import DetectionModel, switch_to_deploy
from models.errors import UserError
from tests.exporting import command, names_in, report_in
from tests.helpers import random_model, save, tiny, write
from utils.checkpoint import load_checkpoint
from utils.data.samples import make_pictures
from utils.deploy.formats import DEFAULT_FORMATS
from utils.deploy.fresh import fresh_model
from utils.deploy.write import ExportError
from utils.evaluate.accuracy import Accuracy
from utils.export import Options, export
from utils.export.report import to_json
from utils.prove.at_scale import compare_at_scale
from utils.prove.report import Proof

# isort: split
from ultralytics import YOLO
from ultralytics.nn.autobackend import AutoBackend
from ultralytics.utils import ASSETS

ROOT = Path(script.__file__).parent
STRICT = {"box": 1e-3, "score": 1e-5}  # what we promise; the tolerance of the proof is ten times that


@pytest.fixture(scope="module")
def default(model, tmp_path_factory):
    """The folder of a checkpoint and of what an export without options leaves there; the tests leave it as it is."""
    best = save(model, tmp_path_factory.mktemp("default") / "best.pt")
    assert command("--weights", best) == 0
    return best.parent


# What is written ------------------------------------------------------------------------------------------------------
def test_files_and_report(default, model):
    folder = default
    assert names_in(folder) == ["best.export.json", "best.onnx", "best.pt", "best.torchscript"]
    report = report_in(folder)
    assert report["ok"] is True
    assert (report["weights"], report["cfg"], report["imgsz"]) == ("best.pt", "model YAML", [64, 64])
    deploy = switch_to_deploy(model)
    assert report["fused"] == {"Conv+BN": deploy.report.fused["Conv+BN"], "DFL": 1, "left": []}
    assert report["params"]["train"] == sum(p.numel() for p in model.parameters())
    assert report["params"]["deploy"] == sum(p.numel() for p in deploy.parameters()) < report["params"]["train"]
    assert report["tolerance"] == {"box_px": 0.01, "score": 1e-4, "mask": 1e-3}
    assert report["latency"]["threads"] == torch.get_num_threads()
    for name, entry in report["formats"].items():
        assert entry["file"] == f"best.{name}"
        assert entry["bytes"] == (folder / entry["file"]).stat().st_size
        assert len(entry["sha256"]) == 64
        assert entry["ok"] is True
        assert entry["max_box_error_px"] <= STRICT["box"]
        assert entry["max_score_error"] <= STRICT["score"]
        assert entry["detections"]["matched"] == entry["detections"]["reference"] > 0
        assert entry["detections"]["min_iou"] >= 0.999
        assert set(entry["latency_ms"]) == set(entry["latency_min_ms"]) == {"unfused", "fused", "this"}
        shapes = {(case["file"], *case["size"]) for case in entry["cases"]}
        assert shapes == {(entry["file"], 64, 64), ("temporary", 64, 48)}
        assert {"bus.jpg", "noise"} <= {case["picture"] for case in entry["cases"]}
    assert report["formats"]["onnx"]["opset"] == 17


@pytest.mark.slow
def test_exporting_again_gives_the_same_files(default, tmp_path):
    first = {path.name: path.read_bytes() for path in default.iterdir()}
    again = shutil.copytree(default, tmp_path / "again")
    assert command("--weights", again / "best.pt") == 0
    assert names_in(again) == sorted(first)
    for name in ("best.onnx", "best.pt"):  # TorchScript counts the networks that a process has written
        assert (again / name).read_bytes() == first[name]


@pytest.mark.slow
def test_metadata_as_ultralytics_reads_it(best, model):
    assert command("--weights", best, "--imgsz", 96, 64) == 0
    images = make_pictures((96, 64))["bus.jpg"][None]
    expected = model(images)[0]
    for name in DEFAULT_FORMATS:
        backend = AutoBackend(best.with_suffix(f".{name}"))
        assert backend.names == {0: "cat", 1: "it's"}
        assert (backend.stride, backend.imgsz, backend.task, backend.batch) == (8, [96, 64], "detect", 1)
        assert not backend.dynamic
        torch.testing.assert_close(torch.as_tensor(backend(images)), expected, atol=1e-3, rtol=1e-5)


def test_yolo_of_ultralytics_runs_the_files(default):
    for name in DEFAULT_FORMATS:
        network = YOLO(default / f"best.{name}", task="detect")
        (result,) = network.predict(ASSETS / "bus.jpg", imgsz=64, conf=0.1, verbose=False, save=False)
        assert result.names == {0: "cat", 1: "it's"}
        assert len(result.boxes)


@pytest.mark.slow
def test_dynamic_files_take_other_sizes_and_batches(best, model):
    assert command("--weights", best, "--dynamic") == 0
    images = torch.stack([make_pictures((40, 72))[name] for name in ("bus.jpg", "noise", "zidane.jpg")])
    expected = model(images)[0]
    for name in DEFAULT_FORMATS:
        backend = AutoBackend(best.with_suffix(f".{name}"))
        assert backend.dynamic
        torch.testing.assert_close(torch.as_tensor(backend(images)), expected, atol=1e-3, rtol=1e-5)
        shapes = {
            (case["file"], case["batch"], *case["size"]) for case in report_in(best.parent)["formats"][name]["cases"]
        }
        assert shapes == {(f"best.{name}", *shape) for shape in ((1, 64, 64), (1, 64, 48), (2, 32, 48))}
    graph = onnx.load(best.with_suffix(".onnx")).graph
    sides = [side.dim_param for side in graph.input[0].type.tensor_type.shape.dim]
    assert (graph.input[0].name, graph.output[0].name) == ("images", "output0")
    assert sides == ["batch", "", "height", "width"]


@pytest.mark.slow
@pytest.mark.parametrize("opset", [11, 13, 18, 20])
def test_opset_is_read_back_from_the_file(best, opset):
    assert command("--weights", best, "--include", "onnx", "--opset", opset) == 0
    assert names_in(best.parent) == ["best.export.json", "best.onnx", "best.pt"]
    assert onnx.load(best.with_suffix(".onnx")).opset_import[0].version == opset
    assert report_in(best.parent)["formats"]["onnx"]["opset"] == opset


@pytest.mark.slow
def test_simplified(default, best):
    before = len(onnx.load(default / "best.onnx").graph.node)
    assert command("--weights", best, "--include", "onnx", "--simplify") == 0
    assert len(onnx.load(best.with_suffix(".onnx")).graph.node) < before
    assert report_in(best.parent)["ok"] is True


@pytest.mark.slow
def test_batches(best):
    assert command("--weights", best, "--batch-size", 3) == 0
    report = report_in(best.parent)
    assert report["batch"] == 3
    assert {case["batch"] for entry in report["formats"].values() for case in entry["cases"]} == {3}


@pytest.mark.slow
@pytest.mark.parametrize("fuse", [True, False])
def test_without_fusing_the_branches_stay(model, tmp_path, fuse):
    report = export(model, tmp_path, "best", "best.pt", Options(size=(64, 64), fuse=fuse))
    assert report.ok
    traced = torch.jit.load(tmp_path / "best.torchscript")
    norms = [m for m in traced.modules() if m.original_name == "BatchNorm2d"]
    assert len(norms) == (0 if fuse else switch_to_deploy(model).report.fused["Conv+BN"])
    written = report_in(tmp_path)
    assert json.loads(to_json(report)) == written, "the report says the same after the files have moved"
    assert (written["params"]["deploy"] == written["params"]["train"]) is not fuse
    assert written["fused"]["left"] == ([] if fuse else ["everything: not fused, as --no-fuse asks"])


@pytest.mark.slow
def test_the_model_is_left_as_it_is(model, tmp_path):
    before = copy.deepcopy(model.state_dict())
    assert export(model, tmp_path, "best", "best.pt", Options(size=(64, 64))).ok
    assert not model.is_fused()
    assert all(before[name].equal(value) for name, value in model.state_dict().items())


@pytest.mark.slow
def test_proven_on_pictures_of_a_data_set(best, tmp_path):
    images = tmp_path / "set/images"
    images.mkdir(parents=True)
    (images / "a.jpg").write_bytes(b"broken")
    for name in ("b", "c", "d"):
        (images / f"{name}.jpg").write_bytes((ASSETS / "bus.jpg").read_bytes())
    data = write(tmp_path, {"path": str(tmp_path / "set"), "train": "images", "val": "images", "names": ["cat", "dog"]})
    assert command("--weights", best, "--include", "onnx", "--data", data) == 0
    entry = report_in(best.parent)["formats"]["onnx"]
    assert {case["picture"] for case in entry["cases"]} == {"b.jpg", "c.jpg", "noise", "checkerboard"}
    assert entry["survey"]["pictures"] == 3
    assert "accuracy" not in entry["survey"], "there are no labels"
    assert (best.parent / "best.export.jpg").is_file()


@pytest.mark.slow
def test_a_success_on_few_pictures_keeps_no_picture_of_an_earlier_one(best):
    assert command("--weights", best, "--include", "onnx", "--source", ASSETS / "bus.jpg") == 0
    assert names_in(best.parent) == ["best.export.jpg", "best.export.json", "best.onnx", "best.pt"]
    assert command("--weights", best, "--include", "onnx") == 0
    assert names_in(best.parent) == ["best.export.json", "best.onnx", "best.pt"]


# What is refused ------------------------------------------------------------------------------------------------------
def corrupt(monkeypatch):
    """Let fusing get one weight of one convolution wrong."""

    def fuse(self, **_):
        deploy = switch_to_deploy(self)
        convolution = next(m for m in deploy.modules() if isinstance(m, nn.Conv2d))
        with torch.no_grad():
            convolution.weight.view(-1)[0] += 0.05
        return deploy

    monkeypatch.setattr(DetectionModel, "fuse", fuse)


def test_one_corrupted_weight_is_refused(best, monkeypatch, caplog):
    corrupt(monkeypatch)
    assert command("--weights", best) == 1
    assert names_in(best.parent) == ["best.export-failed.jpg", "best.export-failed.json", "best.pt"]
    assert "✗ bus.jpg: boxes differ by" in caplog.text
    assert "allowed are 0.01" in caplog.text
    assert "fusing changes the model: row 0 Conv is the first that differs" in caplog.text
    assert "best.export-failed.json" in caplog.text
    report = json.loads((best.parent / "best.export-failed.json").read_text(encoding="utf-8"))
    assert report["ok"] is False
    assert {entry["divergence"]["row"] for entry in report["formats"].values()} == {0}


def test_what_differs_on_many_pictures_only_is_refused(best, monkeypatch, caplog):
    def lossy(*args):
        found = compare_at_scale(*args)
        for each in found.values():
            each.unfused, each.accuracy = Accuracy(0.9, 0.8), Accuracy(0.9, 0.79)
        return found

    monkeypatch.setattr("utils.export.pipeline.compare_at_scale", lossy)
    assert command("--weights", best, "--include", "onnx", "--source", ASSETS) == 1
    assert names_in(best.parent) == ["best.export-failed.jpg", "best.export-failed.json", "best.pt"]
    assert "✗ the mAP50-95 drops by 1.000 points, allowed are 0.1" in caplog.text


@pytest.mark.slow
def test_an_older_export_stays_when_the_new_one_is_refused(default, tmp_path, monkeypatch):
    best = shutil.copytree(default, tmp_path / "older") / "best.pt"
    before = {path.name: path.read_bytes() for path in best.parent.iterdir()}
    corrupt(monkeypatch)
    assert command("--weights", best) == 1
    after = {path.name: path.read_bytes() for path in best.parent.iterdir()}
    assert after.keys() - before.keys() == {"best.export-failed.jpg", "best.export-failed.json"}
    assert {name: after[name] for name in before} == before
    monkeypatch.undo()
    assert command("--weights", best) == 0
    assert names_in(best.parent) == sorted(before), "what tells of the failure goes with the next success"


def test_one_format_that_disagrees_refuses_all(model, tmp_path, monkeypatch):
    prove = utils.export.pipeline.prove

    def fail(reference, deploy, path, options):
        return prove(reference, deploy, path, options) if path.suffix == ".onnx" else Proof()

    monkeypatch.setattr("utils.export.pipeline.prove", fail)
    report = export(model, tmp_path / "out", "best", "best.pt", Options(size=(64, 64)))
    assert not report.ok
    assert report.files == []
    assert names_in(tmp_path / "out") == ["best.export-failed.jpg", "best.export-failed.json"]


def test_a_model_that_cannot_be_traced_is_one_sentence(model, tmp_path):
    broken = copy.deepcopy(model)
    broken.model[0].act = Moody()
    with pytest.raises(ExportError, match="TorchScript cannot be written for this model"):
        export(broken, tmp_path / "out", "best", "best.pt", Options(size=(64, 64)))
    assert names_in(tmp_path / "out") == []


class Moody(nn.Module):
    """An activation that refuses to be traced."""

    def forward(self, x):
        if torch.jit.is_tracing():
            raise RuntimeError("not while you are watching")
        return x


@pytest.mark.parametrize("limit", [100_000, 4_000_000])
def test_a_full_disk_leaves_nothing(best, limit, capsys):
    before = best.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))  # as a full disk, an error of the write itself
    try:
        code = command("--weights", best)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 2
    assert capsys.readouterr().err == f"ERROR: cannot write {best.parent}: {os.strerror(27)}\n"
    assert names_in(best.parent) == ["best.pt"]
    assert best.read_bytes() == before


def test_a_disk_that_fills_up_in_between_leaves_nothing(best, monkeypatch):
    monkeypatch.setattr("utils.deploy.write.reserve", lambda *_: None)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        code = command("--weights", best, "--include", "onnx")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 2
    assert names_in(best.parent) == ["best.pt"]


def test_names_that_are_not_utf8_are_refused_before_anything_is_written(best, tmp_path, capsys):
    folder = tmp_path / "folder\udcff"
    assert command("--weights", best, "--output", folder) == 2
    assert "what is not UTF-8" in capsys.readouterr().err
    assert not folder.exists()


@pytest.mark.parametrize("output", ["file", "file/below", "/proc/export"])
def test_a_folder_that_cannot_be_written(best, output, capsys):
    (best.parent / "file").write_text("")
    assert command("--weights", best, "--output", best.parent / output) == 2
    assert "cannot be written to: " in capsys.readouterr().err
    assert names_in(best.parent) == ["best.pt", "file"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(best, capsys):
    best.parent.chmod(0o500)
    try:
        assert command("--weights", best) == 2
    finally:
        best.parent.chmod(0o700)
    assert "cannot be written to" in capsys.readouterr().err
    assert names_in(best.parent) == ["best.pt"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--include", "onxn"], "there is no format 'onxn' (did you mean 'onnx'?), choose of torchscript, onnx"),
        (["--opset", "5"], "--opset goes from 11 to 20, not 5"),
        (["--half"], "TorchScript in float16 needs a GPU: name it with --device, for instance 0"),
        (["--weights", "nowhere.pt"], "the weights file nowhere.pt does not exist"),
        (["--cfg", "yolov5n.yaml", "--weights", "best.pt"], "give --weights, or --cfg"),
        (["--cfg", "yolov5m.yml.yaml"], "no model YAML 'yolov5m.yml.yaml', neither as a path nor in"),
        (["--imgsz", "64", "64", "64"], "--imgsz takes one side or height and width"),
        (["--source", "nowhere"], "the source nowhere does not exist"),
        (["--pictures", "-1"], "expected a whole number"),
        (["--data", "shapes.yaml"], "the weights know 2 classes and 3 channels, shapes.yaml has 4 and 3"),
        (["--data", "nothing.yaml"], "there is no file nothing.yaml"),
        (["--batch-size", "0"], "expected a whole number of at least 1"),
        (["--simplfy"], "there is no option --simplfy (did you mean '--simplify'?)"),
        ([], "there are no weights in runs/train/*/weights/best.pt: train first"),
    ],
)
def test_wrong_options_are_one_sentence(words, message, tmp_path, monkeypatch, capsys, best):
    monkeypatch.chdir(tmp_path)
    given = ["--weights", str(best)] if words and not {"--weights", "--cfg"} & set(words) else []
    assert command(*given, *words) == 2
    told = capsys.readouterr().err
    assert told.startswith("ERROR: ")
    assert message in told
    assert told.count("\n") == 1
    assert names_in(best.parent) == ["best.pt"]


@pytest.mark.slow
def test_from_python(best):
    assert script.run(weights=best, include=["onnx"], imgsz=[64, 96], fuse=False) == 0
    assert report_in(best.parent)["imgsz"] == [64, 96]
    with pytest.raises(UserError, match="there is no format"):
        script.run(weights=best, include=["pdf"])


# Fresh weights --------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_fresh_weights_of_a_yaml(tmp_path):
    cfg = write(tmp_path, tiny(), "small.yaml")
    assert command("--cfg", cfg, "--output", tmp_path / "out", "--imgsz", 64) == 0
    assert names_in(tmp_path / "out") == ["small.export.json", "small.onnx", "small.torchscript"]
    assert report_in(tmp_path / "out", "small")["weights"] == "small.yaml"


@pytest.mark.slow
def test_fresh_weights_of_a_network_of_another_library(tmp_path):
    assert command("--cfg", "timm:test_resnet", "--output", tmp_path, "--imgsz", 64, "--include", "onnx") == 0
    assert names_in(tmp_path) == ["timm-test_resnet.export.json", "timm-test_resnet.onnx"]
    assert report_in(tmp_path, "timm-test_resnet")["cfg"] == "timm-test_resnet.yaml"


def test_fresh_weights_are_the_same_each_time_and_leave_the_random_numbers_alone():
    state = torch.get_rng_state()
    first, second = fresh_model(tiny()), fresh_model(tiny())
    assert torch.get_rng_state().equal(state)
    assert all(second.state_dict()[name].equal(value) for name, value in first.state_dict().items())
    assert not first.training
    assert all(m.momentum is not None for m in first.modules() if isinstance(m, nn.BatchNorm2d))


# As a command ---------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_one_corrupted_weight_of_riformer_is_refused(tmp_path, monkeypatch):
    best = save(random_model("riformer-yolo.yaml"), tmp_path / "best.pt")
    corrupt(monkeypatch)
    assert command("--weights", best, "--imgsz", 64) == 1
    assert names_in(tmp_path) == ["best.export-failed.jpg", "best.export-failed.json", "best.pt"]


@pytest.mark.slow
def test_newest_training_as_a_command(model, tmp_path):
    best = save(model, tmp_path / "runs/train/exp/weights/best.pt")
    done = subprocess.run(
        [sys.executable, ROOT / "export.py", "--fuse"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "using the newest: runs/train/exp/weights/best.pt" in done.stdout
    assert "ONNX: export success ✅" in done.stdout
    assert done.stderr == ""
    assert names_in(best.parent) == ["best.export.json", "best.onnx", "best.pt", "best.torchscript"]
    assert np.isfinite(load_checkpoint(best).state_dict()["model.0.conv.weight"].numpy()).all()
