"""Which devices become processes, and which run a launch that is started again goes on with."""

import argparse
import os
import socket

import pytest
import torch

from models.errors import UserError
from utils import cli
from utils.distributed import launch
from utils.distributed.group import STORE, device_of


def test_a_list_of_devices_becomes_processes(monkeypatch):
    assert cli.devices("CPU,cpu") == "cpu,cpu"
    assert launch.wants_several("cpu,cpu")
    assert not launch.wants_several("cpu")
    monkeypatch.setattr(launch, "is_shared", lambda: True)
    assert not launch.wants_several("cpu,cpu")
    with pytest.raises(argparse.ArgumentTypeError):
        cli.devices("cpu,0")


def test_each_process_has_a_device_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device_of("cpu", 5) == torch.device("cpu")
    assert [device_of(text, 1).index for text in ("", "1,0", "4,7")] == [1, 0, 7]
    with pytest.raises(UserError, match="process 3 of this machine has no device of its own: there are 0, 1;"):
        device_of("", 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert device_of("", 3) == torch.device("cpu")


def test_a_launch_leaves_the_process_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    before, find = dict(os.environ), socket.getfqdn
    with pytest.raises(RuntimeError), launch.on_this_machine(tmp_path / "group"):
        assert os.environ[STORE] == str(tmp_path / "group")
        assert os.environ["GLOO_SOCKET_IFNAME"] == "eth7", "a user's choice stays"
        assert socket.getfqdn("first") == "first"
        raise RuntimeError
    assert dict(os.environ) == before
    assert socket.getfqdn is find


@pytest.mark.parametrize("name", ["night", "none"])
def test_a_launch_knows_its_run_again(name, tmp_path, monkeypatch):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    launch.mark_run(tmp_path / "a")
    assert not (tmp_path / "a" / launch.NAME).exists()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "another")
    launch.mark_run(tmp_path / "a")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", name)
    assert launch.started_run(tmp_path) is None
    monkeypatch.setattr(launch, "STARTS", 1)
    assert launch.started_run(tmp_path) is None
    launch.mark_run(tmp_path / "b")
    assert launch.started_run(tmp_path) == tmp_path / "b"
