"""What to write, and how."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from utils.data.files import files_of
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
    read: tuple[str | Path, ...] = ()  # the weights and other files that the user named

    def sources(self) -> list[str | Path]:
        """Return the files that are read."""
        proof, int8 = self.proof_pictures, self.int8
        described = [data for data in (proof and proof.data, int8 and int8.data) if data]
        listed = [path for data in described for path in files_of(data)]
        return [*self.read, *self.pictures, *(proof.files if proof else ()), *listed]
