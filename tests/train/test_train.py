"""Training: what a run writes, resuming to the last bit, and what it says to wrong input."""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path

import pytest
import torch
import yaml

import train
import val
from models import DetectionModel, create_model
from models.errors import UserError, WeightsError
from models.loss import AnchorGains
from models.spec import load_spec
from tests.helpers import TINY_HEAD, tiny, tiny_backbone
from tests.runs import stopped
from utils.checkpoint import load_checkpoint, read_checkpoint
from utils.data.description import load_dataset, write_data_yaml
from utils.data.files import list_images
from utils.data.shapes import NAMES, Recipe, ensure_shapes
from utils.train import trainer
from utils.train.batches import fewest_values
from utils.train.gradients import OPTIMIZERS
from utils.train.recipe import read_recipe
from utils.train.run import is_own_model
from utils.train.trainer import Trainer
from utils.train.transfer import transfer

# isort: split
from ultralytics.data.utils import check_det_dataset
from ultralytics.engine import trainer as engine

EPOCHS = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Return a folder with a small data set, its YAML, and two model YAMLs."""
    root = tmp_path_factory.mktemp("train")
    recipe = Recipe(side=64, train=12, val=4, test=4, film_side=64, film_frames=2)
    ensure_shapes(root / "shapes", recipe)
    splits = {split: f"images/{split}" for split in ("train", "val", "test")}
    write(root / "data.yaml", {"path": str(root / "shapes"), **splits, "names": list(NAMES)})
    write(root / "tiny.yaml", tiny())
    write(root / "other.yaml", tiny(width_multiple=1.0))
    return root


def write(path: Path, content: dict) -> None:
    path.write_text(yaml.safe_dump(content))


def options(folder: Path, name: str, **changes) -> dict:
    """Return the options of a short run of the tiny model."""
    return {
        "cfg": folder / "tiny.yaml",
        "data": folder / "data.yaml",
        "epochs": EPOCHS,
        "imgsz": 64,
        "batch_size": 4,
        "noplots": True,
        "project": folder / "runs",
        "name": name,
        **changes,
    }


@pytest.fixture(scope="module")
def finished(folder) -> Path:
    """Return the folder of an undisturbed run."""
    return train.run(**options(folder, "whole"))


def weights_of(checkpoint: Path, key: str) -> dict[str, torch.Tensor]:
    return read_checkpoint(checkpoint)[key]


def test_a_run_with_branches_keeps_them_in_its_yaml_and_says_what_they_cost(finished, folder, caplog):
    start = finished / "weights/best.pt"
    run = train.run(**options(folder, "wide", weights=start, overparameterize="mobileone", epochs=1))
    assert re.search(r"mobileone: \d+ convolutions train with branches.* computes 3\.\d times as much", caplog.text)
    assert load_checkpoint(run / "weights/last.pt").spec.overparameterize == {"style": "mobileone"}
    kept = yaml.safe_load((run / "tiny.yaml").read_text())
    assert kept == tiny(ch=3, overparameterize={"style": "mobileone"})
    assert yaml.safe_load((run / "args.yaml").read_text())["overparameterize"] == "mobileone"


@pytest.mark.parametrize("cfg", ["timm:test_resnet", "ultralytics:yolov8n"])
def test_a_run_keeps_the_yaml_that_another_library_names(folder, tmp_path, cfg):
    changes = {"cfg": cfg, "project": tmp_path}
    run = train.new_run(train.make_parser().from_keywords(**options(folder, "cfg", **changes)))
    kept = Path(run.options["model"])
    assert kept == tmp_path / cfg.replace(":", "-") / f"{cfg.replace(':', '-')}.yaml"
    assert load_spec(kept) == load_spec(cfg) == run.model.spec.replace(nc=80)
    args = train.make_parser().from_keywords(resume=str(kept), cfg=cfg)
    (given,) = train.beside_resume(args)["--cfg"].values()
    assert is_own_model(given, run.model.spec, str(kept))
    assert not is_own_model("ultralytics:yolo11n", run.model.spec, str(kept))


def test_a_run_leaves_its_weights_options_and_results(finished, folder):
    assert load_checkpoint(finished / "weights/best.pt").names == dict(enumerate(NAMES))
    assert load_checkpoint(finished / "weights/best.pt").imgsz == 64
    assert yaml.safe_load((finished / "args.yaml").read_text())["epochs"] == EPOCHS
    with (finished / "results.csv").open() as f:
        rows = list(csv.DictReader(f))
    assert [row["epoch"] for row in rows] == [str(i + 1) for i in range(EPOCHS)]
    assert all(math.isfinite(float(row["train/box_loss"])) for row in rows)


def test_training_changes_the_weights(finished, folder):
    torch.manual_seed(0)
    new = DetectionModel(folder / "tiny.yaml", nc=len(NAMES)).state_dict()
    trained = weights_of(finished / "weights/last.pt", "model")
    assert new.keys() == trained.keys()
    assert any(not torch.equal(new[k], trained[k]) for k in new)


@pytest.mark.parametrize("moment", [("on_train_batch_end", 2), ("on_fit_epoch_end", 0)], ids=["in an epoch", "between"])
def test_a_stopped_and_resumed_run_ends_with_the_same_bits(finished, folder, monkeypatch, moment):
    event, epoch = moment

    with stopped(monkeypatch, event, epoch):
        train.run(**options(folder, f"stopped-{event}"))
    last = folder / "runs" / f"stopped-{event}" / "weights/last.pt"
    assert train.run(resume=last) == last.parent.parent.resolve()
    for key in ("model", "ema"):
        want, got = weights_of(finished / "weights/last.pt", key), weights_of(last, key)
        assert all(torch.equal(want[name], got[name]) for name in want)
    with (last.parent.parent / "results.csv").open() as f:
        assert [row["epoch"] for row in csv.DictReader(f)] == [str(i + 1) for i in range(EPOCHS)]


def test_the_last_checkpoint_is_written_last(folder, monkeypatch):
    """A run that is killed between two of them resumes with the epoch before, and writes all of them again."""
    written, save = [], trainer.save_checkpoint
    monkeypatch.setattr(
        trainer, "save_checkpoint", lambda content, path: written.append(path.name) or save(content, path)
    )
    monkeypatch.setattr(Trainer, "validate", lambda self: (self.metrics, setattr(self, "best_fitness", 1.0) or 1.0))
    train.run(**options(folder, "order", epochs=1, save_period=1))
    assert written == ["best.pt", "epoch0.pt", "last.pt"]


def test_a_kill_while_the_options_are_written_leaves_the_old_ones(tmp_path, monkeypatch):
    file = tmp_path / "args.yaml"
    engine.YAML.save(file, {"epochs": 3})

    def half(self, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", half)
    with pytest.raises(OSError, match="No space"):
        engine.YAML.save(file, {"epochs": 4})
    assert yaml.safe_load(file.read_text()) == {"epochs": 3}


def test_a_model_that_no_checkpoint_can_hold_is_refused_before_the_training(folder):
    nameless = folder / "\udcff.yaml"
    write(nameless, tiny())
    with pytest.raises(UserError, match="yaml_name should be the name of a file, in UTF-8"):
        train.run(**options(folder, "nameless", cfg=nameless))
    assert not (folder / "runs/nameless").exists()


HEADS = {  # the last row's module and arguments, further keys
    "anchors": ("Detect", ["nc", 2], {}),
    "without NMS": ("Detect", ["nc"], {"end2end": True}),
    "masks": ("Segment", ["nc", 2, 8, 32], {}),
    "branches": ("Detect", ["nc", 2], {"overparameterize": {"style": "dbb"}}),
}


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
def test_every_head_trains_and_resumes_to_the_last_bit(head, folder, monkeypatch):
    word, args, keys = HEADS[head]
    backbone = [[-1, 1, "Conv", [32, 6, 4, 1]], [-1, 1, "Conv", [64, 3, 2]], [-1, 1, "C3", [64]]]
    rows = [[-1, 1, "Conv", [64, 3, 2]], [[2, 3], 1, word, args]]
    cfg = folder / f"{word}-{head}.yaml"
    write(cfg, tiny(backbone=backbone, head=rows, **keys))
    whole = train.run(**options(folder, f"whole-{head}", cfg=cfg))
    with (whole / "results.csv").open() as f:
        losses = [{k: float(v) for k, v in row.items() if "loss" in k} for row in csv.DictReader(f)]
    assert all(math.isfinite(loss) for row in losses for loss in row.values())

    with stopped(monkeypatch, "on_train_batch_end", 1):
        train.run(**options(folder, f"stopped-{head}", cfg=cfg))
    resumed = train.run(resume=folder / "runs" / f"stopped-{head}" / "weights/last.pt")
    for key in ("model", "ema"):
        want, got = (weights_of(run / "weights/last.pt", key) for run in (whole, resumed))
        assert all(torch.equal(want[name], got[name]) for name in want)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_scaled_steps_train_and_resume_to_the_last_bit(optimizer, folder, monkeypatch):
    scaled = {"optimizer": optimizer, "rep_optimizer": True}
    plain, whole = (
        train.run(**options(folder, f"{name}-{optimizer}", **{**scaled, "rep_optimizer": on}))
        for name, on in (("plain", False), ("scaled", True))
    )
    with stopped(monkeypatch, "on_train_batch_end", 1):
        train.run(**options(folder, f"stopped-{optimizer}", **scaled))
    resumed = train.run(resume=folder / "runs" / f"stopped-{optimizer}" / "weights/last.pt")
    without, want, got = (weights_of(run / "weights/last.pt", "model") for run in (plain, whole, resumed))
    assert without.keys() == want.keys()
    assert all(torch.equal(want[name], got[name]) for name in want)
    learnt = [name for name in want if name.endswith("conv.weight") and ".dfl." not in name]
    assert not any(torch.equal(want[name], without[name]) for name in learnt)


def test_anchors_are_fitted_to_the_objects_and_kept_with_the_weights(folder):
    """Anchors that fit nothing are replaced, in the head and in the YAML inside the checkpoint, unless told not to."""
    cfg = folder / "far.yaml"
    write(cfg, tiny(head=[*TINY_HEAD, [[5, 3], 1, "Detect", ["nc", "anchors"]]], anchors=[[900, 900], [901, 901]]))
    fitted = load_checkpoint(train.run(**options(folder, "fitted", cfg=cfg, epochs=1)) / "weights/best.pt")
    kept = load_checkpoint(
        train.run(**options(folder, "kept", cfg=cfg, epochs=1, noautoanchor=True)) / "weights/best.pt"
    )
    assert kept.model[-1].anchor_sizes.flatten(1).tolist() == [[900, 900], [901, 901]]
    assert fitted.model[-1].anchor_sizes.max() < 100
    assert torch.allclose(torch.tensor(fitted.spec.anchors), fitted.model[-1].anchor_sizes.flatten(1))


RECIPES = {  # recipe: the gains with anchors, those without
    "yolov5": (
        {"lr0": 0.01, "box": 0.07, "cls": 0.3, "obj": 0.7, "anchor_t": 3.0, "iou_t": 0.2},
        (0.07, 0.3, 7.5, 0.5),
    ),
    "both": ({"box": 0.07, "obj": 1.0, "anchor_free": {"box": 6.0, "cls": 0.4}}, (0.07, 0.5, 6.0, 0.4)),
    "ultralytics": ({"box": 6.0, "cls": 0.4, "dfl": 1.0}, (0.05, 0.5, 6.0, 0.4)),
}


@pytest.mark.parametrize("name", RECIPES)
def test_gains_of_a_recipe_are_of_the_head_that_they_suit(name, folder):
    content, wanted = RECIPES[name]
    write(folder / f"{name}-hyp.yaml", content)
    parser = train.make_parser()
    recipe = read_recipe(parser.from_keywords(cfg=folder / "tiny.yaml", hyp=folder / f"{name}-hyp.yaml"))
    gains = AnchorGains(**recipe["anchor_gains"])
    assert (gains.box, gains.cls, recipe.get("box", 7.5), recipe.get("cls", 0.5)) == wanted


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"obj": 1.0, "anchor_t": 0.5}, "anchor_t must be a number of at least 1"),
        ({"obj": 1.0, "anchor_free": 3}, "anchor_free must be a mapping"),
        ({"obj": 1.0, "anchor_free": {"boxx": 3}}, "unknown hyper-parameter 'boxx'"),
        ({"objj": 1.0}, "did you mean 'obj'"),
        ({"lr0": True}, "lr0 must be a number, got True"),
        ({"lr0": 10**400}, "line 1: a whole number of 401 digits"),
        ({"anchor_free": {"box": False}}, "box must be a number, got False"),
        ({"imgsz": -3}, "imgsz should be a number of pixels, not -3"),
        ({"batch": 2.5}, "batch should be a whole number of at least 1, or -1, not 2.5"),
        ({"optimizer": "Foo"}, "optimizer should be one of SGD, .*, not 'Foo'"),
    ],
)
def test_a_wrong_recipe_is_explained(content, said, folder):
    write(folder / "wrong-hyp.yaml", content)
    with pytest.raises(UserError, match=said):
        train.run(**options(folder, "wrong", hyp=folder / "wrong-hyp.yaml"))
    assert not (folder / "runs/wrong").exists()


def test_the_interrupted_user_is_told_how_to_go_on(folder, monkeypatch, caplog):
    monkeypatch.setattr(Trainer, "_model_train", interrupt_in_second_epoch(Trainer._model_train))
    with caplog.at_level("INFO", logger="ultralytics"), pytest.raises(KeyboardInterrupt):
        train.run(**options(folder, "told"))
    assert f"python train.py --resume {folder / 'runs/told/weights/last.pt'}" in caplog.text


def interrupt_in_second_epoch(method):
    def interrupted(self):
        if self.epoch == 1:
            raise KeyboardInterrupt
        method(self)

    return interrupted


def test_resume_refuses_what_is_not_an_unfinished_run(finished, folder, tmp_path):
    wrong = {
        "there is no weights file": tmp_path / "last.pt",
        "holds no training to resume": finished / "weights/best.pt",
    }
    for message, path in wrong.items():
        with pytest.raises(UserError, match=message):
            train.run(resume=path)
    moved = tmp_path / "moved.pt"
    moved.write_bytes((finished / "weights/last.pt").read_bytes())
    with pytest.raises(UserError, match="not in the folder of its run"):
        train.run(resume=moved)
    with pytest.raises(UserError, match="to resume"):
        train.run(resume=True, project=tmp_path / "empty")


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_epoch(folder, monkeypatch):
    step = Trainer.optimizer_step

    def poison(self):
        step(self)
        if self.epoch == 1:
            next(self.model.parameters()).data.fill_(math.nan)

    monkeypatch.setattr(Trainer, "optimizer_step", poison)
    with pytest.raises(UserError, match="not finite in epoch 2"):
        train.run(**options(folder, "nan"))
    saved = weights_of(folder / "runs/nan/weights/last.pt", "model")
    assert all(tensor.isfinite().all() for tensor in saved.values())


def test_weights_go_where_they_fit_and_another_network_is_refused(finished, folder, tmp_path):
    source = load_checkpoint(finished / "weights/best.pt")
    target = DetectionModel(folder / "tiny.yaml", nc=7)
    transfer(source, target)
    assert torch.equal(source.model[0].conv.weight, target.model[0].conv.weight)
    with pytest.raises(WeightsError, match=r"only \d+ of \d+ tensors of other.yaml"):
        train.run(
            **options(folder, "other", cfg=folder / "other.yaml", weights=source.pt_path, project=tmp_path / "runs")
        )
    assert not (tmp_path / "runs").exists()


def test_training_starts_from_a_checkpoint_and_its_yaml(finished, folder):
    run = train.run(**options(folder, "again", cfg="", weights=finished / "weights/best.pt", epochs=1))
    assert read_checkpoint(run / "weights/best.pt")["yaml"] == read_checkpoint(finished / "weights/best.pt")["yaml"]


def test_frozen_rows_keep_weights_and_statistics(finished, folder):
    first = weights_of(finished / "weights/best.pt", "ema")
    run = train.run(**options(folder, "frozen", weights=finished / "weights/best.pt", freeze=[2], epochs=1))
    after = weights_of(run / "weights/last.pt", "model")
    frozen = [name for name in first if name.startswith(("model.0.", "model.1."))]
    assert frozen
    assert all(torch.equal(first[name], after[name]) for name in frozen)
    assert any(not torch.equal(first[name], after[name]) for name in first if name.startswith("model.2."))


@pytest.mark.slow
def test_a_backbone_of_one_size_trains_at_that(folder, tmp_path):
    """And is counted at it, though the card of others is for 640x640."""
    write(tmp_path / "one.yaml", tiny_backbone("timm", "test_vit_relpos", {"img_size": 64}))
    run = train.run(**options(folder, "one", cfg=tmp_path / "one.yaml", epochs=1))
    assert (run / "weights/best.pt").is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rect": True}, "leave out --rect"),
        ({"multi_scale": True}, "leave out --multi-scale"),
        ({"imgsz": 128}, "not of 128: give --imgsz 64, or the YAML another img_size"),
    ],
)
def test_a_backbone_of_one_size_trains_at_no_other(folder, tmp_path, change, message):
    write(tmp_path / "one.yaml", tiny_backbone("timm", "test_vit_relpos", {"img_size": 64}))
    with pytest.raises(UserError, match=f"one.yaml takes pictures of 64x64 pixels only.*{message}"):
        train.run(**options(folder, "one", cfg=tmp_path / "one.yaml", project=tmp_path / "runs", **change))
    assert not (tmp_path / "runs").exists()


def test_a_last_batch_of_one_is_dropped_where_batch_norm_cannot_take_it(folder, tmp_path, caplog):
    pictures = sorted((folder / "shapes/images/train").iterdir())[:5]
    (tmp_path / "train.txt").write_text("\n".join(map(str, pictures)))
    data = yaml.safe_load((folder / "data.yaml").read_text())
    write(tmp_path / "five.yaml", data | {"train": str(tmp_path / "train.txt")})
    for imgsz, steps in ((64, 2), (32, 1)):
        args = train.make_parser().from_keywords(
            **options(folder, "five", data=tmp_path / "five.yaml", project=tmp_path, imgsz=[imgsz, imgsz])
        )
        trainer = Trainer(train.new_run(args))
        trainer._setup_train()
        assert len(trainer.train_loader) == steps
        assert ("the last batch would be one picture" in caplog.text) == (steps == 1)


def test_batches_that_no_option_speaks_of_are_ultralytics_own(folder, tmp_path):
    own = options(folder, "own", project=tmp_path, imgsz=None, batch_size=None)
    assert {"batch", "imgsz"}.isdisjoint(train.new_run(train.make_parser().from_keywords(**own)).options)


def test_of_all_norms_the_one_with_the_fewest_values_counts():
    model = create_model("yolov5n6.yaml")
    assert (fewest_values(model, 128), fewest_values(model, 64)) == (4, 1)


@pytest.mark.slow
@pytest.mark.parametrize("head", ["tiny", "yolov5n.yaml"])
def test_rectangles_of_several_scales(folder, tmp_path, head):
    """Anchors are fitted too, to pictures that were sorted by their shape."""
    cfg = folder / "tiny.yaml" if head == "tiny" else head
    run = train.run(**options(folder, "rect", cfg=cfg, project=tmp_path, rect=True, multi_scale=True, epochs=2))
    assert (run / "weights/best.pt").is_file()


WRONG = {
    "no model": ({"cfg": ""}, "needs --cfg"),
    "no such model": ({"cfg": "riformer-yolov.yaml"}, "did you mean 'riformer-yolo.yaml'"),
    "no such model of ultralytics": ({"cfg": "ultralytics:yolo99n"}, "ultralytics has no such model as 'yolo99n'"),
    "no such model of timm": ({"cfg": "timm:resnet81"}, r"timm-resnet81\.yaml, row 0 .*did you mean 'resnet18'"),
    "no such data": ({"data": "shape.yaml"}, "did you mean 'shapes.yaml'"),
    "no such weights": ({"weights": "nowhere.pt"}, "no weights file nowhere.pt"),
    "no such recipe": ({"hyp": "nowhere.yaml"}, "nowhere.yaml"),
    "no image of that size": ({"imgsz": 64000}, "expected a whole number of pixels from 1 to 8192"),
    "epochs": ({"epochs": 0}, "epochs"),
    "batch": ({"batch_size": -2}, "batch"),
    "freeze": ({"freeze": ["neckk"]}, r"--freeze neckk: there is no 'neckk' in tiny\.yaml \(did you mean 'neck'\?\)"),
    "layers of INT8": ({"layer_decay": 0.9, "qat": True, "cfg": "", "weights": "x.pt"}, "leave out --layer-decay"),
    "unfreeze": ({"unfreeze_after": 1}, "--unfreeze-after is for what --freeze names"),
    "unfreeze too late": ({"freeze": [1], "unfreeze_after": 3}, "--unfreeze-after 3 comes after the last of 3 epochs"),
    "freeze too many": ({"freeze": [99]}, "--freeze takes slots from 0 to 5, the last row being the head, not 98"),
    "custom L2 of nothing": ({"custom_l2": True}, r"of which tiny\.yaml has none to train"),
    "two sides": ({"imgsz": [64, 96]}, "--imgsz takes one side, as pictures are square here, not 64 96"),
    "one picture a step": ({"batch_size": 1, "imgsz": 32}, r"tiny\.yaml does not train on one picture of 32x32 pixels"),
    "one picture, varied": ({"batch_size": 1, "multi_scale": True}, r"32x32 pixels \(--multi-scale\) at a time"),
    "steps of Adam": ({"rep_optimizer": True, "optimizer": "Adam"}, "scales the steps of SGD or AdamW, not of Adam"),
    "steps of nothing": ({"rep_optimizer": True, "overparameterize": "acb"}, r"of which tiny\.yaml has none"),
    "no such branches": ({"overparameterize": "bdd"}, "--overparameterize"),
    "branches that fusing took": (
        {"overparameterize": "dbb", "qat": True, "cfg": "", "weights": "x.pt"},
        "no branches",
    ),
    "unknown option": ({"epoch_count": 3}, "epoch_count"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_options_are_named_before_anything_is_written(folder, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        train.run(**options(folder, "wrong", project=tmp_path / "runs", **change))
    assert not (tmp_path / "runs").exists()


NO_RECIPES = {
    "bytes": (b"lr0: \xff", "is not valid YAML"),
    "tab": (b"lr0:\t1\n\tx: 2", "is not valid YAML: line 1"),
    "deep": (b"[" * 5000, "is not valid YAML"),
    "two": (b"lr0: 1\n---\nlr0: 2\n", "is not valid YAML: line 2"),
    "key twice": (b"lr0: 1\nlr0: 2\n", "is not valid YAML: line 2: the key 'lr0' stands here again, after line 1"),
    "minutes": (b"warmup_epochs: 1:30\n", "warmup_epochs must be a number, got '1:30'"),
    "digits": (b"lr0: " + b"9" * 5000, "is not valid YAML"),
    "code": (b"lr0: !!python/object/apply:os.getcwd []", "is not valid YAML: line 1"),
    "nothing": (b"", "expected keys such as lr0, momentum and mosaic, got nothing"),
    "list": (b"- 1", "expected keys such as lr0, momentum and mosaic, got list"),
}


@pytest.mark.parametrize(("content", "message"), NO_RECIPES.values(), ids=NO_RECIPES)
def test_a_recipe_that_is_no_mapping_is_one_sentence(folder, tmp_path, content, message):
    (tmp_path / "hyp.yaml").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        train.run(**options(folder, "x", hyp=tmp_path / "hyp.yaml", project=tmp_path / "runs"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_a_recipe_is_checked_and_takes_yolov5s_names(folder, tmp_path, caplog):
    parser = train.make_parser()
    write(tmp_path / "typo.yaml", {"lr00": 0.1})
    with pytest.raises(UserError, match=r"unknown hyper-parameter .lr00. \(did you mean .lr0."):
        read_recipe(parser.from_keywords(**options(folder, "x", hyp=tmp_path / "typo.yaml")))
    write(tmp_path / "text.yaml", {"lr0": "high"})
    with pytest.raises(UserError, match="lr0 must be a number"):
        read_recipe(parser.from_keywords(**options(folder, "x", hyp=tmp_path / "text.yaml")))
    write(tmp_path / "v5.yaml", {"lr0": 0.01, "box": 0.05, "obj": 1.0, "iou_t": 0.2, "anchors": 3, "fliplr": 0.5})
    with caplog.at_level("WARNING", logger="ultralytics"):
        recipe = read_recipe(parser.from_keywords(**options(folder, "x", hyp=tmp_path / "v5.yaml")))
    assert recipe == {"lr0": 0.01, "fliplr": 0.5, "anchor_gains": {"box": 0.05, "obj": 1.0}}
    assert "anchors stand in the model YAML" in caplog.text


@pytest.mark.parametrize("there", [False, True])
def test_a_training_without_a_picture_that_can_be_used_leaves_no_folder(folder, tmp_path, there):
    for split in ("train", "val"):
        for kind, text in (("images", "no picture"), ("labels", "0 .5 .5 .5 .5\n")):
            (tmp_path / kind / split).mkdir(parents=True)
            (tmp_path / kind / split / f"a.{'png' if kind == 'images' else 'txt'}").write_text(text)
    data = {"path": str(tmp_path), "train": "images/train", "val": "images/val", "names": ["a"]}
    write(tmp_path / "data.yaml", data)
    if there:
        (tmp_path / "runs" / "exp").mkdir(parents=True)
        (tmp_path / "runs" / "exp" / "mine.txt").touch()
    changes = {"data": tmp_path / "data.yaml", "project": tmp_path / "runs", "exist_ok": there}
    with pytest.raises(UserError, match="none of the 1 pictures can be used"):
        train.run(**options(folder, "exp", **changes))
    assert (tmp_path / "runs" / "exp" / "mine.txt").exists() == (tmp_path / "runs" / "exp").exists() == there


def test_what_a_recipe_says_in_vain_is_said(folder, tmp_path, caplog):
    write(tmp_path / "hyp.yaml", {"epochs": 3, "imgsz": 64, "cos_lr": True, "lr0": 0.01})
    parser = train.make_parser()
    with caplog.at_level("INFO", logger="ultralytics"):
        args = parser.from_keywords(hyp=tmp_path / "hyp.yaml", epochs=1)
        assert train.choose_recipe(args) == {"epochs": 1, "imgsz": 64, "cos_lr": True, "lr0": 0.01, "anchor_gains": {}}
        assert f"epochs is 1, as the command line says, not 3 of {tmp_path}" in caplog.text
        assert "imgsz is" not in caplog.text
        asked = train.beside_resume(parser.from_keywords(resume="last.pt", hyp=tmp_path / "hyp.yaml"))
    assert asked == {"--hyp": {"lr0": 0.01, "anchor_gains": {}}}
    assert "keeps its own epochs, imgsz, cos_lr, whatever" in caplog.text


def test_validation_finds_what_training_does(folder):
    (folder / "shapes" / "lists").mkdir()
    (folder / "shapes" / "lists" / "val.txt").write_text("images/val/0001.jpg\n")  # relative to the data set
    described = yaml.safe_load((folder / "data.yaml").read_text()) | {"val": "lists/val.txt", "kpt_shape": [4, 2]}
    write(folder / "lists.yaml", described)
    data = load_dataset(folder / "lists.yaml")
    write_data_yaml(data, folder / "written.yaml")
    again = check_det_dataset(str(folder / "written.yaml"))
    assert list_images(again["val"], again["path"]) == [str(folder / "shapes/images/val/0001.jpg")]
    assert again["kpt_shape"] == data["kpt_shape"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty.onnx", "is damaged, or no onnx file"),
        ("page.onnx", "is damaged, or no onnx file"),
        ("page.torchscript", "is damaged, or no torchscript file"),
        ("page.pth", "is none of .pt, .torchscript, .onnx"),
        ("folder", "is none of .pt, .torchscript, .onnx"),
    ],
)
def test_val_refuses_files_that_do_not_run_before_anything_is_written(folder, tmp_path, name, message):
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.onnx").touch()
    for page in ("page.onnx", "page.torchscript", "page.pth"):
        (tmp_path / page).write_text("<!DOCTYPE html><html>404</html>")
    with pytest.raises(WeightsError, match=message) as caught:
        val.run(weights=tmp_path / name, data=folder / "data.yaml", project=tmp_path / "runs", trust=True)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_val_measures_weights_and_refuses_a_missing_split(finished, folder):
    metrics = val.run(
        weights=finished / "weights/best.pt", data=folder / "data.yaml", project=folder / "val", task="test"
    )
    assert 0 <= metrics["metrics/mAP50(B)"] <= 1
    content = yaml.safe_load((folder / "data.yaml").read_text())
    del content["test"]
    write(folder / "no-test.yaml", content)
    with pytest.raises(UserError, match="test"):
        val.run(weights=finished / "weights/best.pt", data=folder / "no-test.yaml", project=folder / "val", task="test")
