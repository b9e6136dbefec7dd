"""Trainings that are killed or stopped while they write a file, resumed, and compared with one that never was.

    python -m tests.kills FOLDER KILLS STOPS

FOLDER holds net.yaml and data.yaml. Each training is a process of its own, forked from this one, which has imported
all there is to import and does not compute. The figures are printed as JSON.
"""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
import torch._dynamo  # imported late by a training, as torchvision is
import torchvision  # noqa: F401
import yaml

import train
from utils import cli
from utils.checkpoint import read_checkpoint
from utils.train.trainer import Trainer
from utils.writing import PARTIAL

FITNESS = (0.1, 0.9, 0.5, 0.4)  # of the epochs, so that best.pt is that of the second
CODES = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 143, signal.SIGINT: 130}
STOPS_A_RUN = 3
Moment = tuple[str, str]  # name of a file; before it is opened, inside of a write, written and not renamed yet, after


class Writing:
    """A file whose writes are done in two halves, with a call in between."""

    def __init__(self, file, between: Callable[[], None]) -> None:
        self.file, self.between = file, between

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, data) -> int:
        view = memoryview(data).cast("B")
        self.file.write(view[: len(view) // 2])
        self.file.flush()
        self.between()
        self.file.write(view[len(view) // 2 :])
        return len(view)


def watch(reached: Callable[[Moment], None]) -> None:
    """Call `reached` at each moment of each file that is replaced as a whole, in this process."""
    opened, replaced = Path.open, Path.replace

    def name_of(path: Path) -> str:
        return path.name[1:].removesuffix(PARTIAL).rpartition(".")[0]

    def open_watched(path, mode="r", *args, **kwargs):
        if not path.name.endswith(PARTIAL):
            return opened(path, mode, *args, **kwargs)
        name = name_of(path)
        reached((name, "before"))
        return Writing(opened(path, mode, *args, **kwargs), lambda: reached((name, "inside")))

    def replace_watched(path, target):
        if not path.name.endswith(PARTIAL):
            return replaced(path, target)
        reached((name_of(path), "written"))
        result = replaced(path, target)
        reached((Path(target).name, "after"))
        return result

    Path.open, Path.replace = open_watched, replace_watched


def train_in_a_child(words: list[str], log: Path, reached: Callable[[Moment], None]) -> int:
    """Run train.py in a forked process and return its exit code, negative for the signal that killed it."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 99
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        watch(reached)
        validate = Trainer.validate

        def validate_as_told(trainer):
            metrics, _ = validate(trainer)
            fitness = FITNESS[trainer.epoch]
            trainer.best_fitness = max(trainer.best_fitness or 0, fitness)
            return metrics, fitness

        Trainer.validate = validate_as_told
        code = cli.run_script(train.main, train.make_parser(), words)
    finally:
        os._exit(code)


def stop_at(moment: Moment, count: int, number: signal.Signals, told: Path) -> Callable[[Moment], None]:
    """Return what sends a signal to its own process when a moment comes for the time `count`, and says so before."""
    left = [count]

    def reached(now: Moment) -> None:
        left[0] -= now == moment
        if now == moment and left[0] == 0:
            told.touch()
            os.kill(os.getpid(), number)

    return reached


def results(run: Path) -> list[dict[str, str]]:
    """Return the rows of results.csv without the seconds that they took."""
    with (run / "results.csv").open() as file:
        return [{key: value for key, value in row.items() if key != "time"} for row in csv.DictReader(file)]


def options(file: Path) -> dict:
    """Return the mapping that a YAML holds."""
    return dict(yaml.safe_load(file.read_text()))


READERS: dict[str, Callable[[Path], object]] = {
    "weights/last.pt": read_checkpoint,
    "weights/best.pt": read_checkpoint,
    "args.yaml": options,
    "data.yaml": options,
    "results.csv": lambda path: results(path.parent)[0],
    "final.json": lambda path: json.loads(path.read_text())["metrics"],
}


def unreadable(run: Path) -> list[str]:
    """Return which files of a run are there and cannot be read."""
    found = []
    for name, read in READERS.items():
        try:
            if (run / name).exists():
                read(run / name)
        except Exception as error:
            found.append(f"{name}: {error!r}")
    return found


def differences(run: Path, whole: Path) -> list[str]:
    """Return what two finished runs do not have alike, to the last bit."""
    found = []
    for name in ("last", "best"):
        got, want = (read_checkpoint(folder / f"weights/{name}.pt") for folder in (run, whole))
        for key in ("model", "ema") if name == "last" else ("ema",):
            found += [f"{name}.pt {key} {n}" for n in want[key] if not torch.equal(want[key][n], got[key][n])]
        found += [f"{name}.pt {key}" for key in ("epoch", "fitness", "epochs") if got[key] != want[key]]
    found += ["results.csv"] if results(run) != results(whole) else []
    found += ["final.json"] if (run / "final.json").read_text() != (whole / "final.json").read_text() else []
    return found + [f"{path.name} is left" for path in run.rglob(f".*{PARTIAL}")]


def main(folder: Path, kills: int, stops: int) -> dict[str, object]:
    """Return the figures of trainings with at least so many kills and stops while a file is written."""
    project, rng = folder / "runs", random.Random(0)
    new = ["--cfg", str(folder / "net.yaml"), "--data", str(folder / "data.yaml"), "--epochs", str(len(FITNESS))]
    new += [*"--imgsz 64 --batch-size 2 --device cpu --noplots --exist-ok --project".split(), str(project), "--name"]
    listed = folder / "moments.txt"

    def write_down(moment: Moment) -> None:
        with listed.open("a") as file:
            file.write(" ".join(moment) + "\n")

    train_in_a_child([*new, "whole"], folder / "whole.log", write_down)
    moments = Counter(tuple(line.split()) for line in listed.read_text().splitlines())
    seen = Counter({"runs": 0, "kills": 0, "stops": 0})
    at, tried = (Counter({" ".join(moment): 0 for moment in moments}) for _ in range(2))
    wrong: list[str] = []
    while seen["kills"] < kills or seen["stops"] < stops:
        seen["runs"] += 1
        run, told = project / f"run{seen['runs']}", folder / "told"
        last = run / "weights/last.pt"
        for left in reversed(range(STOPS_A_RUN + 1)):  # the last time it is left alone
            moment = min(moments, key=lambda m: (tried[" ".join(m)], rng.random()))
            tried[" ".join(moment)] += 1
            count = rng.randint(1, rng.randint(1, moments[moment]))  # a resumed training reaches fewer
            few = [kind for kind, wanted in (("kills", kills), ("stops", stops)) if seen[kind] < wanted]
            kind = rng.choice(few or ["kills"])
            number = signal.SIGKILL if kind == "kills" else rng.choice((signal.SIGTERM, signal.SIGINT))
            reached = stop_at(moment, count, number, told) if left else lambda moment: None
            told.unlink(missing_ok=True)
            words = ["--resume", str(last)] if last.exists() else [*new, run.name]
            code = train_in_a_child(words, folder / f"{run.name}.log", reached)
            if told.exists():
                seen[kind] += 1
                at[" ".join(moment)] += 1
            expected = CODES[number] if told.exists() else 0
            faults = [f"exit code {code} instead of {expected}"] if code != expected else []
            wrong += [f"{run.name}, {number.name} at {moment}: {fault}" for fault in (*faults, *unreadable(run))]
            if not told.exists():
                break  # it came to its end
        wrong += [f"{run.name} and the one never stopped: {what}" for what in differences(run, project / "whole")]
    return {**seen, "at": at, "wrong": wrong}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), *map(int, sys.argv[2:4]))))
