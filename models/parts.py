"""The backbone of a model, whatever it is made of: its modules, its blocks in the order in which they run, its stages.

For all that treats parts of a backbone differently: learning rates that fall towards its input, and what is frozen.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from models.backbones import Backbone
from models.heads import PublishedClassifier
from models.summary import RowModel, on_meta, run_on_meta

WRAPPERS = ("body", "model", "backbone")  # attributes by which a network is held that another one has made
INSIDE = r"\w+(?:\.\d+)?\.(?:blocks|layers)\.\d+|\w+\.\d+\.\d+|\w+\.\d+|\w+"  # a block, from the longest form on
BLOCK = re.compile(rf"(?:(?:{'|'.join(WRAPPERS)})\.)*(?:{INSIDE})(?=\.|$)")


@dataclass(frozen=True)
class Block:
    """A part of a backbone that is counted as one: a block of a network, its stem, or a row of a YAML.

    Attributes:
        path: of its module in the model, such as `model.0.network.2.1`.
        number: of the blocks that hold matrices or kernels, counted from 0 at the picture; what lies between two of
            them, such as a norm, has the number of the one before.
        stage: number of its stage, in which all maps have one stride.
    """

    path: str
    number: int
    stage: int


def backbone_rows(model: RowModel) -> int:
    """Return how many rows, from the first, are the backbone: up to the last list backbone, else those under backbone.

    That is none where a network as it was published is the head too.
    """
    lists = [node.row.index for node in model.nodes if node.writes_list]
    return lists[-1] + 1 if lists else model.spec.backbone_rows


def backbone_roots(model: RowModel) -> dict[str, nn.Module]:
    """Return the modules that are the backbone, by their paths in the model: rows, or a network inside of the head."""
    head = model.model[-1]
    if isinstance(head, PublishedClassifier):
        inner = next(name for name in WRAPPERS if hasattr(head.network, name))
        return {f"model.{len(model.nodes) - 1}.network.{inner}": getattr(head.network, inner)}
    return {f"model.{i}": model.model[i] for i in range(backbone_rows(model))}


def backbone_blocks(model: RowModel) -> list[Block]:
    """Return the blocks of the backbone of a model, in the order in which they end when it runs, without data.

    Inside of a list backbone a block is what stands at one or two numbers, if it is made of several modules:
    `network.2.1`, `layer1.0`, `stages_0.blocks.1`. What has no number is one by its first name, such as `patch_embed`,
    or beside blocks by its name there, such as `stages_1.downsample`.
    """
    paths: dict[str, None] = {}
    for root, module in backbone_roots(model).items():
        scores = classifier_names(module)
        names = [name for name, _ in module.named_parameters() if name not in scores]
        inside = [f"{root}.{path}" for path in _block_paths(module, names)]
        paths.update(dict.fromkeys(inside if is_network(model, root) else [root]))
    strides = _strides_in_order(model, [path for path in paths if _is_module(model, path)])
    number, stage, largest = -1, -1, 0.0
    blocks = []
    for path, stride in strides.items():
        number += any(p.ndim > 1 for p in _submodule(model, path).parameters())
        if stride > largest:
            stage, largest = stage + 1, stride
        blocks.append(Block(path, max(number, 0), max(stage, 0)))
    first = [Block(path, 0, 0) for path in paths if path not in strides]  # tensors such as position embeddings
    return [*first, *blocks]


def is_network(model: RowModel, root: str) -> bool:
    """Return whether a module of `backbone_roots` is a network of blocks, not a row that is one block."""
    return isinstance(model.model[-1], PublishedClassifier) or isinstance(_submodule(model, root), Backbone)


def block_of(name: str, blocks: Sequence[Block]) -> Block | None:
    """Return the innermost one of `blocks` that a tensor of this name belongs to; None: it is not in the backbone."""
    around = [block for block in blocks if is_under(name, block.path)]
    return max(around, key=lambda block: len(block.path), default=None)


def is_under(name: str, path: str) -> bool:
    """Return whether a module or a tensor of this name is the one at `path`, or inside of it."""
    return name == path or name.startswith(f"{path}.")


def classifier_names(network: Any) -> set[str]:
    """Return the names of the tensors by which a network of timm gives scores of classes; none for others."""
    find = getattr(network, "get_classifier", None)
    found = find() if callable(find) else ()
    heads = found if isinstance(found, tuple | list) else [found]
    ids = {id(p) for head in heads for p in head.parameters()}
    return {name for name, p in network.named_parameters() if id(p) in ids}


def _strides_in_order(model: Any, paths: Sequence[str]) -> dict[str, float]:
    """Return the stride of what the modules at `paths` give, in the order in which they end; 0: it is no map."""
    ghost = on_meta(model)
    height, width = model.example_input().shape[2:]
    strides: dict[str, float] = {}

    def note(path: str, output: Any) -> None:
        maps = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.ndim == 4]
        rows = [m.shape[axis] for m in maps for axis in (2, 1) if m.shape[axis] * width == m.shape[axis + 1] * height]
        strides[path] = 2.0 ** round(math.log2(height / rows[0])) if rows else 0.0

    for path in paths:
        _submodule(ghost, path).register_forward_hook(lambda _, __, output, path=path: note(path, output))
    run_on_meta(ghost, (height, width))
    return strides


def _block_paths(network: nn.Module, names: Sequence[str]) -> list[str]:
    """Return the path in a network of the block that holds each of the tensors of these names."""
    paths = []
    for name in names:
        match = BLOCK.match(name)
        path = match[0] if match else name
        parent, _, last = path.rpartition(".")
        is_part = not _is_module(network, path) or not [*_submodule(network, path).children()]
        is_run = last.isdecimal() and not isinstance(_submodule(network, parent), nn.ModuleList)
        paths.append(parent if is_part and is_run else path)
    around = {path[: match.start()] for path in paths for match in re.finditer(r"\.", path)}
    for i, name in enumerate(names):
        while paths[i] in around and paths[i] != name:
            paths[i] = ".".join(name.split(".")[: paths[i].count(".") + 2])
    return paths


def _submodule(model: Any, path: str) -> nn.Module:
    return model.get_submodule(path)


def _is_module(model: Any, path: str) -> bool:
    try:
        model.get_submodule(path)
    except AttributeError:
        return False
    return True
