"""What to write, and how."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from utils.data.samples import PHOTOS
from utils.deploy.formats import DEFAULT_FORMATS
from utils.deploy.write import WriteOptions
from utils.int8.search import Int8
from utils.prove.at_scale import ProofPictures


@dataclass(frozen=True)
class Options(WriteOptions):
    """What an export writes and how, and what it is proven on."""

    formats: tuple[str, ...] = DEFAULT_FORMATS
    fuse: bool = True
    pictures: tuple[Path, ...] = PHOTOS  # real ones, to prove on
    proof_pictures: ProofPictures | None = None  # many, to prove on at scale
    int8: Int8 | None = None  # quantized files as well
