"""Published checkpoints into our backbones, with a report of what matched. Reads tensors only, downloads nothing."""

from __future__ import annotations

import pickle
import warnings
import zipfile
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
TORCH_MAGIC = 0x1950A86A20F9469CFC6C.to_bytes(10, "little")  # with which files of old torch versions begin
MAX_INFLATION = 1.05  # uncompressed to file size: torch does not compress, so more is a decompression bomb
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
    content = load_plain(file)
    while isinstance(content, Mapping) and (nest := next((n for n in NESTS if n in content), None)) is not None:
        content = content[nest]
    named = content.items() if isinstance(content, Mapping) else ()
    tensors = {k: v for k, v in named if isinstance(k, str) and isinstance(v, Tensor)}
    if not tensors:
        raise WeightsError(f"{file} holds no tensors by name")
    while prefix := next((p for p in PREFIXES if sum(k.startswith(p) for k in tensors) > len(tensors) / 2), None):
        tensors = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    return tensors


def load_plain(file: str | Path) -> Any:
    """Return the content of a file that torch wrote, if it is tensors and plain values only; nothing in it is run.

    Raises:
        WeightsError: no such file, a damaged one, or one that holds anything else.
    """
    path = Path(file)
    try:
        if not path.is_file():
            raise WeightsError(f"there is no weights file {path}")
        if zipfile.is_zipfile(path):
            _check_archive(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice on pickles
            return torch.load(path, map_location="cpu", weights_only=True)
    except (WeightsError, MemoryError):
        raise
    except Exception as e:  # a damaged pickle makes its reader fail in any way there is
        if isinstance(e, pickle.UnpicklingError) and "weights_only" in str(e).lower() and _is_pickle(path):
            raise WeightsError(
                f"{path} holds more than tensors: pickled code, as YOLOv5 and ultralytics checkpoints do, is not loaded"
            ) from e
        raise WeightsError(f"{path} is not a weights file: it is empty, damaged or another kind of file") from e


def _check_archive(path: Path) -> None:
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
