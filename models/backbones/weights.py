"""Published checkpoints into our backbones, with a report of what matched. Reads tensors only, downloads nothing."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.errors import WeightsError

NESTS = ("state_dict_ema", "ema", "state_dict", "model")  # under which files keep their tensors, in this order
PREFIXES = ("module.", "backbone.", "model.")
CLASSIFIER = ("head.", "fc.", "classifier.", "linear.")  # of no use to a detector
MIN_MATCHED = 0.9  # of the backbone's tensors


@dataclass(frozen=True)
class WeightsReport:
    """Which tensors of a backbone came from a file. `missing` ones start as initialised."""

    file: str
    matched: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    def __str__(self) -> str:
        total = self.matched + len(self.missing)
        return f"{self.matched} of {total} tensors from {self.file}, {len(self.unexpected)} of the file's not used"


def load_weights(module: nn.Module, file: str | Path, optional: Sequence[str] = ()) -> WeightsReport:
    """Copy the tensors of a published checkpoint into `module`, by name and shape.

    Args:
        module: a backbone with the names of the published file.
        file: a `.pth` or `.pt` file of tensors, bare or under `state_dict`, `model`, ... with the usual prefixes.
        optional: prefixes of names that published files do not hold; missing, they do not count.

    Raises:
        WeightsError: no such file, not a file of tensors only, or less than 90 % of the tensors match.
    """
    tensors = read_tensors(file)
    own = module.state_dict()
    matched = {k: v for k, v in tensors.items() if k in own and own[k].shape == v.shape}
    missing = tuple(k for k in own if k not in matched)
    unexpected = tuple(k for k in tensors if k not in matched and not k.startswith(CLASSIFIER))
    wanted = [k for k in own if not k.startswith(tuple(optional))]
    found = sum(k in matched for k in wanted)
    if found < MIN_MATCHED * len(wanted):
        example = next(k for k in wanted if k not in matched)
        raise WeightsError(
            f"{file} holds {found} of the {len(wanted)} tensors of this {type(module).__name__}, "
            f"for instance not {example} {tuple(own[example].shape)}: is it of another architecture?"
        )
    module.load_state_dict(matched, strict=False)
    return WeightsReport(Path(file).name, len(matched), missing, unexpected)


def read_tensors(file: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by name, without the nesting and the prefixes of the tool that wrote it.

    Raises:
        WeightsError: no such file, or not one that holds tensors only.
    """
    if not Path(file).is_file():
        raise WeightsError(f"there is no weights file {file}")
    try:
        content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as e:
        reason = (
            "holds more than tensors, which is not loaded" if "weights_only" in str(e).lower() else "is not readable"
        )
        raise WeightsError(f"{file} {reason}: {str(e).strip().splitlines()[0] if str(e).strip() else 'empty'}") from e
    for nest in NESTS:
        if isinstance(content, Mapping) and isinstance(content.get(nest), Mapping):
            content = content[nest]
    tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, Mapping) else {}
    if not tensors:
        raise WeightsError(f"{file} holds no tensors")
    for prefix in PREFIXES:
        if sum(k.startswith(prefix) for k in tensors) > len(tensors) / 2:
            tensors = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    return tensors
