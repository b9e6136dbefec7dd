"""What --freeze names, and what is not trained for the first epochs."""

from __future__ import annotations

import pytest
import torch
import yaml

import train
from models import create_model
from models.errors import UserError
from tests.helpers import tiny, tiny_backbone
from tests.runs import make_data, stopped
from utils.checkpoint import read_checkpoint
from utils.train.freezing import frozen_paths, hold, keep_statistics, read_freeze

RIFORMER = tiny_backbone("RIFormer", {"layers": [1, 1, 1, 1], "embed_dims": [8, 16, 24, 32]})
NAMES = {
    "backbone": ["model.0"],
    "3": ["model.0"],
    "backbone.patch_embed": ["model.0.patch_embed"],
    "backbone.network.0-2": ["model.0.network.0", "model.0.network.1", "model.0.network.2"],
    "3.network.6.0.mlp": ["model.0.network.6.0.mlp"],
    "backbone.stages.0-1": [
        "model.0.patch_embed",
        "model.0.network.0.0",
        "model.0.network.1",
        "model.0.network.2.0",
        "model.0.norm2",
    ],
}


@pytest.mark.parametrize("name", NAMES)
def test_parts_of_a_list_backbone_have_names(name):
    assert (
        frozen_paths(create_model(RIFORMER), read_freeze([name, "backbone.patch_embed"]))[: len(NAMES[name])]
        == NAMES[name]
    )


def test_rows_have_numbers_and_names():
    model = create_model(tiny())
    assert frozen_paths(model, None) == frozen_paths(model, 0) == []
    assert frozen_paths(model, 2) == ["model.0", "model.1"]
    assert frozen_paths(model, read_freeze(["0-1"])) == ["model.0", "model.1"]
    assert frozen_paths(model, read_freeze(["0,2", "neck"])) == ["model.0", *(f"model.{i}" for i in range(2, 6))]
    assert frozen_paths(model, ["backbone.2", "3.conv"]) == ["model.2", "model.3.conv"]
    assert frozen_paths(model, ["backbone.stages.1"]) == ["model.1", "model.2"]
    timm = create_model(tiny_backbone("timm", "test_resnet"))
    assert frozen_paths(timm, ["backbone.layer1-2"]) == ["model.0.body.layer1", "model.0.body.layer2"]


UNKNOWN = {
    "bacbone": r"there is no 'bacbone' in .* \(did you mean 'backbone'\?\), it has backbone, 0, 1, 2, 3, 4",
    "backbone.netwrk.0": r"there is no 'netwrk' in backbone \(did you mean 'network'\?\), it has .*patch_embed",
    "backbone.stages.2-4": r"there is no '4' in backbone\.stages.*, it has 0, 1, 2, 3",
    "3-1": "there is no '3-1'",
    "backbone.network.5-8": r"there is no '7' in backbone\.network",
    "0-9": "takes slots from 0 to 4, the last row being the head, not 9",
    "4.patch_embed.proj.bias.x": "there is no 'x' in 4.patch_embed.proj.bias, it has no parts",
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_name_that_is_not_there_is_refused_with_what_is(name):
    with pytest.raises(UserError, match=UNKNOWN[name]):
        frozen_paths(create_model(RIFORMER), [name])


def test_norms_that_are_frozen_keep_their_statistics():
    """The row whose number begins like another's is trained."""
    model = create_model(tiny())
    paths = frozen_paths(model, ["backbone.1.bn"])
    hold(model, paths, paths)
    keep_statistics(model.train(), paths)
    assert [name for name, m in model.named_modules() if not m.training] == ["model.1.bn"]
    rows = model.model[:6].named_parameters()
    assert [name for name, p in rows if not p.requires_grad] == ["1.bn.weight", "1.bn.bias"]
    hold(model, paths, [])
    assert all(p.requires_grad for p in model.model[1].parameters())


@pytest.fixture
def options(tmp_path) -> dict:
    (tmp_path / "net.yaml").write_text(yaml.safe_dump(tiny()))
    files = {"cfg": tmp_path / "net.yaml", "data": make_data(tmp_path, 4), "project": tmp_path / "runs"}
    numbers = {"epochs": 3, "imgsz": 64, "batch_size": 2, "device": "cpu", "noplots": True}
    return {**files, **numbers, "freeze": ["backbone"], "unfreeze_after": 1}


def state(run) -> dict[str, torch.Tensor]:
    """Return the tensors of a run's last.pt, those of the EMA too."""
    content = read_checkpoint(run / "weights/last.pt")
    return {f"{field}.{name}": tensor for field in ("model", "ema") for name, tensor in content[field].items()}


@pytest.mark.slow
def test_a_backbone_is_trained_after_its_epochs_and_resuming_is_exact(options, monkeypatch, log):
    """Statistics of its norms too. The run is stopped before the backbone is trained, and after an epoch of it."""
    first = train.new_run(train.make_parser().from_keywords(**options, name="first")).model.state_dict()
    whole = state(train.run(**options, name="whole"))
    said = "\n".join(log)
    assert "M parameters are frozen for 1 epoch\n" in said
    assert "epoch 2: what --freeze held is trained from here on" in said
    run, backbone = options["project"] / "stopped", [name for name in first if int(name.split(".")[1]) < 3]
    for epoch, how in ((1, {**options, "name": "stopped"}), (2, {"resume": run / "weights/last.pt"})):
        with stopped(monkeypatch, "on_train_batch_end", epoch):
            train.run(**how)
        kept = state(run)
        assert all(torch.equal(kept[f"model.{name}"], first[name]) == (epoch == 1) for name in backbone)
    again = state(train.run(resume=run / "weights/last.pt"))
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())
