"""Training with RepVGG's custom L2 in place of weight decay."""

import pytest
import torch
import yaml

import train
from models.errors import UserError
from tests.helpers import relative_error, tiny, tiny_backbone
from tests.models.repvgg import NARROW
from tests.runs import stopped
from utils.checkpoint import read_checkpoint
from utils.data.shapes import NAMES, Recipe, ensure_shapes
from utils.train.trainer import Trainer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a small data set and a small model."""
    root = tmp_path_factory.mktemp("train")
    ensure_shapes(root / "shapes", Recipe(side=64, train=8, val=4, test=4, film_side=64, film_frames=2))
    data = {"path": str(root / "shapes"), "names": list(NAMES), **{k: f"images/{k}" for k in ("train", "val", "test")}}
    (root / "data.yaml").write_text(yaml.safe_dump(data))
    options = {**NARROW, "width_multiplier": list(NARROW["width_multiplier"]), "num_blocks": [1, 2, 2, 1]}
    (root / "rep.yaml").write_text(yaml.safe_dump(tiny_backbone("RepVGG", "A0", options)))
    (root / "tiny.yaml").write_text(yaml.safe_dump(tiny()))
    return root


def run_options(folder, name, **changes):
    return {
        **{"cfg": folder / "rep.yaml", "data": folder / "data.yaml", "epochs": 3, "imgsz": 64, "batch_size": 4},
        **{"noplots": True, "project": folder / "runs", "name": name, "optimizer": "SGD", "custom_l2": True},
        **changes,
    }


def trainer_of(folder, name, **changes):
    args = train.make_parser().from_keywords(**run_options(folder, name, **changes))
    trainer = Trainer(train.new_run(args))
    trainer._setup_train()
    return trainer


def branch_kernels(model):
    return {n for n, _ in model.named_parameters() if n.endswith(("rbr_dense.conv.weight", "rbr_1x1.conv.weight"))}


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["SGD", "AdamW", "MuSGD"])
def test_custom_l2_takes_the_place_of_weight_decay(optimizer, folder):
    trainer = trainer_of(folder, f"groups-{optimizer}", optimizer=optimizer)
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    every = [names[id(p)] for group in trainer.optimizer.param_groups for p in group["params"]]
    assert sorted(every) == sorted(names.values())
    decayed = {names[id(p)] for g in trainer.optimizer.param_groups if g["weight_decay"] > 0 for p in g["params"]}
    assert decayed
    assert len(branch_kernels(trainer.model)) == 2 * 7
    assert not decayed & branch_kernels(trainer.model)
    assert trainer.decay == pytest.approx(5e-4)


@pytest.mark.slow
def test_a_step_goes_down_the_penalty(folder):
    trainer = trainer_of(folder, "step")
    trainer.decay = 0.1
    kernels = [p for block in trainer.penalized for p in block.decayed_by_custom_l2()]
    penalty = sum(block.get_custom_l2() for block in trainer.penalized) * 0.5 * trainer.decay
    gradients = torch.autograd.grad(penalty, kernels)
    rates = {id(p): g["lr"] * (1 + g["momentum"]) for g in trainer.optimizer.param_groups for p in g["params"]}
    for parameter in trainer.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = [p.detach().clone() for p in kernels]
    trainer.optimizer_step()
    for parameter, old, gradient in zip(kernels, before, gradients, strict=True):
        assert relative_error(old - parameter, rates[id(parameter)] * gradient) <= 1e-3


@pytest.mark.slow
def test_a_run_with_custom_l2_trains_otherwise_and_resumes_to_the_last_bit(folder, monkeypatch):
    whole = train.run(**run_options(folder, "whole"))
    plain = train.run(**run_options(folder, "plain", custom_l2=False))
    assert yaml.safe_load((whole / "args.yaml").read_text())["custom_l2"] is True
    printed = [(run / "results.csv").read_text().splitlines()[0].split(",") for run in (whole, plain)]
    losses = [[column for column in columns if "loss" in column] for columns in printed]
    assert losses[0] == losses[1] != [], "the printed losses are the same ones"

    with stopped(monkeypatch, "on_train_batch_end", 1):
        train.run(**run_options(folder, "stopped"))
    resumed = train.run(resume=folder / "runs/stopped/weights/last.pt")
    runs = [read_checkpoint(run / "weights/last.pt")["model"] for run in (whole, resumed, plain)]
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert any(not torch.equal(runs[0][name], runs[2][name]) for name in runs[0] if name.endswith("conv.weight"))


@pytest.mark.slow
def test_custom_l2_without_branches_is_refused(folder):
    with pytest.raises(UserError, match=r"--custom-l2 is for .* of which tiny.yaml has none to train") as caught:
        train.run(**run_options(folder, "none", cfg=folder / "tiny.yaml"))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="has none to train"):
        train.run(**run_options(folder, "frozen", freeze=["backbone"]))
