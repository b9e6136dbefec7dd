"""Where the label files of pictures are, and what is said where there are none.

Labels of other tools, such as Pascal VOC, are not read but named, with what to do.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from models.errors import UserError
from models.files import why_no_file
from utils.data.scan import Settings, read_labels
from utils.text import printable, quote

MOST_FOLDERS, MOST_FILES = 200, 20  # that are searched for labels of other tools: below the data set, and in each
POLYGONS_NEEDED = "segmentation needs polygons, rows of class x1 y1 x2 y2 x3 y3 …"
HEAD = 1 << 20  # bytes of such a file that tell what it is


@dataclass(frozen=True)
class Form:
    """A form of labels that is not read, but converted.

    Attributes:
        key: by which `utils.convert_data` knows it.
        name: of the tool or data set that it comes from.
        suffix: of its files.
        mark: what stands in the beginning of its files and of no others'.
        many: one file describes many pictures.
        converted: `utils.convert_data` reads it.
    """

    key: str
    name: str
    suffix: str
    mark: re.Pattern[bytes]
    many: bool = False
    converted: bool = True

    def what_to_do(self, source: Path) -> str:
        """Return the end of a sentence that has named a file of this form; `source` is what holds the data set."""
        if not self.converted:
            return f"labels of {self.name}: export them from there as YOLO or COCO"
        command = f"python -m utils.convert_data {quote(source)} --to {quote(converted_folder(source))}"
        return f"labels of {self.name}, which this command converts: {command}"


FORMS = (
    Form("voc", "Pascal VOC", ".xml", re.compile(rb"<annotation[\s>]")),
    Form("cvat", "CVAT", ".xml", re.compile(rb"<annotations[\s>]"), converted=False),
    Form("labelme", "LabelMe", ".json", re.compile(rb'"shapes"\s*:\s*\[')),
    Form("createml", "CreateML", ".json", re.compile(rb'\A\s*\[\s*\{.*"annotations?"\s*:', re.DOTALL), many=True),
    Form("coco", "COCO", ".json", re.compile(rb'"(images|annotations|categories)"\s*:\s*\['), many=True),
    Form("openimages", "Open Images", ".csv", re.compile(rb"\A(\xef\xbb\xbf)?[\w,]*ImageID,[\w,]*XMin"), many=True),
)


# Paths ----------------------------------------------------------------------------------------------------------------
def label_paths(images: Sequence[str]) -> list[str]:
    """Return the path of each picture's label file.

    As YOLOv5 has it, the last folder called `images` is replaced by `labels` and the suffix, if there is one, by
    `.txt`. Where no picture of a folder has a file there, all of them have it where that leads from the target of
    links, or beside themselves, if one of them does.
    """
    folders: dict[str, list[str]] = {}
    for image in images:
        folders.setdefault(os.path.dirname(image), []).append(image)  # noqa: PTH120
    places = {folder: place_of_labels(folder, some) for folder, some in folders.items()}
    return [places[os.path.dirname(image)](image) for image in images]  # noqa: PTH120


def place_of_labels(folder: str, images: Sequence[str]) -> Callable[[str], str]:
    """Return the function that gives the label file of a picture in `folder`, going by where there are any."""
    target = os.path.realpath(folder)

    def from_target(image: str) -> str:
        return usual_path(os.path.join(target, os.path.basename(image)))  # noqa: PTH118, PTH119

    choices = (usual_path, from_target, beside)
    return next((path for path in choices if any(os.path.lexists(path(image)) for image in images)), usual_path)


def usual_path(image: str) -> str:
    """Return where YOLOv5 looks for the label file of a picture, whose path may begin with `images`."""
    before, after = (f"{os.sep}{name}{os.sep}" for name in ("images", "labels"))
    return beside(after.join(f"{os.sep}{image}".rsplit(before, 1)).removeprefix(os.sep))


def beside(image: str) -> str:
    """Return the path of the label file that lies in the folder of a picture."""
    return f"{os.path.splitext(image)[0]}.txt"  # noqa: PTH122


# Splits without labels ------------------------------------------------------------------------------------------------
def check_label_files(images: Sequence[str], split: str, root: str | Path) -> list[str]:
    """Return `label_paths` of a split's pictures.

    Raises:
        UserError: none of them has a label file; it says which ones of other tools are in the data set's folder `root`.
    """
    labels = label_paths(images)
    if not any(map(os.path.isfile, labels)):
        more = f" and {len(labels) - 1} more" if len(labels) > 1 else ""
        raise UserError(
            f"no labels found for the {split} split: looked for {labels[0]}{more}{foreign_labels(images, root)}"
        )
    return labels


def check_objects(labels: Sequence[str], split: str, settings: Settings) -> None:
    """Raise UserError when no label file of a split has an object that can be used.

    Args:
        labels: what `check_label_files` returned.
        split: its name.
        settings: of the data set.
    """
    files = list(filter(os.path.isfile, labels))
    reason = ""
    for label in files:
        try:
            rows, _, note = read_labels(Path(label), settings)
        except (OSError, ValueError) as error:
            reason = reason or f": {printable(error)}"
        else:
            if len(rows):
                return
            reason = reason or (f": {printable(Path(label).name)} has {note}" if note else "")
    more = f" and {len(files) - 1} more label files" if len(files) > 1 else ""
    raise UserError(
        f"the {split} split has no object that can be used{reason}"
        if reason
        else f"the {split} split has no objects: {files[0]}{more} have no rows"
    )


def check_outlines(labels: Sequence[str], split: str, settings: Settings) -> None:
    """Raise UserError when the objects of a split are boxes only, from which no masks are learnt.

    Args:
        labels: what `check_label_files` returned.
        split: its name.
        settings: of the data set.
    """
    boxes = ""
    for label in filter(os.path.isfile, labels):
        with suppress(OSError, ValueError):  # of one file, whose picture will be left out
            rows, segments, _ = read_labels(Path(label), settings)
            if any(map(len, segments)):
                return
            boxes = boxes or (label if len(rows) else "")
    if boxes:
        raise UserError(f"{POLYGONS_NEEDED}, but the {split} split has boxes only, such as in {boxes}")


# Labels of other tools ------------------------------------------------------------------------------------------------
def foreign_labels(images: Sequence[str], root: str | Path) -> str:
    """Return the end of a sentence that names labels of another tool near pictures; empty when none are seen.

    Args:
        images: pictures without label files.
        root: the data set's folder.
    """
    for folder in near_folders(images, Path(root)):
        for path in some_files(folder):
            if form := form_of(path):
                source = Path(root) if path.is_relative_to(root) else source_folder(path)
                return f"; {path} holds {form.what_to_do(source)}"
    return ""


def source_folder(path: Path) -> Path:
    """Return the folder of the data set that a file with labels belongs to."""
    return path.parent.parent if path.parent.name.lower() == "annotations" else path.parent


def converted_folder(source: Path) -> Path:
    """Return where a data set is converted to, beside its folder or its file."""
    return source.with_name(f"{source.name if source.is_dir() else source.stem}-yolo")


def form_of(path: Path) -> Form | None:
    """Return the form of a file's labels, if it is one of FORMS."""
    if why_no_file(path):
        return None
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError:
        return None
    return next((form for form in FORMS if form.suffix == path.suffix.lower() and form.mark.search(head)), None)


def near_folders(images: Sequence[str], root: Path) -> Iterator[Path]:
    """Yield the folders where labels may be: those of the pictures, those beside these, the data set's and below."""
    parents = [Path(folder) for folder in dict.fromkeys(os.path.dirname(image) for image in images)]  # noqa: PTH120
    above = dict.fromkeys(parent.parent for parent in parents)
    siblings = (child for folder in above if folder.is_dir() for child in sorted(folder.iterdir()) if child.is_dir())
    below = (Path(folder) for folder, _, _ in os.walk(root))
    found = itertools.chain(parents[:MOST_FOLDERS], above, siblings, itertools.islice(below, MOST_FOLDERS))
    return iter(dict.fromkeys(itertools.islice(found, 2 * MOST_FOLDERS)))


def some_files(folder: Path) -> list[Path]:
    """Return a few files of a folder that labels may be in, going by their suffix."""
    suffixes = {form.suffix for form in FORMS}
    try:
        with os.scandir(folder) as entries:
            files = (Path(entry) for entry in entries)
            return sorted(itertools.islice((f for f in files if f.suffix.lower() in suffixes), MOST_FILES))
    except OSError:
        return []
