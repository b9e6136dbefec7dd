"""Measure what fusing and exporting buy: sizes, operations and latencies of several models in one run.

    python benchmark.py                                                  # the three models that ship
    python benchmark.py --cfg riformer-yolo.yaml yolov5n.yaml --imgsz 640 --threads 2 --rounds 20
    python benchmark.py --cfg riformer-yolo.yaml --imgsz 480 640         # height and width

Every model has fresh weights, which changes no latency. All of them run in turns, so that the noise of the machine hits
all alike, on the CPU with one picture; the last lines say what fusing buys in PyTorch and in ONNX Runtime, which folds
some of it by itself. RIFormer appears in ONNX once more with only what is published fused (the affine map into the norm
before it), as the measure of what folding everything else is worth.

Written to runs/benchmark/exp, exp2, …: benchmark.json and benchmark.csv. In Python: benchmark.run(cfg=["yolov5n"]).
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import utils.environment  # noqa: F401
from models import DetectionModel, switch_to_deploy
from models.blocks.riformer import RIFormerBlock, fuse_norm_affine
from models.plugins import load_plugins
from models.summary import check_levels, count_gflops, count_parameters
from utils import cli
from utils.export import ExportError, Options, fresh_model, versions, write
from utils.latency import Latency, measure, torch_threads
from utils.proof import make_pictures
from utils.runners import load_runner

# isort: split
import torch
from torch import Tensor, nn
from ultralytics.utils import LOGGER, TQDM

SHIPPED = ("riformer-yolo.yaml", "timm-yolo.yaml", "yolov5n.yaml")
UNFUSED, FUSED, TORCHSCRIPT, ONNX = "PyTorch unfused", "PyTorch fused", "TorchScript", "ONNX Runtime"
ONNX_UNFUSED = "ONNX, unfused"
PUBLISHED = "ONNX, as published"  # only for models with RIFormer blocks
PICTURE = "bus.jpg"


@dataclass
class Row:
    """One model in one form; a line of the table."""

    model: str
    form: str
    params: int
    gflops: float  # at the size of the benchmark
    median_ms: float
    minimum_ms: float
    ratio_to_unfused: float  # of the minima, of this model
    ratio_to_first: float | None  # of the minima, to the same form of the first model, if it has that


class PublishedNorm(nn.GroupNorm):
    """A GroupNorm that stays one in deployment, since fusing goes by the exact type."""


class PublishedBlock(nn.Module):
    """A RIFormer block in its published deploy form: the affine map in norm1, all else as in training."""

    def __init__(self, block: RIFormerBlock) -> None:
        super().__init__()
        self.norm1, self.norm2, self.mlp = (
            fuse_norm_affine(block.norm1, block.token_mixer.affine),
            block.norm2,
            block.mlp,
        )
        self.layer_scale_1, self.layer_scale_2 = block.layer_scale_1, block.layer_scale_2

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.layer_scale_1[:, None, None] * self.norm1(x)
        return x + self.layer_scale_2[:, None, None] * self.mlp(self.norm2(x))


def make_parser() -> cli.Parser:
    """Return the options."""
    parser = cli.Parser(prog="benchmark.py", description=__doc__)
    add = parser.add_argument
    add("--cfg", nargs="+", default=list(SHIPPED), metavar="YAML", help="model YAMLs, compared with the first")
    add("--imgsz", "--img", "--img-size", nargs="+", type=cli.image_side, default=[640], help="pixels")
    add("--threads", type=cli.positive_int, default=0, help="CPU threads of each runtime; default: torch's choice")
    add("--rounds", type=cli.positive_int, default=20, help="how many times each form runs")
    add("--project", default="runs/benchmark", help="results go to project/name")
    add("--name", default="exp", help="results go to project/name")
    add("--exist-ok", action="store_true", help="use project/name again instead of counting up")
    cli.add_plugins(parser)
    return parser


def run(**options: object) -> list[Row]:
    """Benchmark from Python: `benchmark.run(cfg=["yolov5n.yaml"], imgsz=320)`. Returns the lines of the table.

    Raises:
        UserError: an option is wrong.
    """
    return benchmark(make_parser().from_keywords(**options))


def main(args: argparse.Namespace) -> int:
    """Measure, print and write; return the exit code."""
    try:
        benchmark(args)
    except ExportError as error:
        LOGGER.error(cli.printable(error))
        return 1
    return 0


def benchmark(args: argparse.Namespace) -> list[Row]:
    """Build and export every model, run all forms in turns, and tell."""
    cli.log_options("benchmark", args)
    load_plugins(args.plugins)
    paths = [cli.find_file(name, "models/configs") for name in dict.fromkeys(args.cfg)]
    threads = args.threads or torch.get_num_threads()
    folder = cli.increment_path(args.project, args.name, args.exist_ok)
    with torch_threads(threads), tempfile.TemporaryDirectory(dir=folder) as temporary:
        rows = measure_models(paths, args.imgsz, args.rounds, threads, Path(temporary))
    save(rows, folder, args, threads)
    LOGGER.info(f"\n{table(rows, threads, args.rounds)}\n{remarks(rows)}")
    LOGGER.info(cli.printable(f"Results saved to {folder}"))
    return rows


# Measuring ------------------------------------------------------------------------------------------------------------
def measure_models(
    paths: Sequence[Path], imgsz: Sequence[int], rounds: int, threads: int, temporary: Path
) -> list[Row]:
    """Return a row for each form of each model; all forms of all models run in turns."""
    runs: dict[tuple[str, str], Callable[[], object]] = {}
    sizes: dict[tuple[str, str], tuple[int, float]] = {}
    for path in TQDM(paths, desc="exporting"):
        model = fresh_model(path)
        height, width = cli.check_imgsz(list(imgsz), int(model.stride.max()))
        check_levels(model, (height, width))
        for form, module, function in make_forms(model, (height, width), threads, temporary / path.stem):
            runs[path.name, form] = function
            sizes[path.name, form] = count_parameters(module), count_gflops(module, (height, width))
    with TQDM(total=rounds, desc="measuring") as bar:
        latency = measure(runs, rounds, after_round=bar.update)
    return make_rows(latency, sizes)


def make_forms(
    model: DetectionModel, size: tuple[int, int], threads: int, folder: Path
) -> list[tuple[str, nn.Module, Callable[[], object]]]:
    """Return (form, network, function that runs it on one picture) for every form of `model`."""
    images = make_pictures(size, model.spec.ch)[PICTURE][None]
    deploy, options = model.fuse(), Options(size=size)
    forms: list[tuple[str, DetectionModel]] = [(UNFUSED, model), (FUSED, deploy), (TORCHSCRIPT, deploy), (ONNX, deploy)]
    forms.append((ONNX_UNFUSED, model))
    if any(isinstance(m, RIFormerBlock) for m in model.modules()):
        forms.append((PUBLISHED, publish(model)))
    made: list[tuple[str, nn.Module, Callable[[], object]]] = []
    for form, module in forms:
        function: Callable[[Tensor], object] = module
        if form not in (UNFUSED, FUSED):
            place = folder / form.replace(" ", "-")
            place.mkdir(parents=True)
            suffix = "torchscript" if form == TORCHSCRIPT else "onnx"
            function = load_runner(write(module, place / f"model.{suffix}", options).path, threads)
        made.append((form, module, partial(function, images)))
    return made


def publish(model: DetectionModel) -> DetectionModel:
    """Return a copy of `model` in which the RIFormer blocks have their published deploy form, and Conv+BN is fused."""
    published = copy.deepcopy(model)
    for name, module in list(published.named_modules()):
        if isinstance(module, RIFormerBlock):
            parent, _, child = name.rpartition(".")
            setattr(published.get_submodule(parent), child, PublishedBlock(module))
    for module in published.modules():
        if type(module) is nn.GroupNorm:
            module.__class__ = PublishedNorm
    return switch_to_deploy(published)


def make_rows(latency: dict[tuple[str, str], Latency], sizes: dict[tuple[str, str], tuple[int, float]]) -> list[Row]:
    """Return the rows in the order of `latency`, with their ratios."""
    first = next(iter(latency))[0]
    rows = []
    for (model, form), times in latency.items():
        base = latency.get((first, form))
        rows.append(
            Row(
                model=model,
                form=form,
                params=sizes[model, form][0],
                gflops=round(sizes[model, form][1], 3),
                median_ms=round(times.median, 3),
                minimum_ms=round(times.minimum, 3),
                ratio_to_unfused=round(times.minimum / latency[model, UNFUSED].minimum, 4),
                ratio_to_first=round(times.minimum / base.minimum, 4) if base else None,
            )
        )
    return rows


# Telling --------------------------------------------------------------------------------------------------------------
def table(rows: Sequence[Row], threads: int, rounds: int) -> str:
    """Return the rows as text."""
    first = rows[0].model
    lines = [
        f"{threads} CPU thread(s), {rounds} rounds, one picture; ratios of the minima, first model: {first}",
        f"{'model':<22}{'form':<20}{'params M':>9}{'GFLOPs':>8}{'median ms':>11}{'min ms':>9}"
        f"{'/unfused':>10}{'/first':>8}",
    ]
    for row in rows:
        to_first = "" if row.ratio_to_first is None else f"{row.ratio_to_first:.2f}"
        lines.append(
            f"{row.model:<22}{row.form:<20}{row.params / 1e6:>9.2f}{row.gflops:>8.2f}{row.median_ms:>11.1f}"
            f"{row.minimum_ms:>9.1f}{row.ratio_to_unfused:>10.2f}{to_first:>8}"
        )
    return "\n".join(lines)


def remarks(rows: Sequence[Row]) -> str:
    """Return what fusing buys: a line for each model in PyTorch and ONNX Runtime, and against the published fusing."""
    by_name = {(row.model, row.form): row for row in rows}
    pairs = ((UNFUSED, FUSED, "fused"), (ONNX_UNFUSED, ONNX, "fused"), (PUBLISHED, ONNX, "fused deeper than published"))
    lines = []
    for model in dict.fromkeys(row.model for row in rows):
        for slow, fast, what in pairs:
            if (model, slow) in by_name:
                before, after = by_name[model, slow], by_name[model, fast]
                lines.append(
                    f"{model}, {fast.removesuffix(' fused')}: {before.minimum_ms / after.minimum_ms:.2f} times as fast "
                    f"{what} ({before.median_ms / after.median_ms:.2f} by the medians)\n"
                )
    return "".join(lines)


def save(rows: Sequence[Row], folder: Path, args: argparse.Namespace, threads: int) -> None:
    """Write benchmark.json and benchmark.csv."""
    content = {
        "imgsz": args.imgsz,
        "threads": threads,
        "rounds": args.rounds,
        "machine": {"processor": processor(), "cores": os.cpu_count(), "system": platform.platform()},
        "versions": versions(),
        "rows": [asdict(row) for row in rows],
    }
    (folder / "benchmark.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    with (folder / "benchmark.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(asdict(rows[0])), lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def processor() -> str:
    """Return the name of the CPU, as Linux tells it, else what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    sys.exit(cli.run_script(main, make_parser()))
