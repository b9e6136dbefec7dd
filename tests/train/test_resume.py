"""Resuming: a run goes on with its own options and data set, or is refused in one sentence."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml

import train
from models import create_model
from models.errors import UserError
from models.spec import load_spec
from tests.helpers import tiny
from tests.runs import NAMES, make_data
from utils.checkpoint import pack_model, plain, read_checkpoint, save_checkpoint
from utils.checkpoint.file import check_tensors
from utils.train import run as runs
from utils.train import trainer
from utils.train.muon import MuSGD

# isort: split
from ultralytics.engine import trainer as engine


def make_run(folder: Path, data: Path, epoch: int = 0, changes: dict | None = None, **flags) -> Path:
    """Make what a run of five epochs leaves that was stopped after `epoch`, and return its last.pt; nothing is trained.

    Args:
        folder: of the run.
        data: YAML of its data set.
        epoch: number of the last one, from 0.
        changes: fields of last.pt.
        flags: further options of the command line.
    """
    (folder.parent / "net.yaml").write_text(yaml.safe_dump(tiny()))
    own = {"cfg": folder.parent / "net.yaml", "data": data, "epochs": 5, "imgsz": 64, "batch_size": 2, "noplots": True}
    place = {"project": folder.parent, "name": folder.name}
    run = train.new_run(train.make_parser().from_keywords(**own, **place, **flags))
    engine.YAML.save(folder / "args.yaml", vars(engine.get_cfg(runs.defaults(), run.options)))
    model = create_model(tiny())
    model.names, model.imgsz = dict(enumerate(NAMES)), 64
    for split in runs.SPLITS:
        run.splits[split]["objects"] = run.splits[split]["pictures"]
    content = {
        **pack_model(model),
        **{"ema": model.state_dict(), "model": model.state_dict(), "scaler": {}, "updates": 1, "seed": 0},
        "optimizer": torch.optim.AdamW(model.parameters()).state_dict(),
        **{"epoch": epoch, "epochs": 5, "fitness": 0.5, "best_fitness": 0.5, "history": [], "metrics": {}},
        "stopper": {"best_fitness": 0.5, "best_epoch": epoch + 1},
        **{"batch": 2, "options": run.options, "splits": run.splits},
        **(changes or {}),
    }
    (folder / "weights").mkdir()
    save_checkpoint(content, folder / "weights/last.pt")
    return folder / "weights/last.pt"


@pytest.fixture
def data(tmp_path) -> Path:
    return make_data(tmp_path / "ds")


@pytest.fixture
def last(data, tmp_path) -> Path:
    return make_run(tmp_path / "run", data)


def resume(last: Path, **flags) -> runs.TrainingRun:
    """Return the run that the command line with --resume and these flags goes on with."""
    args = train.make_parser().from_keywords(resume=last, **flags)
    return runs.resumed_run(last, train.beside_resume(args))


def assert_refused(said: str, last: Path, **flags):
    """In one sentence, and the checkpoint stays as it is."""
    before = last.read_bytes()
    with pytest.raises(UserError, match=said) as caught:
        resume(last, **flags)
    assert "\n" not in str(caught.value)
    assert last.read_bytes() == before


# Options --------------------------------------------------------------------------------------------------------------
def test_a_run_goes_on_with_its_own_options(last, data):
    run = resume(last)
    kept = read_checkpoint(last)["options"]
    assert run.left == "epochs"
    assert {key: run.options[key] for key in kept if key not in runs.PLACE} == {
        key: value for key, value in kept.items() if key not in runs.PLACE
    }
    assert run.data["yaml_file"] == str(data.resolve())


@pytest.mark.parametrize(
    "text",
    [
        *("- 1", "epochs: [1,", "data: x", "epochs: x"),
        *(
            "+foo: 1",
            "+epochs: x",
            "+epochs: [1]",
            "+imgsz: 0",
            "+workers: -1",
            "+patience: x",
            "+data: 3",
            "+plots: 3",
        ),
        *("+device: x", "+distill_model: x.pt", "+compile: true", "+fraction: 0.5", "+quantize: 8", "+plots: 3"),
        "+lr0: nan",
        *("+batch: 3", "+optimizer: SGD", "+seed: 1", "+anchor_gains: {box: x}", "+cache: disk", "+augmentations: [1]"),
        *("+1: 2", "+anchor_gains: &a [*a]", "+anchor_gains: &a {box: *a}", "+anchor_gains: {1: 2}"),
        *(f"+data: {'a' * 5000}", f"+model: {'a' * 5000}", "+lr0: &a [*a]", "+names: &a {a: *a}"),
    ],
)
def test_a_strange_args_yaml_is_refused_in_one_sentence(text, last):
    file = last.parent.parent / "args.yaml"
    if text.startswith("+"):
        others = re.sub(rf"^{text[1:].partition(':')[0]}:.*\n([ -].*\n)*", "", file.read_text(), flags=re.MULTILINE)
        text = f"{others}{text[1:]}\n"
    file.write_text(text)
    others = "argument after|not iterable|keywords|twice"  # words of Python's, or of another mistake
    assert_refused(rf"^(?!.*({others})).*(args\.yaml|data\.yaml|device|there is no file)", last)


@pytest.mark.parametrize("content", [b"", b"\n", bytes(100)])
def test_an_empty_args_yaml_stands_for_the_options_of_the_checkpoint(content, last, log):
    (last.parent.parent / "args.yaml").write_bytes(content)
    assert resume(last).options["epochs"] == 5
    assert any("is empty, the run goes on with the options that last.pt keeps" in line for line in log)


@pytest.mark.parametrize(
    "change",
    [
        *({"distill_model": "x.pt"}, {"foo": 1}, {"epochs": "x"}, {"imgsz": -64}, {"optimizer": "x"}, {"freeze": "x"}),
        *({"anchor_gains": 3}, {"anchor_gains": {"boxx": 1.0}}, {"augmentations": [{"a": 1}]}, {"model": 3}),
    ],
)
def test_strange_options_of_a_checkpoint_are_refused_in_one_sentence(change, data, tmp_path):
    last = make_run(tmp_path / "run", data)
    content = read_checkpoint(last)
    save_checkpoint({**content, "options": {**content["options"], **change}}, last)
    assert_refused(r"last\.pt", last)


def test_a_file_of_a_former_version_has_its_options_in_args_yaml_alone(last):
    content = read_checkpoint(last)
    save_checkpoint({k: v for k, v in content.items() if k not in ("options", "splits", "batch")}, last)
    assert resume(last, epochs=7).options["epochs"] == 7
    (last.parent.parent / "args.yaml").write_text("")
    assert_refused(r"args\.yaml", last)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"updates": 2**63 - 1}, "updates is 9223372036854775807, which no training comes to"),
        ({"seed": 2**63 - 1}, "seed is 9223372036854775807, which no training comes to"),
        ({"stopper": {"best_fitness": 0.5, "best_epoch": 99}}, "stopper has the best epoch 99, of 3 epochs"),
    ],
)
def test_fields_from_which_no_training_goes_on_are_refused(changes, said, data, tmp_path):
    assert_refused(f"is a damaged checkpoint: its field {said}", make_run(tmp_path / "run", data, 2, changes))


CHANGES = {"epochs": 9, "patience": 3, "workers": 2, "device": "cpu", "save_period": 2}


@pytest.mark.parametrize("flag", CHANGES)
def test_what_leaves_the_run_the_same_may_be_changed(flag, last):
    assert resume(last, **{flag: CHANGES[flag]}).options[flag] == CHANGES[flag]


def test_a_default_that_is_given_counts(data, tmp_path):
    last = make_run(tmp_path / "run", data, patience=7)
    assert resume(last).options["patience"] == 7
    assert resume(last, patience=100).options["patience"] == 100


REFUSED = {
    **{"batch_size": 4, "imgsz": 96, "optimizer": "SGD", "seed": 1, "rect": True, "freeze": ["1"], "nosave": True},
    **{"noval": True, "cache": "ram", "multi_scale": True, "single_cls": True, "custom_l2": True, "qat": True},
    **{"cos_lr": True, "name": "other", "task": "segment", "weights": "x.pt", "noautoanchor": True, "no_overlap": True},
    **{
        **{"overparameterize": "acb", "sync_bn": True, "accumulate": 2, "lr_backbone": 0.1, "layer_decay": 0.9},
        **{"unfreeze_after": 2, "image_weights": True, "quad": True},
        "cfg": "riformer-yolo.yaml",
        "project": "x",
        "label_smoothing": 0.1,
        "mask_ratio": 2,
        "hyp": "hyp.shapes.yaml",
    },
}


@pytest.mark.parametrize("flag", REFUSED)
def test_what_would_make_it_another_run_is_refused_by_name(flag, last):
    assert_refused(f"^--{flag.replace('_', '-')} cannot be changed", last, **{flag: REFUSED[flag]})


def test_one_gain_that_differs_is_named(last):
    assert_refused(r"anchor_gains\.label_smoothing is 0\.0 there, not 0\.1;", last, label_smoothing=0.1)
    assert resume(last, label_smoothing=0.0).left == "epochs"


def test_a_model_yaml_is_compared_by_its_content(last, tmp_path, monkeypatch):
    """Not by its name: another folder may hold another one, and the same one may stand elsewhere."""
    own = tmp_path / "net.yaml"
    other = tmp_path / "other/net.yaml"
    other.parent.mkdir()
    other.write_text(own.read_text())
    monkeypatch.chdir(other.parent)
    assert resume(last, cfg="net.yaml").left == "epochs"
    changed = tiny()
    changed["activation"] = "nn.ReLU()"
    other.write_text(yaml.safe_dump(changed))
    assert_refused("model is .*net.yaml' there, not .*other/net.yaml'", last, cfg="net.yaml")
    own.write_text(yaml.safe_dump(changed))
    assert_refused("net.yaml' there, not what this file says now", last, cfg=own)


def test_branches_of_the_command_line_do_not_make_a_model_yaml_another_one(data, tmp_path):
    last = make_run(tmp_path / "run", data, changes={"yaml": tiny(overparameterize={"style": "dbb"})})
    own = tmp_path / "net.yaml"
    assert resume(last, cfg=own).left == "epochs"
    own.write_text(yaml.safe_dump(tiny(overparameterize={"style": "acb"})))
    assert_refused("not what this file says now", last, cfg=own)


def test_anchors_that_were_fitted_do_not_make_a_model_yaml_another_one(tmp_path):
    file = tmp_path / "net.yaml"
    spec = load_spec("yolov5n.yaml")
    file.write_text(yaml.safe_dump(spec.as_dict()))
    fitted = spec.with_anchors([[1.0] * 6] * 3).replace(nc=2)
    assert runs.is_own_model(str(file), fitted, str(file))
    assert not runs.is_own_model(str(file), fitted, "net.yaml")


def test_the_folder_of_the_runs_is_known_where_it_is_now(last, tmp_path, monkeypatch):
    """--project says where to look for the newest run if --resume names none."""
    monkeypatch.chdir(tmp_path)
    assert resume(last, project=".", name="run").left == "epochs"
    args = train.make_parser().from_keywords(resume=True, project="foo")
    assert "--project" not in {flag for flag, values in train.beside_resume(args).items() if values}


def test_every_flag_beside_resume_is_known():
    """One that is neither honoured nor refused would be ignored in silence."""
    harmless = {
        "help",
        "resume",
        "exist_ok",
        "plugins",
        "download",
        "allow_partial",
        "font",
        "megapixels",
        "max_restarts",
        "report",  # refused before
        "evolve",  # goes on with a search
    }
    parser = train.make_parser()
    args = parser.from_keywords()
    args.given = frozenset(action.dest for action in parser.flags.values())
    named = {parser.flags[flag].dest for flag in train.beside_resume(args)}
    assert named == args.given - harmless


def test_the_command_of_the_run_may_be_given_again(last, data, tmp_path):
    same = {"cfg": tmp_path / "net.yaml", "data": data, "epochs": 5, "imgsz": 64, "batch_size": 2, "name": "run"}
    run = resume(last, noplots=True, **same)
    assert (run.left, run.options["epochs"]) == ("epochs", 5)


def test_fewer_epochs_than_there_are_is_refused(data, tmp_path):
    assert_refused(
        "has 3 epochs already, so that --epochs cannot be 2", make_run(tmp_path / "run", data, epoch=2), epochs=2
    )


def test_a_batch_size_that_was_found_is_kept(data, tmp_path):
    last = make_run(tmp_path / "run", data, changes={"batch": 7})
    assert resume(last).options["batch"] == 7
    file = tmp_path / "run/args.yaml"
    file.write_text(file.read_text().replace("batch: 2", "batch: 7"))  # as it is written when the run is resumed
    assert resume(last).options["batch"] == 7


# What is left ---------------------------------------------------------------------------------------------------------
EARLY = {"best_fitness": 0.5, "best_epoch": 1}


@pytest.mark.parametrize(
    ("epoch", "flags", "changes", "final", "left"),
    [
        (3, {}, {}, None, "epochs"),
        (4, {}, {}, None, "validation"),
        (4, {}, {}, 4, "validation"),
        (4, {}, {}, 5, "nothing"),
        (4, {}, {}, "{", "validation"),
        (4, {}, {}, "[]", "validation"),
        (3, {"patience": 3}, {"stopper": EARLY}, None, "validation"),
        (3, {"patience": 3}, {"stopper": EARLY}, 4, "nothing"),
        (3, {"patience": 4}, {"stopper": EARLY}, None, "epochs"),
        (3, {"patience": 0}, {"stopper": EARLY}, None, "epochs"),
        (3, {"patience": 3}, {"stopper": EARLY, "fitness": None}, None, "epochs"),
    ],
)
def test_what_is_left_to_do(epoch, flags, changes, final, left, data, tmp_path):
    last = make_run(tmp_path / "run", data, epoch, changes, **flags)
    if final is not None:
        text = final if isinstance(final, str) else json.dumps({"epochs": final})
        (tmp_path / "run/final.json").write_text(text)
    assert resume(last).left == left
    if left != "epochs":
        assert resume(last, epochs=9, patience=0).left == "epochs"


@pytest.mark.parametrize("target", [None, "/dev/zero", "/proc/kmsg", "."])
def test_a_result_or_options_that_are_no_file_are_never_opened(target, data, tmp_path, never_opened):
    last = make_run(tmp_path / "run", data, 4)
    for name in ("final.json", "args.yaml"):  # the second time without a final.json that could be read
        assert resume(last).left == "validation"
        path = tmp_path / "run" / name
        path.unlink(missing_ok=True)
        os.mkfifo(path) if target is None else path.symlink_to(target)
    assert_refused(r"args\.yaml", last)


@pytest.mark.parametrize("name", ["data.yaml", "results.csv", "weights/best.pt", "final.json"])
def test_a_folder_with_the_name_of_a_file_of_the_run_is_told_before_an_epoch(name, last, monkeypatch):
    (last.parent.parent / name).mkdir()
    monkeypatch.setattr(train, "Trainer", None)
    with pytest.raises(UserError, match=f"cannot write .*/{name}: a folder has the name"):
        train.run(resume=last)


@pytest.mark.parametrize(
    ("epoch", "flags", "changes", "said"),
    [
        (4, {}, {}, "has all of its 5 epochs and its final validation: there is nothing to resume|--epochs 10"),
        (3, {"patience": 3}, {"stopper": EARLY}, "ended after 4 epochs, the last 3 of them no better|--patience 6"),
    ],
)
def test_a_finished_run_says_how_to_go_on(epoch, flags, changes, said, data, tmp_path, log):
    last = make_run(tmp_path / "run", data, epoch, changes, **flags)
    runs.save_final(tmp_path / "run", epoch + 1, {"map": 0.5})
    shutil.rmtree(data.parent)  # it is not needed any more
    assert train.run(resume=last) == tmp_path / "run"
    assert all(part in "\n".join(log) for part in (*said.split("|"), f"python train.py --resume {last}"))


# Data sets ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("names", "channels", "said"),
    [
        (["a", "b", "c"], 3, "class 2 is 'c', in the run it is missing"),
        (["b", "a"], 3, "class 0 is 'b', in the run it is 'a'"),
        (["a"], 3, "class 1 is missing, in the run it is 'b'"),
        (["a", "b"], 1, "pictures have 1 channels, in the run 3"),
    ],
)
def test_a_run_goes_on_with_its_own_classes_only(names, channels, said):
    checkpoint = {"names": {0: "a", 1: "b"}, "yaml": {"nc": 2}}
    data = {"names": dict(enumerate(names)), "channels": channels, "yaml_file": "data.yaml"}
    with pytest.raises(UserError, match=f"^data.yaml: {said}; train on it anew"):
        runs.check_same_classes(data, checkpoint, single_cls=False)
    runs.check_same_classes({**data, "channels": 3}, {**checkpoint, "names": {0: "item"}}, single_cls=True)
    runs.check_same_classes({**data, "names": {0: "a", 1: "b"}, "channels": 3}, checkpoint, single_cls=False)


def test_other_splits_are_refused(last, data):
    shutil.copytree(data.parent / "images/val", data.parent / "images/more")
    shutil.copytree(data.parent / "labels/val", data.parent / "labels/more")
    for split in ("train", "val"):
        changed = {**yaml.safe_load(data.read_text()), split: "images/more"}
        file = data.with_name("changed.yaml")
        file.write_text(yaml.safe_dump(changed))
        assert_refused(f"the {split} split is .*images/more with 2 pictures, in the run it is", last, data=file)
    data.write_text(yaml.safe_dump({**yaml.safe_load(data.read_text()), "train": "images/val", "val": "images/train"}))
    assert_refused("the train split is", last)


def test_a_changed_count_of_pictures_is_said(last, data, log):
    shutil.copy(data.parent / "images/train/0.png", data.parent / "images/train/9.png")
    assert resume(last).splits["train"]["pictures"] == 4
    assert log[-1].endswith("the train split has 4 pictures now, 3 in the run")
    (data.parent / "images/train/0.png").unlink()
    resume(last)
    assert log[-1].endswith("the pictures of the train split have other names now than in the run")


def test_a_changed_count_of_objects_is_said(log):
    now, then = ({split: {"objects": count} for split in runs.SPLITS} for count in (5, 4))
    runs.log_other_counts(now, then)
    said = [f"the labels of the {split} split have 5 objects now, 4 in the run" for split in runs.SPLITS]
    assert all(line.endswith(end) for line, end in zip(log, said, strict=True))
    runs.log_other_counts(now, {})
    runs.log_other_counts(now, now)
    assert len(log) == 2


def test_a_data_set_may_be_moved(last, data, tmp_path, log):
    data.parent.rename(tmp_path / "elsewhere")
    assert_refused("there is no file|is not there|is gone", last)
    run = resume(last, data=tmp_path / "elsewhere/data.yaml")
    assert run.data["train"] == str(tmp_path / "elsewhere/images/train")
    assert run.options["data"] == str(tmp_path / "elsewhere/data.yaml")
    assert any(line.startswith("the train split was moved to") for line in log)


def test_another_data_set_of_the_same_classes_is_refused(last, tmp_path):
    other = make_data(tmp_path / "other", train=4)
    assert_refused("the train split is .* with 4 pictures, in the run it is .* with 3", last, data=other)


def test_a_run_has_a_copy_of_what_describes_its_data_set(last, data, tmp_path, log):
    described = {**yaml.safe_load(data.read_text()), "path": str(data.parent)}
    (tmp_path / "run/data.yaml").write_text(yaml.safe_dump(described))
    data.unlink()
    assert resume(last).data["train"] == str(data.parent / "images/train")
    assert any("is gone, the run goes on with its own copy" in line for line in log)


def test_a_run_has_its_own_data_set_in_every_folder(tmp_path, monkeypatch):
    """YOLOv5 takes `path` for relative to the current folder as well, where another data set may be next time."""
    for place, count in (("first", 3), ("second", 4)):
        make_data(tmp_path / place / "ds", count)
    described = tmp_path / "configs/data.yaml"
    described.parent.mkdir()
    described.write_text(yaml.safe_dump({"path": "ds", "train": "images/train", "val": "images/val", "names": NAMES}))
    monkeypatch.chdir(tmp_path / "first")
    last = make_run(tmp_path / "run", described)
    for place in ("second", "configs"):
        monkeypatch.chdir(tmp_path / place)
        assert resume(last).data["train"] == str(tmp_path / "first/ds/images/train")


# The optimizer --------------------------------------------------------------------------------------------------------
def stepped(kind=torch.optim.AdamW, sizes=(2, 3), **settings) -> torch.optim.Optimizer:
    """Return an optimizer that took a step down a gradient of ones."""
    weights = [torch.nn.Parameter(torch.zeros(size)) for size in sizes]
    optimizer = kind(weights, **settings)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    return optimizer


def test_the_state_of_an_optimizer_comes_back():
    first, second = stepped(), torch.optim.AdamW([torch.nn.Parameter(torch.zeros(size)) for size in (2, 3)])
    trainer.load_optimizer(second, plain(first.state_dict()))
    for name in ("step", "exp_avg", "exp_avg_sq"):
        pairs = zip(first.state.values(), second.state.values(), strict=True)
        assert all(torch.equal(one[name], other[name]) for one, other in pairs)


def change_first(**changes):
    """Return what changes the state of the first weight, from the state of an optimizer."""
    return lambda state: {**state, "state": {**state["state"], 0: {**state["state"][0], **changes}}}


@pytest.mark.parametrize(
    "change",
    [
        lambda _: stepped(sizes=(3, 2)).state_dict(),
        lambda _: stepped(sizes=(2,)).state_dict(),
        lambda _: stepped(torch.optim.SGD, lr=0.1, momentum=0.9).state_dict(),
        lambda state: {**state, "param_groups": []},
        lambda state: {**state, "param_groups": [{**state["param_groups"][0], "lr": "x"}]},
        lambda state: {**state, "param_groups": [{**state["param_groups"][0], "maximize": None}]},
        lambda state: {**state, "param_groups": [{**state["param_groups"][0], "betas": [1.0]}]},
        lambda state: {**state, "param_groups": [{**state["param_groups"][0], "betas": [0.9, 5.0]}]},
        lambda state: {**state, "param_groups": [{**state["param_groups"][0], "lr": -1.0}]},
        lambda state: {**state, "state": {1: state["state"][1]}},
        lambda state: {**state, "state": {i: {"step": held["step"]} for i, held in state["state"].items()}},
        change_first(exp_avg=torch.full((2,), torch.nan)),
        change_first(exp_avg=torch.zeros(2, dtype=torch.int8)),
        change_first(exp_avg=torch.zeros(5)),
        change_first(exp_avg=-1),
        change_first(other=torch.zeros(2)),
    ],
)
def test_the_state_of_another_optimizer_is_refused(change):
    optimizer = stepped()
    with pytest.raises(ValueError, match=r"optimizer|argument|parameter group|Invalid"):
        trainer.load_optimizer(optimizer, plain(change(optimizer.state_dict())))


@pytest.mark.parametrize("groups", [({"use_muon": True}, {}), ({}, {})])
def test_weights_without_a_gradient_have_an_empty_state(groups):
    """Frozen ones, and such as no output depends on; in MuSGD those of some groups have a larger state."""

    def make() -> torch.optim.Optimizer:
        weights = [[torch.nn.Parameter(torch.zeros(2, 2)) for _ in range(3)] for _ in groups]
        return MuSGD([{"params": own, **group} for own, group in zip(weights, groups, strict=True)], lr=0.1)

    first, second = make(), make()
    for group in first.param_groups:
        group["params"][0].requires_grad_(False)
        group["params"][1].grad = torch.ones(2, 2)
    first.step()
    trainer.load_optimizer(second, plain(trainer.state_of(first)))
    assert trainer.state_of(second)["state"].keys() == set(range(6))
    assert [bool(state) for state in trainer.state_of(second)["state"].values()] == [False, True, False] * 2


@pytest.mark.parametrize(
    ("field", "change", "said"),
    [
        ("ema", lambda _: {}, "field ema lacks 129 of the network's 129 tensors: model"),
        ("model", lambda state: dict([*state.items()][1:]), "field model lacks 1 of the network's 129 tensors: model"),
        (
            "model",
            lambda state: {**state, "x": torch.zeros(1)},
            "field model has 1 tensors that its network has not",
        ),
        ("ema", lambda state: {k: v.to(torch.int8) for k, v in state.items()}, "field ema has .* in int8"),
        ("model", lambda state: {k: v.to(torch.int8) for k, v in state.items()}, "field model has .* in int8"),
        ("ema", lambda state: {k: v * torch.nan for k, v in state.items()}, "field ema holds NaN in 129 of 129"),
        ("model", lambda state: {k: v[None] for k, v in state.items()}, "field model has a tensor .* of the shape"),
    ],
)
def test_tensors_of_no_training_are_refused(field, change, said):
    model = create_model(tiny())
    state = change(model.state_dict())
    with pytest.raises(ValueError, match=said):
        check_tensors(state, model, field)


# From end to end ------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_a_run_that_lacks_its_final_validation_alone_is_validated_and_can_be_prolonged(
    data, tmp_path, monkeypatch, log
):
    (tmp_path / "net.yaml").write_text(yaml.safe_dump(tiny()))
    own = {"cfg": tmp_path / "net.yaml", "data": data, "epochs": 2, "imgsz": 64, "batch_size": 2, "noplots": True}

    def interrupted(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(trainer.Trainer, "final_eval", interrupted)
        train.run(**own, project=tmp_path, name="exp")
    last = tmp_path / "exp/weights/last.pt"
    trained = last.read_bytes()
    assert not (tmp_path / "exp/final.json").exists()

    assert train.run(resume=last) == tmp_path / "exp"
    assert last.read_bytes() == trained
    final = json.loads((tmp_path / "exp/final.json").read_text())
    assert final["epochs"] == 2
    assert 0 <= final["metrics"]["metrics/mAP50(B)"] <= 1

    log.clear()
    train.run(resume=last)
    assert any("nothing to resume" in line for line in log)
    assert last.read_bytes() == trained

    train.run(resume=last, epochs=3)
    content = read_checkpoint(last)
    assert (content["epoch"], content["options"]["epochs"], len(content["history"])) == (2, 3, 3)
    assert json.loads((tmp_path / "exp/final.json").read_text())["epochs"] == 3
    assert yaml.safe_load((tmp_path / "exp/args.yaml").read_text())["epochs"] == 3


@pytest.mark.slow
def test_changed_objects_are_said_when_they_have_been_read(data, tmp_path, monkeypatch, log):
    last = make_run(tmp_path / "run", data)
    (data.parent / "labels/train/0.txt").write_text("1 0.5 0.5 0.4 0.4\n0 0.2 0.2 0.1 0.1\n")
    monkeypatch.setattr(trainer, "load_optimizer", lambda *_: None)  # none has trained
    trainer.Trainer(resume(last))._setup_train()
    assert any(line.endswith("the labels of the train split have 4 objects now, 3 in the run") for line in log)


@pytest.mark.slow
def test_a_run_that_cannot_be_resumed_stays_though_the_same_process_made_it(last):
    before = last.read_bytes()  # with an optimizer that took no step
    with pytest.raises(UserError, match="does not fit the options of its run"):
        trainer.Trainer(resume(last))._setup_train()
    assert last.read_bytes() == before
