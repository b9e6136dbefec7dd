"""A search as files, by which it goes on after a stop or a kill as if there had been none.

    FOLDER/search.json           what was asked for
    FOLDER/latency.json          the milliseconds of every network that was timed
    FOLDER/candidates/c001.yaml  the model YAML of a candidate
    FOLDER/rung-1.json           what the first rung trains, and for how long
    FOLDER/rung-1/               its trainings, a comparison of compare.py; rung-1.txt is what that said
    FOLDER/search.csv, search.png, winner.yaml        written anew after each rung

What a rung trains follows from the results of those before it, the latencies and the seed.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from models.errors import UserError
from models.files import why_no_file
from utils.architecture_search.candidates import (
    LEAST,
    Candidate,
    Clock,
    Trained,
    choose_candidates,
    draws,
    fitting,
)
from utils.architecture_search.family import Genes, model_yaml, read_shape, restricted, smallest
from utils.architecture_search.timing import Conditions
from utils.checkpoint.fields import is_finite, is_mapping, is_text
from utils.comparison.entries import NAME
from utils.comparison.plan import read_json
from utils.comparison.report import DATA
from utils.writing import write_text

PLAN, LATENCY = "search.json", "latency.json"
FEWEST = 2  # networks of a rung, one of which is better
HALVED = 2  # a rung trains the best 1 / HALVED for HALVED times the epochs
DRAWN, AHEAD = 10, 10  # networks that are drawn for each candidate; so many times more with a table to predict from
HINT = "start the search anew"


@dataclass(frozen=True)
class Step:
    """What a rung does before it is known with which networks.

    Attributes:
        kind: `random`, `children` of the best so far, or `best` of all so far.
        count: how many networks it trains.
        epochs: of each.
    """

    kind: str
    count: int
    epochs: int


@dataclass(frozen=True)
class Rung:
    """One comparison of candidates.

    Attributes:
        folder: of the search.
        number: from 1.
    """

    folder: Path
    number: int

    @property
    def name(self) -> str:
        """What its files are called."""
        return f"rung-{self.number}"

    @property
    def comparison(self) -> Path:
        """The folder of its comparison."""
        return self.folder / self.name

    @property
    def log(self) -> Path:
        """The file of what the comparison says."""
        return self.folder / f"{self.name}.txt"

    @property
    def file(self) -> Path:
        """The file of what it trains."""
        return self.folder / f"{self.name}.json"

    def save(self, step: Step, candidates: Sequence[Candidate]) -> None:
        """Write down what it trains."""
        content = {**asdict(step), "candidates": list(map(asdict, candidates))}
        write_text(self.file, json.dumps(content, indent=1))

    def candidates(self) -> list[Candidate] | None:
        """Return what it trains; None while that is not known.

        Raises:
            UserError: its file is damaged.
        """
        if not os.path.lexists(self.file):
            return None
        try:
            content = read_json(self.file, HINT)
            found = [read_candidate(each) for each in content["candidates"]]
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(f"{self.file} is damaged: {HINT}") from error
        return found

    def results(self) -> dict[str, float | str] | None:
        """Return name → mAP50-95 in [0, 1] of its candidates, or why one has none; None while it is not done.

        Raises:
            UserError: the file of its comparison is damaged.
        """
        path = self.comparison / DATA
        if not os.path.lexists(path):
            return None
        content = read_json(path, hint := "remove it, and the comparison is reported again")
        try:
            return {
                entry["name"]: float(entry["accuracy"]["value"]) if entry["accuracy"] else str(entry["problem"])
                for entry in content["entries"]
            }
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(f"{path} is damaged: {hint}") from error


def read_candidate(content: Any) -> Candidate:
    """Return a candidate that a file holds; ValueError, LookupError or TypeError for anything else."""
    one = Candidate(**{**content, "shape": read_shape(content["shape"])})
    if not (NAME.fullmatch(one.name) and is_text(one.parent) and is_finite(one.milliseconds)):
        raise ValueError("no candidate")
    return one


@dataclass(frozen=True)
class Search:
    """What is searched for.

    Attributes:
        folder: of everything that it writes.
        options: that it was started with, by the names of the command line's flags.
        classes: of the data set.
        channels: of its pictures.
    """

    folder: Path
    options: dict[str, Any]
    classes: int
    channels: int

    @property
    def genes(self) -> Genes:
        """The bounds of the family."""
        return restricted(self.options["genes"])

    @property
    def conditions(self) -> Conditions:
        """Under which latencies count."""
        get = self.options.__getitem__
        return Conditions(get("form"), get("latency_imgsz"), get("threads"), get("rounds"), self.classes, self.channels)

    def steps(self) -> list[Step]:
        """Return what the rungs do: draw networks, mutate the best ones, then halve them and train the rest longer."""
        count, epochs = self.options["candidates"], self.options["epochs"]
        more = self.options["generations"] - 1
        children = max(count // HALVED, 1)
        found = [Step("random", count, epochs), *(Step("children", children, epochs) for _ in range(more))]
        total = count + more * children
        for halving in range(1, self.options["halvings"] + 1):
            left = -(-total // HALVED**halving)
            if left < FEWEST:
                break
            found.append(Step("best", left, epochs * HALVED**halving))
        return found

    def rung(self, number: int) -> Rung:
        """Return one of the rungs, by its number from 1."""
        return Rung(self.folder, number)

    def candidates(self, number: int) -> list[Candidate]:
        """Return what the rungs before one trained, each network once, in the order in which they were drawn."""
        rungs = (self.rung(n).candidates() or () for n in range(1, number))
        return list({one.name: one for rung in rungs for one in rung}.values())

    def trained(self) -> list[list[Trained]]:
        """Return the trainings of each rung that is done, the best first; those that failed are left out."""
        found: list[list[Trained]] = []
        while (candidates := (rung := self.rung(len(found) + 1)).candidates()) is not None:
            results = rung.results() if candidates else {}
            if results is None:
                break
            scores = ((one, results.get(one.name)) for one in candidates)
            found.append(best_first(Trained(one, score) for one, score in scores if isinstance(score, float)))
        return found

    def choose(self, number: int, clock: Clock, predict: Clock | None = None) -> list[Candidate]:
        """Return what a rung trains; those before it are done.

        Args:
            number: of the rung, from 1.
            clock: measures how long networks take.
            predict: says about how long they take, and is asked first.

        Raises:
            UserError: too few networks of the family take as long as the budget allows.
        """
        steps, trained = self.steps(), self.trained()
        step, last = steps[number - 1], steps[number - 2]
        alike = [rung for rung, other in zip(trained, steps, strict=False) if other.epochs == last.epochs]
        pool = best_first(one for rung in alike for one in rung)
        if step.kind == "best":
            return [one.candidate for one in pool[: step.count]]
        rng = np.random.default_rng([self.options["seed"], number])
        proposed = draws(self.genes, rng, pool, step.count * (AHEAD if predict else 1) * DRAWN)
        budget = self.options["budget_ms"]
        if predict:
            proposed = (draw for draw, _ in fitting(proposed, predict, budget, self.genes))
        fit = fitting(proposed, clock, budget, self.genes, step.count)
        found = choose_candidates(fit, step.count, self.candidates(number))
        if len(found) < FEWEST and step.kind == "random":
            raise UserError(
                f"{len(found)} networks of the family take {100 * LEAST:.0f} to 100 % of {budget:g} ms here: choose "
                "another --budget-ms or --latency-imgsz, or wider --genes"
            )
        return found

    def check_budget(self, clock: Clock) -> None:
        """Raise UserError for a budget that no network of the family keeps."""
        if (least := clock([smallest(self.genes)])[0]) > self.options["budget_ms"]:
            raise UserError(
                f"the smallest network of the family takes {least:.1f} ms here: --budget-ms must be larger, or "
                "--latency-imgsz smaller"
            )

    def yaml(self, candidate: Candidate) -> Path:
        """Return the file of the model YAML of a candidate."""
        return self.folder / "candidates" / f"{candidate.name}.yaml"

    def content(self, candidate: Candidate) -> dict[str, Any]:
        """Return the model YAML of a candidate, for the classes of the data set."""
        return model_yaml(candidate.shape, self.classes, self.channels)

    def write_yaml(self, path: Path, candidate: Candidate, *comments: str) -> None:
        """Write the model YAML of a candidate, with comments before it."""
        lines = [f"# {comment}\n" for comment in (*comments, str(candidate.shape))]
        path.parent.mkdir(exist_ok=True)
        write_text(path, "".join(lines) + as_yaml(self.content(candidate)))

    def save(self) -> None:
        """Write down what was asked for."""
        write_text(self.folder / PLAN, json.dumps(self.options, indent=1))


def best_first(trained: Iterable[Trained]) -> list[Trained]:
    """Return trainings by their accuracy; of equals the fastest first."""
    return sorted(trained, key=lambda one: (-one.fitness, one.candidate.milliseconds))


def as_yaml(content: Mapping[str, Any]) -> str:
    """Return a model YAML as people write it, a line for each row."""
    text = ""
    for key, value in content.items():
        if isinstance(value, list):
            rows = (yaml.safe_dump(row, default_flow_style=True, width=math.inf).strip() for row in value)
            text += f"{key}:\n" + "".join(f"  - {row}\n" for row in rows)
        else:
            text += f"{key}: {value}\n"
    return text


def load_options(folder: Path) -> dict[str, Any]:
    """Return the options of the search that a folder holds, as they were given.

    Raises:
        UserError: it holds none, or a damaged one.
    """
    path = folder / PLAN
    if problem := why_no_file(path):
        raise UserError(f"{folder} is not the folder of a search: its {PLAN} {problem}")
    options = read_json(path, HINT)
    if not is_mapping(options):
        raise UserError(f"{path} is damaged: {HINT}")
    return options
