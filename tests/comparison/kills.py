"""Comparisons that are killed while they write a file, resumed, and compared with one that never was.

    python -m tests.comparison.kills FOLDER KILLS

Each comparison is a process of its own, forked from this one, which does the steps itself: in the place of training and
exporting it takes files that were made before. The figures are printed as JSON.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot  # noqa: F401 (imported late by a comparison, as torchvision is)
import numpy as np
import torchvision  # noqa: F401

import compare
from tests.comparisons import SIDE, make_comparison, make_networks
from tests.kills import Moment, stop_at, watch
from tests.networks import NAMES
from tests.runs import make_data
from utils import cli
from utils.comparison import work
from utils.comparison.detections import Detections
from utils.comparison.plan import Job, Plan, load_plan
from utils.data.pictures import read_picture
from utils.writing import PARTIAL


class Done:
    """A step that has come to its end, as `work.start` returns one."""

    returncode = 0

    def poll(self) -> int:
        return self.returncode

    wait = terminate = poll


def prepare(folder: Path) -> tuple[Plan, list[str]]:
    """Make a comparison of which all is trained and exported, and return it and the words that start one like it."""
    networks = make_networks(folder)
    data = make_data(folder, names=list(NAMES.values()))
    words = ["--cfg", *(str(folder / f"{name}.yaml") for name in networks), "--data", str(data)]
    words += f"--imgsz {SIDE} --batch-size 2 --epochs 1 --seeds 1 --rounds 1 --device cpu --project".split()
    return make_comparison(folder / "prepared", data, networks), [*words, str(folder / "runs"), "--name"]


def compare_in_a_child(words: list[str], prepared: Plan, log: Path, reached: Callable[[Moment], None]) -> int:
    """Run compare.py in a forked process and return its exit code, negative for the signal that killed it."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def start(step: list[str], job: Job, lock: int, args: Namespace) -> Done:
        if step[0] == "compare.py":
            compare.main(compare.make_parser().parse_args(step[1:]))
        else:
            shutil.copytree(prepared.job(job.name).run, job.run, dirs_exist_ok=True)
        return Done()

    code = 99
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        watch(reached)
        work.start, work.POLL = start, 0
        code = cli.run_script(compare.main, compare.make_parser(), words)
    finally:
        os._exit(code)


def results(run: Path) -> list[dict]:
    """Return what a comparison found of each network, but for the milliseconds that it took."""
    entries = json.loads((run / "compare.json").read_text())["entries"]
    return [{key: value for key, value in entry.items() if key not in TIMED} for entry in entries]


TIMED = ("latency", "latency_by_threads", "fastest")  # keys of results that differ from run to run
READERS: dict[str, Callable[[Path], object]] = {
    "plan.json": lambda path: load_plan(path.parent),
    "jobs/*/result.json": lambda path: json.loads(path.read_text())["maps"],
    "jobs/*/found.npz": Detections.load,
    "compare.json": lambda path: results(path.parent)[0],
    "compare.html": lambda path: path.read_text().index("</pre>"),
    "compare.png": read_picture,
    "disagreement.jpg": read_picture,
}


def unreadable(run: Path) -> list[str]:
    """Return which files of a comparison are there and cannot be read."""
    found = []
    for pattern, read in READERS.items():
        for path in run.glob(pattern):
            try:
                read(path)
            except Exception as error:
                found.append(f"{path.relative_to(run)}: {error!r}")
    return found


def differences(run: Path, whole: Path) -> list[str]:
    """Return what two comparisons that have come to their end do not have alike."""
    found = [f"{pattern} is missing" for pattern in READERS if not list(run.glob(pattern))]
    for path in whole.glob("jobs/*/found.npz"):
        got, want = (vars(Detections.load(folder / path.relative_to(whole))) for folder in (run, whole))
        found += [f"{path.parent.name}: {key}" for key in want if not np.array_equal(got[key], want[key])]
    found += ["compare.json"] if results(run) != results(whole) else []
    return found + [f"{path.name} is left" for path in run.rglob(f".*{PARTIAL}")]


def main(folder: Path, kills: int) -> dict[str, object]:
    """Return the figures of comparisons of which so many were killed while a file was written."""
    prepared, new = prepare(folder)
    rng, listed, whole = random.Random(0), folder / "moments.txt", folder / "runs/whole"

    def write_down(moment: Moment) -> None:
        with listed.open("a") as file:
            file.write(" ".join(moment) + "\n")

    def run(words: list[str], name: str, reached: Callable[[Moment], None]) -> int:
        return compare_in_a_child(words, prepared, folder / f"{name}.log", reached)

    code = run([*new, whole.name], whole.name, write_down)
    wrong = [f"the one never stopped: exit code {code}"] if code else []
    moments = Counter(tuple(line.split()) for line in listed.read_text().splitlines())
    at = Counter({" ".join(moment): 0 for moment in moments})
    for number in range(kills):
        name, told = f"run{number}", folder / "told"
        moment = min(moments, key=lambda m: (at[" ".join(m)], rng.random()))
        at[" ".join(moment)] += 1
        told.unlink(missing_ok=True)
        code = run([*new, name], name, stop_at(moment, rng.randint(1, moments[moment]), signal.SIGKILL, told))
        place = folder / "runs" / name
        faults = unreadable(place)
        if code != -signal.SIGKILL or not told.exists():
            faults.append(f"exit code {code} instead of a kill")
        started = (place / "plan.json").exists()
        code = run(["--resume", str(place), "--rounds", "1", "--device", "cpu"], name, lambda _: None)
        if code != (0 if started else 2):
            faults.append(f"exit code {code} when it is resumed")
        wrong += [f"{name}, at {moment}: {fault}" for fault in faults + (differences(place, whole) if started else [])]
    return {"kills": kills, "at": at, "wrong": wrong}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]))))
