"""What a comparison does, as files: a plan, and a folder for each training, which says what is left of it.

    FOLDER/plan.json             what was asked for, the model YAMLs, and the epochs of each
    FOLDER/jobs/NAME-SEED/       train/ is the run; log.txt what was said; found.npz and result.json what came out;
                                 timed/ has the files that are timed, where that is at another size than the training's

With several data sets, NAME is that of the entry, @ and that of the data set.

A job is done when it has a `result.json`. Who works on it holds a lock on its folder, which ends with the process. So a
comparison goes on after a kill, and several processes, on several machines that share the folder, each take what
nobody has taken.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from models.errors import UserError
from models.files import why_no_file
from models.spec import load_spec
from utils import cli
from utils.checkpoint.fields import is_count, is_finite, is_list, is_mapping, is_text
from utils.comparison.entries import Entry, check_tasks
from utils.comparison.trainers import TRAINERS
from utils.deploy.formats import FORMATS
from utils.sizes import MAX_IMGSZ
from utils.writing import lock_folder, write_text

PLAN, RESULT = "plan.json", "result.json"
INT8 = "-int8"  # the end of the name of a form, and of the stem of its file
MAX_BYTES = 1 << 24  # of either
MOST_EPOCHS = 2**31
MAX_NUMBERS = 3 * MAX_IMGSZ**2  # of a picture
KINDS: dict[str, Callable[[Any], bool]] = {  # what result.json holds
    "minutes": lambda value: is_finite(value) and value >= 0,
    "params": is_count,
    **dict.fromkeys(("maps", "sizes"), lambda value: is_mapping(value, is_finite)),
    "input": lambda value: is_list(value, is_count) and len(value) == 3 and 0 < math.prod(value) <= MAX_NUMBERS,
}


@dataclass(frozen=True, eq=False)
class Job:
    """One training: of an entry, with a seed.

    Attributes:
        entry: what is trained.
        seed: of all random numbers.
        folder: of everything that it writes.
        data: the YAML of the data set.
        runtimes: names in FORMATS, of the files that are written; the first is the one whose accuracy counts.
        int8: others are written in INT8.
        time_imgsz: side in pixels of the picture that files are timed on, which are written for that; None: those that
            are measured are timed as well, or those of another seed.
    """

    entry: Entry
    seed: int
    folder: Path
    data: str
    runtimes: tuple[str, ...] = ("onnx",)
    int8: bool = False
    time_imgsz: int | None = None

    @property
    def name(self) -> str:
        """What its folder is called."""
        return self.folder.name

    @property
    def kind(self) -> str:
        """What its folder is called without the seed: the entry, and the data set where there are several."""
        return self.name.rpartition("-")[0]

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
        return self.run / TRAINERS[self.entry.trainer].weights

    @property
    def files(self) -> dict[str, Path]:
        """The files of the best weights that are proven and measured, by their form."""
        stem, precisions = self.weights.stem, ("", INT8) if self.int8 else ("",)
        return {
            f"{name}{end}": self.weights.with_name(f"{stem}{end}{FORMATS[name].ending}")
            for name in self.runtimes
            for end in precisions
        }

    @property
    def timed_folder(self) -> Path:
        """The folder of files that are written to be timed."""
        return self.folder / "timed"

    @property
    def timed_files(self) -> dict[str, Path]:
        """The files that are proven and timed, by their form."""
        if self.time_imgsz is None:
            return self.files
        return {form: self.timed_folder / path.name for form, path in self.files.items()}

    @property
    def log(self) -> Path:
        """The file of what its process says."""
        return self.folder / "log.txt"

    @property
    def found(self) -> Path:
        """The file of what its network finds in the pictures of the val split."""
        return self.folder / "found.npz"

    def result(self) -> dict[str, Any] | None:
        """Return what came out, with `problem` where it failed; None while it is not done.

        Raises:
            UserError: its file is damaged.
        """
        path = self.folder / RESULT
        if not os.path.lexists(path):
            return None
        hint = "remove it, and the training is measured again"
        content = read_json(path, hint)
        if is_mapping(content) and is_text(content.get("problem")):
            return {"problem": content["problem"]}
        content = {"sizes": {}, **content} if is_mapping(content) else {}  # those of an earlier version have no sizes
        sound = all(key in content and holds(content[key]) for key, holds in KINDS.items())
        if not sound or content["maps"].keys() != self.files.keys():
            raise UserError(f"{path} is damaged: {hint}")
        return {key: content[key] for key in KINDS}

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
        epochs: of each entry, by the kind of its jobs.
    """

    folder: Path
    options: dict[str, Any]
    entries: list[Entry]
    epochs: dict[str, int]

    @property
    def data_sets(self) -> dict[str, str]:
        """The YAMLs of the data sets by their names in folders and tables; that of a single one is empty."""
        return named(cli.as_list(self.options["data"]))

    def jobs(self) -> list[Job]:
        """Return all trainings: the first seed of every entry on each data set, then the second, …"""
        folder, first = self.folder / "jobs", next(iter(self.data_sets))
        runtimes, int8 = tuple(cli.as_list(self.options["runtime"])), self.options["int8"]
        side = self.options.get("time_imgsz")
        side = side if side != self.options.get("imgsz") else None
        return [
            Job(
                entry,
                seed,
                folder / f"{kind_of(entry.name, name)}-{seed}",
                data,
                runtimes,
                int8,
                side if (seed, name) == (0, first) else None,
            )
            for seed in range(self.options["seeds"])
            for name, data in self.data_sets.items()
            for entry in self.entries
        ]

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


def kind_of(entry: str, data: str) -> str:
    """Return what trainings of an entry on a data set are called, by the names of both."""
    return f"{entry}@{data}" if data else entry


def named(files: Sequence[str]) -> dict[str, str]:
    """Return the YAMLs of data sets by names for folders and tables: empty for a single one, else those of the files.

    Where two files have one name, those of their folders stand before it.

    Raises:
        TypeError: one of them is no text.
        ValueError: two of them are one.
    """
    if not files or not all(map(is_text, files)):
        raise TypeError("no files")
    if len(files) == 1:
        return {"": files[0]}
    for parts in range(1, max(len(Path(file).parts) for file in files) + 1):
        names = ["-".join(Path(file).with_suffix("").parts[-parts:]) for file in files]
        found = {re.sub(r"[^\w.-]", "-", name): file for name, file in zip(names, files, strict=True)}
        if len(found) == len(files):
            return found
    raise ValueError("one data set twice")


def load_plan(folder: Path) -> Plan:
    """Return the plan that a folder holds.

    Raises:
        UserError: it holds none, a damaged one, or a wrong model YAML.
    """
    path = folder / PLAN
    if problem := why_no_file(path):
        raise UserError(f"{folder} is not the folder of a comparison: its {PLAN} {problem}")
    hint = "start the comparison anew"
    content = read_json(path, hint)
    try:
        entries = [Entry.from_dict(entry) for entry in content["entries"]]
        options = dict(content["options"])
        data_sets = named(cli.as_list(options["data"]))
        kinds = [kind_of(entry.name, name) for name in data_sets for entry in entries]
        epochs = {kind: content["epochs"][kind] for kind in kinds}
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path} is damaged: {hint}") from error
    names = [entry.name for entry in entries]
    sound = len(set(names)) == len(names) > 0
    if not (sound and all(is_count(count) and 0 < count < MOST_EPOCHS for count in epochs.values())):
        raise UserError(f"{path} is damaged: {hint}")
    check_tasks({entry.name: load_spec(entry.cfg) for entry in entries})
    return Plan(folder.resolve(), options, entries, epochs)


def read_json(path: Path, hint: str) -> Any:
    """Return what a file of a comparison holds.

    Args:
        path: one that is there.
        hint: what to do where it is damaged.

    Raises:
        UserError: it is no file, or no JSON.
    """
    if problem := why_no_file(path):
        raise UserError(f"{path} {problem}: {hint}")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError("too large")
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {hint}") from error
