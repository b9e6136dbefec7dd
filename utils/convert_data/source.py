"""What is converted: the files with labels, which splits they belong to, and where the pictures are."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from models.errors import UserError
from models.files import why_no_file
from utils.data.description import split_in
from utils.data.files import walk
from utils.data.pictures import is_picture
from utils.paths import is_path, spellings


@dataclass
class Source:
    """The files of one data set.

    Attributes:
        roots: the folders that they lie in.
        files: those with labels.
        classes: receives the names of the classes, in their order, where files list them.
    """

    roots: Sequence[Path]
    files: Sequence[Path]
    classes: dict[str, None] = field(default_factory=dict)

    def split_of(self, file: Path) -> str | None:
        """Return the split that the name of a file, or of a folder that it lies in, says; the nearest name counts."""
        root = next((root for root in self.roots if file.is_relative_to(root)), file.parent)
        return split_in((file.stem, *reversed(file.parent.relative_to(root).parts)))


@contextmanager
def bad_file(file: Path) -> Iterator[None]:
    """Raise UserError with the file's name for what a ValueError says of its content."""
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{file}: {error}") from error


class PictureFinder:
    """Finds the files of pictures, none of which lies outside of some folders, whatever a name says.

    Args:
        roots: folders that hold the pictures.
    """

    def __init__(self, roots: Sequence[Path]) -> None:
        self.roots = [Path(os.path.abspath(root)) for root in roots]  # noqa: PTH100 (without a link's target)

    def find(self, name: str, beside: Path, split: str | None) -> list[Path]:
        """Return the file that a name means, several where that is unclear, or none.

        Args:
            name: with folders or without, of Windows or not, with a suffix or without.
            beside: the folder of the file that says it.
            split: of the picture; decides between files of one name in folders of several splits.
        """
        for spelt in filter(is_path, spellings(name)):
            for folder in (beside, *self.roots):
                path = Path(os.path.normpath(folder / spelt))
                if self.root_of(path) and not why_no_file(path) and is_picture(path):
                    return [path]
        last = next(filter(is_path, reversed(spellings(name))), "")
        parts = [part for part in Path(last).parts if part not in ("..", "/")]
        found = self.by_name.get(parts[-1].casefold(), []) if parts else []
        if len(found) > 1:
            alike = [common_end(path, parts) for path in found]
            found = [path for path, count in zip(found, alike, strict=True) if count == max(alike)]
        if len(found) > 1 and split:
            same = [path for path in found if split_in(path.parent.parts[::-1]) == split]
            found = same or found
        return found

    def root_of(self, path: Path) -> Path | None:
        """Return the folder that a file lies in, going by its name; None for one elsewhere."""
        return next((root for root in self.roots if path.is_relative_to(root)), None)

    @cached_property
    def by_name(self) -> dict[str, list[Path]]:
        """All pictures, by their names and by those without suffix, in small letters."""
        found: dict[str, list[Path]] = {}
        paths = dict.fromkeys(Path(file) for root in self.roots for file in walk(str(root)))
        for path in filter(is_picture, paths):
            for key in {path.name.casefold(), path.stem.casefold()}:
                found.setdefault(key, []).append(path)
        return found


def common_end(path: Path, parts: Sequence[str]) -> tuple[int, int]:
    """Return how many names at the end of a path are those of `parts`, in any case and exactly; no suffix is needed."""
    counts = []
    for fold in (str.casefold, str):
        mine, theirs = [[fold(part) for part in some] for some in (path.parts, parts)]
        mine[-1] = mine[-1] if mine[-1] == theirs[-1] else fold(path.stem)
        pairs = zip(reversed(mine), reversed(theirs), strict=False)
        counts.append(next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(mine), len(theirs))))
    return counts[0], counts[1]
