"""The process that runs attacks: it imports everything once and forks for each, so that none meets another.

Reads the number of an attack from each line of its input, and answers with a line of JSON.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models.environment  # noqa: F401 (before onnxruntime, which asks for names of servers otherwise)

# isort: split
import matplotlib.pyplot  # noqa: F401 (imported late by scripts, as the next three are)
import onnxruntime  # noqa: F401
import torch
import torch._dynamo
import torchvision  # noqa: F401

import benchmark
import compare
import detect
import export
import train
import val
from tests.attacks.attack import SECRET, Attack, End, Place
from tests.attacks.base import make_base
from tests.attacks.catalogue import ATTACKS
from tests.attacks.media import ULTRALYTICS
from utils import check_weights, cli, convert, describe_model
from utils.comparison import train_ultralytics
from utils.convert_data import __main__ as convert_data

SCRIPTS = {
    **{module.__name__: module for module in (benchmark, compare, detect, export, train, val)},
    "models.yolo": describe_model,
    "utils.convert": convert,
    "utils.check_weights": check_weights,
    "utils.convert_data": convert_data,
    ULTRALYTICS: train_ultralytics,
}
PATIENCE = 60  # seconds that a script may take
BROKEN = 99  # exit code of an attack that cannot be prepared


def main(base: str, folder: str) -> None:
    """Run attacks in `folder` until the input ends."""
    torch.set_num_threads(1)
    gc.freeze()
    for line in sys.stdin:
        place = Path(folder) / line.strip()
        found = run(ATTACKS[int(line)], Place(place / "in", Path(base)))
        print(json.dumps(found), flush=True)
        shutil.rmtree(place, ignore_errors=True)


def run(attack: Attack, place: Place) -> dict[str, Any]:
    """Run an attack in a process of its own and return what came of it."""
    place.folder.mkdir(parents=True)
    place.secret.parent.mkdir()
    place.secret.write_text(SECRET)
    log = place.folder.parent / "log"
    code = fork(lambda: start(attack, place), log)
    output = log.read_text(encoding="utf-8", errors="replace")
    if code == BROKEN:
        raise RuntimeError(f"the attack {attack.kind}: {attack.name} cannot be prepared:\n{output}")
    if code is None:
        end = End.HANG
    elif code < 0 or "Traceback (most recent call last)" in output:
        end = End.TRACEBACK
    else:
        end = End.REFUSED if code == 2 else End.HARMLESS
    changed = not place.secret.exists() or place.secret.read_text() != SECRET
    return {"end": end.name, "executed": place.marker.exists() or changed, "output": output[-3000:]}


def fork(work: Callable[[], int], log: Path) -> int | None:
    """Do some work in a child process; return its exit code, negative for a signal, None where it took too long."""
    child = os.fork()
    if not child:
        os.setsid()
        output = os.open(log, os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115 (until the end)
        faulthandler.enable()
        code = BROKEN
        try:
            code = work()
        except BaseException:
            traceback.print_exc()
            code = BROKEN if code == BROKEN else 1
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os._exit(code)
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def start(attack: Attack, place: Place) -> int:
    """Prepare an attack and run its script as a user would; return the exit code."""
    os.chdir(place.folder)
    script, *words = attack.prepare(place)
    module = SCRIPTS[script]
    try:
        return cli.run_script(module.main, module.make_parser(), words)
    except Exception:  # a bug, as Python would report it
        traceback.print_exc()
        return 1


if __name__ == "__main__":
    if sys.argv[1] == "base":
        make_base(Path(sys.argv[2]))
    else:
        main(*sys.argv[1:])
