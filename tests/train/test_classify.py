"""Classifiers from class folders to measured accuracy: training, mixing, resuming, val.py, and wrong folders."""

from __future__ import annotations

import csv
import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from ultralytics.cfg import get_cfg

import detect
import train
import val
from models import create_model, load
from models.errors import UserError
from models.spec import load_spec
from tests.helpers import randomize_, save, tiny, write
from tests.runs import COLOURS, make_folders, stopped
from utils.checkpoint import load_checkpoint, read_checkpoint
from utils.data.classes import ClassFolders
from utils.data.description import CUT_OUTS, load_dataset
from utils.data.files import check_images, class_pictures
from utils.train.classify import mix, smooth
from utils.train.transfer import transfer

TINY = tiny(head=[[-1, 1, "Classify", ["nc"]]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Return a folder with class folders, a model YAML and a recipe."""
    root = tmp_path_factory.mktemp("classify")
    make_folders(root / "colours")
    write(root, TINY, "tiny-cls.yaml")
    write(root, tiny(), "boxes.yaml")
    (root / "hyp.yaml").write_text(
        "lr0: 0.01\nwarmup_epochs: 0.5\nmixup: 0.3\ncutmix: 0.2\nlabel_smoothing: 0.1\nhsv_h: 0.0\nscale: 0.3\n"
        "auto_augment: null\noptimizer: AdamW\n"
    )
    return root


def options(folder: Path, name: str, **changes) -> dict:
    """Return the options of a short run."""
    return {
        "cfg": folder / "tiny-cls.yaml",
        "data": folder / "colours",
        "hyp": folder / "hyp.yaml",
        "epochs": 10,
        "imgsz": 32,
        "batch_size": 4,
        "noplots": True,
        "project": folder / "runs",
        "name": name,
        **changes,
    }


@pytest.fixture(scope="module")
def finished(folder) -> Path:
    return train.run(**options(folder, "whole", task="classify"))


# Training -------------------------------------------------------------------------------------------------------------
def test_a_run_learns_and_measures(finished, folder, caplog):
    with (finished / "results.csv").open() as f:
        rows = list(csv.DictReader(f))
    assert all(math.isfinite(float(row[key])) for row in rows for key in ("train/loss", "val/loss"))
    model = load_checkpoint(finished / "weights/best.pt")
    assert (model.task, model.names, model.imgsz) == ("classify", dict(enumerate(COLOURS)), 32)
    options = read_checkpoint(finished / "weights/last.pt")["options"]
    assert {key: options[key] for key in ("class_smoothing", "mixup", "cutmix")} == {
        "class_smoothing": 0.1,
        "mixup": 0.3,
        "cutmix": 0.2,
    }
    metrics = val.run(weights=finished / "weights/best.pt", project=folder / "runs/val", workers=0)
    best = max(float(row["metrics/accuracy_top1"]) for row in rows)
    assert metrics["metrics/accuracy_top1"] == pytest.approx(best, abs=1e-4)
    assert best > 0.9
    assert metrics["metrics/accuracy_top5"] == 1
    assert sorted(path.name for path in (folder / "colours").rglob("*") if path.suffix != ".png") == sorted(
        ["train", "val", *COLOURS, *COLOURS]
    ), "the data is only read"


def test_a_resumed_run_ends_as_one_that_was_not_stopped(finished, folder, monkeypatch):
    with stopped(monkeypatch, "on_train_batch_end", 1):
        train.run(**options(folder, "stopped"))
    last = folder / "runs/stopped/weights/last.pt"
    assert read_checkpoint(last)["epoch"] == 0
    train.run(resume=last)
    ends = [read_checkpoint(path / "weights/last.pt") for path in (finished, last.parents[1])]
    for field in ("model", "ema"):
        whole, resumed = (end[field] for end in ends)
        assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_training_goes_on_from_weights(finished, folder, caplog):
    with caplog.at_level("INFO", logger="ultralytics"):
        run = train.run(**options(folder, "tuned", weights=finished / "weights/best.pt", epochs=1))
    assert "Transferred" in caplog.text
    assert "Trained in" in caplog.text
    assert "top-1" in caplog.text
    assert load_checkpoint(run / "weights/best.pt").task == "classify"


@pytest.mark.slow
def test_a_classifier_learns_the_rounding_of_int8_and_goes_on_where_it_stopped(finished, folder, monkeypatch):
    tuning = {"weights": finished / "weights/best.pt", "cfg": "", "qat": True, "epochs": 2}
    whole = train.run(**options(folder, "rounded", **tuning))
    with stopped(monkeypatch, "on_model_save", 0):
        train.run(**options(folder, "rounded-stopped", **tuning))
    resumed = train.run(resume=folder / "runs/rounded-stopped/weights/last.pt")
    ends = [read_checkpoint(run / "weights/last.pt")["ema"] for run in (whole, resumed)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    model = load_checkpoint(whole / "weights/best.pt")
    convolutions = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Conv2d)}
    assert model.is_fused()
    assert model.ranges.keys() == convolutions, "the linear layer, which puts out the classes, stays in float"
    assert val.run(weights=whole / "weights/best.pt", workers=0)["metrics/accuracy_top1"] > 0.9


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task": "detect"}, "--task detect does not go with tiny-cls.yaml"),
        ({"cfg": "boxes.yaml", "task": "classify"}, "--task classify does not go with boxes.yaml"),
        ({"rect": True}, "--rect is not for the task classify"),
        ({"single_cls": True}, "--single-cls is not for the task classify"),
        ({"mask_ratio": 2}, "--mask-ratio is not for the task classify"),
    ],
    ids=str,
)
def test_what_no_classifier_has_is_refused(folder, changes, said):
    cfg = folder / changes.get("cfg", "tiny-cls.yaml")
    with pytest.raises(UserError, match=said):
        train.run(**options(folder, "refused", **{**changes, "cfg": cfg}))
    assert not (folder / "runs/refused").exists()


def test_the_recipes_of_classifiers_are_those_of_the_task():
    parser = train.make_parser()
    own = train.choose_recipe(parser.from_keywords(cfg="x", data="y", label_smoothing=0.3), "classify")
    demo = train.choose_recipe(parser.from_keywords(cfg="x"), "classify")
    assert (own["auto_augment"], own["class_smoothing"], own["imgsz"]) == ("randaugment", 0.3, 224)
    assert (demo["auto_augment"], demo["class_smoothing"], demo["imgsz"]) == (None, 0.05, 64)


# Mixing ---------------------------------------------------------------------------------------------------------------
def test_mixing_keeps_what_pictures_are_made_of():
    """Pictures that are all of one value, their class: what is mixed of classes must be mixed of values."""
    torch.manual_seed(0)
    classes = torch.tensor([0, 1, 2, 3])
    images = classes.float().view(4, 1, 1, 1).expand(4, 3, 16, 16).clone()
    for mixup, cutmix in ((1.0, 0.0), (0.0, 1.0)):
        pictures, parts = mix(images.clone(), classes, 4, mixup, cutmix)
        assert parts.shape == (4, 4)
        assert torch.allclose(parts.sum(1), torch.ones(4))
        assert torch.allclose(pictures.mean((1, 2, 3)), parts @ torch.arange(4.0), atol=1e-5)
        assert not torch.equal(pictures, images)
        assert (pictures.flatten(1).std(1) > 0).any() == bool(cutmix)


def test_without_mixing_classes_are_smoothed_alone():
    images = torch.rand(3, 3, 8, 8)
    pictures, parts = mix(images, torch.tensor([2, 0, 1]), 4, 0.0, 0.0)
    assert pictures is images
    assert parts.argmax(1).tolist() == [2, 0, 1]
    smoothed = smooth(parts, 0.2)
    assert torch.allclose(smoothed.amax(1), torch.full((3,), 0.85))
    assert torch.allclose(smoothed.sum(1), torch.ones(3))


# Class folders --------------------------------------------------------------------------------------------------------
def test_a_folder_describes_itself(folder):
    data = load_dataset(folder / "colours", task="classify")
    assert (data["names"], data["nc"]) == (dict(enumerate(COLOURS)), 3)
    assert len(check_images(data, task="classify")["train"]) == 72


def test_a_folder_is_no_data_set_of_boxes(folder):
    with pytest.raises(UserError):
        load_dataset(folder / "colours")


def test_codes_of_imagenet_are_named(tmp_path):
    for split in ("train", "valid"):
        for code in ("n01440764", "n01443537"):
            (tmp_path / split / code).mkdir(parents=True)
    assert load_dataset(tmp_path, task="classify")["names"] == {0: "tench", 1: "goldfish"}


def damaged(root: Path) -> None:
    (root / "train/red/0.png").write_bytes(b"no picture")


def test_a_damaged_picture_is_left_out(folder, tmp_path, caplog):
    root = make_folders(tmp_path / "set", train=4, val=2)
    damaged(root)
    with caplog.at_level("WARNING", logger="ultralytics"):
        run = train.run(**options(folder, "damaged", data=root, epochs=1))
    assert "train/red/0.png is left out: not a picture" in caplog.text.replace("\\", "/")
    assert (run / "weights/best.pt").is_file()


def test_links_that_lead_up_are_followed_once(tmp_path):
    root = make_folders(tmp_path / "set", train=2, val=1)
    for place in ("train/all", "train/red/a", "train/red/b", "train/red/c"):
        (root / place).symlink_to(".")
    (root / "train/blue/system").symlink_to("/proc")
    assert load_dataset(root, task="classify")["nc"] == 3
    found = class_pictures(str(root / "train"))
    assert Counter(name for _, name in found) == dict.fromkeys(COLOURS, 2)


def test_pictures_kept_in_memory_are_those_that_can_be_read(tmp_path, caplog):
    root = make_folders(tmp_path / "set", train=2, val=1)
    damaged(root)
    args = get_cfg(overrides={"imgsz": 32, "cache": "ram"})
    with caplog.at_level("WARNING", logger="ultralytics"):
        kept = ClassFolders(str(root / "train"), args, augment=True, prefix="", names=dict(enumerate(COLOURS)))
    assert "train/red/0.png is left out: not a picture" in caplog.text
    assert [item["cls"] for item in map(kept.__getitem__, range(len(kept)))] == [0, 0, 1, 1, 2]
    for path in root.glob("train/*/*"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"the pictures of .*train cannot be read"):
        ClassFolders(str(root / "train"), args, augment=True, prefix="", names=dict(enumerate(COLOURS)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda root: (root / "val").rename(root / "values"), "has no folder val"),
        (lambda root: (root / "val/red").rename(root / "val/rot"), "has a folder rot, which is none of the 3 classes"),
        (lambda root: [(root / "train" / name).rename(root / name) for name in COLOURS], "train has no folders"),
        (lambda root: [(root / "val" / name).rename(root / name) for name in COLOURS], "val has no folders"),
        (lambda root: [path.unlink() for path in root.glob("val/*/*")], "no pictures in the class folders of .*val"),
    ],
    ids=["no val", "unknown class", "no classes", "no classes to validate", "no pictures"],
)
def test_wrong_folders_are_one_sentence(tmp_path, change, said):
    root = make_folders(tmp_path / "set", train=1, val=1)
    change(root)
    with pytest.raises(UserError, match=said):
        check_images(load_dataset(root, task="classify"), task="classify")


def test_a_set_of_boxes_is_none_of_classes():
    with pytest.raises(UserError, match="has no folders, expected one for each class"):
        check_images(load_dataset("shapes.yaml", task="classify"), task="classify")


def test_the_built_in_set_has_the_shapes_cut_out():
    data = load_dataset(CUT_OUTS, task="classify")
    pictures = check_images(data, ("train", "val", "test"), task="classify")
    assert sorted(data["names"].values()) == ["circle", "square", "star", "triangle"]
    assert len(pictures["train"]) > 600
    assert len(pictures["val"]) > 150


# In a detector --------------------------------------------------------------------------------------------------------
FAMILIES = [
    pytest.param(f, marks=[pytest.mark.slow] * (f == "repmlp")) for f in "repvgg riformer repmlpnet repmlp timm".split()
]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_detector_takes_the_weights_of_a_classifier(family, tmp_path):
    classifier = randomize_(create_model(f"{family}-cls.yaml", nc=3))
    file = save(classifier, tmp_path / "best.pt")
    spec = load_spec(f"{family}-yolo.yaml").with_option(0, "weights", str(file))
    backbone = create_model(spec).model[0]
    known, own = classifier.model[0].state_dict(), backbone.state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in known.items())
    report = backbone.weights_report
    norms_of_other_levels = {"norm2.weight", "norm2.bias", "norm4.weight", "norm4.bias"}
    assert set(report.missing) == (norms_of_other_levels if family == "riformer" else set())
    assert report.matched == len(known)
    assert not report.unexpected


def test_a_detector_is_trained_from_a_classifier():
    classifier, detector = randomize_(create_model(TINY)), create_model(tiny())
    classifier.pt_path = "best.pt"
    moved = transfer(classifier, detector)
    assert [len(row.new) for row in moved.rows[:3]] == [0, 0, 0]
    assert torch.equal(classifier.model[2].cv1.conv.weight, detector.model[2].cv1.conv.weight)


@pytest.mark.slow
def test_the_built_in_set_is_learnt(tmp_path):
    run = train.run(cfg="riformer-cls.yaml", epochs=2, imgsz=32, project=tmp_path, noplots=True)
    metrics = val.run(weights=run / "weights/best.pt", project=tmp_path / "val")
    assert metrics["metrics/accuracy_top1"] >= 0.6


# detect.py ------------------------------------------------------------------------------------------------------------
def test_detect_says_what_a_picture_shows(finished, folder, caplog):
    picture = folder / "colours/val/green/0.png"
    options = {"weights": [finished / "weights/best.pt"], "source": [picture], "project": folder / "detect"}
    with caplog.at_level("INFO", logger="ultralytics"):
        (result,) = detect.run(**options, name="all", save_txt=True, save_csv=True)
    assert result.names[result.probs.top1] == "green"
    assert f"32x32 green {float(result.probs.top1conf):.2f}, " in caplog.text
    lines = (folder / "detect/all/labels/0.txt").read_text().splitlines()
    assert len(lines) == 3
    assert lines[0] == f"{float(result.probs.top1conf):.2f} green"
    with (folder / "detect/all/predictions.csv").open() as f:
        rows = list(csv.DictReader(f))
    assert [row["class"] for row in rows] == [line.split()[1] for line in lines]
    assert float(rows[0]["confidence"]) == pytest.approx(float(result.probs.top1conf), rel=1e-4)
    assert (folder / "detect/all/0.jpg").is_file()


def test_load_gives_probabilities(finished, folder):
    found = load(finished / "weights/best.pt")([folder / f"colours/val/{name}/1.png" for name in COLOURS])
    assert [result.names[result.probs.top1] for result in found] == list(COLOURS)
    assert all(isinstance(result.probs.data, torch.Tensor) for result in found)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"track": "bytetrack"}, "--track needs boxes, but best.pt is a classifier"),
        ({"save_crop": True}, "--save-crop needs boxes, but best.pt is a classifier"),
        ({"augment": True}, "best.pt finds no boxes"),
    ],
    ids=str,
)
def test_what_needs_boxes_is_refused(finished, folder, changes, said):
    options = {"weights": [finished / "weights/best.pt"], "source": [folder / "colours/val/red"], "nosave": True}
    with pytest.raises(UserError, match=said):
        detect.run(**options, **changes)
