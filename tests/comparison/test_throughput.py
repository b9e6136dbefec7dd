"""Trainings in turns: their commands, what is timed of them, and a run from end to end."""

import copy
import json
import socket
import types

import pytest
import torch
import yaml

from models.errors import UserError
from tests.helpers import tiny
from tests.runs import make_data
from utils.benchmark.turns import Turns
from utils.comparison import throughput
from utils.comparison.entries import Entry
from utils.comparison.throughput import Row, commands_of, deploy_form, table


def test_a_turn_is_so_many_steps():
    line, other = socket.socketpair()
    turns = copy.deepcopy(Turns(other, steps=2).after_step).__self__
    loader = [0] * 4
    trainer = types.SimpleNamespace(
        device=torch.device("cpu"), train_loader=type("Loader", (list,), {"dataset": range(14)})(loader)
    )
    turns.before_epoch(trainer)
    turns.after_step(trainer)
    line.sendall(b"1")
    turns.after_step(trainer)
    told = json.loads(line.recv(999))
    assert told["pictures"] == 7 and told["seconds"] > 0 and told["peak_mb"] > 10
    line.shutdown(socket.SHUT_WR)
    turns.after_step(trainer)
    with pytest.raises(SystemExit):
        turns.after_step(trainer)


def test_an_entry_is_trained_by_its_own_commands(tmp_path):
    args = throughput.make_parser().parse_args(["--overparameterize", "acb", "--deploy"])
    row = [-1, 1, "RepVGG", ["A0", {"style": "qarep"}]]
    entry = Entry("net", tiny(backbone=[row]))
    assert deploy_form(entry)["backbone"] == [[-1, 1, "RepVGG", ["A0", {"style": "qarep", "deploy": True}]]]
    commands = commands_of(entry, args, tmp_path / "hyp.yaml", tmp_path)
    assert list(commands) == ["net", "net (deploy)", "net (acb)"]
    assert commands["net (acb)"] == [*commands["net"], "--overparameterize", "acb"]
    theirs = commands_of(Entry("v5", {}, "ultralytics", "yolov5n"), args, tmp_path, tmp_path)
    assert theirs == {"v5": ["-m", "utils.comparison.train_ultralytics", "--cfg", "yolov5n"]}
    with pytest.raises(UserError, match="--deploy is for list backbones, of which net has none"):
        commands_of(Entry("net", tiny()), args, tmp_path, tmp_path)


def test_the_table_compares_with_the_first():
    lines = table([Row("a", [10.0, 8.0, 9.0], 500.4), Row("b", [5.0], 400), Row("c", note="it failed")]).splitlines()
    assert lines[2:] == [
        "| a | 9.0 | 10.0 | 1.00x | 500 |",
        "| b | 5.0 | 5.0 | 2.00x | 400 |",
        "| c | it failed | | | |",
    ]


@pytest.mark.slow
def test_trainings_take_turns(tmp_path):
    (tmp_path / "net.yaml").write_text(yaml.safe_dump(tiny()))
    options = {
        "cfg": [tmp_path / "net.yaml"],
        "data": make_data(tmp_path),
        "imgsz": 64,
        "batch_size": 2,
        "device": "cpu",
    }
    args = throughput.make_parser().from_keywords(**options, steps=1, rounds=2, project=tmp_path)
    (row,) = throughput.benchmark(args)
    assert row.name == "net" and not row.note
    assert len(row.rates) == 2 and min(row.rates) > 0 and row.peak_mb > 50
    assert json.loads((tmp_path / "exp/throughput.json").read_text())["rows"][0]["rates"] == row.rates
