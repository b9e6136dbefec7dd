"""Checkpoints of YOLOv5 and ultralytics become ours: the same network, and nothing of the file is run."""

import copy
import subprocess
import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn
from ultralytics.nn import tasks
from ultralytics.nn.modules import head as heads

import detect
import export
import train
import val
from models import create_model
from models.errors import UserError, WeightsError
from tests.checkpoint.yolov5 import ANCHORED, save_as_yolov5
from tests.helpers import randomize_, relative_error, tiny
from utils import cli, convert
from utils.checkpoint import load_checkpoint, read_checkpoint

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def picture():
    """A real picture, (1, 3, 128, 96), RGB in [0, 1]."""
    pixels = cv2.resize(cv2.imread(str(ROOT / "data/images/bus.jpg")), (96, 128))
    return torch.from_numpy(pixels[:, :, ::-1].copy()).permute(2, 0, 1)[None].float() / 255


# ultralytics ----------------------------------------------------------------------------------------------------------
def ultralytics_model(name, **changes):
    """Return an ultralytics model with random statistics, rounded to what its half precision checkpoint holds."""
    cfg = {**tasks.yaml_model_load(name), **changes}
    kinds = {"seg": tasks.SegmentationModel, "cls": tasks.ClassificationModel}
    kind = next((kinds[part] for part in Path(name).stem.split("-") if part in kinds), tasks.DetectionModel)
    return randomize_(kind(cfg, nc=5, verbose=False)).half().float().eval()


def save_as_ultralytics(model, path, **content):
    model = copy.deepcopy(model).half()
    model.names = {i: f"name {i}" for i in range(5)}
    model.args = {"imgsz": 320, "task": "detect"}
    torch.save({"epoch": -1, "best_fitness": np.float64(0.5), "model": None, "ema": model, **content}, path)
    return path


def predict(model, x):
    """Return what a model predicts, with prototypes if it has them."""
    with torch.no_grad():
        output = model(x)[0]
    return output if isinstance(output, tuple) else (output,)


ULTRALYTICS = ["yolov5n.yaml", "yolov8n.yaml", "yolo11n.yaml", "yolo26n.yaml", "yolov8n-seg.yaml", "yolo11n-cls.yaml"]
MORE = {
    f"{name}.yaml": {} for name in "yolov9t yolov10n yolov8n-p2 yolov8n-p6 yolov5n-p6 yolov8n-ghost yolov6n".split()
}
MORE |= {f"{name}.yaml": {} for name in "yolov6n yolo11n-seg yolo26n-p2 yolov3-tiny yolo26n-seg yolov8n-cls".split()}
MORE |= {"yolo26n-cls.yaml": {}}
MORE |= {  # the rules for large models, at small widths
    "yolov8s.yaml": {"scales": {"s": [0.33, 0.25, 1024]}, "scale": "s", "activation": "nn.LeakyReLU(0.1)"},
    "yolo11m.yaml": {"scales": {"m": [0.5, 0.25, 512]}, "scale": "m"},
    "yolo12l.yaml": {"scales": {"l": [0.5, 0.25, 512]}, "scale": "l"},
    "yolo26x.yaml": {"scales": {"x": [1.0, 0.25, 512]}, "scale": "x"},
    "yolov8x-seg.yaml": {"scales": {"x": [1.0, 0.25, 512]}, "scale": "x"},
}


def assert_same_network(name, changes, picture, tmp_path):
    theirs = ultralytics_model(name, **changes)
    ours = load_checkpoint(convert.run(save_as_ultralytics(theirs, tmp_path / "theirs.pt")))
    theirs.model[-1].end2end = ours.end2end  # which their predictor sets
    picture = picture if max(ours.stride) < 64 else picture.repeat(1, 1, 1, 2)[..., :128]
    pairs = list(zip(predict(theirs, picture), predict(ours, picture), strict=True))
    assert all(relative_error(b.double(), a.double()) < 1e-6 for a, b in pairs)
    assert (ours.names[3], ours.nc, ours.imgsz) == ("name 3", 5, 320)


@pytest.mark.slow
@pytest.mark.parametrize("name", ULTRALYTICS)
def test_an_ultralytics_model_predicts_the_same(name, picture, tmp_path):
    assert_same_network(name, {}, picture, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_more_ultralytics_models_predict_the_same(name, picture, tmp_path):
    assert_same_network(name, MORE[name], picture, tmp_path)


def test_the_head_is_the_one_of_the_file_whatever_ultralytics_built_last(tmp_path):
    file = save_as_ultralytics(ultralytics_model("yolo11n.yaml"), tmp_path / "yolo11n.pt")
    ultralytics_model("yolov8n.yaml")
    assert heads.Detect.legacy, "ultralytics marks its class, not its model"
    convert.run(file)


@pytest.mark.parametrize(
    ("kind", "name", "head"),
    [
        (tasks.PoseModel, "yolov8n-pose.yaml", "Pose"),
        (tasks.OBBModel, "yolov8n-obb.yaml", "OBB"),
    ],
)
def test_a_head_that_there_is_not_here_is_named(kind, name, head, tmp_path):
    torch.save({"model": kind(name, nc=5, verbose=False), "ema": None}, tmp_path / "a.pt")
    with pytest.raises(WeightsError, match=f"whose head is {head}, of which there are Classify, Detect, IAuxDetect"):
        convert.run(tmp_path / "a.pt")


def test_a_row_that_there_is_not_here_is_named(tmp_path):
    rows = [[-1, 1, "Conv", [16, 3, 2]], [-1, 1, "nn.Dropout2d", [0.1]], [-1, 1, "Conv", [16, 3, 2]]]
    cfg = {"nc": 5, "backbone": rows, "head": [[[1, 2], 1, "Detect", ["nc"]]], "yaml_file": "mine.yaml"}
    torch.save({"model": tasks.DetectionModel(cfg, verbose=False), "ema": None}, tmp_path / "a.pt")
    with pytest.raises(WeightsError, match=r"cannot be built here: mine.yaml, row 1 .*nn.Dropout2d"):
        convert.run(tmp_path / "a.pt")


# YOLOv5 ---------------------------------------------------------------------------------------------------------------
def test_a_yolov5_model_predicts_the_same(yolov5, picture):
    theirs, file = yolov5
    ours = load_checkpoint(convert.run(file))
    assert relative_error(predict(ours, picture)[0].double(), predict(theirs, picture)[0].double()) < 1e-6
    assert (ours.names[1], ours.imgsz, ours.spec.name) == ("name 1", 320, "yolov5t.yaml")
    assert ours.spec.anchors == ((15, 19.5, 24, 45), (90, 135, 165, 105))


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source")
@pytest.mark.parametrize("options", [{"key": "model"}, {"_use_new_zipfile_serialization": False}], ids=str)
def test_other_forms_of_yolov5_files_are_read(yolov5, options, tmp_path, monkeypatch):
    model, file = yolov5
    other = save_as_yolov5(model, tmp_path / "other.pt", monkeypatch, **options)
    first, second = (read_checkpoint(convert.run(path))["ema"] for path in (file, other))
    assert all(torch.equal(first[name], second[name]) for name in first.keys() | second.keys())


def test_a_yolov5_segmenter_predicts_the_same(tmp_path, monkeypatch, picture):
    cfg = tiny(**ANCHORED)
    cfg["backbone"] = [[-1, 1, "Conv", [16, 3, 2]], *cfg["backbone"]]
    cfg["head"] = [*cfg["head"][:2], [[-1, 3], 1, "Concat", [1]], [[6, 4], 1, "Segment", ["nc", "anchors", 4, 16]]]
    theirs = randomize_(create_model(cfg)).half().float().eval()
    ours = load_checkpoint(convert.run(save_as_yolov5(theirs, tmp_path / "seg.pt", monkeypatch)))
    pairs = list(zip(predict(ours, picture), predict(theirs, picture), strict=True))
    assert (ours.task, len(pairs)) == ("segment", 2)
    assert all(relative_error(a.double(), b.double()) < 1e-6 for a, b in pairs)


def test_the_anchor_grid_of_old_versions_is_passed_over(yolov5, tmp_path, monkeypatch):
    model = yolov5[0]
    grid = model.model[-1].anchor_sizes.view(2, 1, -1, 1, 1, 2)
    file = save_as_yolov5(model, tmp_path / "old.pt", monkeypatch, buffers={"anchor_grid": grid})
    assert torch.equal(load_checkpoint(convert.run(file)).model[-1].anchor_sizes, model.model[-1].anchor_sizes)


def test_the_file_names_yolov5s_classes(yolov5):
    with zipfile.ZipFile(yolov5[1]) as archive:
        content = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    assert all(
        name in content for name in (b"cmodels.yolo\nDetectionModel", b"cmodels.common\nC3", b"cmodels.yolo\nDetect\n")
    )


@pytest.mark.parametrize("own", [False, True], ids=["torch's", "YOLOv5's"])
def test_another_activation_is_noticed(own, tmp_path, monkeypatch):
    model = create_model(tiny(**ANCHORED))
    act = type("Hardswish", (nn.Module,), {"__module__": "models.common"})()  # as in YOLOv5's first versions
    model.model[1].act = act if own else nn.Hardswish()
    file = save_as_yolov5(model, tmp_path / "old.pt", monkeypatch)
    with pytest.raises(WeightsError, match=r"model\.1\.act is Hardswish there and SiLU here"):
        convert.run(file)
    assert convert.run(file, allow_partial=True).is_file()


@pytest.mark.parametrize(("attribute", "value"), [("eps", 1e-5), ("momentum", 0.5)])
def test_settings_that_change_what_is_computed_are_noticed(attribute, value, tmp_path, monkeypatch):
    model = create_model(tiny(**ANCHORED))
    setattr(model.model[1].bn, attribute, value)
    file = save_as_yolov5(model, tmp_path / "old.pt", monkeypatch)
    if attribute == "momentum":
        assert convert.run(file).is_file()
    else:
        with pytest.raises(WeightsError, match=r"model\.1\.bn has eps=1e-05 there"):
            convert.run(file)


def test_weights_that_are_not_finite_are_refused(tmp_path, monkeypatch):
    model = create_model(tiny(**ANCHORED))
    model.model[0].conv.weight.data[0] = float("nan")
    with pytest.raises(WeightsError, match="not finite"):
        convert.run(save_as_yolov5(model, tmp_path / "nan.pt", monkeypatch))


def test_a_missing_tensor_is_refused_unless_partial_is_allowed(tmp_path, monkeypatch):
    model = create_model(tiny(**ANCHORED))
    del model.model[1].bn._buffers["running_var"]
    file = save_as_yolov5(model, tmp_path / "part.pt", monkeypatch)
    with pytest.raises(WeightsError, match=r"1 missing \(model\.1\.bn\.running_var\)"):
        convert.run(file)
    assert convert.run(file, allow_partial=True).is_file()


# The script -----------------------------------------------------------------------------------------------------------
def test_nothing_is_overwritten_unasked(yolov5):
    output = convert.run(yolov5[1])
    assert output.name == "yolov5t-repyolo.pt"
    before = output.read_bytes()
    with pytest.raises(UserError, match="--exist-ok"):
        convert.run(yolov5[1])
    assert output.read_bytes() == before
    assert convert.run(yolov5[1], exist_ok=True) == output
    for other, problem in ((yolov5[1], "the file to convert"), (yolov5[1].parent, "a folder")):
        with pytest.raises(UserError, match=problem):
            convert.run(yolov5[1], output=other, exist_ok=True)


def test_exit_codes(tmp_path, capsys):
    assert cli.run_script(convert.main, convert.make_parser(), [str(tmp_path / "none.pt")]) == 2
    assert cli.run_script(convert.main, convert.make_parser(), []) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


SCRIPTS = {"train": train, "val": val, "detect": detect, "export": export}


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_the_scripts_say_how_to_convert(script, yolov5, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = yolov5[1]
    with pytest.raises(WeightsError, match=f"python -m utils.convert {file}"):
        script.run(weights=file)


@pytest.mark.slow
def test_the_command_makes_what_detect_uses(tmp_path):
    save_as_ultralytics(ultralytics_model("yolo11n.yaml"), tmp_path / "yolo11n.pt")
    words = [sys.executable, "-m", "utils.convert", str(tmp_path / "yolo11n.pt")]
    done = subprocess.run(words, check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "matched     499" in done.stdout + done.stderr
    detect.run(weights=tmp_path / "yolo11n-repyolo.pt", imgsz=64, project=tmp_path, source=ROOT / "data/images/bus.jpg")
