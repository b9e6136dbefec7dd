"""How the entries of a comparison are trained: by which commands, and where these leave the best weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from utils.comparison.options import check_files
from utils.writing import write_text

if TYPE_CHECKING:
    from utils.comparison.plan import Job, Plan

OURS, THEIRS = "repyolo", "ultralytics"  # names in TRAINERS


@dataclass(frozen=True)
class Trainer:
    """One way to train an entry.

    Attributes:
        weights: the file of the best weights, a checkpoint of ours, below the folder of the run.
        steps: (plan, job, words of --device, words of consent) → the words of the commands that are still to be run,
            one after the other, each as `start_script` takes them.
    """

    weights: Path
    steps: Callable[[Plan, Job, Sequence[str], Sequence[str]], list[list[str]]]


def train_ours(plan: Plan, job: Job, on: Sequence[str], consents: Sequence[str]) -> list[list[str]]:
    """Train by train.py, or go on with the training where it stopped; UserError for a file that has changed."""
    check_files(job.entry.files)
    last, hyp = job.run / "weights/last.pt", plan.options["hyp"]
    if last.is_file():
        return [["train.py", "--resume", str(last), *on, *consents]]
    write_text(job.cfg, yaml.safe_dump(job.entry.cfg, default_flow_style=None, sort_keys=False))
    recipe = ["--hyp", hyp] if hyp else []
    cfg = ["--cfg", str(job.cfg), "--patience", "0", *recipe, *job.entry.options]
    return [["train.py", *cfg, *settings(plan, job), *on, *consents]]


def train_ultralytics(plan: Plan, job: Job, on: Sequence[str], consents: Sequence[str]) -> list[list[str]]:
    """Train by ultralytics' trainer and recipe, and convert its best weights; nothing where that is done.

    A training that was stopped starts anew: ultralytics' last.pt holds weights in half precision and no state of the
    random numbers, so that going on from it would end with other weights than a training that was never stopped.
    """
    if job.weights.is_file():
        return []
    words = ["--cfg", job.entry.model, *settings(plan, job), *on, *consents]
    best = job.run / "weights/best.pt"
    return [
        ["-m", "utils.comparison.train_ultralytics", *words],
        ["-m", "utils.convert", str(best), "--output", str(job.weights)],
    ]


def settings(plan: Plan, job: Job) -> list[str]:
    """Return what is the same for all trainings of a comparison, as words of a command line."""
    options = plan.options
    words = ["--data", job.data, "--imgsz", str(options["imgsz"]), "--batch-size", str(options["batch_size"])]
    words += ["--epochs", str(plan.epochs[job.kind]), "--seed", str(job.seed)]
    return [*words, "--project", str(job.folder), "--name", job.run.name, "--exist-ok"]


TRAINERS = {
    OURS: Trainer(Path("weights/best.pt"), train_ours),
    THEIRS: Trainer(Path("weights/best-repyolo.pt"), train_ultralytics),
}
