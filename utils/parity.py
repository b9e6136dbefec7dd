"""The parity table: every model YAML with random statistics, in every format, against the unfused model.

    python -m utils.parity                                        # every YAML of models/configs
    python -m utils.parity --cfg repvgg-yolo.yaml yolov5n.yaml --include onnx

Every number of a network is random, statistics of BatchNorms and layer scales among them, so that nothing that fusing
or writing forgets can hide. Each model is fused, written and compared with itself as it was, on two photographs, noise
and a checkerboard: static files at two sizes, one of them not square, with batches of 1 and of 3, and a file with
dynamic shapes at three sizes, each with batches of 1 and of 3. The table shows the largest errors of all boxes and
scores, and what float32 itself does to the unfused model: how far that is from its float64.

Written to runs/parity/exp: parity.md, the table, and parity.json, each comparison.
The exit code is 1 when an error is neither within the bounds nor within a few times of what float32 itself does.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from ultralytics.utils import LOGGER, TQDM

from models import DetectionModel
from models.errors import UserError
from models.spec import ModelSpec, load_spec
from models.summary import count_parameters
from models.yaml_sources import CONFIGS
from utils import cli
from utils.deploy.formats import FORMATS, check_formats
from utils.deploy.fresh import random_model, sizes_for
from utils.deploy.run import load_runner
from utils.deploy.write import ExportError, WriteOptions, write
from utils.export.report import versions
from utils.paths import increment_path
from utils.prove.compare import Difference, Tolerance
from utils.prove.reference import Case, Reference
from utils.prove.report import summarize
from utils.text import printable

BOUND = Tolerance(box_px=1e-3, score=1e-5, mask=1e-4)
LEAST_IOU = 0.999  # from which a detection counts as the same
ROUNDING_FACTOR = 4  # how many times what float32 itself does an error may be
BATCHES = (1, 3)
FORMAT_COLUMNS = ("torchscript", "onnx", "openvino")  # by default, where they run
DYNAMIC = ("onnx", "openvino")  # formats that are written with dynamic shapes as well
InputShape = tuple[tuple[int, int], int]  # (height, width), batch


# Measuring ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Variant:
    """A column: a format, with static or dynamic shapes."""

    format: str
    dynamic: bool

    @property
    def title(self) -> str:
        """What the column is called."""
        return f"{FORMATS[self.format].title} {'dynamic' if self.dynamic else 'static'}"

    def files(self, model: DetectionModel) -> Iterator[tuple[WriteOptions, list[InputShape]]]:
        """Yield what to write, and what to run it on."""
        sizes = sizes_for(model)
        if self.dynamic and len(sizes) > 1:
            shapes = [(size, batch) for size in sizes for batch in BATCHES]
            yield WriteOptions(size=sizes[0], dynamic=True), shapes
        elif not self.dynamic:
            for size, most in zip((sizes[0], sizes[-1]), BATCHES, strict=True):
                batch = most if FORMATS[self.format].batches else 1
                yield WriteOptions(size=size, batch=batch), [(size, batch)]


@dataclass
class ParityRow:
    """One model of the table."""

    cfg: str
    parameters: int
    rounding: Difference  # of the unfused model, float32 from float64
    cases: dict[str, list[Case]] = field(default_factory=dict)  # of each column
    problems: dict[str, str] = field(default_factory=dict)  # why a column is empty

    def is_met(self, column: str) -> bool:
        """Return whether a column is within the bounds, with all detections the same."""
        return all(_is_within(case.difference, BOUND) for case in self.cases[column])

    def is_explained(self, column: str) -> bool:
        """Return whether the errors of a column are within the bounds or a few times what float32 itself does."""
        own = self.rounding
        allowed = Tolerance(*(max(a, ROUNDING_FACTOR * b) for a, b in zip(_numbers(BOUND), _numbers(own), strict=True)))
        return all(_is_within(case.difference, allowed) for case in self.cases[column])

    @property
    def ok(self) -> bool:
        """Whether every column is as it should be."""
        return not self.problems and all(map(self.is_explained, self.cases))

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        columns = {
            column: {
                **summarize(cases),
                "within_bounds": self.is_met(column),
                "within_rounding": self.is_explained(column),
                "cases": [case.as_dict() for case in cases],
            }
            for column, cases in self.cases.items()
        }
        own = {"box_px": self.rounding.box_px, "score": self.rounding.score}
        found = {"cfg": self.cfg, "parameters": self.parameters, "float32_rounding": own, "columns": columns}
        return {**found, **({"problems": self.problems} if self.problems else {}), "ok": self.ok}


def _numbers(errors: Difference | Tolerance) -> tuple[float, float, float]:
    return errors.box_px, errors.score, errors.mask


def _is_within(difference: Difference, allowed: Tolerance) -> bool:
    same = difference.min_iou >= LEAST_IOU or not difference.sees_something
    return same and difference.within(allowed)


def measure_model(cfg: str | Path | ModelSpec, variants: list[Variant], seed: int = 0) -> ParityRow:
    """Write one model in every way and compare each file with it."""
    model = random_model(cfg, seed)
    reference, deploy = Reference(model), model.fuse()
    batches = reference.batches(sizes_for(model)[0], 1)
    own = [reference.rounding(images, outputs) for _, images, outputs in batches]
    rounding = Difference(*(max(numbers) for numbers in zip(*map(_numbers, own), strict=True)))
    row = ParityRow(Path(model.spec.name).stem, count_parameters(deploy), rounding)
    for variant in variants:
        with tempfile.TemporaryDirectory() as folder:
            cases: list[Case] = []
            load = lru_cache(1)(load_runner)  # once for the sizes of a file
            try:
                for number, (options, shapes) in enumerate(variant.files(model)):
                    path = Path(folder) / str(number) / f"{row.cfg}{FORMATS[variant.format].ending}"
                    write(deploy, path, options)
                    for size, batch in shapes:
                        cases += reference.cases(path, size, batch, BOUND, path.name, load)
            except ExportError as error:
                row.problems[variant.title] = str(error)
            if cases:
                row.cases[variant.title] = cases
    return row


# Output ---------------------------------------------------------------------------------------------------------------
def parity_table(rows: list[ParityRow], variants: list[Variant], markdown: bool = False) -> str:
    """Return the rows as text, or as Markdown."""
    header = ["model", "parameters", "float32 itself", *(variant.title for variant in variants)]
    lines = [header, *([_text(row, name) for name in header] for row in rows)]
    if markdown:
        lines.insert(1, ["---"] * len(header))
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "   ".join(f"{text:<{w}}" for text, w in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _text(row: ParityRow, column: str) -> str:
    """Return what stands in a column of a row."""
    fixed = {"model": row.cfg, "parameters": f"{row.parameters / 1e6:.1f} M"}
    if column in fixed:
        return fixed[column]
    if column == "float32 itself":
        return f"{row.rounding.box_px:.0e} px, {row.rounding.score:.0e}"
    if column not in row.cases:
        return row.problems.get(column, "takes one size only")
    problem = next((case.difference.problem for case in row.cases[column] if case.difference.problem), "")
    if problem:
        return f"✗ {problem}"
    worst = summarize(row.cases[column])
    found = worst["detections"]
    mark = "" if row.is_met(column) else " ≈" if row.is_explained(column) else " ✗"
    errors = f"{worst['max_box_error_px']:.0e} px, {worst['max_score_error']:.0e}"
    return f"{errors}, {found['matched']}/{found['reference']}, {found['min_iou']:.5f}{mark}"


LEGEND = (
    f"Largest error of any box and of any score, detections found again and their least IoU. Bounds: {BOUND.box_px:g} "
    f"px, {BOUND.score:g}, all detections, IoU {LEAST_IOU}. ≈: more, but within {ROUNDING_FACTOR} times what float32 "
    "itself does to the unfused model, which is its largest distance from the same model in float64."
)


def make_parser() -> cli.Parser:
    """Return the options."""
    parser = cli.Parser(prog="python -m utils.parity", description=__doc__)
    add = parser.add_argument
    add("--cfg", nargs="+", default=[], metavar="YAML", help="model YAMLs, timm:NAME, ultralytics:NAME; default: ours")
    default = [name for name in FORMAT_COLUMNS if not FORMATS[name].not_run]
    add("--include", nargs="+", default=default, metavar="FORMAT", help=f"of {', '.join(FORMATS)}")
    add("--seed", type=cli.non_negative_int, default=0, help="of the random numbers")
    add("--project", default="runs/parity", help="results go to project/name")
    add("--name", default="exp", help="results go to project/name")
    add("--exist-ok", action="store_true", help="use project/name again instead of counting up")
    cli.add_consents(parser)
    return parser


def main(args: argparse.Namespace) -> int:
    """Measure, log, write, and return the exit code."""
    start = time.perf_counter()
    cli.take_consents(args)
    formats = check_formats(args.include)
    for name in formats:
        if FORMATS[name].not_run:
            raise UserError(f"{FORMATS[name].title} cannot be compared here: {FORMATS[name].not_run}")
    variants = [Variant(name, False) for name in formats] + [Variant(name, True) for name in formats if name in DYNAMIC]
    specs = [load_spec(cfg) for cfg in args.cfg or sorted(CONFIGS.glob("*.yaml"))]
    if not specs:
        raise UserError(f"there are no model YAMLs in {CONFIGS}")
    folder = increment_path(args.project, args.name, args.exist_ok)
    rows: list[ParityRow] = []
    with TQDM(specs, desc="parity") as bar:
        for spec in bar:
            bar.set_description(f"parity: {Path(spec.name).stem}")
            rows.append(measure_model(spec, variants, args.seed))
            _save(folder, rows, variants)  # so that nothing is lost when the rest is stopped
    LOGGER.info(f"\n{parity_table(rows, variants)}\n\n{LEGEND}")
    LOGGER.info(f"\nParity complete ({time.perf_counter() - start:.1f}s)")
    LOGGER.info(printable(f"Results saved to {folder.resolve()}: parity.md and parity.json"))
    return 0 if all(row.ok for row in rows) else 1


def _save(folder: Path, rows: list[ParityRow], variants: list[Variant]) -> None:
    """Write the table and every comparison."""
    content = {
        "bounds": asdict(BOUND),
        "versions": versions(),
        "models": [row.as_dict() for row in rows],
        "ok": all(row.ok for row in rows),
    }
    (folder / "parity.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "parity.md").write_text(f"{parity_table(rows, variants, markdown=True)}\n\n{LEGEND}\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(cli.run_script(main, make_parser()))
