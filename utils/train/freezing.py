"""What is not trained: rows and parts of a model by their names, for the whole run or for its first epochs.

A name is `backbone`, `neck` or a row's number, and from there a path of modules: `backbone.layer1`, `4.cv1`. Each part
of it may be a range, as in `0-3` and `backbone.layer1-2`. `backbone.stages.0` is what runs at the first stride of any
backbone, `backbone.stages.1` what follows at the next one, and so on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from ultralytics.cfg import get_cfg

from models import DetectionModel
from models.backbones import Backbone
from models.errors import UserError, did_you_mean
from models.parts import WRAPPERS, backbone_blocks, backbone_roots, backbone_rows, is_network, is_under

RANGE = re.compile(r"(\D*)(\d{1,4})-(\d{1,4})")
SLOTS = re.compile(r"\d+(-\d+)?")
STAGES = re.compile(r"backbone\.stages\.(\d+|\d+-\d+)")
MOST_LISTED = 12  # names in a message

Freeze = int | str | Sequence[int | str] | None  # a number of slots from the first, or names


def read_freeze(words: Sequence[str]) -> int | str | list[int | str] | None:
    """Return what the words of `--freeze` mean: one number counts slots, several numbers and all else are names."""
    names = [name for word in words for name in word.split(",") if name]
    found = [int(name) if name.isdecimal() else name for name in names]
    if len(found) == 1 and (isinstance(found[0], int) or found[0] == "backbone"):
        return found[0]
    return found or None


def check_unfreezing(options: Mapping[str, Any]) -> None:
    """Raise UserError when a run is to train after some epochs what is not frozen, or when no epoch is left for it."""
    after, epochs = options["unfreeze_after"], options.get("epochs", get_cfg().epochs)
    if after and options["freeze"] is None:
        raise UserError("--unfreeze-after is for what --freeze names: name it, such as --freeze backbone")
    if after >= epochs:
        raise UserError(f"--unfreeze-after {after} comes after the last of {epochs} epochs: give less, or leave it out")


def declared_frozen(model: DetectionModel) -> list[str]:
    """Return the paths in a model of what its backbones declare as never trained, such as `frozen_stages` of a row."""
    return [
        f"model.{i}.{path}" for i, row in enumerate(model.model) if isinstance(row, Backbone) for path in row.frozen
    ]


def frozen_paths(model: DetectionModel, freeze: Freeze) -> list[str]:
    """Return the paths in a model of the modules and tensors that `--freeze` means.

    Raises:
        UserError: a name that the model does not have; what it has, and what was probably meant, is said.
    """
    if freeze is None:
        return []
    names = range(freeze) if isinstance(freeze, int) else [freeze] if isinstance(freeze, str) else freeze
    last = model.nodes[-1].slot
    slots = [int(end) for name in names if SLOTS.fullmatch(str(name)) for end in str(name).split("-")]
    if any(slot >= last for slot in slots):
        raise UserError(f"--freeze takes slots from 0 to {last - 1}, the last row being the head, not {max(slots)}")
    return list(dict.fromkeys(path for name in names for path in _find(model, str(name))))


def hold(model: nn.Module, paths: Sequence[str], held: Sequence[str]) -> None:
    """Let of the tensors at `paths` those at `held` not be trained, and the others be trained."""
    for name, tensor in model.named_parameters():
        if any(is_under(name, path) for path in paths):
            tensor.requires_grad_(not any(is_under(name, path) for path in held))


def keep_statistics(model: nn.Module, held: Sequence[str]) -> None:
    """Put the norms at `held` into eval mode, in which they use their running statistics and leave them as they are."""
    for name, module in model.named_modules():
        if isinstance(module, _NormBase) and any(is_under(name, path) for path in held):
            module.eval()


def frozen_text(model: nn.Module, paths: Sequence[str], epochs: int) -> str:
    """Return how much is not trained at `paths`, in the first so many epochs, or in all if 0."""
    tensors = dict(model.named_parameters())
    found = [tensor.numel() for name, tensor in tensors.items() if any(is_under(name, path) for path in paths)]
    every = sum(tensor.numel() for tensor in tensors.values())
    share = f"{len(found)} of {len(tensors)} tensors, {sum(found) / 1e6:.3g} of {every / 1e6:.3g} M parameters"
    return f"{share} are frozen{f' for {epochs} epoch' + 's' * (epochs > 1) if epochs else ''}"


# Names ----------------------------------------------------------------------------------------------------------------
def _find(model: DetectionModel, name: str) -> list[str]:
    """Return the paths of what a name means."""
    parts, known, place = name.split("."), _starts(model), model.spec.name
    if STAGES.fullmatch(name):
        parts, known, place = parts[2:], _stages(model), "backbone.stages"
    for i, part in enumerate(parts):
        wanted = [part] if part in known else _expanded(part)
        if missing := [one for one in wanted if one not in known]:
            raise UserError(_unknown(name, missing[0], place, known))
        paths = [path for one in wanted for path in known[one]]
        known, place = _inside(model, paths, wanted), ".".join(parts[: i + 1])
    return paths


def _starts(model: DetectionModel) -> dict[str, list[str]]:
    """Return the paths of what a name may begin with: backbone, neck, numbers of rows."""
    sections = {
        "backbone": list(backbone_roots(model)),
        "neck": [f"model.{i}" for i in range(backbone_rows(model), len(model.nodes) - 1)],
    }
    return {**{name: paths for name, paths in sections.items() if paths}, **_rows(model, len(model.nodes) - 1)}


def _rows(model: DetectionModel, count: int) -> dict[str, list[str]]:
    """Return the paths of the first rows by their numbers; each number of a list backbone is the whole of it."""
    return {str(number): [f"model.{i}"] for i in range(count) for number in model.nodes[i].numbers}


def _stages(model: DetectionModel) -> dict[str, list[str]]:
    """Return the paths of the blocks of each stage of the backbone, by its number."""
    stages: dict[str, list[str]] = {}
    for block in backbone_blocks(model):
        stages.setdefault(str(block.stage), []).append(block.path)
    return stages


def _inside(model: DetectionModel, paths: Sequence[str], names: Sequence[str]) -> dict[str, list[str]]:
    """Return the paths of what is at `paths`, which were called `names`, by the next part of its name."""
    found: dict[str, list[str]] = {}
    if names == ["backbone"]:
        found.update(_rows(model, backbone_rows(model)))
        paths = [path for path in paths if is_network(model, path)]
    pending = list(paths)
    while pending:
        path = pending.pop(0)
        try:
            module = model.get_submodule(path)
        except AttributeError:  # a tensor
            continue
        own = [name for name, _ in module.named_parameters(recurse=False)]
        for name in [*own, *(name for name, _ in module.named_children())]:
            found.setdefault(name, []).append(f"{path}.{name}")
        pending += [f"{path}.{name}" for name, _ in module.named_children() if name in WRAPPERS]
    return found


def _expanded(part: str) -> list[str]:
    """Return the names of a range such as 0-3 or layer1-2; others stay as they are."""
    if (found := RANGE.fullmatch(part)) is None:
        return [part]
    first, last = int(found[2]), int(found[3])
    return [f"{found[1]}{number}" for number in range(first, last + 1)] or [part]


def _unknown(name: str, part: str, place: str, known: Mapping[str, object]) -> str:
    """Return the message for a part of a name that is not there."""
    listed = ", ".join([*known][:MOST_LISTED]) + (", ..." if len(known) > MOST_LISTED else "")
    has = f"it has {listed}" if known else "it has no parts"
    return f"--freeze {name}: there is no '{part}' in {place}{did_you_mean(part, known)}, {has}"
