"""Backbone weights in deploy form as files of tensors, under the names that their authors publish."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch.utils._pytree import tree_leaves

from models import BACKBONES
from models.backbones.base import FORMS, published_tensors
from models.backbones.weights import PLAIN, choose_dialect, read_source
from models.errors import UserError, WeightsError
from utils.writing import remove_partials, replacing

SUFFIXES = (".pth", ".pt", ".safetensors")
SAFETENSORS = SUFFIXES[-1]
HEAD_NAMES = re.compile(r"(body\.)?(head|fc|classifier)\.")  # how those of a classification head begin, timm's too
FUSING_TOLERANCE = 1e-9  # of the outputs in float64, relative to the largest


def count_classes(kind: str, weights: str | Path) -> int | None:
    """Return how many classes the classification head in a file has; None where no head is found.

    Args:
        kind: of the backbone, a name in BACKBONES.
        weights: the file, or `timm/NAME`.

    Raises:
        WeightsError: no such file, or not one that holds tensors only.
    """
    tensors = read_source(weights)
    dialect = choose_dialect(tensors, BACKBONES[kind].dialects) or PLAIN
    named = dialect.translate(tensors)
    heads = [tensor for name, tensor in named.items() if HEAD_NAMES.match(name) and tensor.ndim > 1]
    return heads[-1].shape[0] if heads else None


def check_target(path: Path, source: Path, option: str, exist_ok: bool = False) -> None:
    """Check the path of a file of weights before the long work starts.

    Args:
        path: of the file to write.
        source: the file that its content comes from.
        option: that names `path`.
        exist_ok: another file may be replaced, though not `source`.

    Raises:
        UserError: it is a folder, another kind of file or the source, it exists, or its folder is a file.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"{option} takes a file that ends in {', '.join(SUFFIXES)}, not {path}")
    if path.is_dir() or any(parent.is_file() for parent in path.parents):
        raise UserError(f"{option} takes a file, but {path} is a folder or lies in a file")
    if path.exists() and source.exists() and path.samefile(source):
        raise UserError(f"{path} is the file that is read: name another {option}")
    if path.exists() and not exist_ok:
        raise UserError(f"{path} exists: name another file with {option}")


def write_published(network: Any, path: Path, read: Callable[[Path], Any]) -> str:
    """Write a backbone or a classifier in deploy form, and return a sentence that says what was written.

    The file gets its name when `read` has given the same tensors back.

    Args:
        network: in training or deploy form; it stays as it is.
        path: ends in one of SUFFIXES.
        read: returns the network that a file of it gives.

    Raises:
        WeightsError: the fused form computes something else in float64, or the file is not read as it was written.
        OSError: the disk is full or the folder cannot be written; nothing is left of the attempt.
    """
    network = copy.deepcopy(network).cpu()
    tensors, dialect = published_tensors(network)
    apart = distance_to_fused(network)
    if not apart <= FUSING_TOLERANCE:
        raise WeightsError(f"{path} is not written: the fused form is {apart:.0e} off in float64, relative")
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_partials(path.parent)
    with replacing(path) as file:
        if path.suffix == SAFETENSORS:
            own = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}  # it shares no memory
            file.write(safetensors.torch.save(own, {"format": "pt"}))
        else:
            torch.save(tensors, file)
        file.flush()
        again, _ = published_tensors(read(Path(file.name)))
        if again.keys() != tensors.keys() or not all(torch.equal(again[name], tensors[name]) for name in tensors):
            raise WeightsError(f"{path} is not written, as other tensors would be read from it again")
    off = f"in float64 its outputs are {apart:.0e} off, relative to the largest"
    return f"Saved {path}: {len(tensors)} tensors ({dialect}); {off}"


@torch.no_grad()
def distance_to_fused(network: Any) -> float:
    """Return how far a network is from its fused form, on noise in float64, relative to the largest output."""
    exact = copy.deepcopy(network).eval().double()
    example = exact.example_input()
    noise = torch.rand(example.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    want, got = (tree_leaves(form(noise)) for form in (exact, FORMS["all"](exact)))
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(got, want, strict=True))
