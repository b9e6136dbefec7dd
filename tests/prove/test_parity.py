"""The parity table: every model in every format, and that it shows what is wrong."""

import copy
import itertools
import json

import pytest
import torch
from torch import nn

from models import DetectionModel, switch_to_deploy
from models.summary import count_parameters
from tests.helpers import DETECTORS, LARGE, tiny, write
from utils import cli, parity
from utils.data.samples import make_pictures
from utils.deploy.fresh import random_model, sizes_for
from utils.parity import Variant, measure_model
from utils.prove.compare import Difference
from utils.prove.reference import Reference

VARIANTS = [Variant("torchscript", False), Variant("onnx", False), Variant("onnx", True)]


def command(*words):
    """Run it as the command line does and return the exit code."""
    return cli.run_script(parity.main, parity.make_parser(), list(map(str, words)))


@pytest.fixture
def cfg(tmp_path):
    return write(tmp_path, tiny(), "small.yaml")


@pytest.mark.slow
def test_table_and_files(cfg, tmp_path, caplog):
    assert command("--cfg", cfg, "--include", "torchscript", "onnx", "--project", tmp_path / "runs") == 0
    assert "TorchScript static" in caplog.text
    assert f"Results saved to {tmp_path}/runs/exp: parity.md and parity.json" in caplog.text
    lines = (tmp_path / "runs/exp/parity.md").read_text().splitlines()
    assert lines[0].startswith(
        "| model | parameters | float32 itself | TorchScript static | ONNX static | ONNX dynamic"
    )
    assert lines[2].startswith("| small | 0.1 M |")
    assert "✗" not in lines[2]
    content = json.loads((tmp_path / "runs/exp/parity.json").read_text())
    assert content["ok"] is True
    columns = content["models"][0]["columns"]
    shapes = {name: {(*case["size"], case["batch"]) for case in column["cases"]} for name, column in columns.items()}
    sizes = sizes_for(DetectionModel(tiny()))
    assert len(sizes) == 3
    assert shapes["ONNX dynamic"] == {(*size, batch) for size in sizes for batch in (1, 3)}
    assert shapes["ONNX static"] == shapes["TorchScript static"] == {(*sizes[0], 1), (*sizes[2], 3)}
    assert all(column["within_bounds"] for column in columns.values())
    assert columns["ONNX dynamic"]["detections"]["min_iou"] >= 0.999


def test_plugins_are_loaded(cfg, tmp_path, capsys):
    assert command("--cfg", cfg, "--plugins", tmp_path / "gone.py", "--project", tmp_path / "runs") == 2
    assert "gone.py" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_one_wrong_weight_shows(cfg, tmp_path, monkeypatch, caplog):
    def fuse(self, **_):
        deploy = switch_to_deploy(self)
        with torch.no_grad():
            next(m for m in deploy.modules() if isinstance(m, nn.Conv2d)).weight.view(-1)[0] += 1e-3
        return deploy

    monkeypatch.setattr(DetectionModel, "fuse", fuse)
    assert command("--cfg", cfg, "--include", "onnx", "--project", tmp_path / "runs") == 1
    assert "✗" in caplog.text
    assert json.loads((tmp_path / "runs/exp/parity.json").read_text())["ok"] is False


@pytest.mark.slow
def test_more_than_the_bounds_is_marked_by_what_float32_does_itself(cfg):
    row = measure_model(cfg, VARIANTS[1:2])
    (title,) = row.cases
    case = copy.copy(row.cases[title][0])
    object.__setattr__(case, "difference", Difference(3e-3, 1e-6, 0.0, reference=2, matched=2))
    row.cases = {title: [case]}
    marks = []
    for own in (1e-4, 1e-3):
        row.rounding = Difference(own, 0.0)
        marks.append((row.is_met(title), row.ok, parity.parity_table([row], VARIANTS[1:2])[-1]))
    assert marks == [(False, False, "✗"), (False, True, "≈")]


def test_a_format_that_cannot_be_written_is_told(cfg, tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise parity.ExportError("ONNX cannot be written for this model: no")

    monkeypatch.setattr(parity, "write", refuse)
    assert command("--cfg", cfg, "--include", "onnx", "--project", tmp_path / "runs") == 1
    assert "ONNX cannot be written for this model: no" in caplog.text


@pytest.mark.parametrize(("format", "batches"), [("ncnn", [1, 1]), ("mnn", [1, 3])])
def test_files_are_written_for_no_more_pictures_than_they_take(format, batches):
    files = list(Variant(format, False).files(DetectionModel(tiny())))
    assert [options.batch for options, _ in files] == batches
    assert [batch for _, shapes in files for _, batch in shapes] == batches


def test_wrong_names_are_one_sentence(tmp_path, capsys):
    assert command("--cfg", "nothing.yaml", "--project", tmp_path / "runs") == 2
    assert command("--cfg", "yolov5n", "ultralytics:nothing", "--project", tmp_path / "runs") == 2
    assert command("--include", "pdf", "--project", tmp_path / "runs") == 2
    assert capsys.readouterr().err.count("ERROR: ") == 3
    assert not (tmp_path / "runs").exists()


def test_random_models_are_the_same_each_time_and_look_at_the_picture():
    first, second = random_model(tiny()), random_model(tiny())
    assert all(second.state_dict()[name].equal(value) for name, value in first.state_dict().items())
    assert not random_model(tiny(), seed=1).state_dict()["model.0.conv.weight"].equal(first.model[0].conv.weight)
    pictures = torch.stack(list(make_pictures((32, 32)).values()))
    with torch.no_grad():
        assert first(pictures)[0][:, :4].std(0).max() > 0.05


@pytest.mark.slow
@pytest.mark.parametrize(("cfg", "static"), zip(DETECTORS, itertools.cycle(VARIANTS[:2])))
def test_every_model(cfg, static, monkeypatch):
    """Each model in one of the static forms, in turn, and unless it is large in the dynamic one."""
    model = random_model(cfg)
    reference = Reference(model)
    monkeypatch.setattr(parity, "random_model", lambda *_: model)  # the same again, and what it puts out
    monkeypatch.setattr(parity, "Reference", lambda _: reference)
    variants = [static, VARIANTS[2]] if count_parameters(model) <= LARGE else [static]
    row = measure_model(cfg, variants)
    assert len(row.cases) == len(variants)
    assert row.ok, parity.parity_table([row], variants)
    seen = {case.difference.sees_something for cases in row.cases.values() for case in cases}
    assert seen == {True}, "a comparison without detections proves less"
    outputs = torch.cat([output[0] for _, _, output in reference.batches(sizes_for(model)[0], 1)])
    assert outputs[:, :4].std(0).max() > 0.05, "the boxes must depend on the picture, or this proves nothing"
