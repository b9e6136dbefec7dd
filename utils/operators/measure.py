"""Measuring the operators of an archive, into tables that are saved again and again; needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from models.environment import processor
from models.errors import UserError
from utils.operators.archive import RUNTIMES, Archive, Setting
from utils.operators.description import Operator
from utils.operators.table import Cost, Table, load_tables, save_tables
from utils.operators.timing import runtime_version, time_group, time_overheads

GROUP = 24  # operators that run in turns
OVERHEAD_ROUNDS = 50


@dataclass(frozen=True)
class Effort:
    """How long is measured.

    Attributes:
        rounds: how many times each operator is timed at most; the median counts.
        seconds: that a group of operators takes at most, but for two rounds.
    """

    rounds: int = 20
    seconds: float = 30.0


def missing(archive: Archive, setting: Setting, tables: dict[Setting, Table]) -> list[Operator]:
    """Return the operators of an archive that a table does not hold yet."""
    known = tables[setting].known if setting in tables else set()
    return [operator for operator in archive.kinds.get(setting.models, []) if operator.digest not in known]


def check_runtimes(settings: Iterable[Setting]) -> None:
    """Raise UserError where a runtime is not installed."""
    for setting in settings:
        if not runtime_version(setting.runtime):
            package = {"onnx": "onnxruntime"}.get(setting.runtime, setting.runtime)
            raise UserError(f"{RUNTIMES[setting.runtime]} is not installed here: pip install {package}")


def measure_archive(
    archive: Archive,
    settings: Sequence[Setting],
    path: Path,
    effort: Effort,
    after: Callable[[int], object],
) -> dict[Setting, Table]:
    """Measure what the tables in a file lack, save them after each group of operators, and return them.

    Args:
        archive: the operators.
        settings: in which they are measured.
        path: of the tables, which may not be there yet. Tables of another version of the runtime begin anew.
        effort: how long is measured.
        after: is told how many operators have been measured, for instance to move a progress bar.

    Raises:
        UserError: a runtime is not installed, or `path` is something else.
    """
    check_runtimes(settings)
    tables = current_tables(path)
    for setting in settings:
        table = tables.setdefault(setting, Table(setting, processor(), runtime_version(setting.runtime)))
        table.overheads = time_overheads(archive, setting, OVERHEAD_ROUNDS)
        operators = missing(archive, setting, tables)
        for start in range(0, len(operators), GROUP):
            group = operators[start : start + GROUP]
            contents = [archive.model(setting.models, operator) for operator in group]
            for operator, time in zip(group, time_group(contents, setting, effort.rounds, effort.seconds), strict=True):
                if isinstance(time, str):
                    table.refused[operator.digest] = time
                else:
                    table.costs[operator.digest] = Cost(operator, max(0.0, time[0] + time[1] * table.overheads.node))
            save_tables(path, tables)
            after(len(group))
    return tables


def current_tables(path: Path) -> dict[Setting, Table]:
    """Return the tables in a file that are of the versions of the runtimes that are installed here; none without it."""
    tables = load_tables(path) if path.exists() else {}
    return {setting: table for setting, table in tables.items() if table.version == runtime_version(setting.runtime)}
