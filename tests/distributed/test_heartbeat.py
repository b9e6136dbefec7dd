"""A process that is frozen is found and ended; one that is busy is not."""

import subprocess
import sys

import pytest
from torch import distributed as dist

from tests.distributed.launching import start_by
from utils.distributed import heartbeat
from utils.distributed.heartbeat import Heartbeat, end_frozen


@pytest.fixture
def ended(monkeypatch):
    """Return which processes have been ended, by number and seconds of silence."""
    ranks = []
    monkeypatch.setattr(heartbeat, "end_frozen", lambda rank, pid, seconds: ranks.append((rank, seconds)))
    return ranks


def test_silence_is_counted_in_beats_of_ones_own(ended):
    store = dist.HashStore()
    first, second = (Heartbeat(store, rank, [0, 1, 2], silence=8) for rank in range(2))
    for _ in range(20):
        first.beat()
        second.beat()
    for _ in range(3):
        first.beat()
    assert not ended, "the third has not started yet, the second may be slow"
    for _ in range(3):
        first.beat()
    assert ended == [(1, 8)]
    second.beat()
    assert ended == [(1, 8)], "one that was frozen itself accuses none"


def test_only_a_process_of_the_same_launcher_is_ended():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        end_frozen(1, child.pid, 8)
        assert child.poll() is None
    finally:
        child.kill()
        child.communicate()


@pytest.mark.slow
def test_a_process_that_is_frozen_ends_all():
    code, printed = start_by(2, ["-m", "tests.distributed.freezing"], REPYOLO_SILENCE_TIMEOUT="2")
    assert code == 1, printed
    assert "process 1 has not answered for 2 seconds and is ended" in printed
