"""What YOLOv7's checkpoints (https://arxiv.org/abs/2207.02696) have beside YOLOv5's, in our words and names.

- `IDetect` is YOLOv5's head with implicit knowledge (https://arxiv.org/abs/2105.04206) around its convolutions: on each
  level m conv(x + a), where a and m are a number for each channel. That is one convolution: `fold_implicit`.
- `IAuxDetect` has such convolutions and as many auxiliary ones, which read maps of their own and serve training alone.
- A `RepConv` adds the identity wherever the map keeps its shape, and its branches have other names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from torch import Tensor

from utils.checkpoint.unpickle import Inert

HEADS = ("IDetect", "IAuxDetect")
WORDS = {*HEADS, "MP", "SP", "ReOrg", "SPPCSPC", "DownC", "Shortcut"}  # of YAMLs, that YOLOv5 does not have
POOLINGS = ("MP", "SP")  # modules of theirs that hold torch's, by the name `m`, and do nothing else
BRANCHES = (  # of RepConv: the names of modules there, and here
    (r"\.(rbr_dense|rbr_1x1)\.0(?=\.|$)", r".conv.\1.conv"),
    (r"\.(rbr_dense|rbr_1x1)\.1(?=\.|$)", r".conv.\1.bn"),
    (r"\.rbr_identity(?=\.|$)", r".conv.rbr_identity"),
)
Named = TypeVar("Named", Tensor, Inert)


def translate(
    spec: Mapping[str, Any], tensors: Mapping[str, Tensor], modules: Mapping[str, Inert]
) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Inert]]:
    """Return a YAML, its tensors and its modules with what is YOLOv7's in our words; the rest stays as it is.

    Args:
        spec: a model YAML in YOLOv5's language or YOLOv7's.
        tensors: by name, such as `model.0.conv.weight` in row 0.
        modules: by path.

    Raises:
        LookupError, RuntimeError, TypeError: these are not those of such a network.
    """
    backbone, head = ([list(row) for row in spec[key]] for key in ("backbone", "head"))
    rows, tensors = [*backbone, *head], dict(tensors)
    for i, row in enumerate(rows):
        if row[2] == "RepConv" and any(re.match(rf"model\.{i}\.(\d+\.)?rbr_identity\.", name) for name in tensors):
            row[3] = [*row[3], {"identity": True}]
    last = len(rows) - 1
    if rows[last][2] in HEADS:
        levels = fold_implicit(tensors, f"model.{last}")
        rows[last] = [_sources(rows[last], last)[:levels], rows[last][1], "Detect", rows[last][3]]
        _drop_unread(rows)
    gone = {f"model.{i}" for i in range(len(rows) - 1, last)}
    renames = ((rf"^model\.{last}(?=\.|$)", f"model.{len(rows) - 1}"), *BRANCHES)
    modules = {path: modules[f"{path}.m"] if m.class_name in POOLINGS else m for path, m in modules.items()}
    sections = {"backbone": rows[: len(backbone)], "head": rows[len(backbone) :]}
    return {**spec, **sections}, _renamed(tensors, renames, gone), _renamed(modules, renames, gone)


def fold_implicit(tensors: dict[str, Tensor], head: str) -> int:
    """Fold the implicit knowledge of a head into its convolutions, in place and in float64; return how many there are.

    With W and b those of a level's 1x1 convolution, m (W (x + a) + b) = (m W) x + m (W a + b).

    Args:
        tensors: by name: of each level `m` (the convolution), `ia` (a, added before), `im` (m, multiplied after), and
            of IAuxDetect `m2`, the auxiliary convolution, which is dropped.
        head: the path of the head.

    Raises:
        LookupError, RuntimeError: tensors are missing, or their shapes do not fit.
    """
    levels = len(tensors[f"{head}.anchors"])
    for level in range(levels):
        added, factor = (tensors.pop(f"{head}.{name}.{level}.implicit").double().flatten() for name in ("ia", "im"))
        weight, bias = (tensors[f"{head}.m.{level}.{name}"].double() for name in ("weight", "bias"))
        tensors[f"{head}.m.{level}.weight"] = factor[:, None, None, None] * weight
        tensors[f"{head}.m.{level}.bias"] = factor * (weight.flatten(1) @ added + bias)
        for name in ("weight", "bias"):
            tensors.pop(f"{head}.m2.{level}.{name}", None)
    return levels


def _drop_unread(rows: list[list[Any]]) -> None:
    """Drop the rows before the head, from the last one on, that no row reads."""
    while not any(len(rows) - 2 in _sources(row, i) for i, row in enumerate(rows)):
        del rows[-2]


def _sources(row: list[Any], number: int) -> list[int]:
    """Return the numbers of the rows that row `number` reads, -1 for the picture."""
    sources = row[0] if isinstance(row[0], list) else [row[0]]
    return [source if source >= 0 else number + source for source in sources]


def _renamed(named: Mapping[str, Named], renames: Iterable[tuple[str, str]], gone: set[str]) -> dict[str, Named]:
    """Return what is named by paths there under the paths that it has here, without the rows that are gone."""

    def rename(name: str) -> str:
        for pattern, replacement in renames:
            name = re.sub(pattern, replacement, name)
        return name

    return {rename(name): value for name, value in named.items() if ".".join(name.split(".")[:2]) not in gone}
