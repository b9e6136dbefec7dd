"""Steps after several batches: those of larger batches, and none is left over when a run stops."""

import pytest
import torch
import yaml

import train
from models.errors import UserError
from tests.helpers import tiny
from tests.runs import make_data, stopped
from utils.checkpoint import read_checkpoint
from utils.paths import ROOT

STILL = "mosaic hsv_h hsv_s hsv_v translate scale fliplr warmup_epochs".split()  # so that all pictures are alike


@pytest.fixture
def options(tmp_path):
    """Return the options of a training on eight pictures that are the same, without augmentation.

    AdamW would make much of gradients that are nothing but rounding.
    """
    recipe = yaml.safe_load((ROOT / "data/hyps/hyp.scratch-low.yaml").read_text())
    (tmp_path / "still.yaml").write_text(yaml.safe_dump({**recipe, **dict.fromkeys(STILL, 0.0)}, sort_keys=False))
    (tmp_path / "net.yaml").write_text(yaml.safe_dump(tiny()))
    files = {"cfg": tmp_path / "net.yaml", "hyp": tmp_path / "still.yaml", "data": make_data(tmp_path, 8)}
    return {
        **files,
        "project": tmp_path / "runs",
        "epochs": 2,
        "imgsz": 64,
        "device": "cpu",
        "noplots": True,
        "optimizer": "SGD",
    }


def last(run):
    return read_checkpoint(run / "weights/last.pt")


@pytest.mark.slow
def test_two_batches_a_step_are_one_of_twice_the_size(options):
    large = last(train.run(**options, batch_size=4, name="large"))
    small = last(train.run(**options, batch_size=2, accumulate=2, name="small"))
    assert large["updates"] == small["updates"] == 4
    for name in (name for name in large["model"] if name.endswith(("weight", "bias"))):
        torch.testing.assert_close(small["model"][name], large["model"][name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.slow
def test_a_run_that_is_resumed_takes_the_same_steps(options, monkeypatch):
    """Of four batches an epoch, each third and the last one are followed by a step."""
    own = {**options, "batch_size": 2, "accumulate": 3, "hyp": "hyp.scratch-low.yaml"}
    whole = last(train.run(**own, name="whole"))
    assert whole["updates"] == 4
    with stopped(monkeypatch, "on_train_batch_end", epoch=1):
        train.run(**own, name="stopped")
    again = last(train.run(resume=options["project"] / "stopped/weights/last.pt"))
    assert all(torch.equal(again["model"][name], tensor) for name, tensor in whole["model"].items())


def test_restarts_are_for_several_devices(options):
    with pytest.raises(UserError, match="--max-restarts is for several devices"):
        train.run(**options, max_restarts=1)
