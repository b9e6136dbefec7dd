"""What operators cost on one machine: measured ones by their keys, others by those that are like them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from models.environment import config_dir, processor
from models.errors import UserError
from models.files import why_no_file
from utils.operators.archive import KINDS, Setting
from utils.operators.description import Operator, read_operator
from utils.writing import write_text

FORMAT = 1
NEAREST = 6  # measured operators of which others are interpolated
WIDTH = 0.25  # distance, in doublings, within which neighbours count alike
FORMS = {"onnx": ("onnx", False), "openvino": ("openvino", False)}  # of benchmark.py: runtime, and whether in INT8
FORMS |= {"int8": ("onnx", True), "openvino-int8": ("openvino", True), "ncnn": ("ncnn", False)}
MAX_REASONS = 300  # characters of what runtimes say of operators that they do not compute
COMMAND = "python benchmark.py --operators"


@dataclass(frozen=True)
class Overheads:
    """What a runtime does beside the nodes of a graph, in milliseconds.

    Attributes:
        run: for each run.
        node: for each node, held by the costs of operators already; below 0 where the runtime's own clock takes more.
        output: for a million numbers that a network gives.
    """

    run: float = 0.0
    node: float = 0.0
    output: float = 0.0


@dataclass(frozen=True)
class Cost:
    """What an operator was measured to cost."""

    operator: Operator
    ms: float


@dataclass(frozen=True)
class Estimate:
    """What an operator costs.

    Attributes:
        ms: milliseconds.
        measured: this very operator was; else it was interpolated.
    """

    ms: float
    measured: bool


@dataclass
class Table:
    """What operators cost on a machine in one setting.

    Attributes:
        setting: how they were computed.
        machine: its processor.
        version: of the runtime.
        costs: digest of an operator → what it costs.
        refused: digest of an operator that the runtime does not compute → why, empty in tables of former versions.
        overheads: what a run takes beside its operators.
    """

    setting: Setting
    machine: str
    version: str
    costs: dict[str, Cost] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    overheads: Overheads = field(default_factory=Overheads)

    @property
    def known(self) -> set[str]:
        """Return the digests of the operators that need not be measured again."""
        return {*self.costs, *self.refused}

    @property
    def summary(self) -> str:
        """Return how many operators were measured, and how many the runtime does not compute and why, in one line."""
        if not self.refused:
            return f"{self.setting}: {len(self.costs)} operators"
        reasons = "; ".join(sorted({*self.refused.values()} - {""}))[:MAX_REASONS]
        refused = f"{len(self.refused)} the runtime does not compute{f' ({reasons})' if reasons else ''}"
        return f"{self.setting}: {len(self.costs)} operators, {refused}"

    def estimate(self, operator: Operator) -> Estimate:
        """Return what an operator costs, interpolated in those of its family where it was not measured.

        Raises:
            UserError: the table is empty.
        """
        cost = self.costs.get(operator.digest)
        if cost:
            return Estimate(cost.ms, measured=True)
        if not self.costs:
            raise UserError(f"the table of operators for {self.setting} is empty: run {COMMAND}")
        near = next(self._families[name] for name in _wider(operator.family) if name in self._families)
        return Estimate(near.at(operator), measured=False)

    @cached_property
    def _families(self) -> Mapping[str, Family]:
        members: dict[str, list[Cost]] = {}
        for cost in self.costs.values():
            for name in _wider(cost.operator.family):
                members.setdefault(name, []).append(cost)
        return {name: Family(costs) for name, costs in members.items()}

    def without(self, digests: Sequence[str]) -> Table:
        """Return the table as if some operators had not been measured."""
        kept = {digest: cost for digest, cost in self.costs.items() if digest not in set(digests)}
        return Table(self.setting, self.machine, self.version, kept, self.refused, self.overheads)

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        costs = [{**cost.operator.as_dict(), "ms": round(cost.ms, 5)} for cost in self.costs.values()]
        about = {"machine": self.machine, "version": self.version, "refused": self.refused}
        return {**asdict(self.setting), **about, "overheads": asdict(self.overheads), "costs": costs}


class Family:
    """Operators that differ in their sizes alone, between which costs are interpolated.

    Each of the nearest members says what an operator costs, its time grown as the geometric mean of work, input and
    output; the logarithms of what they say are averaged, with weights that fall with the square of the distance.
    """

    def __init__(self, costs: Sequence[Cost]) -> None:
        self.features = np.array([cost.operator.features for cost in costs])
        self.times = np.log2([max(cost.ms, 1e-4) for cost in costs])

    def at(self, operator: Operator) -> float:
        """Return the milliseconds of another member."""
        wanted = np.array(operator.features)
        shift = self.features - wanted
        distance = np.linalg.norm(shift, axis=1)
        near = np.argsort(distance, kind="stable")[:NEAREST]
        weights = 1 / (WIDTH + distance[near]) ** 2
        # what the nearest would take if time grew as the mean of work, input and output does
        grown = self.times[near] - shift[near, :3].mean(1)
        return float(2 ** np.average(grown, weights=weights))


def _wider(family: str) -> list[str]:
    """Return a family and the wider ones that it is part of, down to all operators."""
    kind, _, _ = family.partition(" ")
    plain = re.sub(r" (even|odd)\b", "", family)
    alone = re.sub(r"( [A-Z]\w*)+ ", " ", plain)  # without what is behind the first node
    return list(dict.fromkeys([family, plain, alone, kind, ""]))


# Files ----------------------------------------------------------------------------------------------------------------
def default_path() -> Path:
    """Return the file of this machine's tables, in the user's own folder."""
    folder = Path(os.environ.get("YOLO_CONFIG_DIR") or config_dir()) / "operators"
    name = re.sub(r"[^A-Za-z0-9]+", "-", f"{processor()} {os.cpu_count()}").strip("-")
    return folder / f"{name}.json"


def load_tables(path: Path) -> dict[Setting, Table]:
    """Return the tables in a file.

    Raises:
        UserError: it is not there, or is no such file.
    """
    if problem := why_no_file(path):
        raise UserError(f"the table of operators {path} {problem}: {COMMAND} measures one")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError("another format")
        tables = [_read_table(entry) for entry in content["tables"]]
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise UserError(f"{path} is no table of operators as {COMMAND} writes them") from error
    return {table.setting: table for table in tables}


def load_table(path: Path | None, runtime: str = "onnx", int8: bool = False, threads: int = 1) -> Table:
    """Return the table of one setting.

    Args:
        path: a file of tables; None: that of this machine.
        runtime: `onnx`, `openvino` or `ncnn`.
        int8: what can be is in INT8.
        threads: of the CPU.

    Raises:
        UserError: there is none; the message says which command measures it.
    """
    wanted, place = Setting(runtime, int8, threads), path or default_path()
    tables = load_tables(place)
    if wanted not in tables:
        known = "; ".join(map(str, tables)) or "nothing"
        raise UserError(
            f"{place} holds {known}, and no costs of operators for {wanted}: {COMMAND} --forms {form_of(wanted)} "
            f"--threads {threads} measures them"
        )
    return tables[wanted]


def form_of(setting: Setting) -> str:
    """Return the form of a setting, as benchmark.py calls it."""
    return next(form for form, kind in FORMS.items() if kind == (setting.runtime, setting.int8))


def save_tables(path: Path, tables: Mapping[Setting, Table]) -> None:
    """Write tables as one file, as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({"format": FORMAT, "tables": [table.as_dict() for table in tables.values()]}) + "\n")


def _read_table(entry: Any) -> Table:
    """Return the table that an entry of a file holds; ValueError, KeyError or TypeError where it holds none."""
    setting = Setting(entry["runtime"], entry["int8"], entry["threads"])
    known = (setting.runtime, setting.int8) in KINDS and type(setting.int8) is bool
    if not known or type(setting.threads) is not int:
        raise ValueError("no setting")
    table = Table(setting, str(entry["machine"]), str(entry["version"]))
    table.overheads = Overheads(*(float(entry["overheads"][name]) for name in ("run", "node", "output")))
    refused = entry["refused"]
    reasons = refused if isinstance(refused, dict) else dict.fromkeys(refused, "")
    table.refused = {str(digest): str(reason) for digest, reason in reasons.items()}
    for cost in entry["costs"]:
        ms = float(cost.pop("ms"))
        operator = read_operator(cost)
        table.costs[operator.digest] = Cost(operator, ms)
    return table
