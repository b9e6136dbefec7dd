"""What a model is made of, as text and numbers: the table of rows, the backbone card, parameters and FLOPs."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves
from ultralytics.nn.modules import Detect

from models.backbones.base import Backbone, check_maps, level_name
from models.blocks.branches import BranchedConv
from models.blocks.reparam import switch_to_deploy
from models.heads import describe_head
from models.layers import LAYERS, Feature
from models.meta import shapes_alone, without_data
from models.parser import Node, Slot
from models.spec import ModelSpec, Row

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
DEFAULT_SIZE = (640, 640)  # height and width of the picture whose work is counted


class RowModel(Protocol):
    """What is read of a `DetectionModel` here."""

    spec: ModelSpec
    nodes: tuple[Node, ...]
    features: dict[Slot, Feature]
    model: nn.Sequential

    @property
    def only_size(self) -> tuple[int, int] | None: ...


def count_parameters(module: nn.Module) -> int:
    """Return the number of parameters, trainable or not."""
    return sum(p.numel() for p in module.parameters())


def count_gflops(module: Any, size: tuple[int, int] = DEFAULT_SIZE) -> float:
    """Return the 10^9 floating-point operations of one picture of `size` (H, W), two per multiply-add.

    Args:
        module: a detection model or a backbone.
        size: height and width of the picture.

    Convolutions, matrix products and attention are counted wherever they happen, in modules or functions. Nothing is
    computed: the model runs on the meta device.
    """
    ghost = on_meta(module)
    with _flop_counter() as counter:
        run_on_meta(ghost, size)
    return counter.get_total_flops() / 1e9


def _flop_counter() -> FlopCounterMode:
    """Return what counts the operations that happen within it."""
    from torch.utils.flop_counter import FlopCounterMode  # noqa: PLC0415 (it imports triton, and most runs never count)

    return FlopCounterMode(display=False)


def on_meta(module: Any) -> Any:
    """Return a copy of a detection model or a backbone in eval mode that has shapes but no data."""
    ghost: Any = without_data(module)
    for head in (m for m in ghost.modules() if isinstance(m, Detect)):
        head.training = True  # raw maps: decoding asks for the value of its strides, which a meta tensor does not have
    return ghost


def run_on_meta(ghost: Any, size: tuple[int, int]) -> Any:
    """Return what a ghost gives for one picture of `size` (H, W): tensors that are shapes alone."""
    with shapes_alone():
        return ghost(ghost.example_input().new_empty(1, ghost.example_input().shape[1], *size))


def check_levels(model: RowModel, size: tuple[int, int]) -> None:
    """Run the list backbones of a model on the meta device, and compare with what they declare.

    Raises:
        UserError: one gives other maps for a picture of `size` (H, W).
    """
    for _, backbone, _, read in list_backbones_of(model, size):
        check_maps(backbone, run_on_meta(on_meta(backbone), read), read)


def list_backbones_of(
    model: RowModel, size: tuple[int, int]
) -> Iterator[tuple[Node, Backbone, list[Feature], tuple[int, int]]]:
    """Yield each list backbone of a model: its node, itself, its maps, and what it reads of a picture of `size`."""
    for module, node in zip(model.model, model.nodes, strict=True):
        if isinstance(module, Backbone):
            stride = model.features[node.sources[0]].stride
            height, width = (round(side / stride) for side in size)
            yield node, module, [model.features[slot] for slot in node.slots], (height, width)


# Levels ---------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Level:
    """One map that a network gives, and the work that leads to it."""

    stride: int
    channels: int
    height: int  # of the map
    width: int
    gflops: float  # up to this level, the finer ones included
    gflops_fused: float


def count_level(
    build: Callable[[Sequence[int]], Backbone], strides: Sequence[int], size: tuple[int, int], fused: bool = False
) -> Level:
    """Return the last of the levels `strides`, with the work of a backbone that ends there.

    Args:
        build: gives the backbone with the maps at some strides; it is called on the meta device.
        strides: of the level and of those before it, ascending.
        size: height and width of the picture.
        fused: the backbone that is meant is fused already.
    """
    with torch.device("meta"):
        ghost = build(strides)
        deploy = switch_to_deploy(ghost)
        ghost = deploy if fused else ghost
    _, channels, height, width = run_on_meta(ghost.eval(), size)[-1].shape
    return Level(strides[-1], channels, height, width, count_gflops(ghost, size), count_gflops(deploy, size))


def row_levels(model: RowModel, deploy: RowModel, size: tuple[int, int]) -> list[Level]:
    """Return the levels of a model whose rows are its backbone: of each stride the last row under `backbone`."""
    levels: dict[int, Level] = {}
    so_far = [accumulate(row_gflops(m, size)) for m in (model, deploy)]
    for node, gflops, fused in zip(model.nodes[: model.spec.backbone_rows], *so_far, strict=False):
        for feature in (model.features[slot] for slot in node.slots):
            stride = int(feature.stride)
            levels[stride] = Level(stride, feature.channels, size[0] // stride, size[1] // stride, gflops, fused)
    return [levels[stride] for stride in sorted(levels)]


def row_gflops(model: RowModel, size: tuple[int, int]) -> list[float]:
    """Return the 10^9 operations of each row."""
    work = module_operations(model, size)
    return [work.get(f"model.{i}", 0) / 1e9 for i in range(len(model.model))]


def module_operations(model: Any, size: tuple[int, int]) -> dict[str, int]:
    """Return path of a module → its floating-point operations, as `count_gflops` counts them; "" is the whole model."""
    ghost = on_meta(model)
    with _flop_counter() as counter:
        run_on_meta(ghost, size)
    counts = {path.partition(".")[2]: sum(of.values()) for path, of in counter.get_flop_counts().items()}
    return {**counts, "": counter.get_total_flops()}


# Texts ----------------------------------------------------------------------------------------------------------------
def model_table(model: RowModel, size: tuple[int, int] | None = None) -> str:
    """Return the rows of a model as YOLOv5 prints them: scaled, under the slots that `from` uses.

    Args:
        model: whose rows they are.
        size: height and width of the picture whose work is counted; 640x640, or the only one that it takes, by default.

    Raises:
        UserError: a backbone of the model gives other maps than it declares.
    """
    size = size or model.only_size or DEFAULT_SIZE
    check_levels(model, size)
    columns = []
    for module, node in zip(model.model, model.nodes, strict=True):
        number, word, args = scaled(model.spec, node.row)
        sources = node.row.sources[0] if node.row.single else list(node.row.sources)
        slots = slots_text(node)
        params = f"{count_parameters(module):,}"
        columns.append((slots, _plain(sources), str(number), params, word, _plain(args)))
    wide = max(20, *(len(sources) + 1 for _, sources, *_ in columns))
    lines = [
        f"{slots:>5}{sources:>{wide}}{number:>3}{params:>11}  {word:<40}{args:<30}".rstrip()
        for slots, sources, number, params, word, args in [
            ("slot", "from", "n", "params", "module", "arguments"),
            *columns,
        ]
    ]
    total = sum(map(count_parameters, model.model))
    work = f"{count_gflops(model, size):.1f} GFLOPs at {size[0]}x{size[1]}"
    lines.append(f"{model.spec.name} summary: {total:,} parameters, {work}")
    return "\n".join(lines)


def slots_text(node: Node) -> str:
    """Return what `from` calls the maps of a row: 5, 2-4, or with a level that has no number 2-4,P6."""
    numbers = [slot for slot in node.slots if isinstance(slot, int)]
    names = [str(slot) for slot in node.slots if not isinstance(slot, int)]
    ends = dict.fromkeys((min(numbers), max(numbers))) if numbers else ()
    return ",".join(filter(None, ["-".join(map(str, ends)), *names]))


def scaled(spec: ModelSpec, row: Row) -> tuple[int, str, list[Any]]:
    """Return number, module and arguments of a row, after depth_multiple and width_multiple."""
    _, number, word, args = row.as_list()
    if word in LAYERS and "c2" in inspect.signature(LAYERS[word]).parameters and isinstance(args[0], int):
        args[0] = spec.width(args[0])
    return spec.depth(number), word, args


def branches_text(model: RowModel, size: tuple[int, int] | None = None) -> str:
    """Return what training costs with the branches that `overparameterize` gave a model, beside the plain network.

    Args:
        model: one without such branches gets an empty text.
        size: height and width of the picture whose work is counted; 640x640, or the only one that it takes, by default.
    """
    if not model.spec.overparameterize:
        return ""
    size = size or model.only_size or DEFAULT_SIZE
    ghost: Any = on_meta(model)
    more_params, more_work, more_values = _training_costs(ghost, size)
    wide = [m for m in ghost.modules() if type(m) is BranchedConv]
    for conv in wide:
        conv.branches = nn.ModuleList()
    params, work, values = _training_costs(ghost, size)
    style = model.spec.overparameterize["style"]
    return (
        f"overparameterize {style}: {len(wide)} convolutions train with branches, which fusing takes away. Training "
        f"holds {more_params / 1e6:.2f} M parameters instead of {params / 1e6:.2f} M, computes {more_work / work:.1f} "
        f"times as much, and keeps {more_values / values:.1f} times as many values of maps in memory"
    )


def _training_costs(ghost: Any, size: tuple[int, int]) -> tuple[int, float, int]:
    """Return parameters, 10^9 operations, and values that layers give for one picture of `size`, of a ghost."""
    values = 0

    def add(_module: nn.Module, _inputs: object, output: Any) -> None:
        nonlocal values
        values += sum(leaf.numel() for leaf in tree_leaves(output) if isinstance(leaf, Tensor))

    layers = [m for m in ghost.modules() if not list(m.children()) and not isinstance(m, nn.Identity)]
    hooks = [m.register_forward_hook(add) for m in layers]
    with _flop_counter() as counter:
        run_on_meta(ghost, size)
    for hook in hooks:
        hook.remove()
    return count_parameters(ghost), counter.get_total_flops() / 1e9, values


@dataclass(frozen=True)
class Card:
    """What people ask of a network first. Pairs are before and after fusing."""

    name: str
    parameters: tuple[int, int]
    gflops: tuple[float, float]
    fuses: dict[str, int]  # kind to count
    left: tuple[str, ...]  # BatchNorms that stay: path and reason
    stays: dict[str, int]  # normalizations of the fused form, by kind
    weights: str | None  # what was loaded of which file
    notes: tuple[str, ...]


def make_card(name: str, network: Any, deploy: Any, size: tuple[int, int] = DEFAULT_SIZE) -> Card:
    """Return the card of a backbone or a detection model.

    Args:
        name: what to call it.
        network: as it trains.
        deploy: what `switch_to_deploy` makes of it.
        size: height and width of the picture whose work is counted.
    """
    report = getattr(network, "weights_report", None)
    return Card(
        name=name,
        parameters=(count_parameters(network), count_parameters(deploy)),
        gflops=(count_gflops(network, size), count_gflops(deploy, size)),
        fuses=dict(sorted(deploy.report.fused.items())),
        left=tuple(deploy.report.left),
        stays=dict(_norms(deploy)),
        weights=str(report) if report else None,
        notes=tuple(getattr(network, "notes", ())),
    )


def card_rows(card: Card, size: tuple[int, int]) -> list[tuple[str, str]]:
    """Return what a card says as (title, text), of which titles may repeat."""
    (before, after), (work, less) = card.parameters, card.gflops
    return [
        ("parameters", f"{before / 1e6:.2f} M, fused {after / 1e6:.2f} M"),
        ("GFLOPs", f"{work:.1f} at {size[0]}x{size[1]}, fused {less:.1f}"),
        ("fuses", _counts(card.fuses) or "nothing"),
        ("stays", _counts(card.stays) or "nothing that could be fused"),
        *(("left", text) for text in _by_reason(card.left)),
        ("weights", card.weights or "initialised, none loaded"),
        *(("note", text) for text in card.notes),
    ]


def format_rows(rows: Iterable[tuple[str, str]]) -> str:
    """Return (title, text) one a line, titles to the right; further lines of a text are indented as its first."""
    indented = ((title, text.replace("\n", "\n" + " " * 14)) for title, text in rows)
    return "\n".join(f"{title:>12}  {text}".rstrip() for title, text in indented)


def backbone_card(model: RowModel, size: tuple[int, int] | None = None) -> str:
    """Return what people ask of a model's list backbones: levels, size, cost, what fuses, and their weights' origin.

    Args:
        model: one without list backbones gets a sentence saying so.
        size: height and width of the picture whose work is counted; 640x640, or the only one that it takes, by default.
    """
    cards = [_row_card(*row) for row in list_backbones_of(model, size or model.only_size or DEFAULT_SIZE)]
    return "\n".join(cards) or f"{model.spec.name} has no list backbone: its rows are its backbone"


def head_card(model: RowModel) -> str:
    """Return which head a model has, as a line of a card."""
    return format_rows([("head", f"{model.nodes[-1].row.module} {describe_head(model.model[-1])}")])


def _row_card(node: Node, backbone: Backbone, maps: Sequence[Feature], size: tuple[int, int]) -> str:
    """Return the card of a list backbone that reads a picture or a map of `size`."""
    card = make_card(str(node.row), backbone, switch_to_deploy(backbone), size)
    levels = ", ".join(f"{level_name(round(m.stride))} {m.channels} channels" for m in maps)
    return format_rows([("backbone", card.name), ("levels", levels), *card_rows(card, size)])


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in counts.items())


def _by_reason(left: Iterable[str]) -> list[str]:
    """Return a line for each reason why BatchNorms stay, with how many do and the first of them."""
    places: dict[str, list[str]] = {}
    for entry in left:
        path, _, reason = entry.partition(": ")
        places.setdefault(reason, []).append(path)
    return [
        f"{len(paths)} BatchNorm, {reason} ({paths[0]}{', ...' * (len(paths) > 1)})" for reason, paths in places.items()
    ]


def _norms(module: nn.Module) -> Counter[str]:
    kinds = (_BatchNorm, nn.GroupNorm, nn.LayerNorm)
    return Counter(type(m).__name__ for m in module.modules() if isinstance(m, kinds))


def _plain(value: object) -> str:
    return str(value).replace("'", "")
