"""Segmentation from a YAML to drawn masks: training, its columns, validation against known masks, the scripts."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
import torch
import yaml

import detect
import export
import train
import val
from models import DetectionModel, create_model
from models.errors import UserError
from tests.helpers import randomize_, tiny
from tests.networks import NAMES, Disc, write_export
from utils import cli
from utils.checkpoint import load_checkpoint, pack_model, save_checkpoint
from utils.data.shapes import NAMES as SHAPES
from utils.data.shapes import Recipe, ensure_shapes
from utils.detect.predictor import create_predictor

# isort: split
import cv2
import numpy as np

HEAD = [[-1, 1, "Conv", [32, 3, 2]], [-1, 1, "Conv", [32, 3, 2]]]  # strides 8 and 16, below the tiny backbone
TINY_SEGMENT = tiny(head=[*HEAD, [[3, 4], 1, "Segment", ["nc", 8, 16]]])
TINY_ANCHORS = tiny(
    head=[*HEAD, [[3, 4], 1, "Segment", ["nc", "anchors", 8, 16]]], anchors=[[20, 20, 30, 30], [40, 40, 60, 60]]
)
MASK_COLUMNS = [f"metrics/{name}(M)" for name in ("precision", "recall", "mAP50", "mAP50-95")]


@pytest.fixture(autouse=True)
def without_plots(monkeypatch):
    """Let val.py draw nothing, which takes longer than to measure."""
    original = val.validator_options
    monkeypatch.setattr(val, "validator_options", lambda *args: {**original(*args), "plots": False})


def write(path: Path, content: dict) -> Path:
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Return a folder with a small data set, its YAML, and model YAMLs."""
    root = tmp_path_factory.mktemp("segment")
    ensure_shapes(root / "shapes", Recipe(side=64, train=12, val=4, test=4, film_side=64, film_frames=2))
    splits = {split: f"images/{split}" for split in ("train", "val", "test")}
    write(root / "data.yaml", {"path": str(root / "shapes"), **splits, "names": list(SHAPES)})
    write(root / "free.yaml", TINY_SEGMENT)
    write(root / "anchors.yaml", TINY_ANCHORS)
    write(root / "boxes.yaml", tiny())
    return root


def options(folder: Path, name: str, **changes) -> dict:
    """Return the options of a short run of a tiny model."""
    return {
        "cfg": folder / "free.yaml",
        "data": folder / "data.yaml",
        "epochs": 1,
        "imgsz": 64,
        "batch_size": 4,
        "noplots": True,
        "project": folder / "runs",
        "name": name,
        **changes,
    }


@pytest.fixture(scope="module", params=["free", "anchors"])
def finished(folder, request) -> Path:
    """Return the folder of a run, with a head of either kind."""
    return train.run(**options(folder, request.param, cfg=folder / f"{request.param}.yaml", task="segment"))


# Training -------------------------------------------------------------------------------------------------------------
def test_a_run_measures_masks(finished):
    with (finished / "results.csv").open() as f:
        (row,) = csv.DictReader(f)
    assert math.isfinite(float(row["train/seg_loss"]))
    assert math.isfinite(float(row["val/seg_loss"]))
    assert set(MASK_COLUMNS) <= set(row)
    assert yaml.safe_load((finished / "args.yaml").read_text())["task"] == "segment"
    assert load_checkpoint(finished / "weights/best.pt").task == "segment"


def test_the_last_lines_say_the_accuracy_of_masks(folder, caplog):
    with caplog.at_level("INFO", logger="ultralytics"):
        train.run(**options(folder, "said"))
    (line,) = (line for line in caplog.text.splitlines() if line.startswith("Trained in "))
    assert [word for word in line.replace(",", "").split() if not word[0].isdigit()] == (
        "Trained in minutes: mAP50 mAP50-95 mask mAP50 mask mAP50-95".split()
    )


@pytest.mark.slow
@pytest.mark.parametrize("cfg", ["free", "anchors"])
def test_masks_at_full_size_that_overlap(folder, cfg):
    cfg_file = folder / f"{cfg}.yaml"
    run = train.run(**options(folder, f"overlap-{cfg}", cfg=cfg_file, mask_ratio=1, no_overlap=True))
    args = yaml.safe_load((run / "args.yaml").read_text())
    assert (args["mask_ratio"], args["overlap_mask"]) == (1, False)
    with (run / "results.csv").open() as f:
        assert math.isfinite(float(next(csv.DictReader(f))["train/seg_loss"]))


@pytest.mark.parametrize(("cfg", "task", "other"), [("boxes", "segment", "detect"), ("free", "detect", "segment")])
def test_a_task_that_is_not_the_heads_is_refused(folder, cfg, task, other):
    message = rf"--task {task} does not go with .*{cfg}\.yaml, whose head is for the task {other}"
    with pytest.raises(UserError, match=message) as caught:
        train.run(**options(folder, "never", cfg=folder / f"{cfg}.yaml", task=task))
    assert "\n" not in str(caught.value)
    assert not (folder / "runs" / "never").exists()


@pytest.mark.parametrize("boxes", ["train", "val"])
def test_labels_without_polygons_are_refused(folder, tmp_path, boxes):
    for split in ("train", "val"):
        cv2.imwrite(str(make(tmp_path / "images" / split / "a.png")), np.zeros((64, 64, 3), np.uint8))
        make(tmp_path / "labels" / split / "a.txt").write_text(
            "0 0.5 0.5 0.5 0.5\n" if split == boxes else "0 .1 .1 .9 .1 .9 .9\n"
        )
    data = {"path": str(tmp_path), "train": "images/train", "val": "images/val", "names": ["a", "b"]}
    with pytest.raises(
        UserError, match=f"segmentation needs polygons, .* the {boxes} split has boxes only, such as in"
    ):
        train.run(**options(folder, "boxes-only", data=write(tmp_path / "data.yaml", data)))
    assert not (folder / "runs" / "boxes-only").exists()


def make(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


# Validation -----------------------------------------------------------------------------------------------------------
def test_val_measures_the_masks_of_a_checkpoint(finished, folder):
    metrics = val.run(weights=finished / "weights/best.pt", data=folder / "data.yaml", project=folder / "val")
    assert set(MASK_COLUMNS) <= set(metrics)


@pytest.fixture(scope="module")
def discs(tmp_path_factory) -> Path:
    """Return the YAML of a data set whose pictures all have the disc that `Disc(64, 64)` sees."""
    root = tmp_path_factory.mktemp("discs")
    angles = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    outline = 0.5 + 24 / 64 * np.stack([np.cos(angles), np.sin(angles)], 1)
    row = f"1 {' '.join(f'{value:.4f}' for value in outline.ravel())}\n"
    for name in ("a", "b"):
        cv2.imwrite(str(make(root / "images" / f"{name}.png")), np.zeros((64, 64, 3), np.uint8))
        make(root / "labels" / f"{name}.txt").write_text(row)
    names = list(NAMES.values())
    return write(root / "discs.yaml", {"path": str(root), "train": "images", "val": "images", "names": names})


@pytest.mark.parametrize("end2end", [False, True])
@pytest.mark.parametrize(("shift", "right"), [(0, True), (24, False)])
def test_boxes_and_masks_are_measured_on_their_own(discs, tmp_path, end2end, shift, right):
    weights = write_export(tmp_path, Disc(64, 64, end2end, shift=shift), "torchscript")
    metrics = val.run(weights=weights, data=discs, project=tmp_path / "val", save_txt=True)
    assert metrics["metrics/mAP50-95(B)"] > 0.99
    assert metrics["metrics/mAP50-95(M)"] > 0.85 if right else metrics["metrics/mAP50(M)"] < 0.01
    line = (tmp_path / "val/exp/labels/a.txt").read_text().splitlines()[0]
    assert line.startswith("1 ") and len(line.split()) > 10


def test_boxes_without_nms_are_measured(discs, tmp_path):
    weights = write_export(tmp_path, Disc(64, 64, end2end=True, masks=False), "onnx")
    metrics = val.run(weights=weights, data=discs, project=tmp_path / "val")
    assert metrics["metrics/mAP50-95(B)"] > 0.99
    assert not set(MASK_COLUMNS) & set(metrics)


def test_other_classes_than_the_data_sets_are_one_sentence(discs, folder, tmp_path):
    weights = write_export(tmp_path, Disc(64, 64), "torchscript")
    with pytest.raises(UserError, match="the weights know 3 classes and the data set has 4") as caught:
        val.run(weights=weights, data=folder / "data.yaml", project=tmp_path / "val")
    assert "\n" not in str(caught.value)
    assert val.run(weights=weights, data=folder / "data.yaml", project=tmp_path / "val", single_cls=True)


@pytest.mark.parametrize("suffix", ["onnx", "torchscript"])
def test_broken_exports_are_one_sentence(discs, tmp_path, suffix):
    (tmp_path / f"bad.{suffix}").write_bytes(b"no network at all")
    wrong = write_export(tmp_path, Disc(64, 64), suffix, task="detect")
    for weights, message in (
        (tmp_path / f"bad.{suffix}", f"is damaged, or no {suffix} file"),
        (wrong, r"gives .* where its 3 classes need \(1, 7, boxes\)"),
        (tmp_path / "a.jpg", "does not exist"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            val.run(weights=weights, data=discs, project=tmp_path / "val", trust=True)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "val").exists()


# Detection ------------------------------------------------------------------------------------------------------------
def test_detect_draws_the_masks_of_a_checkpoint(finished, folder, tmp_path):
    source = folder / "shapes/images/test/0000.jpg"
    weights = finished / "weights/best.pt"
    detect.run(
        weights=weights, source=source, conf_thres=0.0001, max_det=3, save_txt=True, project=tmp_path, retina_masks=True
    )
    assert (cv2.imread(str(tmp_path / "exp/0000.jpg")) != cv2.imread(str(source))).any()
    lines = [line.split() for line in (tmp_path / "exp/labels/0000.txt").read_text().splitlines()]
    assert lines
    assert all(len(words) >= 7 and len(words) % 2 == 1 for words in lines)


def test_masks_are_not_augmented_when_tested(finished, tmp_path):
    for script in (detect, val):
        with pytest.raises(UserError, match=r"but best\.pt finds masks as well: leave it out"):
            script.run(weights=finished / "weights/best.pt", augment=True, project=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def save(model: DetectionModel, path: Path) -> Path:
    """Write a model as a checkpoint for pictures of 64 pixels and return the file."""
    model.names, model.imgsz = NAMES, 64
    save_checkpoint({**pack_model(model), "ema": model.state_dict()}, path)
    return path


@pytest.mark.slow
def test_exports_find_what_the_checkpoint_finds(folder, tmp_path):
    model = randomize_(create_model({**TINY_SEGMENT, "nc": 3}))
    with torch.no_grad():
        for sides in model.model[-1].cv2:
            sides[-1].bias.copy_(-torch.arange(16.0).repeat(4))  # boxes of a few cells
    weights = save(model, tmp_path / "best.pt")
    assert export.run(weights=weights, imgsz=64) == 0
    source = folder / "shapes/images/test/0000.jpg"
    found = {}
    for suffix in (".pt", ".onnx", ".torchscript"):
        kwargs = {"weights": weights.with_suffix(suffix), "source": source, "max_det": 5}
        detect.run(**kwargs, save_txt=True, save_format=1, project=tmp_path, name=suffix[1:])
        found[suffix] = np.loadtxt(tmp_path / suffix[1:] / "labels/0000.txt", ndmin=2)
    assert np.ptp(found[".pt"][:, [1, 3]], axis=1).min() < 0.9
    for suffix in (".onnx", ".torchscript"):
        assert np.allclose(found[suffix], found[".pt"], atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["detect", "segment"])
def test_a_checkpoint_without_nms_uses_the_head_that_needs_none(discs, tmp_path, task):
    cfg = tiny(nc=3, end2end=True)
    if task == "segment":
        cfg["head"] = TINY_SEGMENT["head"]
    torch.manual_seed(0)  # of some weights all masks are empty, and ultralytics drops what has none
    model = create_model(cfg)
    with torch.no_grad():
        for many, one in zip(model.model[-1].cv3, model.model[-1].one2one_cv3, strict=True):
            many[-1].bias.fill_(-9)
            one[-1].bias.copy_(torch.tensor([-9, 3, -9]))
    weights = save(model, tmp_path / "best.pt")
    predictor = create_predictor(weights)
    assert predictor.weights.task == task
    assert predictor.model.end2end
    for script in (detect, val):
        with pytest.raises(UserError, match=r"--augment joins boxes .*, but best\.pt needs no NMS"):
            script.run(weights=weights, augment=True, project=tmp_path)
    source = discs.parent / "images/a.png"
    detect.run(weights=weights, source=source, conf_thres=0.5, max_det=5, save_txt=True, project=tmp_path / "det")
    rows = (tmp_path / "det/exp/labels/a.txt").read_text().splitlines()
    assert {row.split()[0] for row in rows} == {"1"}
    val.run(weights=weights, data=discs, conf_thres=0.5, save_txt=True, project=tmp_path / "val")
    rows = (tmp_path / "val/exp/labels/a.txt").read_text().splitlines()
    assert {row.split()[0] for row in rows} == {"1"}


# As the command line does ---------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_from_a_yaml_to_drawn_masks(folder, tmp_path, monkeypatch, caplog, capsys):
    def script(module, *words: object) -> str:
        caplog.clear()
        with caplog.at_level("INFO", logger="ultralytics"):
            assert cli.run_script(module.main, module.make_parser(), [*map(str, words)]) == 0
        return caplog.text + capsys.readouterr().out

    monkeypatch.chdir(tmp_path)
    data = ("--data", folder / "data.yaml")
    text = script(train, "--cfg", folder / "anchors.yaml", *data, "--epochs", 2, "--img", 64)
    assert "mask mAP50 " in text
    assert {"results.png", "train_batch0.jpg", "MaskPR_curve.png"} <= {
        p.name for p in (tmp_path / "runs/train/exp").iterdir()
    }
    assert "Mask(P" in script(val, *data)
    script(detect, "--source", folder / "shapes/images/test", "--conf", 0.0001, "--save-txt")
    assert len(list((tmp_path / "runs/detect/exp").glob("*.jpg"))) == 4
