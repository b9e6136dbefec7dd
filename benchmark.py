"""Measure what fusing and exporting buy: latency, memory, sizes and accuracy of several models in one run.

    python benchmark.py                                                  # the three models that ship
    python benchmark.py --cfg riformer-yolo.yaml yolov5n.yaml --imgsz 640 --threads 2 --rounds 20
    python benchmark.py --cfg repyolo-n ultralytics:yolo26n timm:resnet18    # with networks of other libraries
    python benchmark.py --zoo 'rep*' 'yolov5n*' --forms eager onnx openvino   # patterns of names in models/configs
    python benchmark.py --weights runs/train/*/weights/best.pt --data my-data.yaml           # with accuracy
    python benchmark.py --cfg timm-yolo.yaml --backbone --imgsz 320      # the backbone without neck and head
    python benchmark.py --operators --threads 1 2                        # what each operator costs here, as a table
    python benchmark.py --cfg yolov5n.yaml --explain --threads 1         # by it: where the milliseconds go, row by row

Model YAMLs get fresh weights, which changes no latency. All forms of all models run in turns, so that the noise of the
machine hits all alike, on the CPU with one picture. A model that cannot be had in some form ends nothing: its row says
why. The last lines say what fusing buys in PyTorch and in ONNX Runtime, which folds some of it by itself.

Written to runs/benchmark/exp, exp2, …: benchmark.html, a page with the Pareto plot and a table to sort, that needs no
network; benchmark.json and benchmark.csv. In Python: benchmark.run(cfg=["yolov5n"]).
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import os
import platform
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from models import DetectionModel
from models.environment import processor
from models.errors import UserError, did_you_mean
from models.spec import load_spec
from models.summary import count_gflops, count_parameters
from models.yaml_sources import CONFIGS, is_named, stem_of, whole_name
from utils import cli
from utils.benchmark.forms import DEFAULT_FORMS, FORMS, Made, NetworkSource, fit_size, loader, make, open_network
from utils.benchmark.memory import peak_memory, weights_size
from utils.benchmark.report import ACCURACIES, BenchmarkRow, add_ratios, benchmark_table, remarks, save
from utils.data.description import load_dataset
from utils.data.files import check_images
from utils.data.samples import timed_picture
from utils.deploy.formats import FORMATS
from utils.deploy.run import RUN_ERRORS, Runner, load_runner
from utils.deploy.write import ExportError
from utils.evaluate.accuracy import measure_accuracy
from utils.export.report import versions
from utils.int8.calibration import batches, calibration_pictures
from utils.latency import measure, torch_threads
from utils.operators import command as operators
from utils.prove.reference import run_eager

# isort: split
import psutil
import torch
from torch import Tensor
from ultralytics.utils import LOGGER, TQDM

from utils.paths import find_weights, increment_path
from utils.sizes import check_imgsz
from utils.text import printable

SHIPPED = ("riformer-yolo.yaml", "timm-yolo.yaml", "yolov5n.yaml")
CALIBRATION = 64  # pictures of the train split
FORM_FAILURES = (ExportError, UserError, ImportError, *RUN_ERRORS)  # of one form, which the others survive


def make_parser() -> cli.Parser:
    """Return the options."""
    parser = cli.Parser(prog="benchmark.py", description=__doc__)
    add = parser.add_argument
    add(
        "--cfg",
        nargs="+",
        default=[],
        metavar="YAML",
        help="model YAMLs, timm:NAME, ultralytics:NAME; all models are compared with the first",
    )
    add("--zoo", nargs="+", default=[], metavar="PATTERN", help="every YAML of models/configs whose name fits")
    add("--weights", nargs="+", default=[], metavar="PT", help="checkpoints of train.py")
    add("--data", default="", help="dataset YAML or class folders: measure the accuracy of --weights on its val split")
    add("--forms", nargs="+", default=[], metavar="FORM", help=f"some of {', '.join(FORMS)}")
    add("--backbone", action="store_true", help="the list backbone of each model without neck and head")
    add("--imgsz", "--img", "--img-size", nargs="+", type=cli.image_side, default=[640], help="pixels")
    add(
        "--threads",
        nargs="+",
        type=cli.positive_int,
        default=[],
        metavar="N",
        help="CPU threads of each runtime, of operators one number or several; default: torch's choice",
    )
    add("--rounds", type=cli.positive_int, default=20, help="how many times each form runs")
    add("--operators", action="store_true", help="measure what each operator of the models costs here, as a table")
    add("--explain", action="store_true", help="tell by that table where the milliseconds go, row by row")
    add("--check", action="store_true", help="compare latencies that the table predicts with measured ones")
    add("--table", default="", metavar="FILE", help="of operators; default: a file in your own folder for this machine")
    add("--write-operators", default="", metavar="ZIP", help="write operators to measure them on another machine")
    add("--no-memory", action="store_true", help="do not measure memory, which takes a process for each form")
    add("--project", default="runs/benchmark", help="results go to project/name")
    add("--name", default="exp", help="results go to project/name")
    add("--exist-ok", action="store_true", help="use project/name again instead of counting up")
    cli.add_consents(parser)
    parser.ignore("--batch-size", reason="every form runs with one picture", values=1)
    parser.refuse("--pt-only", reason="give --forms eager fused, which are PyTorch's")
    parser.refuse("--test", reason="export.py proves what it writes wherever it can be run")
    parser.refuse(
        "--hard-fail", reason="a form that cannot be had ends nothing; benchmark.json tells which", values="?"
    )
    parser.refuse(
        "--half", "--device", reason="it measures on the CPU, in float32 and INT8; name the --forms", values="?"
    )
    return parser


@dataclass
class Entry:
    """A network that can be measured, and the row of the table that is about it."""

    row: BenchmarkRow
    made: Made
    images: Tensor  # (1, ch, H, W)


def run(**options: object) -> list[BenchmarkRow]:
    """Benchmark from Python: `benchmark.run(cfg=["yolov5n.yaml"], imgsz=320)`. Returns the lines of the table.

    Raises:
        UserError: an option is wrong.
    """
    return benchmark(make_parser().from_keywords(**options))


def main(args: argparse.Namespace) -> int:
    """Measure, print and write; return 1 when nothing could be measured."""
    if asks_for_operators(args):
        benchmark(args)
        return 0
    return 0 if any(row.minimum_ms for row in benchmark(args)) else 1


def benchmark(args: argparse.Namespace) -> list[BenchmarkRow]:
    """Build and export every model, run all forms in turns, and report; nothing is returned of operators."""
    cli.log_options("benchmark", args)
    cli.take_consents(args)
    check_imgsz(args.imgsz, 1)
    args.threads = args.threads or [torch.get_num_threads()]
    if asks_for_operators(args):
        return run_operators(args)
    if len(args.threads) > 1:
        raise UserError("--threads takes one number, or several with --operators, --explain and --check")
    args.threads = args.threads[0]
    args.forms = check_forms(args.forms)
    sources = find_sources(args)
    data = check_data(args, sources)
    folder = increment_path(args.project, args.name, args.exist_ok)
    with torch_threads(args.threads), tempfile.TemporaryDirectory(dir=folder) as temporary:
        rows = measure_models(sources, data, args, Path(temporary))
    titles = {key: FORMS[key].title for key in args.forms}
    heading = f"{args.threads} CPU thread(s), {args.rounds} rounds, one picture; ratios of the minima"
    save(folder, rows, titles, about(args))
    LOGGER.info(f"\n{benchmark_table(rows, titles, heading)}\n\n{remarks(rows, titles)}")
    LOGGER.info(printable(f"Results saved to {folder}; the page to look at: {folder / 'benchmark.html'}"))
    return rows


def asks_for_operators(args: argparse.Namespace) -> bool:
    """Return whether the options are about operators."""
    return any(getattr(args, mode) for mode in operators.MODES)


def run_operators(args: argparse.Namespace) -> list[BenchmarkRow]:
    """Do what the options about operators ask for, for all YAMLs where none is named.

    Raises:
        UserError: an option is wrong, or does not go with operators.
    """
    if args.backbone or args.data:
        raise UserError(f"{'--backbone' if args.backbone else '--data'} does not go with the options about operators")
    forms = check_forms(args.forms or operators.DEFAULT_FORMS)
    if others := [form for form in forms if form not in operators.FORMS]:
        raise UserError(f"operators are measured for the forms {', '.join(operators.FORMS)}, not for {others[0]}")
    args.forms = forms
    args.zoo = args.zoo if args.cfg or args.weights or args.zoo else ["*"]
    operators.run(args, find_sources(args))
    return []


# What to measure ------------------------------------------------------------------------------------------------------
def find_sources(args: argparse.Namespace) -> dict[str, NetworkSource]:
    """Return the YAMLs and checkpoints that the options name, each once, under the names that the tables give them.

    Raises:
        UserError: a file or a name does not exist, a YAML is wrong, or a pattern fits none.
    """
    yamls: list[str | Path] = [*args.cfg]
    for pattern in args.zoo:
        fitting = sorted({*CONFIGS.glob(pattern), *CONFIGS.glob(f"{pattern}.yaml")})
        if not fitting:
            raise UserError(f"--zoo: no file in models/configs fits '{pattern}', for instance 'rep*' does")
        yamls += fitting
    if not yamls and not args.weights:
        yamls += SHIPPED
    found: dict[str, tuple[str, NetworkSource]] = {}  # by the whole name: what tables call it, and the network
    for cfg in yamls:
        spec = load_spec(cfg)
        found[whole_name(cfg)] = (stem_of(cfg) if is_named(cfg) else spec.name, spec)
    for name in args.weights:
        path = find_weights(name).absolute()
        if path.suffix != ".pt":
            raise UserError(f"--weights takes checkpoints of train.py (*.pt), which all forms are made of, not {name}")
        found[str(path)] = (f"{path.parent.parent.name}/{path.name}", path)
    short = Counter(name for name, _ in found.values())
    return {printable(whole if short[name] > 1 else name): source for whole, (name, source) in found.items()}


def check_forms(names: Sequence[str]) -> list[str]:
    """Return the keys of the forms that can be had here, those of PyTorch first; the usual ones where none is named.

    Raises:
        UserError: there is no such form, or none of them can be had here.
    """
    for name in names:
        if name not in FORMS:
            raise UserError(f"there is no form '{name}'{did_you_mean(name, FORMS)}, choose of {', '.join(FORMS)}")
    keys = []
    for key in (key for key in FORMS if key in (names or DEFAULT_FORMS)):
        reason = FORMATS[FORMS[key].format].not_run if FORMS[key].format else ""
        if reason:
            LOGGER.warning(f"{FORMS[key].title} is left out: {reason}")
        else:
            keys.append(key)
    if not keys:
        raise UserError("none of these --forms can be run here")
    return keys


def check_data(args: argparse.Namespace, sources: Mapping[str, NetworkSource]) -> dict[str, Any] | None:
    """Return the data set to measure accuracy on, if any.

    Raises:
        UserError: there are no weights to measure, or some for boxes and some for classes; or one knows another number
            of classes than the data set, or other channels.
    """
    if not args.data:
        return None
    if not args.weights or args.backbone:
        raise UserError("--data measures the accuracy of trained networks: name them with --weights, no --backbone")
    if len(set(args.imgsz)) > 1:
        raise UserError("--data measures accuracy on square pictures: give --imgsz one side")
    networks: dict[Path, Any] = {path: open_network(path) for path in sources.values() if isinstance(path, Path)}
    tasks = {path: network.task for path, network in networks.items()}
    task = next(iter(tasks.values()))
    if len({each == "classify" for each in tasks.values()}) > 1:
        listed = ", ".join(f"{path}: {each}" for path, each in tasks.items())
        raise UserError(f"--data measures boxes or classes, --weights are for both ({listed})")
    data = load_dataset(args.data, task=task)
    check_images(data, task=task)
    for path, network in networks.items():
        check_knows_classes(path, network, data)
    return data


def check_knows_classes(source: Path, network: Any, data: dict[str, Any]) -> None:
    """Raise UserError for a network that knows another number of classes than the data set, or other channels."""
    known, given = (network.nc, network.spec.ch), (data["nc"], data["channels"])
    if known != given:
        raise UserError(
            f"{source} knows {known[0]} classes and {known[1]} channels, {Path(data['yaml_file']).name} has "
            f"{given[0]} and {given[1]}: --data is the data set that all --weights were trained on"
        )


# Measuring ------------------------------------------------------------------------------------------------------------
def measure_models(
    sources: Mapping[str, NetworkSource], data: dict[str, Any] | None, args: argparse.Namespace, folder: Path
) -> list[BenchmarkRow]:
    """Return a row for each form of each model. Files are written below `folder`."""
    rows, entries = [], []
    with TQDM(total=len(sources) * len(args.forms), desc="preparing") as bar:
        for name, source in sources.items():
            network: Any = open_network(source, args.backbone)
            keys = [key for key in args.forms if FORMS[key].fits(network)]
            for key in keys:
                row = BenchmarkRow(name, key)
                place = Path(tempfile.mkdtemp(dir=folder))
                try:
                    entry = prepare(row, network, place, args, data)
                    add_memory(row, entry, source, args)
                    entries.append(entry)
                except FORM_FAILURES as error:
                    row.note = " ".join(str(error).split())[:200] or type(error).__name__
                rows.append(row)
                bar.update()
            bar.update(len(args.forms) - len(keys))
            if data and isinstance(source, Path):
                add_accuracy([e for e in entries if e.row.model == name], network, data)
    add_latency(entries, args)
    add_ratios(rows)
    return rows


def prepare(
    row: BenchmarkRow, network: Any, folder: Path, args: argparse.Namespace, data: dict[str, Any] | None
) -> Entry:
    """Bring a network into the form of `row`, run it once, and fill in its sizes. INT8 is calibrated on `data`.

    Raises:
        FAILURES: it cannot be had so, or takes no such pictures.
    """
    size = fit_size(network, args.imgsz)
    images = timed_picture(size, network.example_input().shape[1])
    pictures = None
    if data and FORMS[row.form].int8:
        pictures = batches(calibration_pictures(data, CALIBRATION), images.shape, "INT8: calibrating", network.task)
    made = make(row.form, network, size, folder, pictures)
    with torch.inference_mode():
        made.load(args.threads)(images)
    row.params, row.gflops = count_parameters(made.module), round(count_gflops(made.module, size), 3)
    if not FORMS[row.form].int8:
        row.weights_mb = round(weights_size(made.module) / 1e6, 3)
    row.file_mb = None if made.bytes is None else round(made.bytes / 1e6, 3)
    return Entry(row, made, images)


def add_memory(row: BenchmarkRow, entry: Entry, source: NetworkSource, args: argparse.Namespace) -> None:
    """Fill in the peak memory of a network in a process of its own."""
    if not args.no_memory:
        load = loader(source, row.form, args.backbone, entry.made, args.threads)
        peak = peak_memory(load, tuple(entry.images.shape), args.threads)
        row.peak_mb = None if peak is None else round(peak / 1e6, 1)


def add_accuracy(entries: Sequence[Entry], network: DetectionModel, data: dict[str, Any]) -> None:
    """Fill in the accuracy of all forms of one model; those of PyTorch are one, as fusing changes no box."""
    runs: dict[str, Runner] = {str(e.made.path): load_runner(e.made.path) for e in entries if e.made.path}
    if any(entry.made.path is None for entry in entries):
        runs[str(None)] = partial(run_eager, network.eval())
    height, width = entries[0].images.shape[-2:]
    found = measure_accuracy(runs, network, data, (height, width))
    for entry in entries:
        accuracy = found[str(entry.made.path)]
        for name in ACCURACIES:
            value = getattr(accuracy, name)
            setattr(entry.row, name, None if value is None else round(100 * value, 2))


def add_latency(entries: Sequence[Entry], args: argparse.Namespace) -> None:
    """Run all networks in turns and fill in how long they take; those that fit in memory at once run together."""
    groups = split(entries, psutil.virtual_memory().available / 2e6)
    if len(groups) > 1:
        LOGGER.info(f"measured in {len(groups)} groups, one after the other: all at once would fill the memory")
    with TQDM(total=args.rounds * len(groups), desc="measuring") as bar:
        for group in groups:
            runs = {id(e.row): partial(e.made.load(args.threads), e.images) for e in group}
            latency = measure(runs, args.rounds, after_round=bar.update)
            for entry in group:
                times = latency[id(entry.row)]
                entry.row.median_ms, entry.row.minimum_ms = round(times.median, 3), round(times.minimum, 3)


def split(entries: Sequence[Entry], most: float) -> list[list[Entry]]:
    """Return the entries in groups of whole models, which need at most so many MB each; a larger model is alone."""
    groups: list[list[Entry]] = []
    filled = 0.0
    for _, model in itertools.groupby(entries, key=lambda entry: entry.row.model):
        forms = list(model)
        needed = sum(entry.row.peak_mb or 0 for entry in forms)
        if not groups or filled + needed > most:
            groups.append([])
            filled = 0.0
        groups[-1] += forms
        filled += needed
    return groups


# Output ---------------------------------------------------------------------------------------------------------------
def about(args: argparse.Namespace) -> dict[str, Any]:
    """Return what was measured, where and with what."""
    return {
        "date": datetime.date.today().isoformat(),
        "imgsz": args.imgsz,
        "threads": args.threads,
        "rounds": args.rounds,
        "backbone": args.backbone,
        "data": Path(args.data).name,
        "machine": {"processor": processor(), "cores": os.cpu_count(), "system": platform.platform()},
        "versions": versions([FORMS[key].format for key in args.forms if FORMS[key].format]),
    }


if __name__ == "__main__":
    sys.exit(cli.run_script(main, make_parser()))
