"""A search as files, by which it goes on after a stop or a kill as if there had been none.

    FOLDER/evolve.json              what was asked for: the command line, the recipe, the bounds
    FOLDER/generations/0003/        hyp.yaml is its recipe, train/ the run, log.txt what was said, result.json the end
    FOLDER/evolve.csv, evolve.png, hyp_evolved.yaml        written anew after each generation

A generation follows from the results of those before it and the seed, and a training that was killed is resumed.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from models.errors import UserError
from models.files import why_no_file
from models.loss import AnchorGains
from utils.evolution.mutation import FREE, SPACES, Bounds, Tried, Values, next_values
from utils.train.run import ANCHOR_FREE
from utils.writing import write_text

PLAN, RESULT = "evolve.json", "result.json"
SMOOTHING = "label_smoothing"  # of classifiers, an option of another name


@dataclass(frozen=True)
class Generation:
    """One training.

    Attributes:
        folder: of all that it writes.
        number: from 0.
    """

    folder: Path
    number: int

    @property
    def recipe(self) -> Path:
        """The file of its hyper-parameters."""
        return self.folder / "hyp.yaml"

    @property
    def run(self) -> Path:
        """The folder of its training."""
        return self.folder / "train"

    @property
    def log(self) -> Path:
        """The file of what its process says."""
        return self.folder / "log.txt"

    def result(self) -> dict[str, Any] | None:
        """Return its values, fitness, metrics and problem; None while it is not done."""
        path = self.folder / RESULT
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def end(self, **result: Any) -> None:
        """Keep what came out: the generation is done."""
        write_text(self.folder / RESULT, json.dumps(result, indent=1))


@dataclass(frozen=True)
class Search:
    """What is searched for.

    Attributes:
        folder: of everything that it writes.
        place: the current folder, which paths of the command line are relative to.
        words: of the command line of each training, without its recipe, its folder, and what a user consents to.
        generations: how many trainings there will be.
        epochs: of each.
        seed: of the mutations.
        task: what is trained.
        kind: of SPACES.
        recipe: the one that the first generation trains with.
        bounds: by name, of the values that are changed.
    """

    folder: Path
    place: str
    words: list[str]
    generations: int
    epochs: int
    seed: int
    task: str
    kind: str
    recipe: dict[str, Any]
    bounds: dict[str, Bounds]

    def generation(self, number: int) -> Generation:
        """Return one of them, by its number from 0."""
        return Generation(self.folder / "generations" / f"{number:04d}", number)

    def results(self) -> list[dict[str, Any]]:
        """Return the results of the generations that are done, in their order."""
        found: list[dict[str, Any]] = []
        while (result := self.generation(len(found)).result()) is not None:
            found.append(result)
        return found

    def values(self, number: int) -> Values:
        """Return what a generation trains with; those before it are done."""
        if number == 0:
            return read_values(self.recipe, self.kind, self.bounds)
        tried = [Tried(result["values"], result["fitness"]) for result in self.results()[:number]]
        return next_values(tried, self.bounds, self.seed)

    def write_recipe(self, path: Path, values: Values, comment: str = "") -> None:
        """Write the recipe of the search with other values, as `--hyp` takes it."""
        text = yaml.safe_dump(with_values(self.recipe, self.kind, values), sort_keys=False)
        write_text(path, (f"# {comment}\n" if comment else "") + text)

    def save(self) -> None:
        """Write the plan into the folder."""
        content = {**asdict(self), "folder": str(self.folder)}
        write_text(self.folder / PLAN, json.dumps(content, indent=1))


def is_search(folder: object) -> bool:
    """Return whether `--resume` names the folder of a search."""
    return isinstance(folder, (str, Path)) and (Path(folder) / PLAN).is_file()


def load_search(folder: Path) -> Search:
    """Return the search that a folder holds, wherever it has been moved to.

    Raises:
        UserError: it holds none, or a damaged one.
    """
    path = folder / PLAN
    if problem := why_no_file(path):
        raise UserError(f"{folder} is not the folder of a search: its {PLAN} {problem}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        bounds = {
            str(name): Bounds(float(each["low"]), float(each["high"])) for name, each in content["bounds"].items()
        }
        search = Search(**{**content, "folder": folder.resolve(), "bounds": bounds})
        read_values(search.recipe, search.kind, search.bounds)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged: start the search anew") from error
    return search


def newest_search(project: Path) -> Path | None:
    """Return the folder of the search in a folder of results that was written to last; None where there is none."""
    found = sorted(project.glob(f"*/{PLAN}"), key=lambda path: path.stat().st_mtime)
    return found[-1].parent if found else None


# Recipes --------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Space:
    """What is changed.

    Attributes:
        kind: of SPACES.
        bounds: by name.
    """

    kind: str
    bounds: dict[str, Bounds]


def space_of(task: str, anchors: bool, given: Collection[str]) -> Space:
    """Return what is changed in the trainings of a search.

    Args:
        task: what is trained.
        anchors: the head has them.
        given: names of the options of the command line, which stay as they are.
    """
    kind = "classify" if task == "classify" else "anchors" if anchors else "anchor_free"
    without = {*given, *(() if task == "segment" else ("copy_paste",))}  # which copies outlines
    return Space(kind, {name: bounds for name, bounds in SPACES[kind].items() if name not in without})


def first_recipe(
    recipe: Mapping[str, Any], options: Mapping[str, Any], space: Space
) -> tuple[dict[str, Any], dict[str, Bounds]]:
    """Return a recipe that says all values which are changed, and their bounds, which hold the recipe's own.

    Args:
        recipe: as its file has it.
        options: that a training with it has, its optimizer and lr0 among them.
        space: what is changed.
    """
    whole = {key: dict(value) if isinstance(value, dict) else value for key, value in recipe.items()}
    gains = vars(AnchorGains(**options["anchor_gains"])) if space.kind == "anchors" else {}
    if gains and "obj" not in whole:  # then box and cls are gains of heads without anchors
        whole[ANCHOR_FREE] = {name: whole.pop(name) for name in FREE if name in whole}
        whole.update(gains)
    apart = whole
    if space.kind == "anchor_free" and "obj" in whole:
        apart = whole.setdefault(ANCHOR_FREE, {})
    values = {
        name: float(gains[name] if name in gains else options["class_smoothing" if name == SMOOTHING else name])
        for name in space.bounds
    }
    for name, value in values.items():
        (apart if name in FREE else whole)[name] = value
    whole["optimizer"] = options["optimizer"]  # the one of the model's family, which lr0 is meant for
    return whole, {name: bounds.including(values[name]) for name, bounds in space.bounds.items()}


def part_of(recipe: dict[str, Any], kind: str, name: str) -> dict[str, Any]:
    """Return the part of a recipe that holds a value: gains of heads without anchors may stand apart."""
    return recipe[ANCHOR_FREE] if kind == "anchor_free" and name in recipe.get(ANCHOR_FREE, {}) else recipe


def read_values(recipe: dict[str, Any], kind: str, bounds: dict[str, Bounds]) -> Values:
    """Return the values that a recipe has of those with bounds."""
    return {name: float(part_of(recipe, kind, name)[name]) for name in bounds}


def with_values(recipe: dict[str, Any], kind: str, values: Values) -> dict[str, Any]:
    """Return a recipe with other values."""
    changed = {key: dict(value) if isinstance(value, dict) else value for key, value in recipe.items()}
    for name, value in values.items():
        part_of(changed, kind, name)[name] = value
    return changed
