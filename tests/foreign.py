"""Small data sets in the forms of other tools, for tests of converting them and for the pages."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

NAMES = ("dog", "cat")  # in another order than that of the alphabet
CODES = {"dog": "/m/0bt9lr", "cat": "/m/01yrx"}  # of Open Images
Box = tuple[str, int, int, int, int]  # class; left, top, right, bottom in pixels


@dataclass
class Sample:
    """A picture with boxes."""

    split: str
    name: str
    width: int
    height: int
    boxes: list[Box] = field(default_factory=list)

    def rows(self, names: Sequence[str]) -> list[tuple[float, ...]]:
        """Return the rows of YOLO's label file."""
        unit = np.array([self.width, self.height] * 2)
        rows = []
        for label, left, top, right, bottom in self.boxes:
            numbers = np.array([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]) / unit
            rows.append((names.index(label), *numbers.tolist()))
        return rows


def samples() -> list[Sample]:
    """Return pictures with awkward names in two splits, one of them without objects."""
    return [
        Sample("train", "a.png", 64, 48, [("dog", 0, 0, 64, 48), ("cat", 3, 5, 20, 30)]),
        Sample("train", "b c.png", 48, 64, [("cat", 10, 10, 11, 12), ("dog", 7, 20, 40, 60)]),
        Sample("train", "größe 犬.png", 50, 50, [("dog", 1, 2, 3, 4)]),
        Sample("train", "empty.png", 40, 40),
        Sample("val", "v.1.png", 64, 48, [("cat", 5, 6, 60, 40)]),
        Sample("val", "w.png", 64, 64, [("dog", 12, 13, 33, 44), ("dog", 30, 30, 50, 64)]),
    ]


def write_picture(path: Path, width: int, height: int) -> None:
    """Write a picture, and the folder that it belongs into."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((height, width, 3), 120, np.uint8))


def write_pictures(folder: Path, pictures: Sequence[Sample]) -> None:
    """Write the pictures of a data set into a folder for each split."""
    for one in pictures:
        write_picture(folder / one.split / one.name, one.width, one.height)


def write_coco(folder: Path, pictures: Sequence[Sample]) -> None:
    """Write COCO JSON: annotations/instances_train.json and so on, with gaps in the numbers of categories."""
    write_pictures(folder / "images", pictures)
    categories = [{"id": 7 + 10 * i, "name": name} for i, name in enumerate(NAMES)]
    for split in dict.fromkeys(one.split for one in pictures):
        images, annotations = [], []
        for number, one in enumerate(one for one in pictures if one.split == split):
            images.append({"id": 100 + number, "file_name": one.name, "width": one.width, "height": one.height})
            for label, left, top, right, bottom in one.boxes:
                key = categories[NAMES.index(label)]["id"]
                box = [left, top, right - left, bottom - top]
                outline = [[left, top, right, top, right, bottom, left, bottom]]
                annotations.append(
                    {"id": len(annotations), "image_id": 100 + number, "category_id": key, "bbox": box}
                    | {"segmentation": outline, "iscrowd": 0}
                )
        content = {"images": images, "annotations": annotations, "categories": categories}
        write_json(folder / f"annotations/instances_{split}.json", content)


def write_voc(folder: Path, pictures: Sequence[Sample]) -> None:
    """Write Pascal VOC: Annotations, ImageSets/Main and JPEGImages."""
    (folder / "Annotations").mkdir(parents=True)
    (folder / "ImageSets/Main").mkdir(parents=True)
    for one in pictures:
        write_picture(folder / "JPEGImages" / one.name, one.width, one.height)
        objects = "".join(voc_object(*box) for box in one.boxes)
        xml = (
            f"<annotation><filename>{one.name}</filename><size><width>{one.width}</width><height>{one.height}</height>"
        )
        xml += f"<depth>3</depth></size>{objects}</annotation>"
        (folder / f"Annotations/{Path(one.name).stem}.xml").write_text(xml, encoding="utf-8")
        with (folder / f"ImageSets/Main/{one.split}.txt").open("a", encoding="utf-8") as file:
            file.write(f"{Path(one.name).stem}\n")


def voc_object(label: str, left: int, top: int, right: int, bottom: int, difficult: int = 0) -> str:
    """Return an object of a VOC file."""
    box = f"<xmin>{left}</xmin><ymin>{top}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax>"
    return f"<object><name>{label}</name><difficult>{difficult}</difficult><bndbox>{box}</bndbox></object>"


def write_labelme(folder: Path, pictures: Sequence[Sample]) -> None:
    """Write LabelMe: a JSON file beside each picture, the corners of boxes in any order."""
    write_pictures(folder, pictures)
    for one in pictures:
        shapes = [
            {"label": label, "points": [[right, top], [left, bottom]], "shape_type": "rectangle", "group_id": None}
            for label, left, top, right, bottom in one.boxes
        ]
        content = {"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": one.name, "imageData": None}
        content |= {"imageHeight": one.height, "imageWidth": one.width}
        write_json(folder / one.split / f"{Path(one.name).stem}.json", content)


def write_createml(folder: Path, pictures: Sequence[Sample]) -> None:
    """Write CreateML: a JSON file in the folder of each split."""
    write_pictures(folder, pictures)
    for split in dict.fromkeys(one.split for one in pictures):
        content = []
        for one in (one for one in pictures if one.split == split):
            annotations = [
                {
                    "label": label,
                    "coordinates": {"x": (left + right) / 2, "y": (top + bottom) / 2}
                    | {"width": right - left, "height": bottom - top},
                }
                for label, left, top, right, bottom in one.boxes
            ]
            content.append({"image": one.name, "annotations": annotations})
        write_json(folder / split / "_annotations.createml.json", content)


def write_open_images(folder: Path, pictures: Sequence[Sample]) -> None:
    """Write Open Images: a CSV file for each split, and one with the names of classes; a picture has a row at least."""
    write_pictures(folder, pictures)
    with (folder / "class-descriptions-boxable.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows((code, name) for name, code in [*CODES.items(), ("tree", "/m/07j7r")])
    for split, begin in (("train", "train"), ("val", "validation")):
        with (folder / f"{begin}-annotations-bbox.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow("ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsGroupOf".split(","))
            for one in (one for one in pictures if one.split == split):
                for label, left, top, right, bottom in one.boxes:
                    box = [left / one.width, right / one.width, top / one.height, bottom / one.height]
                    writer.writerow([Path(one.name).stem, "xclick", CODES[label], 1, *box, 0])


def write_json(path: Path, content: object) -> None:
    """Write JSON, and the folder that it belongs into."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


WRITERS = {
    "coco": write_coco,
    "voc": write_voc,
    "labelme": write_labelme,
    "createml": write_createml,
    "openimages": write_open_images,
}
