"""How long networks of the family take on this machine, measured in turns and written down."""

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

from models import DetectionModel, switch_to_deploy
from models.errors import UserError
from utils.architecture_search.family import Shape, model_yaml
from utils.benchmark.forms import FORMS, fit_size, make
from utils.checkpoint.fields import is_finite, is_mapping
from utils.comparison.plan import read_json
from utils.data.samples import make_pictures
from utils.deploy.fresh import fresh_model
from utils.latency import measure, torch_threads
from utils.writing import write_text

TIMED_PICTURE = "bus.jpg"
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

    def network(self, shape: Shape) -> DetectionModel:
        """Return a network with fresh weights."""
        return fresh_model(model_yaml(shape, self.classes, self.channels))


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
            network = want.network(shape)
            size = fit_size(network, [want.side])
            place = Path(tempfile.mkdtemp(dir=folder))
            picture = make_pictures(size, want.channels)[TIMED_PICTURE][None]
            runs[name] = partial(make(want.form, network, size, place).load(want.threads), picture)
        with TQDM(total=want.rounds, desc="timing") as bar:
            latency = measure(runs, want.rounds, after_round=bar.update)
        return {name: round(one.minimum, 4) for name, one in latency.items()}
