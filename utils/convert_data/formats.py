"""The formats that are read, and which one a folder or a file is of."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ultralytics.utils import TQDM

from models.errors import UserError
from models.files import why_no_folder
from utils.convert_data import coco, createml, labelme, open_images, voc
from utils.convert_data.annotations import Losses, Picture
from utils.convert_data.source import Source
from utils.data.files import walk
from utils.data.labels import FORMS, Form, form_of, source_folder

MOST_NAMED = 3  # files that are none


@dataclass(frozen=True)
class Reader:
    """How one format is read.

    Attributes:
        read: yields the pictures of a source, and counts what is lost.
        all_classes: those are kept too that no object is of.
    """

    read: Callable[[Source, Losses], Iterator[Picture]]
    all_classes: bool = False


READERS = {  # by the keys of utils.data.labels.FORMS
    "voc": Reader(voc.read),
    "coco": Reader(coco.read, all_classes=True),
    "labelme": Reader(labelme.read),
    "createml": Reader(createml.read),
    "openimages": Reader(open_images.read),
}


def find_source(paths: Sequence[Path], key: str = "") -> tuple[Form, Source]:
    """Return the form of some files, or of what lies in a folder, and the files of this form.

    Args:
        paths: one folder, or files.
        key: of READERS; empty: the one form that there is.

    Raises:
        UserError: a path is not there, or there are files of no form, of several, or of one that is not read.
    """
    found: dict[str, list[Path]] = {}
    for file in TQDM(list_files(paths), desc="looking for labels"):
        form = form_of(file)
        if form or (key and paths[0].is_file()):  # a file that is named by itself
            found.setdefault(form.key if form else key, []).append(file)
    named = " and ".join(map(str, paths))
    known = {form.key: form for form in FORMS}
    keys = [key] if key else [name for name in known if name in found]
    if not any(name in found for name in keys):
        looked = known[key].name if key else ", ".join(form.name for form in FORMS if form.converted)
        raise UserError(f"no labels are seen in {named}: looked for those of {looked}")
    if len(keys) > 1:
        kinds = " and ".join(f"{known[name].name} ({len(found[name])} files)" for name in keys)
        raise UserError(f"{named} holds labels of {kinds}: choose with --format {' or '.join(keys)}")
    form = known[keys[0]]
    if not form.converted:
        raise UserError(f"{found[form.key][0]} holds {form.what_to_do(paths[0])}")
    folders = (Path(os.path.abspath(path)) for path in paths)  # noqa: PTH100 (without a link's target)
    roots = dict.fromkeys(folder if folder.is_dir() else source_folder(folder) for folder in folders)
    return form, Source(list(roots), sorted(found[form.key]))


def list_files(paths: Sequence[Path]) -> list[Path]:
    """Return the files, or those of a folder that may be labels, as absolute paths."""
    if len(paths) > 1 and any(path.is_dir() for path in paths):
        raise UserError("several sources must be files: a folder is converted alone")
    suffixes = {form.suffix for form in FORMS}
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            files += (file for name in walk(str(path)) if (file := Path(name)).suffix.lower() in suffixes)
        elif path.is_file():
            files.append(path)
        else:
            raise UserError(f"the source {path} {why_no_folder(path)}")
    return [Path(os.path.abspath(file)) for file in files]  # noqa: PTH100 (without a link's target)
