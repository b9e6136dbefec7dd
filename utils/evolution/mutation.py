"""What a search may change: hyper-parameters within bounds, by mutation of one of the best sets so far.

As in YOLOv5, a parent is drawn among the best sets by its fitness, and some of its values change by chance. Values that
may be 0, such as strengths of augmentation, change by a part of their range, so that one that is 0 can become another;
those that may not, such as the learning rate, change by a factor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

PARENTS = 5  # the best sets, one of which is the parent
MUTATED = 0.5  # share of the values that change
SIGMA = 0.1  # standard deviation of a change: of the range, or of the range of the logarithm
DIGITS = 5  # that a value keeps
MOST_TRIES = 1000  # for a set that has not been tried yet


@dataclass(frozen=True)
class Bounds:
    """Between which a value stays.

    Attributes:
        low: the smallest; above 0 it changes by factors.
        high: the largest.
    """

    low: float
    high: float

    def including(self, value: float) -> Bounds:
        """Return bounds that a value of the recipe lies within, as these are or wider."""
        return Bounds(min(self.low, value), max(self.high, value))


LEARNING = {
    "lr0": Bounds(1e-5, 0.1),
    "lrf": Bounds(0.001, 1.0),
    "momentum": Bounds(0.6, 0.98),
    "weight_decay": Bounds(1e-5, 0.2),
    "warmup_epochs": Bounds(0.0, 5.0),
    "warmup_momentum": Bounds(0.0, 0.95),
    "warmup_bias_lr": Bounds(0.0, 0.2),
}
COLOURS = {"hsv_h": Bounds(0.0, 0.1), "hsv_s": Bounds(0.0, 0.9), "hsv_v": Bounds(0.0, 0.9)}
FLIPS = {"flipud": Bounds(0.0, 1.0), "fliplr": Bounds(0.0, 1.0)}
PLACES = {
    **FLIPS,
    "degrees": Bounds(0.0, 45.0),
    "translate": Bounds(0.0, 0.9),
    "scale": Bounds(0.0, 0.9),
    "shear": Bounds(0.0, 10.0),
    "perspective": Bounds(0.0, 0.001),
    "mosaic": Bounds(0.0, 1.0),
    "mixup": Bounds(0.0, 1.0),
    "copy_paste": Bounds(0.0, 1.0),
}
ANCHORED = {  # gains of heads with anchors
    "box": Bounds(0.02, 0.2),
    "cls": Bounds(0.2, 4.0),
    "obj": Bounds(0.2, 4.0),
    "cls_pw": Bounds(0.5, 2.0),
    "obj_pw": Bounds(0.5, 2.0),
    "anchor_t": Bounds(2.0, 8.0),
}
FREE = {"box": Bounds(1.0, 20.0), "cls": Bounds(0.1, 4.0), "dfl": Bounds(0.4, 12.0)}  # of heads without
MIXES = {
    "scale": Bounds(0.0, 0.9),
    "mixup": Bounds(0.0, 0.5),
    "cutmix": Bounds(0.0, 0.5),
    "erasing": Bounds(0.0, 0.9),
    "label_smoothing": Bounds(0.0, 0.3),
}
SPACES = {  # by what is trained
    "anchors": {**LEARNING, **ANCHORED, **COLOURS, **PLACES},
    "anchor_free": {**LEARNING, **FREE, **COLOURS, **PLACES},
    "classify": {**LEARNING, **MIXES, **COLOURS, **FLIPS},
}

Values = dict[str, float]


class Fit(Protocol):
    """What was trained, and its accuracy."""

    @property
    def fitness(self) -> float: ...


T = TypeVar("T", bound=Fit)


@dataclass(frozen=True)
class Tried:
    """A set of hyper-parameters that was trained with.

    Attributes:
        values: by name.
        fitness: the accuracy in [0, 1]; 0 where the training failed.
    """

    values: Mapping[str, float]
    fitness: float


def next_values(tried: Sequence[Tried], bounds: Mapping[str, Bounds], seed: int) -> Values:
    """Return the values of the next generation, which are others than all before; the same for the same arguments.

    Args:
        tried: those of the generations before, at least one.
        bounds: of each value.
        seed: of the search.
    """
    rng = np.random.default_rng([seed, len(tried)])
    before = {tuple(one.values[name] for name in bounds) for one in tried}
    for _ in range(MOST_TRIES):
        values = mutate(choose_parent(tried, rng).values, bounds, rng)
        if tuple(values.values()) not in before:
            break
    return values


def choose_parent(tried: Sequence[T], rng: np.random.Generator) -> T:
    """Return one of the best PARENTS, drawn with its advantage over the worst of them for weight."""
    best = sorted(tried, key=lambda one: -one.fitness)[:PARENTS]
    weights = np.array([one.fitness for one in best]) - best[-1].fitness + 1e-6
    return best[int(rng.choice(len(best), p=weights / weights.sum()))]


def mutate(values: Mapping[str, float], bounds: Mapping[str, Bounds], rng: np.random.Generator) -> Values:
    """Return values of which about MUTATED are changed, within their bounds."""
    names = list(bounds)
    changed = rng.random(len(names)) < MUTATED
    changed[rng.integers(len(names))] = True
    steps = rng.normal(0, SIGMA, len(names))
    return {
        name: moved(values[name], bounds[name], float(step)) if change else values[name]
        for name, change, step in zip(names, changed, steps, strict=True)
    }


def moved(value: float, bounds: Bounds, step: float) -> float:
    """Return a value that is moved by a part of the range of its bounds, of the range of the logarithm above 0."""
    low, high = bounds.low, bounds.high
    if low > 0:
        value *= math.exp(step * math.log(high / low))
    else:
        value += step * (high - low)
    return rounded(min(max(value, low), high))


def rounded(value: float) -> float:
    """Return a value as a recipe has it: with DIGITS digits."""
    return float(f"{value:.{DIGITS}g}")
