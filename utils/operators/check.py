"""Predicted against measured latency, for many networks."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from utils.benchmark.forms import NetworkSource, make, open_network
from utils.data.samples import timed_picture
from utils.latency import measure
from utils.operators.archive import Setting
from utils.operators.graph import Parts
from utils.operators.predict import price
from utils.operators.table import Table, form_of

TOLERANCE = 0.1  # a prediction is right that differs by so much of what was measured


@dataclass(frozen=True)
class Checked:
    """One network in one setting, in milliseconds.

    Attributes:
        model: its name.
        setting: how it was computed.
        predicted: from its operators, as far as they were measured.
        interpolated: as if none of its operators had been measured.
        measured: the median of some runs.
    """

    model: str
    setting: Setting
    predicted: float
    interpolated: float
    measured: float


def check_network(
    name: str,
    origin: NetworkSource,
    size: tuple[int, int],
    parts: Mapping[str, Parts],
    tables: Mapping[Setting, Table],
    rounds: int,
) -> list[Checked]:
    """Return what a network takes in some settings, which are measured in turns, and what it was predicted to take.

    Args:
        name: what to call it.
        origin: its YAML, or a checkpoint.
        size: height and width of its picture.
        parts: kind of small models → what it consists of.
        tables: of the settings.
        rounds: how many times each is timed.

    Raises:
        ExportError, UserError: it cannot be written in one of the forms.
    """
    network = open_network(origin)
    runs: dict[Setting, Callable[[], object]] = {}
    with tempfile.TemporaryDirectory(prefix="repyolo-") as folder:
        picture = timed_picture(size, network.example_input().shape[1])
        for form in {form_of(setting): None for setting in tables}:
            place = Path(folder) / form
            place.mkdir()
            made = make(form, network, size, place)
            runs |= {s: partial(made.load(s.threads), picture) for s in tables if form_of(s) == form}
        latency = measure(runs, rounds)
    found = []
    for setting, table in tables.items():
        operators = parts[setting.models]
        rest = table.without([placed.operator.digest for placed in operators.operators])
        interpolated = price(operators, rest).total_ms if rest.costs else float("nan")
        predicted = price(operators, table).total_ms
        found.append(Checked(name, setting, predicted, interpolated, latency[setting].median))
    return found


def within(pairs: Iterable[tuple[float, float]]) -> float:
    """Return which part of (predicted, measured) differ by at most TOLERANCE, from 0 to 1."""
    right = [abs(predicted / measured - 1) <= TOLERANCE for predicted, measured in pairs]
    return sum(right) / max(1, len(right))


def check_table(checked: Sequence[Checked]) -> str:
    """Return predictions beside what was measured as text, and how many are right in each setting."""
    wide = max(len(entry.model) for entry in checked) + 2
    lines = [f"{'model':<{wide}}{'measured':>9}{'predicted':>11}{'ratio':>7}{'interpolated':>14}{'ratio':>7}"]
    for setting in dict.fromkeys(entry.setting for entry in checked):
        of_it = [entry for entry in checked if entry.setting == setting]
        lines += [str(setting), *(_line(entry, wide) for entry in of_it), _shares(of_it)]
    return "\n".join([*lines, f"All settings: {_shares(checked)}"])


def _line(entry: Checked, wide: int) -> str:
    ratios = entry.predicted / entry.measured, entry.interpolated / entry.measured
    return (
        f"{entry.model:<{wide}}{entry.measured:>9.2f}{entry.predicted:>11.2f}{ratios[0]:>7.2f}"
        f"{entry.interpolated:>14.2f}{ratios[1]:>7.2f}"
    )


def _shares(checked: Collection[Checked]) -> str:
    known = within((entry.predicted, entry.measured) for entry in checked)
    unknown = within((entry.interpolated, entry.measured) for entry in checked)
    return (
        f"{known:.0%} of {len(checked)} predictions are within {TOLERANCE:.0%}; {unknown:.0%} are where none of the "
        "network's own operators had been measured"
    )
