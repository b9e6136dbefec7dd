"""What a backbone is: levels, cost, what fuses, which pictures and precisions it takes, how long it runs.

    python -m utils.inspect_backbone RIFormer/s12                         # a registered backbone and its architecture
    python -m utils.inspect_backbone mobileone_s0                         # or timm/mobileone_s0
    python -m utils.inspect_backbone riformer-yolo.yaml --imgsz 480 640   # that of a model YAML, and the model's totals
    python -m utils.inspect_backbone RepVGG/A0 --weights RepVGG-A0-train.pth --json > card.json
    python -m utils.inspect_backbone --list "rep*"                        # what there is

Operations are counted without data: those of a level are the work of the backbone that ends there. What is measured, is
measured on random input on the CPU: which sizes run, how far 16-bit floats are from 32-bit ones, and latencies, fused
and unfused in turns. Weights are fresh unless a file is named. In Python: `utils.inspect_backbone.run("RIFormer/s12")`.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import math
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from ultralytics.utils import LOGGER, TQDM

from models import BACKBONES, Backbone, DetectionModel, create_backbone, create_model, switch_to_deploy
from models.backbones.base import check_maps, level_name
from models.backbones.lazy_timm import is_timm_model
from models.backbones.names import match_names, split_name
from models.errors import UserError, first_line
from models.layers import build_backbone, is_backbone
from models.spec import load_spec
from models.summary import (
    DEFAULT_SIZE,
    Card,
    Level,
    card_rows,
    count_level,
    format_rows,
    make_card,
    on_meta,
    row_levels,
    run_on_meta,
)
from models.yaml_numbers import load_yaml
from models.yaml_sources import CONFIGS, is_named
from utils import cli
from utils.deploy.fresh import calibrate_batch_norms
from utils.latency import Latency, measure, torch_threads
from utils.sizes import check_imgsz

SUFFIXES = (".yaml", ".yml")
NETWORK_ERRORS = (
    RuntimeError,
    ValueError,
    AssertionError,
    TypeError,
    LookupError,
    ArithmeticError,
)  # of a wrong picture
LARGER = 3  # doublings of the largest stride after which a network is said to take one size of picture only
HALF_MAX = torch.finfo(torch.float16).max
SAFE_ERROR = 0.1  # relative to float32; more is no rounding any more
HALF_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Subject:
    """What the command line names."""

    name: str
    network: Any  # the backbone, or the model of a YAML whose rows are its backbone
    build: Callable[[Sequence[int]], Backbone] | None  # the backbone with these levels, fresh; None for rows
    model: DetectionModel | None  # of a YAML

    @property
    def stride(self) -> int:
        """The largest stride."""
        return int(self.network.strides[-1] if self.build else self.network.stride.max())


@dataclass(frozen=True)
class SizeRule:
    """Which pictures a network takes, as measured."""

    multiple: int | None  # both sides are padded to multiples of it; None: it takes one size alone
    runs: int | None  # multiples of it run, though maps are rounded; None: as `multiple`
    square: bool  # only square pictures run
    only: tuple[int, int] | None  # height and width of the only picture that it takes
    error: str = ""  # what another size raises


@dataclass(frozen=True)
class Precision:
    """How far a network in another precision is from float32, on random input."""

    error: float | None  # largest difference over largest value; None: not finite, or it does not run
    note: str = ""  # why there is no error

    @property
    def safe(self) -> bool:
        """Whether what comes out is finite, and close."""
        return self.error is not None and self.error <= SAFE_ERROR


@dataclass(frozen=True)
class Inspection:
    """All that was found out; `as_dict` is what `--json` prints."""

    card: Card
    imgsz: tuple[int, int]  # height, width
    levels: list[Level]
    size: SizeRule
    half: dict[str, Precision]  # the fused network, all of it in a 16-bit type
    amp: dict[str, Precision]  # the unfused network under autocast
    largest: tuple[float, float]  # absolute value inside of it in float32, unfused and fused
    latency: dict[str, Latency]  # "backbone unfused", "backbone fused", "model unfused", "model fused"
    rounds: int
    threads: int
    model: Card | None  # the whole of the YAML that the backbone stands in

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON takes it; pairs are before and after fusing."""
        found = {**_card_dict(self.card), "imgsz": list(self.imgsz)}
        found["levels"] = [{"name": f"P{level.stride.bit_length() - 1}", **asdict(level)} for level in self.levels]
        found["size"] = asdict(self.size)
        for name in ("half", "amp"):
            measured: dict[str, Precision] = getattr(self, name)
            found[name] = {dtype: {**asdict(p), "safe": p.safe} for dtype, p in measured.items()}
        found["largest_value"] = _pair([value if math.isfinite(value) else None for value in self.largest])
        found["latency_ms"] = {k: {"median": v.median, "minimum": v.minimum} for k, v in self.latency.items()}
        found.update(rounds=self.rounds if self.latency else 0, threads=self.threads)
        return {**found, "model": _card_dict(self.model) if self.model else None}


def _pair(values: Sequence[Any]) -> dict[str, Any]:
    return {"train": values[0], "deploy": values[1]}


def _card_dict(card: Card) -> dict[str, Any]:
    return {**asdict(card), "parameters": _pair(card.parameters), "gflops": _pair(card.gflops)}


# The command ----------------------------------------------------------------------------------------------------------
def make_parser() -> cli.Parser:
    """Return the options."""
    parser = cli.Parser(prog="python -m utils.inspect_backbone", description=__doc__)
    add = parser.add_argument
    add("name", nargs="?", default="", metavar="NAME|YAML", help="RIFormer, RepVGG/A0, timm/resnet18, resnet18, a YAML")
    add("--list", nargs="?", const="*", metavar="PATTERN", help="list the backbones whose names match, such as 'rep*'")
    add("--json", action="store_true", help="print one JSON object and nothing else on stdout")
    add("--imgsz", "--img", "--img-size", nargs="+", type=cli.image_side, help="default: 640, or its only size")
    add("--options", nargs="+", default=[], metavar="KEY=VALUE", help="of the backbone, such as img_size=224")
    add("--weights", help="file of published weights to load first")
    add("--allow-partial", action="store_true", help="load whatever fits of the weights")
    add("--threads", type=cli.positive_int, help="CPU threads; default: torch's choice")
    add("--rounds", type=cli.positive_int, default=10, help="how many times each form is timed")
    add("--no-latency", action="store_true", help="measure no latency")
    cli.add_consents(parser)
    return parser


def run(name: str = "", **options: Any) -> Inspection | list[str]:
    """Inspect from Python: `run("RIFormer/s12", no_latency=True)`; `run(list="rep*")` returns names.

    Raises:
        UserError: there is no such backbone, option, file or picture size.
    """
    args = make_parser().from_keywords(**options)
    args.name = name
    return look(args)


def main(args: argparse.Namespace) -> None:
    """Inspect what `args` name and print it, as text or as JSON."""
    with tell_on_stderr() if args.json else contextlib.nullcontext():
        found = look(args)
    if args.json:
        content = found.as_dict() if isinstance(found, Inspection) else {"names": found, "count": len(found)}
        print(json.dumps(content, indent=1))
    else:
        LOGGER.info(inspection_text(found))


def look(args: argparse.Namespace) -> Inspection | list[str]:
    """Return what is found out about a name, or the names that match a pattern."""
    cli.take_consents(args)
    if bool(args.name) == (args.list is not None):
        raise UserError("name a backbone or a model YAML, such as RIFormer/s12, or --list PATTERN, one of the two")
    if args.list is not None:
        return match_names(args.list)
    with torch_threads(args.threads or torch.get_num_threads()):
        return inspect_subject(find_subject(args), args)


@contextmanager
def tell_on_stderr() -> Iterator[None]:
    """Have whatever is logged or printed within go to stderr, so that stdout holds nothing but the result."""
    handlers: list[Any] = [handler for handler in LOGGER.handlers if getattr(handler, "stream", None) is sys.stdout]
    for handler in handlers:
        handler.setStream(sys.stderr)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        for handler in handlers:
            handler.setStream(sys.stdout)


# Names ----------------------------------------------------------------------------------------------------------------
def find_subject(args: argparse.Namespace) -> Subject:
    """Build what the command line names.

    Raises:
        UserError: there is no such backbone or YAML; its options or weights are wrong.
    """
    name, options = args.name, parse_options(args.options)
    stems = {path.stem for path in CONFIGS.glob("*.yaml")} - BACKBONES.keys()
    if is_named(name) or Path(name).suffix.lower() in SUFFIXES or (name in stems and not is_timm_model(name)):
        return subject_of_yaml(name, args, options)
    kind, arch = split_name(name, "backbone, timm model or model YAML", stems)
    return make_backbone(kind, arch, name, args, options)


def parse_options(words: Iterable[str]) -> dict[str, Any]:
    """Return KEY=VALUE words as options; values are read as in a YAML.

    Raises:
        UserError: a word has no such form.
    """
    options = {}
    for word in words:
        key, equals, value = word.partition("=")
        try:
            options[key] = load_yaml(value)
        except yaml.YAMLError:
            equals = ""
        if not (key.isidentifier() and equals):
            raise UserError(f"--options takes KEY=VALUE, such as img_size=224, not '{word}'")
    return options


def make_backbone(
    kind: str, arch: str | None, name: str, args: argparse.Namespace, options: Mapping[str, Any]
) -> Subject:
    """Return a registered backbone as the subject."""
    build = partial(create_backbone, kind, arch, **options)
    loading = {"weights": args.weights, "allow_partial": args.allow_partial} if args.weights else {}
    whole: Backbone = build(**loading)
    return Subject(name, whole.eval(), lambda strides: build(out_strides=strides), None)


def subject_of_yaml(name: str, args: argparse.Namespace, options: Mapping[str, Any]) -> Subject:
    """Return the first list backbone of a model YAML as the subject; the whole model where its rows are one."""
    spec = load_spec(name)
    options = {**options, **({"weights": args.weights, "allow_partial": args.allow_partial} if args.weights else {})}
    index = next((row.index for row in spec.rows if is_backbone(row.module)), None)
    if index is None:
        if options:
            raise UserError(f"{spec.name} has no list backbone, so that it takes no {next(iter(options))}")
        model = create_model(spec).eval()
        return Subject(spec.name, model, None, model)
    for key, value in options.items():
        spec = spec.with_option(index, key, value)
    model = create_model(spec).eval()
    source = model.features[model.nodes[index].sources[0]]
    build = partial(build_backbone, spec.rows[index].without_pretrained(), source)
    return Subject(spec.name, model.model[index], lambda strides: as_backbone(build(strides).module), model)


def as_backbone(module: nn.Module) -> Backbone:
    """Return a module that is known to be a backbone."""
    assert isinstance(module, Backbone)
    return module


# What is found out ----------------------------------------------------------------------------------------------------
def inspect_subject(subject: Subject, args: argparse.Namespace) -> Inspection:
    """Find out everything about a subject, with a progress bar."""
    network, deploy = subject.network, switch_to_deploy(subject.network)
    ghost = on_meta(network)
    size = choose_size(subject, ghost, args.imgsz)
    if subject.build:
        check_maps(network, run_on_meta(ghost, size), size)
    rule = measure_size_rule(ghost, subject.stride)
    strides = network.strides if subject.build else ()
    rounds = 0 if args.no_latency else args.rounds
    with TQDM(total=len(strides) + 1 + rounds, desc=f"inspecting {subject.name}", file=sys.stderr, leave=False) as bar:
        levels = [] if strides else row_levels(network, deploy, size)
        for i in range(len(strides)):
            assert subject.build
            levels.append(count_level(subject.build, strides[: i + 1], size, fused=hasattr(network, "report")))
            bar.update()
        half, amp, largest = measure_precision(network, rule)
        bar.update()
        latency = measure_latency(subject, deploy, size, rounds, bar.update) if rounds else {}
    whole = subject.model if subject.build else None
    return Inspection(
        card=make_card(subject.name, network, deploy, size),
        imgsz=size,
        levels=levels,
        size=rule,
        half=half,
        amp=amp,
        largest=largest,
        latency=latency,
        rounds=rounds,
        threads=torch.get_num_threads(),
        model=make_card(whole.spec.name, whole, switch_to_deploy(whole), size) if whole else None,
    )


def choose_size(subject: Subject, ghost: Any, imgsz: Sequence[int] | None) -> tuple[int, int]:
    """Return height and width of the picture to count and measure with.

    Raises:
        UserError: the network takes no picture of the size that was asked for.
    """
    height, width = check_imgsz(list(imgsz), subject.stride) if imgsz else DEFAULT_SIZE
    error = complaint(ghost, (height, width))
    if error and imgsz:
        raise UserError(f"{subject.name} takes no picture of {height}x{width}: {error}")
    return tuple(ghost.example_input().shape[2:]) if error else (height, width)


def complaint(ghost: Any, size: tuple[int, int]) -> str:
    """Return what a network says to a picture of this size; an empty string if it takes it."""
    try:
        run_on_meta(ghost, size)
    except NETWORK_ERRORS as error:
        return first_line(error)
    return ""


def measure_size_rule(ghost: Any, stride: int) -> SizeRule:
    """Return which pictures a network takes: its small example, enlarged by less and less, first to an oblong.

    Args:
        ghost: what `on_meta` returns.
        stride: its largest one.
    """
    height, width = ghost.example_input().shape[2:]
    error = ""
    for square in (False, True):

        def refusal(step: int, square: bool = square) -> str:
            return complaint(ghost, (height + step, width + step * square))

        steps = [stride << doubling for doubling in range(LARGER + 1)]
        multiple = next((step for step in steps if not refusal(step)), None)
        if multiple is None:
            error = error or refusal(stride)
            continue
        runs = multiple
        while runs > 1 and not (error := refusal(runs // 2)):
            runs //= 2
        return SizeRule(multiple, runs, square, None, error)
    return SizeRule(None, None, False, (height, width), error)


# Precision ------------------------------------------------------------------------------------------------------------
@torch.no_grad()
def measure_precision(
    network: Any, rule: SizeRule
) -> tuple[dict[str, Precision], dict[str, Precision], tuple[float, float]]:
    """Return how far half precision (fused) and AMP (unfused) are from float32, and the largest values inside.

    The statistics of fresh BatchNorms would let values grow without bound: they are set to those of the input first.
    """
    net = copy.deepcopy(network).float()
    height, width = (2 * side if rule.multiple else side for side in net.example_input().shape[2:])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        x = torch.rand(2, net.example_input().shape[1], height, width)
        if getattr(net, "weights_report", None) is None:
            calibrate_batch_norms(net, x)
    net.eval()
    deploy = switch_to_deploy(net)
    want, largest = largest_value(net, x)
    _, largest_fused = largest_value(deploy, x)
    half = {name: precision_against(partial(_cast, deploy, x, dtype), want) for name, dtype in HALF_DTYPES.items()}
    amp = {name: precision_against(partial(_autocast, net, x, dtype), want) for name, dtype in HALF_DTYPES.items()}
    return half, amp, (largest, largest_fused)


def _cast(net: nn.Module, x: Tensor, dtype: torch.dtype) -> Any:
    return copy.deepcopy(net).to(dtype)(x.to(dtype))


def _autocast(net: nn.Module, x: Tensor, dtype: torch.dtype) -> Any:
    with torch.autocast("cpu", dtype=dtype):
        return net(x)


def precision_against(produce: Callable[[], Any], want: Sequence[Tensor]) -> Precision:
    """Return how far the outputs that `produce` gives are from those in float32."""
    try:
        got = outputs(produce())
    except NETWORK_ERRORS as error:
        return Precision(None, f"does not run on this CPU: {first_line(error)}")
    if not all(bool(values.isfinite().all()) for values in [*got, *want]):
        return Precision(None, "not finite")
    tiny = torch.finfo(torch.float32).tiny
    return Precision(
        max(float((g - w).abs().max() / w.abs().max().clamp(tiny)) for g, w in zip(got, want, strict=True))
    )


def largest_value(net: nn.Module, x: Tensor) -> tuple[list[Tensor], float]:
    """Return the outputs of `net`, and the largest absolute value that any module in it puts out."""
    seen = [0.0]

    def look_at(_module: nn.Module, _inputs: Any, output: Any) -> None:
        seen.extend(float(leaf.abs().max().nan_to_num(math.inf)) for leaf in outputs(output) if leaf.numel())

    hooks = [module.register_forward_hook(look_at) for module in net.modules()]
    try:
        return outputs(net(x)), max(seen)
    finally:
        for hook in hooks:
            hook.remove()


def outputs(output: Any) -> list[Tensor]:
    """Return every tensor of a network's output as float32."""
    return [leaf.float() for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


# Latency --------------------------------------------------------------------------------------------------------------
def measure_latency(
    subject: Subject, deploy: nn.Module, size: tuple[int, int], rounds: int, after_round: Callable[[], object]
) -> dict[str, Latency]:
    """Return how long one picture of `size` takes, fused and unfused, the backbone and the YAML's model, in turns."""
    kind = "backbone" if subject.build else "model"
    networks = {f"{kind} unfused": subject.network, f"{kind} fused": deploy}
    if subject.build and subject.model is not None:
        networks |= {"model unfused": subject.model, "model fused": switch_to_deploy(subject.model)}
    x = torch.rand(1, subject.network.example_input().shape[1], *size, generator=torch.Generator().manual_seed(0))
    return measure({name: partial(network, x) for name, network in networks.items()}, rounds, after_round)


# Texts ----------------------------------------------------------------------------------------------------------------
def inspection_text(found: Inspection | list[str]) -> str:
    """Return what was found as text for people."""
    if isinstance(found, Inspection):
        return format_rows(inspection_rows(found))
    return f"{columns(found) if sys.stdout.isatty() else chr(10).join(found)}\n{len(found)} backbones"


def columns(names: Sequence[str]) -> str:
    """Return names in as many columns as the terminal has room for, as ls does."""
    wide = max(map(len, names)) + 2
    count = max(1, shutil.get_terminal_size().columns // wide)
    rows = -(-len(names) // count)
    return "\n".join("".join(f"{name:<{wide}}" for name in names[row::rows]).rstrip() for row in range(rows))


def inspection_rows(found: Inspection) -> Iterator[tuple[str, str]]:
    """Yield (title, text) of everything that was found out."""
    yield "model" if found.card.name.endswith(SUFFIXES) and found.model is None else "backbone", found.card.name
    yield "levels", level_table(found.levels)
    yield from card_rows(found.card, found.imgsz)
    yield "size", size_text(found.size)
    yield "half", precision_text(found.half, "fused")
    yield "AMP", precision_text(found.amp, "unfused")
    yield "range", range_text(found.largest)
    yield from latency_rows(found, "model" if found.model is None and "model fused" in found.latency else "backbone")
    if found.model:
        yield "model", found.model.name
        yield from card_rows(found.model, found.imgsz)[:3]
        yield from latency_rows(found, "model")


def level_table(levels: Sequence[Level]) -> str:
    """Return a line for each level: its map, and the work up to it."""
    lines = [f"{'':<16}{'channels':>8}{'map':>10}{'GFLOPs so far':>15}{'added':>8}{'fused so far':>14}"]
    before = 0.0
    for level in levels:
        shape = f"{level.height}x{level.width}"
        lines.append(
            f"{level_name(level.stride):<16}{level.channels:>8}{shape:>10}{level.gflops:>15.2f}"
            f"{level.gflops - before:>8.2f}{level.gflops_fused:>14.2f}"
        )
        before = level.gflops
    return "\n".join(lines)


def size_text(rule: SizeRule) -> str:
    """Return which pictures a network takes."""
    if rule.only is not None:
        return f"{rule.only[0]}x{rule.only[1]} alone; another raises: {rule.error}"
    shape = "square pictures with sides that are" if rule.square else "sides that are"
    if rule.runs == 1:
        return f"{shape} multiples of {rule.multiple}; others run, with maps rounded"
    return f"{shape} multiples of {rule.multiple}; other than multiples of {rule.runs} raise: {rule.error}"


def precision_text(measured: Mapping[str, Precision], form: str) -> str:
    """Return which 16-bit floats are safe."""
    parts = [f"{name} {'safe' if p.safe else 'unsafe'}: {_off(p)}" for name, p in measured.items()]
    return f"{', '.join(parts)} ({form}, measured on random input)"


def _off(precision: Precision) -> str:
    return precision.note if precision.error is None else f"{precision.error:.0e} off"


def range_text(largest: tuple[float, float]) -> str:
    """Return how near the values inside come to the largest of float16."""
    return f"values up to {largest[0]:.3g} inside, fused {largest[1]:.3g}; float16 holds up to {HALF_MAX:.0f}"


def latency_rows(found: Inspection, kind: str) -> Iterator[tuple[str, str]]:
    """Yield the row of the backbone's or the model's latency, if it was measured."""
    if f"{kind} fused" not in found.latency:
        return
    before, after = found.latency[f"{kind} unfused"], found.latency[f"{kind} fused"]
    parts = (
        f"{before.median:.1f} ms (least {before.minimum:.1f}), fused {after.median:.1f} (least {after.minimum:.1f})",
        f"{before.minimum / after.minimum:.2f} times as fast",
        f"{found.threads} CPU thread(s), {found.rounds} rounds in turns",
    )
    yield "latency", "; ".join(parts)


if __name__ == "__main__":
    sys.exit(cli.run_script(main, make_parser()))
