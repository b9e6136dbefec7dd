"""CreateML: a JSON list of pictures, whose boxes have their centre and their size in pixels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from utils.convert_data.annotations import Annotation, Losses, Picture
from utils.convert_data.reading import as_list, as_mapping, as_number, as_text, read_json
from utils.convert_data.source import Source, bad_file


def read(source: Source, losses: Losses) -> Iterator[Picture]:
    """Yield the pictures of CreateML files.

    Raises:
        UserError: a file is none.
    """
    for file in source.files:
        with bad_file(file):
            entries = as_list(read_json(file), "its content")
        for number, entry in enumerate(entries):
            where = f"{file}: [{number}]"
            with losses.malformed(where):
                picture = as_mapping(entry, "it")
                name = as_text(picture.get("image", picture.get("imagefilename")), "image")
                objects = as_list(picture.get("annotations", picture.get("annotation")) or [], "annotations")
                annotations = list(read_objects(objects, where, losses))
                yield Picture((name,), file, annotations, split=source.split_of(file))


def read_objects(entries: list[Any], picture: str, losses: Losses) -> Iterator[Annotation]:
    """Yield the objects of one picture."""
    for number, entry in enumerate(entries):
        where = f"{picture}.annotations[{number}]"
        with losses.malformed(where):
            annotation = as_mapping(entry, "it")
            label = as_text(annotation.get("label"), "label")
            place = as_mapping(annotation.get("coordinates"), "coordinates")
            x, y, w, h = (as_number(place.get(key), key) for key in ("x", "y", "width", "height"))
            yield Annotation(label, (x - w / 2, y - h / 2, x + w / 2, y + h / 2), where)
