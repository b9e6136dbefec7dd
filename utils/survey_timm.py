"""What every timm model is worth as a backbone of a detector.

    python -m utils.survey_timm                       # all names, without data: 22 minutes with --workers 2
    python -m utils.survey_timm --filter "rep*"       # some
    python -m utils.survey_timm --deep                # one model of each file, run, fused, exported, compared

Without data (the meta device) a model is built, given pictures of 640x640 and 480x672, and fused. `--deep` takes the
smallest model of each file of timm that serves, and compares in numbers: fused with unfused in float64, and ONNX
Runtime with PyTorch in float32.
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import json
import math
import multiprocessing
import os
import re
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.utils import LOGGER, TQDM

from models.backbones.base import check_maps, create_backbone
from models.backbones.from_timm import TimmBackbone, native_size, timm_file
from models.backbones.lazy_timm import timm_models
from models.blocks.reparam import switch_to_deploy
from models.errors import UserError, first_line
from utils import cli
from utils.benchmark.forms import write_backbone
from utils.deploy.randomize import randomize_
from utils.deploy.run import load_runner
from utils.deploy.write import instead_of_output
from utils.prove.compare import relative_errors

DETECTOR_STRIDES = (8, 16, 32)
SQUARE, RECTANGLE = (640, 640), (480, 672)  # pictures: of training, and cut to fit
MODEL_ERRORS = (RuntimeError, AttributeError, TypeError, AssertionError, ValueError, LookupError, ArithmeticError)
TOLERANCES = {"fused": 1e-9, "onnx": 1e-3}  # largest relative error, in float64 and in float32


@dataclass
class Finding:
    """What is known of one model; a `reason` is a sentence on why it does not do something."""

    name: str
    file: str
    params: int = 0
    strides: list[int] = field(default_factory=list)  # that it gives by itself
    made: list[int] = field(default_factory=list)  # that the adapter makes
    scale: float = 1.0
    one_size: bool = False
    square: bool = False  # serves at 640x640
    rectangle: bool = False  # serves at 480x672, in the same form or built for it
    fused: dict[str, int] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)  # BatchNorms that stay
    reason: str = ""  # why it does not serve


@dataclass
class FormErrors:
    """How far one model's other forms are from it, as relative errors; None where there is no such form."""

    name: str
    file: str
    picture: list[int]
    fused: float | None = None
    onnx: float | None = None
    left: int = 0
    reason: str = ""

    @property
    def ok(self) -> bool:
        """Whether both forms are there and close enough."""
        return all(error is not None and error <= TOLERANCES[k] for k in TOLERANCES for error in [getattr(self, k)])


# Without data ---------------------------------------------------------------------------------------------------------
def examine_model(name: str) -> Finding:
    """Return what timm's `name` gives, without building or running anything real."""
    warnings.simplefilter("ignore")
    finding = Finding(name, timm_file(name))
    try:
        with torch.device("meta"), torch.no_grad():
            _examine(finding)
    except MODEL_ERRORS as error:
        finding.reason = finding.reason or reason_of(error)
    return finding


def _examine(finding: Finding) -> None:
    backbone = _build(finding.name)
    if any(isinstance(m, nn.RNNBase) for m in backbone.modules()):  # minutes without data, seconds with
        with torch.device("cpu"):
            backbone = _build(finding.name)
    finding.params = sum(p.numel() for p in backbone.parameters())
    finding.strides, finding.made = list(backbone.body_strides), list(backbone.pyramid.made)
    finding.scale, finding.one_size = backbone.scale, backbone.size is not None
    _check(backbone, SQUARE)
    finding.square = True
    other = _build(finding.name, img_size=RECTANGLE) if finding.one_size else backbone
    deploy: Any = switch_to_deploy(backbone)
    finding.fused, finding.left = dict(deploy.report.fused), deploy.report.left
    _check(other, RECTANGLE)
    finding.rectangle = True


def _build(name: str, **options: Any) -> TimmBackbone:
    backbone = create_backbone("timm", name, out_strides=DETECTOR_STRIDES, **options).eval()
    assert isinstance(backbone, TimmBackbone)
    return backbone


def _check(backbone: TimmBackbone, size: tuple[int, int]) -> None:
    """Raise UserError unless a backbone gives what it declares for a picture of `size` (H, W)."""
    like = next(backbone.parameters())
    check_maps(backbone, backbone(like.new_zeros(1, backbone.in_channels, *size)), size)


def examine_all(names: Sequence[str], workers: int) -> Iterator[Finding]:
    """Yield a finding for each of `names`, from as many processes as `workers`."""
    if workers <= 1:
        yield from map(examine_model, names)
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        yield from pool.map(examine_model, names, chunksize=4)


# With data ------------------------------------------------------------------------------------------------------------
def smallest_of_each_file(findings: Iterable[Finding]) -> list[Finding]:
    """Return the smallest model that serves of each file of timm; the smallest of all where none does."""
    best: dict[str, Finding] = {}
    for finding in sorted(findings, key=lambda f: (not f.square, f.params, f.name)):
        best.setdefault(finding.file, finding)
    return [best[file] for file in sorted(best)]


def compare_forms(name: str) -> FormErrors:
    """Return how far timm's `name` is from its fused form and from its ONNX file, in numbers."""
    warnings.simplefilter("ignore")
    errors = FormErrors(name, timm_file(name), [])
    try:
        _compare_forms(errors)
    except MODEL_ERRORS as error:
        errors.reason = reason_of(error)
    return errors


@torch.no_grad()
def _compare_forms(errors: FormErrors) -> None:
    torch.manual_seed(0)
    backbone = _build(errors.name)
    if backbone.size is not None:
        backbone = _build(errors.name, img_size=[-(-side // 32) * 32 for side in native_size(errors.name)])
    randomize_(backbone)
    height, width = backbone.size or (backbone.example_side, backbone.example_side)
    errors.picture = [height, width]
    x = torch.rand(2, 3, height, width)
    first = [m[:1].clone() for m in backbone(x)]  # files are written for one picture
    deploy: Any = switch_to_deploy(copy.deepcopy(backbone).double())  # in float32 its weights would be rounded
    errors.left = len(deploy.report.left)
    errors.fused = largest_error(backbone.double()(x.double()), deploy(x.double()))
    errors.onnx = largest_error(first, run_onnx(deploy.float(), x[:1]))


def run_onnx(backbone: nn.Module, x: Tensor) -> Sequence[Tensor]:
    """Write `backbone` as export.py does, and return what ONNX Runtime makes of a picture (1, 3, H, W)."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "backbone.onnx"
        # torch prints the whole graph, from C++, when it gives up
        with Path(os.devnull).open("w") as nowhere, instead_of_output(nowhere.fileno()):
            write_backbone(backbone, path, (x.shape[2], x.shape[3]))
        return load_runner(path)(x)


def largest_error(expected: Sequence[Tensor], got: Sequence[Tensor]) -> float:
    """Return the largest difference over the largest value, over all maps.

    Raises:
        ArithmeticError: a value is not finite.
    """
    errors = [float(relative_errors(want, have).max()) for want, have in zip(expected, got, strict=True)]
    if not all(map(math.isfinite, errors)):
        raise ArithmeticError("its maps are not finite with random weights")
    return max(errors)


# What comes out -------------------------------------------------------------------------------------------------------
def reason_of(error: BaseException) -> str:
    """Return the first line of an error, or its kind."""
    return first_line(error)[:300]


def without_numbers(reason: str, name: str = "") -> str:
    """Return a reason without the name of the model and the numbers that differ from one to the next."""
    general = reason.replace(f"timm's {name} ", "it ").replace(f"build {name} ", "build it ")
    return re.sub(r"\d+", "N", general)[:110]


def findings_table(findings: Sequence[Finding]) -> str:
    """Return the counts as a Markdown table, and after it one of the reasons of those that do not serve."""
    serving = [f for f in findings if f.square]
    rows = [
        ("names", len(findings)),
        ("serve P3-P5 at 640x640", len(serving)),
        ("- with all three of their own", sum(not f.made for f in serving)),
        ("- with one or two made by the adapter", sum(0 < len(f.made) < len(DETECTOR_STRIDES) for f in serving)),
        ("- with all three made by the adapter", sum(len(f.made) == len(DETECTOR_STRIDES) for f in serving)),
        ("- that take any multiple of 32", sum(f.rectangle and not f.one_size for f in serving)),
        ("- that take one size, `img_size`", sum(f.one_size for f in serving)),
        ("- that see a scaled picture", sum(f.scale != 1 for f in serving)),
        ("serve P3-P5 at 480x672", sum(f.rectangle for f in serving)),
        ("- of them built for it, `img_size: [480, 672]`", sum(f.rectangle and f.one_size for f in serving)),
        ("have something to fuse", sum(bool(f.fused) for f in serving)),
        ("keep no BatchNorm when fused", sum(not f.left for f in serving)),
    ]
    lines = ["| timm as a backbone | models |", "|---|---|", *(f"| {what} | {count} |" for what, count in rows)]
    for title, reasons in (
        ("why a model does not serve", _reasons(findings)),
        ("why a BatchNorm stays", _left(serving)),
    ):
        if reasons:
            lines += ["", f"| {title} | models | for instance |", "|---|---|---|"]
            lines += [f"| {kind} | {len(names)} | {names[0]} |" for kind, names in reasons]
    return "\n".join(lines)


def _reasons(findings: Iterable[Finding]) -> list[tuple[str, list[str]]]:
    return _grouped((without_numbers(f.reason, f.name), f.name) for f in findings if f.reason)


def _left(findings: Iterable[Finding]) -> list[tuple[str, list[str]]]:
    return _grouped(
        (kind, f.name) for f in findings for kind in {without_numbers(e.partition(": ")[2]) for e in f.left}
    )


def _grouped(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    groups: dict[str, list[str]] = {}
    for kind, name in pairs:
        groups.setdefault(kind, []).append(name)
    return sorted(groups.items(), key=lambda item: -len(item[1]))


def form_errors_table(compared: Sequence[FormErrors]) -> str:
    """Return a line for each model as a Markdown table."""
    lines = ["| file | model | picture | fused | ONNX | note |", "|---|---|---|---|---|---|"]
    for p in compared:
        size = "x".join(map(str, p.picture))
        note = p.reason or (f"{p.left} BatchNorms stay" if p.left else "")
        lines.append(f"| {p.file} | {p.name} | {size} | {_error(p.fused)} | {_error(p.onnx)} | {note} |")
    return "\n".join(lines)


def _error(error: float | None) -> str:
    return "-" if error is None else f"{error:.0e}"


# The command ----------------------------------------------------------------------------------------------------------
def make_parser() -> cli.Parser:
    """Return the options of the command."""
    parser = cli.Parser(prog="python -m utils.survey_timm", description=__doc__)
    parser.add_argument("--filter", default="*", help="names to look at, with wildcards: 'rep*'")
    parser.add_argument("--limit", type=cli.positive_int, help="as many names at most, spread over the list")
    parser.add_argument("--deep", action="store_true", help="compare one model of each file in numbers as well")
    parser.add_argument("--workers", type=cli.positive_int, default=1, help="processes")
    parser.add_argument("--output", type=Path, default=Path("survey.json"), help="file of the findings")
    return parser


def run(**options: object) -> int:
    """Look at timm's models from Python: `run(filter="rep*", deep=True)`. Returns the exit code.

    Raises:
        UserError: an option is wrong.
    """
    return main(make_parser().from_keywords(**options))


def main(args: argparse.Namespace) -> int:
    """Look at the names that the options choose, write what was found, print the tables; return the exit code.

    Raises:
        UserError: no model has such a name, or the findings cannot be written.
    """
    names = chosen_names(args.filter, args.limit)
    if args.output.is_dir() or not args.output.parent.is_dir():
        raise UserError(f"--output takes a file in a folder that exists, not {args.output}")
    findings: list[Finding] = []
    compared: list[FormErrors] = []
    try:
        findings += TQDM(examine_all(names, args.workers), total=len(names), desc="surveying timm")
        if args.deep:
            chosen = smallest_of_each_file(findings)
            compared += map(compare_forms, (f.name for f in TQDM(chosen, desc="one model of each file")))
    finally:  # what is found before Ctrl-C is kept
        found = {"models": [asdict(f) for f in findings], "proofs": [asdict(errors) for errors in compared]}
        args.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    LOGGER.info(findings_table(findings))
    if compared:
        good = Counter(errors.ok for errors in compared)
        LOGGER.info(f"\n{form_errors_table(compared)}\n\n{good[True]} of {len(compared)} agree")
    LOGGER.info(f"\nthe findings are in {args.output}")
    return 0


def chosen_names(pattern: str, limit: int | None) -> list[str]:
    """Return the names of timm's models that match a pattern with wildcards, evenly taken down to about `limit`.

    Raises:
        UserError: there is none.
    """
    names = fnmatch.filter(timm_models(), pattern)
    if not names:
        raise UserError(f"timm has no model like '{pattern}'")
    return names[:: -(-len(names) // limit)] if limit else names


if __name__ == "__main__":
    sys.exit(cli.run_script(main, make_parser()))
