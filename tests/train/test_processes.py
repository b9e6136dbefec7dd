"""Training by several processes: one folder, one writer, and the weights of a training by one."""

import csv
import json
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
import yaml

import train
import val
from models.errors import UserError
from tests.distributed.launching import ROOT, run_by
from tests.helpers import random_model, save, tiny
from tests.runs import NAMES
from utils.checkpoint import read_checkpoint
from utils.distributed.shards import Shard, share_of_batch

AUGMENTED = "mosaic mixup copy_paste hsv_h hsv_s hsv_v degrees translate scale shear perspective flipud fliplr".split()
PLUGIN = """
import os, signal
from pathlib import Path
from utils.train.trainer import Trainer

original = Trainer.optimizer_step

def step(trainer):
    told = os.environ["KILLED"]
    if told and os.environ["RANK"] == "1" and trainer.epoch == 1 and not Path(told).exists():
        Path(told).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    original(trainer)

Trainer.optimizer_step = step
"""  # ends the second process once
OPTIONS = {"epochs": 2, "imgsz": 64, "batch_size": 4, "device": "cpu", "noplots": True}


@pytest.fixture
def folder(tmp_path):
    """Return a folder with a network, a recipe without augmentation and a data set; ten pictures to train on."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 10), ("val", 5)):
        for kind in ("images", "labels"):
            (tmp_path / kind / split).mkdir(parents=True)
        for i in range(count):
            cv2.imwrite(str(tmp_path / f"images/{split}/{i}.png"), rng.integers(0, 255, (64, 64, 3), dtype=np.uint8))
            rows = [f"{i % 2} {x:.3f} {y:.3f} 0.4 0.3\n" for x, y in rng.uniform(0.3, 0.7, (i % 4, 2))]
            (tmp_path / f"labels/{split}/{i}.txt").write_text("".join(rows))
    recipe = yaml.safe_load((ROOT / "data/hyps/hyp.scratch-low.yaml").read_text())
    splits = {split: f"images/{split}" for split in ("train", "val")}
    contents = {"net": tiny(), "plain": {**recipe, **dict.fromkeys(AUGMENTED, 0.0)}, "data": {**splits, "names": NAMES}}
    for name, content in contents.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return tmp_path


def options(folder, **changes):
    files = {"cfg": folder / "net.yaml", "data": folder / "data.yaml", "hyp": folder / "plain.yaml"}
    return {**OPTIONS, **files, "project": folder / "runs", **changes}


def words(folder, **changes):
    """Return the command line of a training."""
    flags = {name.replace("_", "-"): value for name, value in options(folder, **changes).items()}
    return [str(ROOT / "train.py"), *(f"--{k}" if v is True else f"--{k}={v}" for k, v in flags.items())]


def numbers(file):
    """Return the numbers of the boxes in a predictions.json, those of each picture in order."""
    found = json.loads(file.read_text())
    return {i: np.sort([[p["score"], *p["bbox"]] for p in found if p["image_id"] == i], 0) for i in range(5)}


def curve(run):
    """Return the losses of each epoch of a run that its training had."""
    with (run / "results.csv").open() as file:
        return [[float(row[k]) for k in row if k.startswith("train/")] for row in csv.DictReader(file)]


@pytest.mark.slow
def test_two_processes_train_as_one_does(folder):
    """On the same pictures, drawn by their classes, with a backbone that is trained in the second epoch only."""
    own = {"sync_bn": True, "freeze": "backbone", "unfreeze_after": 1, "lr_backbone": 0.5, "image_weights": True}
    alone = train.run(**options(folder, **own, name="alone"))
    printed = run_by(2, words(folder, **own, name="shared"), folder)
    shared = folder / "runs/shared"
    assert {path.name for path in (folder / "runs").iterdir()} == {"alone", "shared"}
    assert printed.count("Results saved to") == 1
    assert np.allclose(curve(shared), curve(alone), rtol=0, atol=1e-5)
    got, want = (read_checkpoint(run / "weights/last.pt") for run in (shared, alone))
    for field in ("model", "ema"):
        for name, tensor in want[field].items():
            torch.testing.assert_close(got[field][name], tensor, rtol=1e-4, atol=1e-5, msg=name)
    metrics = [json.loads((run / "final.json").read_text())["metrics"] for run in (shared, alone)]
    assert metrics[0] == pytest.approx(metrics[1], abs=1e-4)


@pytest.mark.slow
def test_processes_validate_each_picture_once(folder):
    weights = save(random_model(tiny()), folder / "random.pt")
    options = {"weights": weights, "data": folder / "data.yaml", "imgsz": 64, "batch_size": 2, "project": folder}
    alone = val.run(**options, device="cpu", save_json=True, conf_thres=0.0001, name="alone")
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    flags += ["--save-json", "--conf-thres=0.0001", "--name=shared", "--device=cpu,cpu"]
    (temporary := folder / "temporary").mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary)}
    command = [sys.executable, ROOT / "val.py", *flags]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    assert not [path for path in temporary.iterdir() if not path.name.startswith("torchinductor")]
    shared, whole = (numbers(folder / name / "predictions.json") for name in ("shared", "alone"))
    assert whole.keys() == shared.keys() == {0, 1, 2, 3, 4}
    assert all(np.allclose(shared[i], whole[i], atol=0.002) for i in whole)
    assert (folder / "shared/confusion_matrix.png").read_bytes() == (folder / "alone/confusion_matrix.png").read_bytes()
    assert alone


@pytest.mark.slow
def test_a_training_that_loses_a_process_goes_on_as_if_it_had_not(folder):
    """Augmented, by two processes, of which one is killed in the second epoch, just after the backbone was unfrozen."""
    recipe = {"hyp": ROOT / "data/hyps/hyp.scratch-low.yaml", "device": "cpu,cpu", "optimizer": "MuSGD"}
    recipe |= {"freeze": "backbone", "unfreeze_after": 1, "image_weights": True, "layer_decay": 0.9}
    (folder / "plugin.py").write_text(PLUGIN)
    for name in ("whole", "killed"):
        command = [sys.executable, *words(folder, **recipe, name=name, max_restarts=1, plugin=folder / "plugin.py")]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "KILLED": str(folder / "told") if name == "killed" else ""}
        result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr[-3000:]
    assert (folder / "told").exists()
    assert {path.name for path in (folder / "runs").iterdir()} == {"whole", "killed"}
    got, want = (read_checkpoint(folder / f"runs/{name}/weights/last.pt") for name in ("killed", "whole"))
    for field in ("model", "ema"):
        assert all(torch.equal(got[field][name], tensor) for name, tensor in want[field].items())
    assert curve(folder / "runs/killed") == curve(folder / "runs/whole")


@pytest.mark.parametrize(("pictures", "batch", "processes"), [(10, 4, 2), (12, 4, 4), (11, 6, 3), (3, 8, 4), (0, 4, 2)])
@pytest.mark.parametrize("shuffle", [False, True])
def test_each_picture_belongs_to_one_process(pictures, batch, processes, shuffle):
    shards = [Shard(pictures, batch, shuffle, 0, rank, processes) for rank in range(processes)]
    for shard in shards:
        shard.start(5)
    parts = [list(shard) for shard in shards]
    assert sorted(i for part in parts for i in part) == list(range(pictures))
    assert [len(part) for part in parts] == [len(shard) for shard in shards]


def test_processes_take_the_batches_of_one():
    generator = torch.Generator().manual_seed(7)
    loader = torch.utils.data.DataLoader(range(10), batch_size=4, shuffle=True, generator=generator)
    shards = [Shard(10, 4, True, 1, rank, 2) for rank in range(2)]
    for shard in shards:
        shard.start(7)
    parts = [list(torch.tensor(list(shard)).split(2)) for shard in shards]
    assert [torch.cat(pair).tolist() for pair in zip(*parts, strict=True)] == [batch.tolist() for batch in loader]


def test_a_last_batch_that_is_too_small_for_all_is_left_out():
    shards = [Shard(9, 4, False, 1, rank, 2) for rank in range(2)]
    assert [list(shard) for shard in shards] == [[0, 1, 4, 5], [2, 3, 6, 7]]
    assert [len(shard) for shard in shards] == [4, 4]


def test_a_batch_is_shared_evenly():
    assert share_of_batch(16, 4) == 4
    with pytest.raises(UserError, match="cannot be shared by 4 processes: give 4 or 8, for instance"):
        share_of_batch(6, 4)
    with pytest.raises(UserError, match="-1 is for one GPU"):
        share_of_batch(-1, 2)
