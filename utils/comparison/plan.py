"""What a comparison does, as files: a plan, and a folder for each training, which says what is left of it.

    FOLDER/plan.json             what was asked for, the model YAMLs, and the epochs of each
    FOLDER/jobs/NAME-SEED/       train/ is the run; log.txt what was said; found.npz and result.json what came out

A job is done when it has a `result.json`. Who works on it holds a lock on its folder, which ends with the process. So a
comparison goes on after a kill, and several processes, on several machines that share the folder, each take what
nobody has taken.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from models.errors import UserError
from models.files import why_no_file
from utils.comparison.entries import Entry
from utils.writing import lock_folder, write_text

PLAN, RESULT = "plan.json", "result.json"
PLANNED = {"options": dict, "entries": list, "epochs": dict}  # what plan.json holds


@dataclass(frozen=True, eq=False)
class Job:
    """One training: of an entry, with a seed.

    Attributes:
        entry: what is trained.
        seed: of all random numbers.
        folder: of everything that it writes.
    """

    entry: Entry
    seed: int
    folder: Path

    @property
    def name(self) -> str:
        """What its folder is called."""
        return self.folder.name

    @property
    def cfg(self) -> Path:
        """The file of its model YAML."""
        return self.folder / f"{self.entry.name}.yaml"

    @property
    def run(self) -> Path:
        """The folder of its training."""
        return self.folder / "train"

    @property
    def weights(self) -> Path:
        """The file of the best weights."""
        return self.run / "weights/best.pt"

    @property
    def log(self) -> Path:
        """The file of what its process says."""
        return self.folder / "log.txt"

    @property
    def found(self) -> Path:
        """The file of what its network finds in the pictures of the val split."""
        return self.folder / "found.npz"

    def result(self) -> dict[str, Any] | None:
        """Return what came out, with `problem` where it failed; None while it is not done."""
        path = self.folder / RESULT
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def end(self, **result: Any) -> None:
        """Keep what came out: the job is done."""
        write_text(self.folder / RESULT, json.dumps(result, indent=1))

    def forget(self) -> None:
        """Forget what came out, so that the job is done again."""
        (self.folder / RESULT).unlink(missing_ok=True)

    def take(self) -> int | None:
        """Lock the job until the descriptor that this returns is closed; None where somebody works on it.

        Processes that inherit the descriptor hold the lock as well: what a killed comparison has started is not started
        again while it still runs.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            return lock_folder(self.folder, wait=False)
        except OSError:
            return None


@dataclass(frozen=True)
class Plan:
    """What a comparison does.

    Attributes:
        folder: of everything that it writes.
        options: that it was started with, by the names of the command line's flags.
        entries: the networks, in the order of the command line.
        epochs: of each entry, by name.
    """

    folder: Path
    options: dict[str, Any]
    entries: list[Entry]
    epochs: dict[str, int]

    def jobs(self) -> list[Job]:
        """Return all trainings: the first seed of every entry, then the second, …"""
        folder = self.folder / "jobs"
        seeds = range(self.options["seeds"])
        return [Job(entry, seed, folder / f"{entry.name}-{seed}") for seed in seeds for entry in self.entries]

    def job(self, name: str) -> Job:
        """Return one of them by its name; UserError where there is none."""
        for job in self.jobs():
            if job.name == name:
                return job
        raise UserError(f"{self.folder / PLAN} has no training {name}, it has {', '.join(j.name for j in self.jobs())}")

    def save(self) -> None:
        """Write the plan into its folder."""
        content = {"options": self.options, "entries": list(map(asdict, self.entries)), "epochs": self.epochs}
        write_text(self.folder / PLAN, json.dumps(content, indent=1))


def load_plan(folder: Path) -> Plan:
    """Return the plan that a folder holds.

    Raises:
        UserError: it holds none, or a damaged one.
    """
    path = folder / PLAN
    if problem := why_no_file(path):
        raise UserError(f"{folder} is not the folder of a comparison: its {PLAN} {problem}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(content[key], kind) for key, kind in PLANNED.items()):
            raise TypeError("another form")
        entries = [Entry(entry["name"], dict(entry["cfg"])) for entry in content["entries"]]
        epochs = {entry.name: int(content["epochs"][entry.name]) for entry in entries}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: start the comparison anew") from error
    return Plan(folder.resolve(), content["options"], entries, epochs)
