"""What a model YAML becomes: its rows, parameters and FLOPs before and after fusing, and how long each row takes.

    python -m models.yolo --cfg riformer-yolo.yaml                 # the table of rows
    python -m models.yolo --cfg riformer-yolo.yaml --profile       # and the time of each, unfused and fused
    python -m models.yolo --cfg my-yolo.yaml --imgsz 480 640 --plugins my_net.py
    python -m models.yolo --test                                   # build every YAML of models/configs

Operations are counted without data. Times are medians on the CPU of rounds in which both forms take turns; the form
that runs first changes from round to round. Weights are fresh.
In Python: `utils.describe_model.run("riformer-yolo.yaml")`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ultralytics.utils import LOGGER, TQDM

from models import DetectionModel, create_model, switch_to_deploy
from models.errors import UserError, first_line
from models.parser import common_side
from models.row_times import time_rows
from models.summary import DEFAULT_SIZE, count_gflops, count_parameters, head_card, model_table, row_gflops, slots_text
from models.yaml_sources import CONFIGS
from utils import cli
from utils.latency import Latency, torch_threads
from utils.sizes import check_imgsz

PICTURE_ERRORS = (RuntimeError, ValueError, AssertionError)  # what networks raise for a picture that they do not take


@dataclass(frozen=True)
class RowTime:
    """What one row of a model costs; pairs are before and after fusing."""

    slots: str
    module: str
    gflops: tuple[float, float]
    latency: tuple[Latency, Latency]


@dataclass(frozen=True)
class Description:
    """What a model is made of; pairs are before and after fusing."""

    table: str
    head: str  # which of the heads it has
    name: str
    imgsz: tuple[int, int]  # height, width
    parameters: tuple[int, int]
    gflops: tuple[float, float]
    fused: dict[str, int]  # kind to count
    rows: list[RowTime]  # empty unless they were timed
    rounds: int
    threads: int


# The command ----------------------------------------------------------------------------------------------------------
def make_parser() -> cli.Parser:
    """Return the options."""
    parser = cli.Parser(prog="python -m models.yolo", description=__doc__)
    add = parser.add_argument
    add("--cfg", help="model YAML: a path, a name in models/configs, timm:NAME, ultralytics:NAME")
    add("--imgsz", "--img", "--img-size", nargs="+", type=cli.positive_int, help="default: 640, or its only size")
    add("--profile", "--line-profile", action="store_true", help="time every row on the CPU, unfused and fused")
    add("--batch-size", type=cli.positive_int, default=1, help="pictures that --profile runs at once")
    add("--rounds", type=cli.positive_int, default=10, help="how many times --profile runs each form")
    add("--threads", type=cli.positive_int, help="CPU threads; default: torch's choice")
    add("--test", action="store_true", help="build and fuse every YAML of models/configs instead")
    cli.add_consents(parser)
    return parser


def run(cfg: str | None = None, **options: Any) -> list[Description]:
    """Describe from Python: `run("riformer-yolo.yaml", profile=True)`.

    Raises:
        UserError: the YAML or an option is wrong, or the model takes no such picture.
    """
    return describe_all(make_parser().from_keywords(cfg=cfg, **options))


def main(args: argparse.Namespace) -> None:
    """Describe what the command line names."""
    describe_all(args)


def describe_all(args: argparse.Namespace) -> list[Description]:
    """Describe one model, or all that ship, and log the result."""
    if bool(args.cfg) == args.test:
        raise UserError("name a model YAML, such as --cfg riformer-yolo.yaml, or --test all of models/configs")
    cli.take_consents(args)
    cfgs = sorted(CONFIGS.glob("*.yaml")) if args.test else [args.cfg]
    with torch_threads(args.threads or torch.get_num_threads()):
        found = []
        for cfg in cfgs:
            found.append(describe(cfg, args))
            LOGGER.info(summary_line(found[-1]) if args.test else description_text(found[-1]))
    return found


# What is found out ----------------------------------------------------------------------------------------------------
def describe(cfg: str | Path, args: argparse.Namespace) -> Description:
    """Return what the model of a YAML is made of.

    Raises:
        UserError: the YAML is wrong, or the model takes no picture of the size that was asked for.
    """
    model = create_model(cfg).eval()
    size = picture_size(model, args.imgsz)
    deploy = switch_to_deploy(model)
    forms = (model, deploy)
    try:
        gflops = tuple(count_gflops(form, size) for form in forms)
        rows = time_forms(forms, size, args) if args.profile else []
    except PICTURE_ERRORS as error:
        raise UserError(f"{model.spec.name} takes no picture of {size[0]}x{size[1]}: {first_line(error)}") from error
    return Description(
        table=model_table(model, size),
        head=head_card(model),
        name=model.spec.name,
        imgsz=size,
        parameters=(count_parameters(model), count_parameters(deploy)),
        gflops=(gflops[0], gflops[1]),
        fused=dict(deploy.report.fused),
        rows=rows,
        rounds=args.rounds,
        threads=torch.get_num_threads(),
    )


def picture_size(model: DetectionModel, imgsz: Sequence[int] | None) -> tuple[int, int]:
    """Return height and width of the picture: what was asked for, rounded up to what every stride divides."""
    if not imgsz:
        return model.only_size or DEFAULT_SIZE
    height, width = check_imgsz(list(imgsz), common_side(model.features.values()))
    return height, width


def time_forms(forms: tuple[DetectionModel, DetectionModel], size: tuple[int, int], args: Any) -> list[RowTime]:
    """Return what each row of a model costs, unfused and fused."""
    x = torch.rand(args.batch_size, forms[0].spec.ch, *size, generator=torch.Generator().manual_seed(0))
    times: tuple[list[list[float]], list[list[float]]] = ([], [])
    with torch.inference_mode(), TQDM(total=args.rounds, desc="profiling", file=sys.stderr, leave=False) as bar:
        for form in forms:
            form(x)  # the first run of a form is slow
        for turn in range(args.rounds):
            for i in (0, 1) if turn % 2 == 0 else (1, 0):
                times[i].append(time_rows(forms[i], partial(forms[i].forward, x))[1])
            bar.update()
    latencies = [[Latency(values) for values in zip(*rounds, strict=True)] for rounds in times]
    gflops = [row_gflops(form, size) for form in forms]
    return [
        RowTime(slots_text(node), node.row.module, (work, less), (before, after))
        for node, work, less, before, after in zip(forms[0].nodes, *gflops, *latencies, strict=True)
    ]


# Texts ----------------------------------------------------------------------------------------------------------------
def description_text(found: Description) -> str:
    """Return a description as text for people."""
    height, width = found.imgsz
    fused = ", ".join(f"{count} {kind}" for kind, count in sorted(found.fused.items())) or "nothing"
    lines = [
        found.table,
        found.head,
        f"fused: {found.parameters[1]:,} parameters, {found.gflops[1]:.1f} GFLOPs; {fused}",
    ]
    if found.rows:
        how = f"median ms of {found.rounds} rounds in turns at {height}x{width}, {found.threads} CPU thread(s)"
        lines += ["", profile_table(found), how]
    return "\n".join(lines)


def summary_line(found: Description) -> str:
    """Return a description in one line."""
    (before, after), (work, less) = found.parameters, found.gflops
    return f"{found.name:<30}{before:>12,} parameters, fused {after:>12,}{work:>8.1f} GFLOPs, fused {less:>6.1f}"


def profile_table(found: Description) -> str:
    """Return the rows with their work and times."""
    totals = [sum(row.latency[form].median for row in found.rows) for form in (0, 1)]
    lines = [f"{'slot':>5}  {'module':<24}{'GFLOPs':>8}{'ms':>9}{'share':>8}{'fused':>9}{'share':>8}"]
    for row in found.rows:
        times = "".join(
            f"{latency.median:>9.2f}{latency.median / total:>8.1%}"
            for latency, total in zip(row.latency, totals, strict=True)
        )
        lines.append(f"{row.slots:>5}  {row.module:<24}{row.gflops[0]:>8.2f}{times}")
    lines.append(
        f"{'':>5}  {'all rows':<24}{found.gflops[0]:>8.2f}{totals[0]:>9.2f}{1:>8.1%}{totals[1]:>9.2f}{1:>8.1%}"
    )
    return "\n".join(lines)
