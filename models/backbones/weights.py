"""Published checkpoints into our backbones, with a report of what matched.

A file is read as tensors only. Each family lists the publishers' ways to name its tensors (`Dialect`), so that one
loader serves them all. Nothing is downloaded, unless the weights are named `timm/NAME`.
"""

from __future__ import annotations

import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn
from ultralytics.utils import LOGGER

from models.errors import WeightsError, cause
from models.files import why_no_file

NESTS = ("state_dict_ema", "ema", "state_dict", "model")  # under which files keep their tensors, in this order
PREFIXES = ("module.", "backbone.", "model.")
TORCH_MAGIC = 0x1950A86A20F9469CFC6C.to_bytes(10, "little")  # with which files of old torch versions begin
MAX_INFLATION = 1.05  # uncompressed to file size: torch does not compress, so more is a decompression bomb
MIN_MATCHED = 0.9  # of the tensors that files of an architecture hold; see `copy_tensors`
DEPLOY_NOTE = "deploy form: what it trained with, its branches or their norms, is lost"
EXAMPLES = 3  # names quoted of those that did not match
SOURCES: dict[str, Callable[[str], dict[str, Tensor]]] = {}  # "timm/": what fetches tensors by the name behind it


@dataclass(frozen=True)
class Dialect:
    """How one publisher names the tensors of a family.

    Attributes:
        name: of the publisher, for messages.
        marker: a regular expression that some name in each such file matches, or several that tell it from others.
        renames: (pattern, replacement) of `re.sub`, one after another: to our names, the classifier's under "head.".
        deploy: these files hold the fused form.
        absent: beginnings of those of our names that such files do not hold, as a regular expression.
        written: (pattern, replacement) the other way round, to the names of such files, if we write them.
        form: of base.FORMS, in which they are.
    """

    name: str
    marker: str | tuple[str, ...]
    renames: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = ()
    deploy: bool = False
    absent: str = "$^"  # nothing
    written: tuple[tuple[str, str], ...] | None = None
    form: str = "blocks"

    def speaks(self, names: Iterable[str]) -> bool:
        """Return whether a file with these names is of this dialect."""
        names, markers = list(names), (self.marker,) if isinstance(self.marker, str) else self.marker
        return all(any(re.search(marker, name) for name in names) for marker in markers)

    def translate(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of a file under our names."""
        return {_renamed(name, self.renames): tensor for name, tensor in tensors.items()}

    def translate_back(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors under our names under those of a file."""
        return {_renamed(name, self.written or ()): tensor for name, tensor in tensors.items()}


def _renamed(name: str, renames: Iterable[tuple[str, str | Callable[[re.Match[str]], str]]]) -> str:
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name


PLAIN = Dialect("names of our own", "")
PLAIN_DEPLOY = Dialect("names of our own, deploy form", "", deploy=True)


class Adapted(NamedTuple):
    """Tensors of a file, fitted to a network."""

    tensors: Mapping[str, Tensor]
    made: tuple[str, ...] = ()  # names of those that the file does not hold but that follow from it
    notes: tuple[str, ...] = ()  # what was done, for people


@dataclass(frozen=True)
class WeightsReport:
    """Which tensors of a network came from a file. `missing` ones start as initialised.

    Attributes:
        source: the name of the file, or `timm/NAME`.
        dialect: the publisher whose names the file has.
        deploy: the file holds the fused form, and so does the network now.
        notes: what was done to fit the tensors, for people.
    """

    source: str
    matched: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    dialect: str = PLAIN.name
    deploy: bool = False
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        total = self.matched + len(self.missing)
        parts = [
            f"{self.matched} of {total} tensors from {self.source}",
            f"{len(self.missing)} missing{_quoted(self.missing)}",
            f"{len(self.unexpected)} unexpected{_quoted(self.unexpected)}",
            *([DEPLOY_NOTE] if self.deploy else []),
            *self.notes,
        ]
        return "; ".join(parts)


def _quoted(names: tuple[str, ...]) -> str:
    more = ", ..." if len(names) > EXAMPLES else ""
    return f" ({', '.join(names[:EXAMPLES])}{more})" if names else ""


def choose_dialect(names: Iterable[str], dialects: Iterable[Dialect]) -> Dialect | None:
    """Return the first dialect that a file with these names is of, if any."""
    names = list(names)
    return next((dialect for dialect in dialects if dialect.speaks(names)), None)


def copy_tensors(
    module: nn.Module, adapted: Adapted, source: str, *, dialect: Dialect = PLAIN, allow_partial: bool = False
) -> WeightsReport:
    """Copy tensors into `module` by name and shape, all of what fits or, when too little does, nothing.

    The tensors are meant to be of the architecture of `module`, so that nearly all of them, MIN_MATCHED, fit; what may
    be missing is, for instance, a last stage of another width. Training asks for less where weights go from one network
    to another of which parts are alike, row by row.

    Args:
        module: a backbone or a classifier.
        adapted: under the module's names; classifier tensors (`head.`) are left aside where the module has none.
        source: what to call their origin.
        dialect: the dialect they had, for what it does not hold.
        allow_partial: load whatever fits; else a warning says how many tensors start anew.

    Raises:
        WeightsError: less than 90 % of the tensors that such files hold fit, and `allow_partial` is not set, or some
            are not finite.
    """
    own, tensors, made = module.state_dict(), adapted.tensors, set(adapted.made)
    fitting = {k: v for k, v in tensors.items() if k in own and _fits(v, own[k])}
    counted = [k for k in own if not k.endswith("num_batches_tracked")]
    wanted = [k for k in counted if k not in made and not re.match(dialect.absent, k)]
    absent = [k for k in wanted if k not in fitting]
    found = len(wanted) - len(absent)
    if absent:
        first = absent[0]
        came = f"has {_described(tensors[first])}" if first in tensors else "lacks it"
        example = f"{first} {_described(own[first])}: the file {came}"
    if found < MIN_MATCHED * len(wanted) and not (allow_partial and found):
        raise WeightsError(
            f"{source} holds {found} of the {len(wanted)} tensors of this {type(module).__name__}, for instance "
            f"{example}; is it of another architecture? (allow_partial loads whatever fits)"
        )
    if bad := next((k for k, v in fitting.items() if not v.to(own[k].dtype).isfinite().all()), None):
        raise WeightsError(f"{source} holds weights that are not finite, for instance {bad}")
    if absent and not allow_partial:
        LOGGER.warning(f"{source}: {len(absent)} of {len(wanted)} tensors start anew, for instance {example}")
    module.load_state_dict(fitting, strict=False)
    return WeightsReport(
        source,
        matched=len(fitting.keys() - made),
        missing=tuple(k for k in counted if k not in fitting),
        unexpected=tuple(k for k in tensors if k not in fitting and (k in own or not k.startswith("head."))),
        dialect=dialect.name,
        deploy=dialect.deploy,
        notes=adapted.notes,
    )


def _fits(came: Tensor, own: Tensor) -> bool:
    """Return whether a tensor can take the place of another one; floats do for counters, as people cast whole files."""
    return came.shape == own.shape and (came.is_floating_point() or not own.is_floating_point())


def _described(tensor: Tensor) -> str:
    kind = "" if tensor.is_floating_point() else f" of {str(tensor.dtype).removeprefix('torch.')}"
    return f"{tuple(tensor.shape)}{kind}"


def read_source(source: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a file, or those that a library fetches when `source` is, for instance, `timm/NAME`.

    Raises:
        WeightsError: no such file or name, or not one that holds tensors only.
    """
    fetch = next((prefix for prefix in SOURCES if str(source).startswith(prefix)), None)
    return SOURCES[fetch](str(source).removeprefix(fetch)) if fetch else read_tensors(source)


def read_tensors(file: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by name, without the nesting and the prefixes of the tool that wrote it.

    Raises:
        WeightsError: no such file, or not one that holds tensors only.
    """
    tensors = _named_tensors(load_safetensors(file) if is_safetensors(file) else load_plain(file))
    if not tensors:
        raise WeightsError(f"{file} holds no tensors by name")
    for name, tensor in tensors.items():
        if not has_usual_form(tensor):
            raise WeightsError(f"{file} holds {name} in a form that no network here has: quantized, sparse, or alike")
    return _without_prefixes(tensors)


def choose_row(tensors: dict[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """Return of a model's tensors, as RepYOLO's checkpoints hold them, those of the row that has most of some names.

    Args:
        tensors: named `0.stage0.conv.weight` in row 0; those of other files stay as they are.
        names: of the tensors of a backbone.
    """
    rows: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        row, _, inside = name.partition(".")
        rows.setdefault(row, {})[inside] = tensor
    if not all(row.isdecimal() for row in rows):
        return tensors
    wanted = set(names)
    return max(rows.values(), key=lambda row: len(wanted & row.keys()))


def has_usual_form(tensor: Tensor) -> bool:
    """Return whether a tensor has a form that networks here have: dense, with values, neither quantized nor complex."""
    return not (tensor.layout is not torch.strided or tensor.is_meta or tensor.is_quantized or tensor.is_complex())


def _named_tensors(content: Any) -> dict[str, Tensor]:
    """Return the tensors with a name in the innermost nest of a file's content."""
    while isinstance(content, Mapping) and (nest := next((n for n in NESTS if n in content), None)) is not None:
        content = content[nest]
    named = content.items() if isinstance(content, Mapping) else ()
    return {k: v for k, v in named if isinstance(k, str) and isinstance(v, Tensor)}


def _without_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors without the prefixes that most of their names have, those without one first."""
    while prefix := next((p for p in PREFIXES if sum(k.startswith(p) for k in tensors) > len(tensors) / 2), None):
        others = {k: v for k, v in tensors.items() if not k.startswith(prefix)}  # a classifier beside the backbone
        tensors = {**others, **{k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}}
    return tensors


def load_plain(file: str | Path) -> Any:
    """Return the content of a file that torch wrote, if it is tensors and plain values only; nothing in it is run.

    Raises:
        WeightsError: no such file, a damaged one, or one that holds anything else.
    """
    path = Path(file)
    with weights_file(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's advice on pickles
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as e:
            if "weights_only" not in str(e).lower() or not _is_pickle(path):
                raise
            raise WeightsError(
                f"{path} holds more than tensors: pickled code, as YOLOv5 and ultralytics checkpoints do, is not loaded"
            ) from e


def is_safetensors(file: str | Path) -> bool:
    """Return whether a file begins as those of safetensors do: the length of a JSON text, and the text."""
    path = Path(file)
    if why_no_file(path):
        return False
    with path.open("rb") as f:
        start = f.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size


def load_safetensors(file: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a file of safetensors by name (https://github.com/huggingface/safetensors).

    Raises:
        WeightsError: no such file, or a damaged one.
    """
    path = Path(file)
    with weights_file(path):
        return safetensors.torch.load_file(path)


@contextmanager
def weights_file(path: Path) -> Iterator[None]:
    """Check that there is a file, and turn whatever is raised while it is read into one sentence.

    Raises:
        WeightsError: no such file, one that would unpack to far more than its size, or a damaged one.
    """
    try:
        if problem := why_no_file(path):
            there = os.path.lexists(path)
            raise WeightsError(f"the weights file {path} {problem}" if there else f"there is no weights file {path}")
        if zipfile.is_zipfile(path):
            check_archive(path)
        yield
    except (WeightsError, MemoryError):
        raise
    except Exception as e:  # a damaged pickle makes its readers fail in any way there is
        advises = "weights_only" in str(e)  # torch, to switch it off, which would run what is in the file
        said = type(e).__name__ if advises else cause(e).partition(". ")[0]
        problem = f"it is empty, damaged or another kind of file ({said})"
        raise WeightsError(f"{path} is not a weights file: {problem}") from e


def check_archive(path: Path) -> None:
    """Raise WeightsError for a zip file that would unpack to far more than its size, or has a flipped bit."""
    with zipfile.ZipFile(path) as archive:
        inflated = sum(entry.file_size for entry in archive.infolist())
        if inflated > MAX_INFLATION * path.stat().st_size + 1e6:
            raise WeightsError(f"{path} would unpack to {inflated / path.stat().st_size:.0f} times its size")
        damaged = archive.testzip()
    if damaged is not None:
        raise WeightsError(f"{path} is damaged: its part {damaged} is not what was written")


def _is_pickle(path: Path) -> bool:
    """Return whether the file is one of torch.save's: a zip file with a pickle, or a pickle after torch's number."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        return any(n.endswith("data.pkl") for n in names) and not any("/code/" in n for n in names)
    with path.open("rb") as f:
        return TORCH_MAGIC in f.read(20)
