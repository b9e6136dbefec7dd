"""What to write, and how."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from utils.data.files import list_images
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

    def sources(self) -> list[str | Path]:
        """Return the pictures that are read."""
        proof, int8 = self.proof_pictures, self.int8
        described = [data for data in (proof and proof.data, int8 and int8.data) if data]
        listed = [image for data in described for image in list_images(data["val"], data["path"])]
        return [*self.pictures, *(proof.files if proof else ()), *(int8.pictures if int8 else ()), *listed]
