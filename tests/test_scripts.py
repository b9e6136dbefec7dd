"""Scripts that are forked from a process with the large libraries behave as those that are started anew."""

import json
import os
import signal
import subprocess
import sys

import pytest

from tests import scripts
from utils.paths import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="scripts are forked on Linux alone")
SEEN = """
import json, os, sys
import own
names = "torch torch._dynamo torchvision timm ultralytics models".split()
loaded = [name for name in names if name in sys.modules]
print(json.dumps([sys.argv, os.getcwd(), os.environ["WORD"], os.getppid(), __name__, own.__file__, loaded]))
print(sys.stdin.read(), file=sys.stderr)
"""
READY = "import signal, time; print('ready', flush=True); time.sleep(100)"
CAUGHT = "import signal, sys; signal.signal(15, lambda *_: sys.exit(7)); print('ready', flush=True); signal.pause()"


@pytest.fixture
def files(tmp_path):
    """Return the words that run SEEN in three ways, for files in the folder of the test."""
    (tmp_path / "own.py").write_text("")
    (tmp_path / "seen.py").write_text(SEEN)
    return {"script": ["seen.py"], "module": ["-m", "seen"], "code": ["-c", SEEN]}


@pytest.mark.parametrize("way", ["script", "module", "code"])
def test_a_script_sees_what_it_is_given(way, files, tmp_path):
    environment = {**os.environ, "WORD": "x", "PYTHONPATH": str(ROOT)}
    process = scripts.start(
        [*files[way], "a", "\udce9"],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert type(process) is scripts.Forked
    out, err = process.communicate("input")
    assert (process.returncode, err) == (0, "input\n")
    (first, *argv), folder, word, parent, name, own, loaded = json.loads(out)
    assert first == {"script": "seen.py", "module": str(tmp_path / "seen.py"), "code": "-c"}[way]
    assert (argv, folder, word, parent, name) == (["a", "\udce9"], str(tmp_path), "x", os.getpid(), "__main__")
    assert own == str(tmp_path / "own.py")
    assert loaded == ["torch", "torch._dynamo"]


@pytest.mark.parametrize(
    ("code", "exit_code", "told"),
    [
        ("pass", 0, ""),
        ("raise SystemExit(3)", 3, ""),
        ("raise SystemExit('no')", 1, "no"),
        ("[].pop()", 1, "IndexError: pop from empty list"),
        ("import atexit, sys; atexit.register(print, 'end', file=sys.stderr)", 0, "end"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -15, ""),
        ("import os; os.abort()", -6, ""),
    ],
)
def test_a_script_ends_as_it_does_elsewhere(code, exit_code, told):
    ended = scripts.run(["-c", code])
    assert (ended.returncode, ended.stdout) == (exit_code, "")
    assert ended.stderr.splitlines()[-1:] == [told] * bool(told)


@pytest.mark.parametrize(
    ("code", "number", "exit_code"), [(READY, 15, -15), (READY, 9, -9), (CAUGHT, 15, 7), (READY, 2, 1)]
)
def test_signals_reach_a_script(code, number, exit_code):
    process = scripts.start(["-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout.readline() == "ready\n"
    assert process.poll() is None
    process.send_signal(number)
    assert process.wait(60) in (exit_code, -number)
    process.stdout.close()


def test_a_group_of_its_own_is_reached_as_a_whole():
    code = "import os, time; os.fork(); os.write(1, b'%d\\n' % os.getpgid(0)); time.sleep(100)"  # each at once
    process = scripts.start(["-c", code], start_new_session=True, stdout=subprocess.PIPE, text=True)
    assert [process.stdout.readline() for _ in range(2)] == [f"{process.pid}\n"] * 2
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait(60) == -9
    assert process.stdout.read() == "", "nobody holds the other end"
    process.stdout.close()
    assert scripts.run(["-c", "import os; print(os.getpgid(0))"]).stdout == f"{os.getpgid(0)}\n"


def test_a_script_that_takes_too_long_is_killed():
    with pytest.raises(subprocess.TimeoutExpired):
        scripts.run(["-c", READY], timeout=0.5)


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "PYTHONHASHSEED", "LC_ALL"])
def test_what_the_start_of_a_process_reads_has_it_started_anew(name):
    code = f"import os, sys; print(os.environ[{name!r}], 'torch' in sys.modules)"
    environment = {**os.environ, name: "C" if name == "LC_ALL" else "7"}
    assert scripts.run(["-c", code], env=environment).stdout == f"{environment[name]} False\n"
    assert scripts.run(["-c", "import sys; print('torch' in sys.modules)"]).stdout == "True\n"
    process = scripts.start(["-c", "pass"], preexec_fn=lambda: None)
    assert process.wait(60) == 0 and type(process) is subprocess.Popen


def test_threads_are_those_that_the_tests_ask_for():
    code = "import torch; from models.environment import cpu_cores; print(torch.get_num_threads(), cpu_cores())"
    assert scripts.run(["-c", code], cwd=ROOT).stdout == "1 1\n"
    assert os.environ["OMP_NUM_THREADS"] == "1"


def test_the_server_ends_with_the_process_that_started_it():
    code = "from tests import scripts; scripts.run(['-c', 'pass']); print(scripts.server().process.pid)"
    number = int(scripts.run(["-c", code], cwd=ROOT).stdout)
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)


def test_a_large_request_arrives():
    words = ["x" * 100_000] * 10
    assert scripts.run(["-c", "import sys; print(len(''.join(sys.argv)))", *words]).stdout == "1000002\n"
