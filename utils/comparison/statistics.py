"""What can be said of networks that were trained with several seeds and measured on a sample of pictures.

Two things make an accuracy uncertain: another seed gives other weights, and other pictures give another mean. The
first is seen in the spread over the seeds, the second by drawing the pictures anew (bootstrap; the same draw for all
networks, so that a picture that is hard for all of them does not count as a difference). The 95 % interval of a
difference joins both: sqrt((t s)² + (1.96 b)²), with s the standard error of the means over the seeds, t the quantile
of Student's distribution for the degrees of freedom by Welch, and b the standard deviation over the draws.

Over several data sets it is the mean of their accuracies or differences that counts. Trainings and pictures of one data
set say nothing of those of another: seeds and draws are independent, and so are their parts of the uncertainty.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student
from ultralytics.utils.metrics import compute_ap

from utils.comparison.detections import Detections, Numbers

DRAWS = 200  # of the bootstrap
NORMAL = 1.959964  # quantile of the normal distribution for an interval of 95 %
TINY = 1e-16  # as ultralytics adds to the number of objects


def average_precisions(ranked: Detections, weights: Numbers | None = None) -> dict[int, float]:
    """Return the AP50-95 in [0, 1] of each class that is there, as ultralytics measures it.

    Args:
        ranked: with the highest scores first, as `Detections.sorted` gives them.
        weights: (pictures,) how many times each picture counts; once by default.
    """
    weights = np.ones(len(ranked.names)) if weights is None else weights
    of_found, of_true = weights[ranked.picture], weights[ranked.true_picture]
    found: dict[int, float] = {}
    for each in np.unique(ranked.true_cls):
        there = of_true[ranked.true_cls == each].sum()
        if not there:
            continue
        mine = (ranked.cls == each) & (of_found > 0)
        if not mine.any():
            found[int(each)] = 0.0
            continue
        counts, right = of_found[mine][:, None], ranked.tp[mine]
        tp = (counts * right).cumsum(0)
        recall, precision = tp / (there + TINY), tp / counts.cumsum(0)
        found[int(each)] = float(np.mean([compute_ap(recall[:, i], precision[:, i])[0] for i in range(right.shape[1])]))
    return found


def mean_ap(ranked: Detections, weights: Numbers | None = None) -> float:
    """Return the mAP50-95 in [0, 1]; arguments are those of `average_precisions`."""
    return _mean(average_precisions(ranked, weights))


def _mean(found: Mapping[int, float]) -> float:
    return float(np.mean(list(found.values()))) if found else 0.0


@dataclass(frozen=True)
class Estimate:
    """A number and how far the truth may be from it in either direction, with 95 % confidence."""

    value: float
    margin: float

    @property
    def is_zero(self) -> bool:
        """Whether the truth may be 0."""
        return abs(self.value) <= self.margin


class Sample:
    """The accuracies of several networks over their seeds and over draws of the pictures.

    Args:
        found: network → what the training with each seed found. All of them saw the same pictures.
        seed: of the draws.

    Attributes:
        classes: network → of each seed, class → AP50-95 in [0, 1].
        scores: network → (seeds,) mAP50-95 in [0, 1]; over several data sets the mean of theirs.
        parts: network → of each data set, (seeds,) mAP50-95 in [0, 1].
        draws: network → (DRAWS,) mean over the seeds on each draw.
    """

    classes: dict[str, list[dict[int, float]]]
    scores: dict[str, Numbers]
    parts: dict[str, list[Numbers]]
    draws: dict[str, Numbers]

    def __init__(self, found: Mapping[str, Sequence[Detections]], seed: int = 0) -> None:
        pictures = len(next(iter(found.values()))[0].names)
        ranked = {name: [each.sorted() for each in several] for name, several in found.items()}
        random = np.random.default_rng(seed)
        drawn = random.multinomial(pictures, np.full(pictures, 1 / pictures), size=DRAWS).astype(float)
        self.classes = {name: [average_precisions(each) for each in several] for name, several in ranked.items()}
        self.scores = {name: np.array(list(map(_mean, several))) for name, several in self.classes.items()}
        self.draws = {
            name: np.array([np.mean([mean_ap(each, weights) for each in several]) for weights in drawn])
            for name, several in ranked.items()
        }
        self.parts = {name: [score] for name, score in self.scores.items()}

    @classmethod
    def over(cls, samples: Sequence[Sample]) -> Sample | None:
        """Return the mean of what was measured on several data sets; None where no network is known on all of them.

        Args:
            samples: one of each data set, with the same number of seeds.
        """
        names = [name for name in samples[0].scores if all(name in each.scores for each in samples)]
        if not names:
            return None
        mean = cls.__new__(cls)
        mean.classes = {}
        mean.parts = {name: [each.scores[name] for each in samples] for name in names}
        mean.scores = {name: np.mean(parts, axis=0) for name, parts in mean.parts.items()}
        mean.draws = {name: np.mean([each.draws[name] for each in samples], axis=0) for name in names}
        return mean

    @property
    def data_sets(self) -> int:
        """How many data sets it is the mean of."""
        return len(next(iter(self.parts.values())))

    def accuracy(self, name: str) -> Estimate:
        """Return the mAP50-95 of a network."""
        return Estimate(float(self.scores[name].mean()), self._margin(self.draws[name], name))

    def difference(self, a: str, b: str) -> Estimate:
        """Return by how much the mAP50-95 of `a` is above that of `b`."""
        value = float(self.scores[a].mean() - self.scores[b].mean())
        return Estimate(value, self._margin(self.draws[a] - self.draws[b], a, b))

    def _margin(self, draws: Numbers, *names: str) -> float:
        """Return the half width of the interval of the accuracy of a network, or of the difference of two."""
        parts = [part for name in names for part in self.parts[name]]
        return margin(float(draws.std()), *parts, share=1 / self.data_sets)

    def ranked(self) -> list[str]:
        """Return the networks, that of the highest accuracy first."""
        return sorted(self.scores, key=lambda name: -float(self.scores[name].mean()))

    def best(self) -> str:
        """Return the network of the highest accuracy."""
        return self.ranked()[0]

    def equals(self) -> list[str]:
        """Return the networks that may be as good as the best one, which comes first."""
        best = self.best()
        return [best, *(n for n in self.scores if n != best and self.difference(best, n).is_zero)]


def margin(over_draws: float, *scores: Numbers, share: float = 1.0) -> float:
    """Return the half width of the 95 % interval of a mean, or of a difference of means.

    Args:
        over_draws: standard deviation over draws of the pictures.
        scores: of each mean, (seeds,). What one seed cannot show is left out.
        share: that each of these means has in the whole, 1/n for the mean over n data sets.
    """
    shares = [(share**2 * float(each.var(ddof=1)) / len(each), len(each) - 1) for each in scores if len(each) > 1]
    variance = sum(part for part, _ in shares)
    if not variance:
        return NORMAL * over_draws
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in shares)
    return math.hypot(float(student.ppf(0.975, freedom)) * math.sqrt(variance), NORMAL * over_draws)
