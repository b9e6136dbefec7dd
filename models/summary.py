"""What a model is made of, as text and numbers: the table of rows, the backbone card, parameters and FLOPs."""

from __future__ import annotations

import copy
import inspect
from collections import Counter
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode
from ultralytics.nn.modules import Detect

from models.backbones.base import Backbone, level_name
from models.blocks.reparam import switch_to_deploy
from models.layers import LAYERS
from models.parser import Node
from models.spec import ModelSpec, Row


class RowModel(Protocol):
    """What is read of a `DetectionModel` here."""

    spec: ModelSpec
    nodes: tuple[Node, ...]
    model: nn.Sequential


def count_parameters(module: nn.Module) -> int:
    """Return the number of parameters, trainable or not."""
    return sum(p.numel() for p in module.parameters())


def count_gflops(module: Any, size: tuple[int, int] = (640, 640)) -> float:
    """Return the 10^9 floating-point operations of one picture of `size` (H, W), two per multiply-add.

    Args:
        module: a detection model or a backbone.
        size: height and width of the picture.

    Convolutions, matrix products and attention are counted wherever they happen, in modules or functions. Nothing is
    computed: the model runs on the meta device.
    """
    ghost: Any = copy.deepcopy(module).eval().to("meta")
    for head in (m for m in ghost.modules() if isinstance(m, Detect)):
        head.train()  # raw maps: decoding asks for the value of its strides, which a meta tensor does not have
    picture = torch.empty(1, ghost.example_input().shape[1], *size, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        ghost(picture)
    return counter.get_total_flops() / 1e9


def model_table(model: RowModel) -> str:
    """Return the rows of a model as YOLOv5 prints them: scaled, under the slots that `from` uses."""
    lines = [f"{'slot':>5}{'from':>20}{'n':>3}{'params':>11}  {'module':<40}{'arguments':<30}"]
    for module, node in zip(model.model, model.nodes, strict=True):
        number, word, args = scaled(model.spec, node.row)
        sources = node.row.sources[0] if node.row.single else list(node.row.sources)
        slots = f"{node.slots[0]}-{node.slots[-1]}" if len(node.slots) > 1 else node.slots[0]
        params = f"{count_parameters(module):,}"
        lines.append(f"{slots!s:>5}{_plain(sources):>20}{number:>3}{params:>11}  {word:<40}{_plain(args):<30}".rstrip())
    total = sum(map(count_parameters, model.model))
    lines.append(f"{model.spec.name} summary: {total:,} parameters, {count_gflops(model):.1f} GFLOPs at 640x640")
    return "\n".join(lines)


def scaled(spec: ModelSpec, row: Row) -> tuple[int, str, list[Any]]:
    """Return number, module and arguments of a row, after depth_multiple and width_multiple."""
    _, number, word, args = row.as_list()
    if word in LAYERS and "c2" in inspect.signature(LAYERS[word]).parameters and isinstance(args[0], int):
        args[0] = spec.width(args[0])
    return spec.depth(number), word, args


def backbone_card(model: RowModel, size: tuple[int, int] = (640, 640)) -> str:
    """Return what people ask of a backbone: its levels, size, cost, what fuses, and where its weights come from."""
    backbone = next((m for m in model.model if isinstance(m, Backbone)), None)
    if backbone is None:
        return f"{model.spec.name} has no list backbone: its rows are its backbone"
    deploy: Any = switch_to_deploy(backbone)
    report = getattr(backbone, "weights_report", None)
    levels = ", ".join(
        f"{level_name(s)} {c} channels" for s, c in zip(backbone.strides, backbone.channels, strict=True)
    )
    before, after = count_parameters(backbone), count_parameters(deploy)
    fuses = ", ".join(f"{count} {kind}" for kind, count in sorted(deploy.report.fused.items())) or "nothing"
    rows = {
        "backbone": str(model.nodes[0].row),
        "levels": levels,
        "parameters": f"{before / 1e6:.2f} M, fused {after / 1e6:.2f} M",
        "GFLOPs": f"{count_gflops(backbone, size):.1f} at {size[0]}x{size[1]}, fused {count_gflops(deploy, size):.1f}",
        "fuses": fuses,
        "stays": ", ".join(f"{n} {kind}" for kind, n in _norms(deploy).items()) or "no normalization",
        "weights": str(report) if report else "initialised, none loaded",
    }
    return "\n".join(f"{key:>12}  {value}" for key, value in rows.items())


def _norms(module: nn.Module) -> Counter[str]:
    kinds = (_BatchNorm, nn.GroupNorm, nn.LayerNorm)
    return Counter(type(m).__name__ for m in module.modules() if isinstance(m, kinds))


def _plain(value: object) -> str:
    return str(value).replace("'", "")
