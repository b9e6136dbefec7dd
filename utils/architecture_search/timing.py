"""How long networks of the family take on this machine: measured in turns and written down, or predicted."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ultralytics.utils import TQDM

from models import create_model, switch_to_deploy
from models.errors import UserError
from utils.architecture_search.family import Shape, model_yaml
from utils.benchmark.forms import FORMS, fit_size, make
from utils.checkpoint.fields import is_finite, is_mapping
from utils.comparison.plan import read_json
from utils.data.samples import timed_picture
from utils.deploy.fresh import fresh_model
from utils.latency import measure, torch_threads
from utils.operators.archive import RUNTIMES
from utils.operators.predict import predict
from utils.operators.table import Table, default_path, load_table
from utils.writing import write_text

TIMED_FORMS = [key for key, form in FORMS.items() if form.fuse is switch_to_deploy]


@dataclass(frozen=True)
class Conditions:
    """Under which latencies count.

    Attributes:
        form: of the fused network, one of TIMED_FORMS.
        side: of the picture, in pixels.
        threads: of the CPU.
        rounds: how many times each network runs.
        classes: that it knows.
        channels: of the picture.
    """

    form: str
    side: int
    threads: int
    rounds: int
    classes: int
    channels: int

    def content(self, shape: Shape) -> dict[str, Any]:
        """Return the model YAML of a network."""
        return model_yaml(shape, self.classes, self.channels)


class Stopwatch:
    """Times networks: a call returns milliseconds, the least of all rounds, which other work disturbs least.

    Args:
        conditions: of all measurements.
        path: the file of what was measured, by which a search that was stopped has the same numbers again.

    Raises:
        UserError: the file is damaged.
    """

    def __init__(self, conditions: Conditions, path: Path) -> None:
        self.conditions, self.path = conditions, path
        hint = "remove it, and the networks are timed again"
        self.known: dict[str, Any] = read_json(path, hint) if os.path.lexists(path) else {}
        if not is_mapping(self.known, lambda value: is_finite(value) and value > 0):
            raise UserError(f"{path} is damaged: {hint}")

    def __call__(self, shapes: Sequence[Shape]) -> list[float]:
        """Return the milliseconds of each network; those that are not known yet are measured in turns."""
        new = {str(shape): shape for shape in shapes if str(shape) not in self.known}
        if new:
            with tempfile.TemporaryDirectory(dir=self.path.parent) as folder, torch_threads(self.conditions.threads):
                self.known |= self._measure(new, Path(folder))
            write_text(self.path, json.dumps(self.known, indent=1))
        return [self.known[str(shape)] for shape in shapes]

    def _measure(self, shapes: dict[str, Shape], folder: Path) -> dict[str, float]:
        """Return name → milliseconds of networks, whose files are written below a folder."""
        want, runs = self.conditions, {}
        for name, shape in TQDM(shapes.items(), desc="writing files"):
            network = fresh_model(want.content(shape))
            size = fit_size(network, [want.side])
            place = Path(tempfile.mkdtemp(dir=folder))
            picture = timed_picture(size, want.channels)
            runs[name] = partial(make(want.form, network, size, place).load(want.threads), picture)
        with TQDM(total=want.rounds, desc="timing") as bar:
            latency = measure(runs, want.rounds, after_round=bar.update)
        return {name: round(one.minimum, 4) for name, one in latency.items()}


class Forecast:
    """Predicts how long networks take: a call returns milliseconds.

    Args:
        conditions: of all predictions.
        table: what operators cost under these conditions.
    """

    def __init__(self, conditions: Conditions, table: Table) -> None:
        self.conditions, self.table = conditions, table

    def __call__(self, shapes: Sequence[Shape]) -> list[float]:
        """Return the milliseconds of each network."""
        found = []
        for shape in shapes:
            network = create_model(self.conditions.content(shape))
            size = fit_size(network, [self.conditions.side])
            found.append(predict(network, size, self.table).total_ms)
        return found


def open_table(file: str, form: str, threads: int) -> Table:
    """Return what operators cost in a form.

    Args:
        file: of tables.
        form: one of TIMED_FORMS.
        threads: of the CPU.

    Raises:
        UserError: the file does not hold this.
    """
    kind = FORMS[form]
    if kind.format not in RUNTIMES:
        raise UserError(f"tables of operators are for {' and '.join(RUNTIMES)}, and not for --form {form}")
    return load_table(Path(file), kind.format, kind.int8, threads)


def table_of_this_machine(form: str, threads: int) -> str:
    """Return the file of this machine's tables; empty where it holds nothing about a form, or there is none."""
    try:
        open_table(file := str(default_path()), form, threads)
    except UserError:
        return ""
    return file
