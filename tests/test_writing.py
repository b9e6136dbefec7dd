"""Files that are replaced as a whole, whatever signal comes while they are written."""

import os
import signal
import subprocess
import sys

import pytest

from utils.cli import Terminated
from utils.writing import open_log, remove_partials, replacing, signals_held, write_text


@pytest.fixture
def stopping():
    """SIGTERM and SIGALRM raise Terminated, as in a script."""

    def stop(*_):
        raise Terminated

    former = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGALRM)}
    yield stop
    for number, handler in former.items():
        signal.signal(number, handler)


def names(folder):
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGALRM])
def test_a_stop_waits_until_the_file_is_there(number, stopping, tmp_path):
    handler = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "a.txt") as file:
        file.write(b"first ")
        signal.raise_signal(number)
        file.write(b"second")
    assert (tmp_path / "a.txt").read_bytes() == b"first second"
    assert names(tmp_path) == {"a.txt"}
    assert signal.getsignal(number) is handler


def test_all_signals_that_waited_are_delivered(stopping):
    seen = []
    signal.signal(signal.SIGALRM, lambda *_: seen.append("alarm"))
    with pytest.raises(Terminated), signals_held():
        signal.raise_signal(signal.SIGALRM)
        signal.raise_signal(signal.SIGTERM)
        assert not seen
    assert seen == ["alarm"]


def test_holding_within_holding(stopping):
    with pytest.raises(Terminated), signals_held():
        with signals_held():
            signal.raise_signal(signal.SIGTERM)
        held = True
    assert held


def test_a_failed_write_leaves_the_old_file(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "a.txt") as file:
        file.write(b"new")
        raise ZeroDivisionError
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names(tmp_path) == {"a.txt"}


def test_what_dead_processes_left_is_removed(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    kept = {f".a.pt.{os.getppid()}.partial", "b.partial", ".c.pt.x.partial", "a.pt"}
    for name in {*kept, f".a.pt.{dead.pid}.partial", f".a.pt.{os.getpid()}.partial", f".a.pt.{10**30}.partial"}:
        (tmp_path / name).touch()
    remove_partials(tmp_path)
    assert names(tmp_path) == kept


def test_nothing_is_added_to_what_a_link_leads_to_or_to_a_pipe(tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "link").symlink_to("secret.txt")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe", "link", "new"):
        with open_log(tmp_path / name) as file:
            file.write(b"line\n")
    assert (tmp_path / "secret.txt").read_text() == "secret"
    assert {name: (tmp_path / name).read_text().count("line") for name in ("link", "pipe", "new")} == {
        "link": 2,
        "pipe": 1,
        "new": 1,
    }
