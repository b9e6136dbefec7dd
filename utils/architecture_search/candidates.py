"""Candidates: networks drawn at random or mutated from good ones, as wide as the budget allows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from utils.architecture_search.family import Genes, Shape, drawn, mutated, scaled
from utils.evolution.mutation import choose_parent

LEAST, TARGET = 0.75, 0.92  # of the budget: what a candidate takes at least, and what widths are scaled to
TRIES = 4  # to scale the widths of one network

Clock = Callable[[Sequence[Shape]], list[float]]  # milliseconds of each network


@dataclass(frozen=True)
class Draw:
    """A network that may become a candidate.

    Attributes:
        shape: of it.
        parent: the name of the candidate that it was mutated from; empty: none.
    """

    shape: Shape
    parent: str = ""


@dataclass(frozen=True)
class Candidate:
    """A network that is trained.

    Attributes:
        name: of its YAML, in tables and comparisons.
        shape: of it.
        milliseconds: that it takes, as measured.
        parent: the name of the candidate that it was mutated from; empty: none.
    """

    name: str
    shape: Shape
    milliseconds: float
    parent: str = ""


@dataclass(frozen=True)
class Trained:
    """A candidate and what a short training made of it.

    Attributes:
        candidate: the network.
        fitness: its mAP50-95 in [0, 1].
    """

    candidate: Candidate
    fitness: float


def draws(genes: Genes, rng: np.random.Generator, parents: Sequence[Trained], most: int) -> Iterator[Draw]:
    """Yield at most so many networks: any of the family, or with parents mutations of these, better ones more often."""
    for _ in range(most):
        if parents:
            parent = choose_parent(parents, rng).candidate
            yield Draw(mutated(parent.shape, genes, rng), parent.name)
        else:
            yield Draw(drawn(genes, rng))


def fitting(
    proposed: Iterator[Draw], clock: Clock, budget: float, genes: Genes, batch: int = 1
) -> Iterator[tuple[Draw, float]]:
    """Yield the networks that take LEAST to 1 times the budget, with their milliseconds.

    Those that take less or more get wider or narrower, at most TRIES times; they end where bounds keep them as they
    are.

    Args:
        proposed: the networks.
        clock: tells how long they take.
        budget: in milliseconds.
        genes: the bounds.
        batch: how many the clock is asked for at once.
    """
    waiting: list[tuple[Draw, int]] = []
    while True:
        waiting += ((draw, TRIES) for draw in itertools.islice(proposed, batch - len(waiting)))
        if not waiting:
            return
        taken = clock([draw.shape for draw, _ in waiting])
        again = []
        for (draw, tries), milliseconds in zip(waiting, taken, strict=True):
            if LEAST * budget <= milliseconds <= budget:
                yield draw, milliseconds
                continue
            other = scaled(draw.shape, math.sqrt(TARGET * budget / milliseconds), genes)
            if tries and other != draw.shape:
                again.append((Draw(other, draw.parent), tries - 1))
        waiting = again


def choose_candidates(
    proposed: Iterator[tuple[Draw, float]], count: int, before: Collection[Candidate]
) -> list[Candidate]:
    """Return the first networks that none before them equals, at most so many, by the names c001, c002, …

    Args:
        proposed: networks, with their milliseconds.
        count: how many there are to be.
        before: the candidates that there are already.
    """
    seen = {str(one.shape) for one in before}
    found: list[Candidate] = []
    for draw, milliseconds in proposed:
        if str(draw.shape) not in seen:
            seen.add(str(draw.shape))
            name = f"c{len(before) + len(found) + 1:03d}"
            found.append(Candidate(name, draw.shape, milliseconds, draw.parent))
        if len(found) == count:
            break
    return found
