"""What benchmark.py does with operators: measure them, write them for another machine, explain and check latencies."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ultralytics.utils import LOGGER, TQDM

from models.errors import UserError
from models.row_times import row_times_table
from utils.benchmark.forms import NetworkSource
from utils.deploy.run import RUN_ERRORS
from utils.deploy.write import ExportError
from utils.operators.archive import Archive, Setting
from utils.operators.check import Checked, check_network, check_table
from utils.operators.collect import Source, find_parts, kinds_of, open_source, write_operators
from utils.operators.graph import Parts
from utils.operators.measure import Effort, current_tables, measure_archive, missing
from utils.operators.predict import Prediction, price
from utils.operators.table import FORMS, Table, default_path, load_table
from utils.paths import increment_path
from utils.text import printable, quote
from utils.writing import write_text

DEFAULT_FORMS = [form for form in FORMS if form != "ncnn"]  # NCNN does not take every network of ours
MODES = ("operators", "explain", "check", "write_operators")  # options, which may be given together
MOST_OPERATORS = 10  # that --explain names


@dataclass(frozen=True)
class Wanted:
    """A network that the options name.

    Attributes:
        origin: its YAML, or a checkpoint.
        source: the network, and the size of its picture.
        parts: kind of small models → what it consists of.
    """

    origin: NetworkSource
    source: Source
    parts: Mapping[str, Parts]


def run(args: argparse.Namespace, origins: Mapping[str, NetworkSource]) -> None:
    """Do what the options in MODES ask for.

    Args:
        args: of benchmark.py; `forms` are keys of FORMS, `threads` a list.
        origins: of the networks, by the names that tables give them.

    Raises:
        UserError: an option is wrong, or there is no table yet.
    """
    settings = [Setting(*FORMS[form], threads) for form in args.forms for threads in args.threads]
    place = Path(args.table) if args.table else default_path()
    if not args.operators and not args.write_operators:
        for setting in settings:
            load_table(place, setting.runtime, setting.int8, setting.threads)  # before the networks are looked at
    networks = _look_at(origins, settings, args.imgsz)
    if args.write_operators:
        _write(Path(args.write_operators), networks, settings)
    if args.operators:
        _measure(networks, settings, place, Effort(args.rounds))
    tables = {s: load_table(place, s.runtime, s.int8, s.threads) for s in settings if args.explain or args.check}
    if args.explain:
        for name, network in networks.items():
            for setting, table in tables.items():
                LOGGER.info(f"\n{explanation(name, network, price(network.parts[setting.models], table), setting)}")
    if args.check:
        _check(networks, tables, args)


def _look_at(
    origins: Mapping[str, NetworkSource], settings: Collection[Setting], imgsz: Sequence[int]
) -> dict[str, Wanted]:
    """Return the networks with what they consist of; those that cannot be written are left out with a warning."""
    found = {}
    for name, origin in TQDM(origins.items(), desc="looking for operators"):
        try:
            source = open_source(origin, imgsz)
            found[name] = Wanted(origin, source, find_parts(source, settings))
        except UserError as error:
            if len(origins) == 1:
                raise
            LOGGER.warning(f"{name} is left out: {error}")
    return found


def _write(path: Path, networks: Mapping[str, Wanted], settings: Collection[Setting]) -> None:
    """Write the operators of networks as a file that is carried to another machine."""
    if path.suffix != ".zip":
        raise UserError(f"--write-operators takes the name of a new file that ends in .zip, not {path}")
    parts = [network.parts for network in networks.values()]
    with TQDM(desc="writing operators") as bar:
        count = write_operators(path, parts, settings, dict.fromkeys(kinds_of(settings), ()), bar.update)
    LOGGER.info(
        printable(
            f"{count} small models saved to {path}; on the other machine, which needs numpy and the runtime alone: "
            f"python -m utils.operators {quote(path.name)} --table table.json, whose table --table takes here"
        )
    )


def _measure(networks: Mapping[str, Wanted], settings: Sequence[Setting], place: Path, effort: Effort) -> None:
    """Measure the operators of networks that the tables of this machine lack."""
    tables = current_tables(place)
    with tempfile.TemporaryDirectory(prefix="repyolo-") as name:
        path = Path(name) / "operators.zip"
        parts = [network.parts for network in networks.values()]
        with TQDM(desc="writing operators") as bar:
            write_operators(path, parts, settings, known_digests(settings, tables), bar.update)
        archive = Archive(path)
        total = sum(len(missing(archive, setting, tables)) for setting in settings)
        with TQDM(total=total, desc="measuring operators") as bar:
            tables = measure_archive(archive, settings, place, effort, bar.update)
    for setting in settings:
        LOGGER.info(printable(tables[setting].summary))
    LOGGER.info(printable(f"Table saved to {place}"))


def known_digests(settings: Collection[Setting], tables: Mapping[Setting, Table]) -> dict[str, set[str]]:
    """Return kind of small models → operators that all tables of settings which need the kind hold."""
    known: dict[str, set[str]] = {}
    for setting in settings:
        digests = tables[setting].known if setting in tables else set()
        known[setting.models] = known.get(setting.models, digests) & digests
    return known


def explanation(name: str, network: Wanted, prediction: Prediction, setting: Setting) -> str:
    """Return where the milliseconds of a network go, row by row and by its dearest operators."""
    model = network.source.network
    times = [prediction.rows.get(row, 0.0) for row in range(len(model.model))]
    dearest = sorted(prediction.costs, key=lambda cost: -cost.ms)[:MOST_OPERATORS]
    height, width = network.source.size
    lines = [
        f"{name} at {height}x{width} in {setting}: {prediction.total_ms:.2f} ms predicted, "
        f"{prediction.measured:.0%} of it from operators that were measured, the rest interpolated",
        row_times_table(model, times),
        f"Beside the rows: {prediction.run_ms:.2f} ms. The dearest operators, ~ interpolated:",
        *(f"{cost.row:>5}  {'' if cost.measured else '~'}{cost.ms:.2f} ms  {cost.operator.text}" for cost in dearest),
    ]
    return "\n".join(lines)


def _check(networks: Mapping[str, Wanted], tables: Mapping[Setting, Table], args: argparse.Namespace) -> None:
    """Measure networks and compare with what they are predicted to take."""
    folder = increment_path(args.project, args.name, args.exist_ok)
    checked: list[Checked] = []
    for name, network in TQDM(networks.items(), desc="measuring networks"):
        try:
            checked += check_network(name, network.origin, network.source.size, network.parts, tables, args.rounds)
        except (UserError, ExportError, *RUN_ERRORS) as error:
            LOGGER.warning(f"{name} is left out: {' '.join(str(error).split())[:300]}")
    if not checked:
        raise UserError("none of these networks can be measured")
    entries = [{**asdict(entry), "setting": asdict(entry.setting)} for entry in checked]
    write_text(folder / "operators.json", json.dumps(entries, indent=1) + "\n")
    LOGGER.info(f"\n{check_table(checked)}")
    LOGGER.info(printable(f"Results saved to {folder / 'operators.json'}"))
