"""`python -m models.yolo`: the table of a YAML, what fusing saves, the time of each row, and wrong input explained."""

import os
import re
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from models import DetectionModel
from models.errors import UserError
from models.row_times import time_rows
from models.summary import count_gflops, head_card, model_table
from tests.helpers import tiny, tiny_backbone, write
from utils import cli, describe_model

ROOT = Path(__file__).parents[1]


@pytest.fixture
def small(tmp_path):
    return write(tmp_path, tiny(), "small.yaml")


def command(*words):
    return cli.run_script(describe_model.main, describe_model.make_parser(), list(map(str, words)))


def test_it_tells_what_the_model_says_of_itself(small, caplog):
    assert command("--cfg", small, "--imgsz", 64, 96) == 0
    model = DetectionModel(small)
    deploy = model.fuse()
    lines = caplog.messages[-1].splitlines()
    assert lines[:-2] == model_table(model, (64, 96)).splitlines()
    assert lines[-3].endswith("GFLOPs at 64x96")
    assert lines[-2] == head_card(model)
    total = sum(p.numel() for p in deploy.parameters())
    assert lines[-1] == f"fused: {total:,} parameters, {count_gflops(deploy, (64, 96)):.1f} GFLOPs; 20 Conv+BN, 1 DFL"


def test_every_row_is_timed(small):
    (found,) = describe_model.run(str(small), profile=True, imgsz=[64, 96], rounds=3)
    model = DetectionModel(small)
    assert [row.module for row in found.rows] == [node.row.module for node in model.nodes]
    assert [row.slots for row in found.rows] == [str(node.slot) for node in model.nodes]
    assert all(latency.median > 0 and len(latency.times) == 3 for row in found.rows for latency in row.latency)
    assert sum(row.gflops[0] for row in found.rows) == pytest.approx(found.gflops[0])
    rows = describe_model.profile_table(found).splitlines()
    shares = [float(share) for row in rows[1:-1] for share in re.findall(r"([\d.]+)%", row)[:1]]
    assert sum(shares) == pytest.approx(100, abs=0.5)
    assert rows[-1].split()[:2] == ["all", "rows"]


def test_a_slow_row_is_seen(small):
    model = DetectionModel(small).eval()

    def dawdle(*_):
        time.sleep(0.02)

    for module in list(model.model)[:2]:
        module.register_forward_hook(dawdle)
    with torch.no_grad():
        times = [time_rows(model, partial(model, torch.rand(1, 3, 16, 16)))[1] for _ in range(3)]
    fastest = [min(row) for row in zip(*times, strict=True)]
    assert min(fastest[:2]) > max(fastest[2:5])
    assert all(len(m._forward_hooks) == (i < 2) for i, m in enumerate(model.model)), "hooks are taken off again"


@pytest.mark.slow
def test_a_model_of_one_size_is_described_at_that_size(tmp_path):
    cfg = write(tmp_path, tiny_backbone("levit_128s", {"img_size": 320}, head=[[["P4", "P5"], 1, "Detect", ["nc"]]]))
    (found,) = describe_model.run(str(cfg))
    assert found.imgsz == (320, 320)
    with pytest.raises(UserError, match=r"bad\.yaml takes no picture of 256x256"):
        describe_model.run(str(cfg), imgsz=[256])


def test_all_files_of_a_folder_are_described(small, monkeypatch, caplog):
    monkeypatch.setattr(describe_model, "CONFIGS", small.parent)
    write(small.parent, tiny(nc=3), "other.yaml")
    assert command("--test", "--imgsz", 64) == 0
    assert [message.split()[0] for message in caplog.messages[-2:]] == ["other.yaml", "small.yaml"]
    assert " parameters, fused " in caplog.messages[-1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name a model YAML, such as --cfg riformer-yolo.yaml, or --test"),
        (["--cfg", "yolov5n.yaml", "--test"], "name a model YAML"),
        (["--cfg", "missing.yaml"], "no model YAML 'missing.yaml', neither as a path nor in"),
        (["--cfg", "yolov5n", "--imgsz", "0"], "expected a whole number of at least 1"),
        (["--cfg", "yolov5n", "--imgsz", "1", "2", "3"], "--imgsz takes one side or height and width"),
        (["--cfg", "yolov5n", "--rounds", "x"], "expected a whole number"),
        (["--cfg", "yolov5n", "--plugins", "no.py"], "--plugins takes Python files"),
        (["yolov5n.yaml"], "'yolov5n.yaml' belongs to no option"),
    ],
)
def test_what_is_wrong_is_one_sentence(words, message, capsys):
    assert command(*words) == 2
    error = capsys.readouterr().err
    assert message in error and error.splitlines()[-1].startswith("ERROR: ")


def test_a_wrong_row_is_one_sentence(tmp_path, capsys):
    assert command("--cfg", write(tmp_path, tiny(head=[[-1, 1, "Conv", [8]], [-1, 1, "Dtect", ["nc"]]]))) == 2
    error = capsys.readouterr().err
    assert "bad.yaml, row 4 [-1, 1, Dtect, [nc]]: unknown module 'Dtect' (did you mean 'Detect'?)" in error


def python_m(*words):
    command = [sys.executable, "-m", "models.yolo", *map(str, words)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.slow
def test_the_module_runs(small):
    done = python_m("--cfg", small, "--profile", "--rounds", 2, "--imgsz", 64)
    assert done.returncode == 0, done.stderr
    assert "small.yaml summary: " in done.stdout
    assert "all rows" in done.stdout
    assert "Warning" not in done.stderr, "of being imported before it is run"


@pytest.mark.slow
def test_the_module_explains_wrong_input(tmp_path):
    done = python_m("--cfg", write(tmp_path, tiny(nc=0)))
    assert done.returncode == 2
    assert done.stderr.strip().splitlines() == ["ERROR: bad.yaml: nc must be a whole number from 1 to 20000, got 0"]
