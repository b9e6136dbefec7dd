"""What every timm model is worth as a backbone of a detector.

    python -m utils.survey_timm                       # all names, without data: half an hour on two cores
    python -m utils.survey_timm --filter "rep*"       # some
    python -m utils.survey_timm --deep                # one model of each file, run, fused, exported, compared

Without data (the meta device) a model is built, given pictures of 640x640 and 480x672, and fused. `--deep` takes the
smallest model of each file of timm that serves, and compares in numbers: fused with unfused in float64, and ONNX
Runtime with PyTorch in float32.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import fnmatch
import io
import json
import multiprocessing
import os
import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from ultralytics.utils import LOGGER, TQDM

from models.backbones.base import create_backbone
from models.backbones.from_timm import TimmBackbone, native_size, timm_file, timm_models
from models.blocks.reparam import switch_to_deploy
from models.errors import UserError

STRIDES = (8, 16, 32)  # that a detector reads
SQUARE, RECTANGLE = (640, 640), (480, 672)  # pictures: of training, and cut to fit
FAILURES = (RuntimeError, AttributeError, TypeError, AssertionError, ValueError, LookupError, ArithmeticError)
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
class Proof:
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
def examine(name: str) -> Finding:
    """Return what timm's `name` gives, without building or running anything real."""
    warnings.simplefilter("ignore")
    finding = Finding(name, timm_file(name))
    try:
        with torch.device("meta"), torch.no_grad():
            _examine(finding)
    except FAILURES as error:
        finding.reason = finding.reason or sentence(error)
    return finding


def _examine(finding: Finding) -> None:
    backbone = _build(finding.name)
    if any(isinstance(m, nn.RNNBase) for m in backbone.modules()):  # minutes without data, seconds with
        with torch.device("cpu"):
            backbone = _build(finding.name)
    finding.params = sum(p.numel() for p in backbone.parameters())
    finding.strides, finding.made = list(backbone.body_strides), list(backbone.pyramid.made)
    finding.scale, finding.one_size = backbone.scale, backbone.size is not None
    check(backbone, SQUARE)
    finding.square = True
    other = _build(finding.name, img_size=RECTANGLE) if finding.one_size else backbone
    deploy: Any = switch_to_deploy(backbone)
    finding.fused, finding.left = dict(deploy.report.fused), deploy.report.left
    check(other, RECTANGLE)
    finding.rectangle = True


def _build(name: str, **options: Any) -> TimmBackbone:
    backbone = create_backbone("timm", name, out_strides=STRIDES, **options).eval()
    assert isinstance(backbone, TimmBackbone)
    return backbone


def check(backbone: TimmBackbone, size: tuple[int, int]) -> None:
    """Raise UserError unless `backbone` gives what it declares for a picture of `size` (H, W)."""
    like = next(backbone.parameters())
    came = [tuple(m.shape[1:]) for m in backbone(like.new_zeros(1, backbone.in_channels, *size))]
    said = [(c, size[0] // s, size[1] // s) for c, s in zip(backbone.channels, backbone.strides, strict=True)]
    if came != said:
        raise UserError(f"timm's {backbone.arch} gives maps of {came} for a picture of {size}, not {said}")


def survey(names: Sequence[str], workers: int) -> Iterator[Finding]:
    """Yield a finding for each of `names`, from as many processes as `workers`."""
    if workers <= 1:
        yield from map(examine, names)
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        yield from pool.map(examine, names, chunksize=4)


# With data ------------------------------------------------------------------------------------------------------------
def smallest_of_each_file(findings: Iterable[Finding]) -> list[Finding]:
    """Return the smallest model that serves of each file of timm; the smallest of all where none does."""
    best: dict[str, Finding] = {}
    for finding in sorted(findings, key=lambda f: (not f.square, f.params, f.name)):
        best.setdefault(finding.file, finding)
    return [best[file] for file in sorted(best)]


def prove(name: str) -> Proof:
    """Return how far timm's `name` is from its fused form and from its ONNX file, in numbers."""
    warnings.simplefilter("ignore")
    proof = Proof(name, timm_file(name), [])
    try:
        _prove(proof)
    except FAILURES as error:
        proof.reason = sentence(error)
    return proof


@torch.no_grad()
def _prove(proof: Proof) -> None:
    torch.manual_seed(0)
    backbone = _build(proof.name)
    if backbone.size is not None:
        backbone = _build(proof.name, img_size=[-(-side // 32) * 32 for side in native_size(proof.name)])
    stir(backbone)
    proof.picture = list(backbone.size or (backbone.example_side, backbone.example_side))
    x = torch.rand(2, 3, *proof.picture)
    reference = [m.clone() for m in backbone(x)]
    deploy: Any = switch_to_deploy(copy.deepcopy(backbone).double())  # in float32 its weights would be rounded
    proof.left = len(deploy.report.left)
    proof.fused = worst(deploy(x.double()), backbone.double()(x.double()))
    proof.onnx = worst(run_onnx(deploy.float(), x), reference)


@torch.no_grad()
def stir(model: nn.Module) -> None:
    """Give statistics, biases and scales values in which a forgotten term would show."""
    for norm in model.modules():
        if isinstance(norm, _BatchNorm) and norm.running_mean is not None and norm.running_var is not None:
            norm.running_mean.normal_(0, 0.3)
            norm.running_var.uniform_(0.5, 2)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.uniform_(0.3, 0.9)


def run_onnx(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Export `model` with the opset that export.py writes, and return what ONNX Runtime makes of x."""
    import onnxruntime  # noqa: PLC0415  only --deep needs it

    file: Any = io.BytesIO()
    with _no_stdout():
        torch.onnx.export(model, (x,), file, input_names=["x"], dynamo=False, opset_version=17)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    return [torch.from_numpy(output) for output in session.run(None, {"x": x.numpy()})]


@contextlib.contextmanager
def _no_stdout() -> Iterator[None]:
    """Send the process's standard output nowhere: torch prints the whole graph there, from C++, when it gives up."""
    sys.stdout.flush()
    saved = os.dup(1)
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    try:
        yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)


def worst(got: Sequence[Tensor], want: Sequence[Tensor]) -> float:
    """Return the largest difference over the largest value, over all maps.

    Raises:
        ArithmeticError: a value is not finite.
    """
    errors = [((g - w).abs().max() / w.abs().max()).item() for g, w in zip(got, want, strict=True)]
    if not all(error < float("inf") for error in errors):
        raise ArithmeticError("its maps are not finite with random weights")
    return max(errors)


# What comes out -------------------------------------------------------------------------------------------------------
def sentence(error: BaseException) -> str:
    """Return the first line of an error, or its kind."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def kind_of(reason: str, name: str = "") -> str:
    """Return a reason without the name of the model and the numbers that differ from one to the next."""
    general = reason.replace(f"timm's {name} ", "it ").replace(f"build {name} ", "build it ")
    return re.sub(r"\d+", "N", general)[:110]


def table(findings: Sequence[Finding]) -> str:
    """Return the counts as a Markdown table, and after it one of the reasons of those that do not serve."""
    serving = [f for f in findings if f.square]
    rows = [
        ("names", len(findings)),
        ("serve P3-P5 at 640x640", len(serving)),
        ("- with all three of their own", sum(not f.made for f in serving)),
        ("- with one or two made by the adapter", sum(0 < len(f.made) < len(STRIDES) for f in serving)),
        ("- with all three made by the adapter", sum(len(f.made) == len(STRIDES) for f in serving)),
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
    return _grouped((kind_of(f.reason, f.name), f.name) for f in findings if f.reason)


def _left(findings: Iterable[Finding]) -> list[tuple[str, list[str]]]:
    return _grouped((kind, f.name) for f in findings for kind in {kind_of(e.partition(": ")[2]) for e in f.left})


def _grouped(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    groups: dict[str, list[str]] = {}
    for kind, name in pairs:
        groups.setdefault(kind, []).append(name)
    return sorted(groups.items(), key=lambda item: -len(item[1]))


def proof_table(proofs: Sequence[Proof]) -> str:
    """Return one line per proof as a Markdown table."""
    lines = ["| file | model | picture | fused | ONNX | note |", "|---|---|---|---|---|---|"]
    for p in proofs:
        size = "x".join(map(str, p.picture))
        note = p.reason or (f"{p.left} BatchNorms stay" if p.left else "")
        lines.append(f"| {p.file} | {p.name} | {size} | {_error(p.fused)} | {_error(p.onnx)} | {note} |")
    return "\n".join(lines)


def _error(error: float | None) -> str:
    return "-" if error is None else f"{error:.0e}"


def make_parser() -> argparse.ArgumentParser:
    """Return the options of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--filter", default="*", help="names to look at, with wildcards: 'rep*'")
    parser.add_argument("--limit", type=int, help="as many names at most, spread over the list")
    parser.add_argument("--deep", action="store_true", help="compare one model of each file in numbers as well")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--output", type=Path, default=Path("survey.json"), help="file of the findings")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Look at the names that the options choose, write what was found, print the tables; return the exit code."""
    args = make_parser().parse_args(argv)
    names = fnmatch.filter(timm_models(), args.filter)
    if args.limit is not None:
        names = names[:: max(1, -(-len(names) // max(1, args.limit)))]
    if not names:
        print(f"timm has no model like '{args.filter}'", file=sys.stderr)
        return 2
    if args.output.is_dir() or not args.output.parent.is_dir():
        print(f"--output takes a file in a folder that exists, not {args.output}", file=sys.stderr)
        return 2
    findings: list[Finding] = []
    proofs: list[Proof] = []
    try:
        findings += TQDM(survey(names, args.workers), total=len(names), desc="surveying timm")
        if args.deep:
            chosen = smallest_of_each_file(findings)
            proofs += map(prove, (f.name for f in TQDM(chosen, desc="one model of each file")))
    finally:  # what is found before Ctrl-C is kept
        found = {"models": [asdict(f) for f in findings], "proofs": [asdict(p) for p in proofs]}
        args.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    LOGGER.info(table(findings))
    if proofs:
        good = Counter(p.ok for p in proofs)
        LOGGER.info(f"\n{proof_table(proofs)}\n\n{good[True]} of {len(proofs)} agree")
    LOGGER.info(f"\nthe findings are in {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
