"""Data sets of other tools: what is in them comes out, what is lost is counted, and nothing else is written."""

import json
import os
import re
import shlex
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from ultralytics.data.converter import convert_coco

from models.errors import UserError
from models.versions import is_script
from tests.foreign import NAMES, WRITERS, samples, voc_object, write_coco, write_json, write_picture
from utils.convert_data import __main__ as convert_data
from utils.convert_data import coco, reading, write
from utils.convert_data.annotations import LOSSES
from utils.convert_data.formats import READERS
from utils.data.description import load_dataset
from utils.data.files import check_images, list_images
from utils.data.labels import FORMS, form_of, label_paths
from utils.paths import ROOT


def convert(source, target, **options):
    """Convert, and return the new data set with its report."""
    data = load_dataset(convert_data.run(source, to=target, **options))
    return data, json.loads((target / "conversion.json").read_text(encoding="utf-8"))


def rows_of(data, split):
    """Return the rows of each picture of a split, by its name."""
    images = list_images(data[split], data["path"])
    rows = (Path(label).read_text(encoding="utf-8").splitlines() for label in label_paths(images))
    return {
        Path(image).name: [tuple(map(float, row.split())) for row in some]
        for image, some in zip(images, rows, strict=True)
    }


def counts(report):
    return {kind: loss["count"] for kind, loss in report["losses"].items()}


def snapshot(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


# Round trips ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("form", WRITERS)
def test_boxes_classes_and_splits_come_out_as_they_went_in(form, tmp_path):
    pictures = samples()
    WRITERS[form](tmp_path / "set", pictures)
    before = snapshot(tmp_path / "set")
    data, report = convert(tmp_path / "set", tmp_path / "new")
    assert snapshot(tmp_path / "set") == before
    names = list(NAMES) if form in ("coco", "openimages") else sorted(NAMES)
    assert list(data["names"].values()) == names
    assert report["losses"] == {} and report["format"] == form
    for name in ("train", "val"):
        found = rows_of(data, name)
        expected = {one.name: one.rows(names) for one in pictures if one.split == name}
        if form == "openimages":  # which has no row for it
            expected.pop("empty.png", None)
        assert found.keys() == expected.keys()
        for key, rows in expected.items():
            assert np.allclose(np.array(found[key]).reshape(-1, 5), np.array(rows).reshape(-1, 5), atol=2e-6), key
    check_images(data, training=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "set"]


def test_each_form_that_is_named_is_read_or_said_to_be_none():
    assert {form.key for form in FORMS if form.converted} == READERS.keys() == WRITERS.keys()


def test_boxes_are_those_of_ultralytics(tmp_path):
    write_coco(tmp_path / "set", samples())
    data, _ = convert(tmp_path / "set", tmp_path / "new")
    convert_coco(str(tmp_path / "set/annotations"), str(tmp_path / "theirs"), cls91to80=False)
    for split in ("train", "val"):
        for name, rows in rows_of(data, split).items():
            file = tmp_path / "theirs/labels" / split / f"{Path(name).stem}.txt"
            theirs = [tuple(map(float, row.split())) for row in file.read_text().splitlines()] if rows else []
            assert np.allclose(np.array(rows)[..., 1:], np.array(theirs)[..., 1:], atol=2e-6)


# COCO -----------------------------------------------------------------------------------------------------------------
def pack(runs):
    """Return runs as COCO's API compresses them."""
    text = ""
    for i, run in enumerate(runs):
        value = run - runs[i - 2] if i > 2 else run
        while True:
            code, value = value & 31, value >> 5
            more = value != -1 if code & 16 else value != 0
            text += chr((code | 32 * more) + 48)
            if not more:
                break
    return text


def runs_of(mask):
    """Return the runs of a mask (H, W)."""
    flat = np.concatenate([[0], mask.T.ravel(), [0]]).astype(int)
    edges = np.flatnonzero(np.diff(flat))
    return np.diff([0, *edges, mask.size]).tolist()


def test_masks_are_packed_as_cocos_api_does():
    assert coco.unpack("9;2J;") == [9, 11, 2, 5, 13]  # as pycocotools packs it
    rng = np.random.default_rng(0)
    for _ in range(20):
        runs = rng.integers(0, 10 ** int(rng.integers(1, 8)), 30).tolist()
        assert coco.unpack(pack(runs)) == runs


def coco_set(folder, annotations, images=(), categories=((5, "cat"), (2, "dog"))):
    """Write a train and a val split with some annotations of picture 1 of train, which has 40x20 pixels."""
    for name in ("train/a.png", "train/b.png", "val/a.png"):
        write_picture(folder / name, 40, 20)
    classes = [{"id": key, "name": name} for key, name in categories]
    image = {"id": 1, "file_name": "a.png", "width": 40, "height": 20}
    first = {"image_id": 1, "category_id": 5, "bbox": [0, 0, 10, 10]}
    first["segmentation"] = [[0, 0, 10, 0, 10, 10, 0, 10]]
    for split, some, more in (("train", annotations, images), ("val", [first], [])):
        content = {"images": [image, *more], "annotations": list(some), "categories": classes}
        write_json(folder / f"annotations/{split}.json", content)


def box(x, y, w, h, **more):
    return {"image_id": 1, "category_id": 5, "bbox": [x, y, w, h], **more}


def test_what_is_lost_is_counted_and_named(tmp_path):
    annotations = [
        box(0, 0, 20, 10),
        box(0, 0, 20, 10),
        box(5, 5, 0, 9),
        box(5, 5, -3, 9),
        box(50, 5, 9, 9),
        box(30, 5, 20, 5),
        box(1, 1, 5, 5, iscrowd=1),
        box(1, 1, 5, 5, category_id=9),
        box(1, 1, 5, 5, image_id=77),
        box(1, 1, 5, float("nan")),
        {"image_id": 1, "category_id": 5},
        {"image_id": 99, "category_id": 5},
        {"image_id": 1, "category_id": 5, "bbox": [1, 2, 3]},
        "none",
        box(2, 2, 5, 5, image_id=3),
    ]
    images = [
        {"id": 2, "file_name": "gone.png", "width": 40, "height": 20},
        {"id": 3, "file_name": "b.png"},
        {"id": 4, "file_name": "b.png", "width": 20, "height": 20},
        {"id": [], "file_name": "b.png"},
        {"id": 6, "file_name": "broken.png"},
    ]
    coco_set(tmp_path / "set", annotations, images)
    (tmp_path / "set/train/broken.png").write_bytes(b"no picture")
    (tmp_path / "set/annotations/captions.json").write_text('{"images": [], "annotations": []}')
    data, report = convert(tmp_path / "set", tmp_path / "new")
    assert counts(report) == {
        **{"missing_pictures": 1, "unreadable_pictures": 1, "other_shape": 1, "no_size": 2, "unused_files": 1},
        **{"malformed": 6, "no_picture": 1, "unknown_classes": 1, "crowds": 1, "zero_area": 2, "outside": 1},
        **{"clipped": 1, "repeated": 1},
    }
    assert [loss["what"] for loss in report["losses"].values()] == [LOSSES[kind] for kind in report["losses"]]
    example = report["losses"]["zero_area"]["examples"][1]
    assert example == f"{tmp_path}/set/annotations/train.json: annotations[3]"
    assert rows_of(data, "train") == {
        "a.png": [(0, 0.25, 0.25, 0.5, 0.5), (0, 0.875, 0.375, 0.25, 0.25)],
        "b.png": [(0, 0.1125, 0.225, 0.125, 0.25)],
    }
    assert report["classes"] == {"cat": 4, "dog": 0}


def test_outlines_and_masks_of_segmentation(tmp_path):
    mask = np.zeros((20, 40), int)
    mask[4:12, 10:30] = 1
    mask[6:8, 14:18] = 0
    thin = np.zeros((20, 40), int)
    thin[3, 5:9] = 1
    annotations = [
        box(1, 1, 9, 9, segmentation=[[1, 1, 10, 1, 10, 10, 1, 10]]),
        box(1, 1, 19, 9, segmentation=[[1, 1, 10, 1, 10, 10, 1, 10], [15, 2, 20, 2, 20, 9]]),
        box(10, 4, 20, 8, segmentation={"counts": runs_of(mask), "size": [20, 40]}),
        box(5, 3, 4, 1, segmentation={"counts": pack(runs_of(thin)), "size": [20, 40]}),
        box(1, 2, 3, 4),
        box(1, 2, 3, 4.5, segmentation={"counts": [3], "size": [20, 40]}),
        box(1, 2, 3, 5, segmentation={"counts": [20 * 41], "size": [20, 41]}),
    ]
    coco_set(tmp_path / "set", annotations)
    data, report = convert(tmp_path / "set", tmp_path / "new", task="segment")
    assert counts(report) == {"malformed": 1, "no_outline": 2, "parts": 1, "holes": 1}
    first, joined, masked, line, *boxes = rows_of(data, "train")["a.png"]
    assert first == (0, 0.025, 0.05, 0.25, 0.05, 0.25, 0.5, 0.025, 0.5)
    for row, corners in ((joined, (1, 1, 20, 10)), (masked, (10, 4, 30, 12)), (line, (5, 3, 9, 4))):
        points = np.array(row[1:]).reshape(-1, 2) * (40, 20)
        assert np.abs([*points.min(0), *points.max(0)] - np.array(corners)).max() <= 0.26
    assert [len(row) for row in boxes] == [5, 5]
    check_images(data, training=True, task="segment")


def test_crowds_can_be_kept_and_classes_chosen(tmp_path):
    coco_set(tmp_path / "set", [box(1, 1, 5, 5, iscrowd=1), box(1, 1, 6, 6, category_id=2)])
    data, report = convert(tmp_path / "set", tmp_path / "new", keep=["crowd"], names=["dog", "cat"])
    assert [row[0] for row in rows_of(data, "train")["a.png"]] == [1, 0] and counts(report) == {}
    data, report = convert(tmp_path / "set", tmp_path / "newer", names=["cat"])
    assert data["names"] == {0: "cat"} and counts(report) == {"crowds": 1, "unknown_classes": 1}


# Other forms ----------------------------------------------------------------------------------------------------------
def test_voc_lists_difficult_objects_and_the_official_origin(tmp_path):
    for name in ("1", "2", "3", "4"):
        write_picture(tmp_path / f"set/JPEGImages/{name}.jpg", 100, 50)
        official = "<source><database>The VOC2007 Database</database></source>" if name == "1" else ""
        objects = voc_object("cat", 1, 1, 100, 50) + voc_object("dog", 5, 5, 9, 9, difficult=1)
        (tmp_path / "set/Annotations").mkdir(exist_ok=True)
        xml = f"<annotation>{official}<size><width>0</width><height>0</height></size>{objects}</annotation>"
        (tmp_path / f"set/Annotations/{name}.xml").write_text(xml)
    (tmp_path / "set/ImageSets/Main").mkdir(parents=True)
    for split, text in {"trainval": "1\n2\n9\n", "val": "3\n", "cat_trainval": "4 1\n"}.items():
        (tmp_path / f"set/ImageSets/Main/{split}.txt").write_text(text)
    data, report = convert(tmp_path / "set", tmp_path / "new")
    assert counts(report) == {"no_split": 1, "no_size": 3, "malformed": 1, "difficult": 3}
    assert "9 of train has no XML file" in report["losses"]["malformed"]["examples"][0]
    assert rows_of(data, "train") == {"1.jpg": [(0, 0.5, 0.5, 1, 1)], "2.jpg": [(0, 0.505, 0.51, 0.99, 0.98)]}
    data, _ = convert(tmp_path / "set", tmp_path / "newer", keep=["difficult"])
    assert data["names"] == {0: "cat", 1: "dog"}


def test_shapes_of_labelme(tmp_path):
    shapes = [
        {"label": "disc", "shape_type": "circle", "points": [[20, 20], [20, 30]]},
        {"label": "leaf", "shape_type": "polygon", "points": [[0, 0], [10, 0], [10, 8]], "group_id": 4},
        {"label": "leaf", "shape_type": "polygon", "points": [[20, 0], [30, 0], [30, 9]], "group_id": 4},
        {"label": "leaf", "shape_type": "point", "points": [[1, 1]]},
        {"label": "leaf", "shape_type": "polygon", "points": [[1, 1], [2, 2]]},
        {"label": "leaf", "shape_type": "polygon", "points": 3},
    ]
    for name in ("a", "b"):
        write_picture(tmp_path / f"pictures/{name}.png", 40, 40)
        content = {"shapes": shapes, "imagePath": f"..\\pictures\\{name}.png", "imageWidth": 40, "imageHeight": 40}
        write_json(tmp_path / f"json/{name}.json", content)
    data, report = convert(tmp_path / "json", tmp_path / "new", images=tmp_path / "pictures")
    assert counts(report) == {"no_area_shapes": 2, "malformed": 4}
    assert "--split 0.8 0.2" in report["splits_drawn"]
    assert [len(rows_of(data, split)) for split in ("train", "val")] == [1, 1]
    ((disc, leaf),) = rows_of(data, "train").values()
    assert np.allclose(disc, (0, 0.5, 0.5, 0.5, 0.5)) and leaf == (1, 0.375, 0.1125, 0.75, 0.225)
    data, report = convert(tmp_path / "json", tmp_path / "newer", images=tmp_path / "pictures", task="segment")
    assert counts(report)["parts"] == 2 and all(
        len(row) > 9 for rows in rows_of(data, "train").values() for row in rows
    )


def test_groups_and_classes_of_open_images(tmp_path):
    head = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsGroupOf\n"
    rows = "0a,x,/m/1,1,0,0.5,0,0.5,0\n0a,x,/m/2,1,0,1,0,1,1\n0a,x,/m/9,1,0,1,0,1,0\n"
    rows += "0b,x,/m/1,1,0,x,0,1,0\nff,x,/m/1,1,0,1,0,1,0\n"
    (tmp_path / "set").mkdir()
    for split, text in (("train", rows), ("validation", "0c,x,/m/1,1,0,1,0,1,0\n")):
        (tmp_path / f"set/oidv6-{split}-annotations-bbox.csv").write_text(head + text)
    (tmp_path / "set/oidv7-class-descriptions.csv").write_text("LabelName,DisplayName\n/m/2,Tree\n/m/1,Cat\n")
    for name in ("0a", "0b", "0c"):
        write_picture(tmp_path / f"set/{name}.jpg", 40, 20)
    data, report = convert(tmp_path / "set", tmp_path / "new")
    assert counts(report) == {"missing_pictures": 1, "malformed": 1, "unknown_classes": 1, "crowds": 1}
    assert data["names"] == {0: "Cat"} and rows_of(data, "train")["0a.jpg"] == [(0, 0.25, 0.25, 0.5, 0.5)]
    assert ": line 5: XMax must be a number, not 'x'" in report["losses"]["malformed"]["examples"][0]


# Files and folders ----------------------------------------------------------------------------------------------------
def test_pictures_of_one_name_in_several_folders_stay_apart(tmp_path):
    folders = {"a": 10, "b": 20, "B/a": 30}
    images, annotations = [], []
    for folder, side in folders.items():
        for name in ("1.png", "1.PNG", "1.jpg", ".hidden.png"):
            write_picture(tmp_path / "set" / folder / name, side, side)
            images.append({"id": len(images), "file_name": f"{folder}/{name}", "width": side, "height": side})
            annotations.append(box(0, 0, 5, 5, image_id=images[-1]["id"]))
    content = {"images": images, "annotations": annotations, "categories": [{"id": 5, "name": "cat"}]}
    write_json(tmp_path / "set/labels.json", content)
    data, report = convert(tmp_path / "set", tmp_path / "new", split=[0.5, 0.25, 0.25])
    found = [pair for split in ("train", "val", "test") for pair in rows_of(data, split).items()]
    assert len(found) == len(images) and counts(report).keys() == {"renamed"}
    assert [len(rows_of(data, split)) for split in ("train", "val", "test")] == [6, 3, 3]
    for split in ("train", "val", "test"):
        for image, (row,) in zip(list_images(data[split]), rows_of(data, split).values(), strict=True):
            assert row[3] * cv2.imread(image).shape[1] == pytest.approx(5, abs=1e-3)


def test_a_name_that_several_files_have_is_not_guessed(tmp_path):
    coco_set(tmp_path / "set", [box(0, 0, 5, 5)], [{"id": 8, "file_name": "c.png", "width": 40, "height": 20}])
    for folder in ("train", "train/more"):
        write_picture(tmp_path / "set" / folder / "c.png", 40, 20)
    _, report = convert(tmp_path / "set", tmp_path / "new")
    assert counts(report) == {"ambiguous_pictures": 1}


HOSTILE = [
    "../../outside/x.png",
    "/{outside}/x.png",
    "..\\..\\outside\\x.png",
    "a\0b.png",
    "x" * 5000,
    "a/../../x.png",
    " ",
    ".",
]


def test_names_lead_nowhere_outside(tmp_path):
    outside = tmp_path / "outside"
    write_picture(outside / "x.png", 40, 20)
    size = {"width": 40, "height": 20}
    images = [{"id": 50 + i, "file_name": name.format(outside=outside), **size} for i, name in enumerate(HOSTILE)]
    (tmp_path / "in").mkdir()
    coco_set(tmp_path / "in/set", [box(0, 0, 5, 5)], images)
    before = snapshot(tmp_path)
    data, report = convert(tmp_path / "in/set", tmp_path / "in/new")
    assert rows_of(data, "train").keys() == {"a.png"}
    assert counts(report) == {"missing_pictures": len(HOSTILE) - 1, "malformed": 1}
    after = snapshot(tmp_path)
    assert {path: after[path] for path in before} == before
    assert all(path.is_relative_to(tmp_path / "in/new") for path in after.keys() - before.keys())


def test_a_picture_in_several_splits_is_divided_once(tmp_path):
    both = [{"id": i, "file_name": f"train/{name}.png", "width": 40, "height": 20} for i, name in enumerate("ab")]
    content = {"images": both, "annotations": [box(0, 0, 5, 5)], "categories": [{"id": 5, "name": "cat"}]}
    for name in ("a", "b"):
        write_picture(tmp_path / f"set/train/{name}.png", 40, 20)
    for split in ("train", "val"):
        write_json(tmp_path / f"set/{split}.json", content)
    data, report = convert(tmp_path / "set", tmp_path / "new")
    assert counts(report) == {"several_splits": 2} and rows_of(data, "train") == rows_of(data, "val")
    data, _ = convert(tmp_path / "set", tmp_path / "newer", split=[0.5, 0.5])
    assert sorted([*rows_of(data, "train"), *rows_of(data, "val")]) == ["a.png", "b.png"]


def test_a_picture_that_is_no_file_is_not_opened(tmp_path):
    coco_set(tmp_path / "set", [], [{"id": 2, "file_name": "zero.png", "width": 1, "height": 1}])
    (tmp_path / "set/train/zero.png").symlink_to("/dev/zero")
    _, report = convert(tmp_path / "set", tmp_path / "new")
    assert report["losses"]["unreadable_pictures"]["examples"][0].endswith("zero.png: is not a file but a device")


def test_links_lead_to_the_pictures_and_copies_are_files(tmp_path):
    write_coco(tmp_path / "set", samples())
    linked, _ = convert(tmp_path / "set", tmp_path / "linked", link=True)
    copied, _ = convert(tmp_path / "set", tmp_path / "copied")
    assert all(Path(path).resolve().is_relative_to(tmp_path / "set") for path in list_images(linked["train"]))
    assert not any(Path(path).is_symlink() for path in list_images(copied["train"]))
    assert rows_of(linked, "train") == rows_of(copied, "train")


def test_a_kill_leaves_nothing_that_looks_whole(tmp_path, monkeypatch):
    write_coco(tmp_path / "set", samples())
    put, done = write.put, []

    def stop(*args):
        put(*args)
        done.append(args)
        if len(done) == 3:
            if os.getpid() != parent:
                os._exit(9)
            raise KeyboardInterrupt

    parent = os.getpid()
    monkeypatch.setattr(write, "put", stop)
    with pytest.raises(KeyboardInterrupt):
        convert(tmp_path / "set", tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    done.clear()
    child = os.fork()
    if not child:
        try:
            convert(tmp_path / "set", tmp_path / "new")
        finally:
            os._exit(1)
    os.waitpid(child, 0)
    (left,) = (path for path in tmp_path.iterdir() if path.name != "set")
    assert left.name == f".new.{child}.partial" and not list(left.rglob("*.yaml"))
    monkeypatch.setattr(write, "put", put)
    convert(tmp_path / "set", tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "set"]


# Sentences ------------------------------------------------------------------------------------------------------------
XML = "<annotation><size><width>40</width><height>20</height></size>{}</annotation>"
ENTITIES = '<!DOCTYPE annotation [<!ENTITY a "{}">]>' + XML.format(voc_object("&a;", 1, 1, 5, 5))
HEAVY = {"images": [{"id": 1, "file_name": "a.png"}], "categories": [{"id": 1, "name": "cat"}]}
BAD = {
    "no JSON": ("a.json", '{"images": [', "a.json is not valid JSON: line 1"),
    "deep JSON": ("a.json", '{"images": [' + "[" * 100_000, "a.json is nested too deeply"),
    "a number of 5,000 digits": (
        "a.json",
        '{"images": [' + "1" * 5000 + "]}",
        "a.json holds a number of thousands of digits",
    ),
    "a list of images that is none": ("a.json", '{"annotations": [], "categories": [], "images": 3}', "images must be"),
    "no image": ("a.json", '{"annotations": [], "categories": [], "images": []}', "there are no pictures to convert"),
    "UTF-16": ("a.json", b'\xff\xfe{\0"\0', "no labels are seen"),
    "entities": ("a.xml", ENTITIES.format("cat"), "document type (DOCTYPE), whose entities are not read"),
    "entities of other files": ("a.xml", ENTITIES.replace('"{}"', 'SYSTEM "file:///etc/passwd"'), "DOCTYPE"),
    "deep XML": ("a.xml", "<annotation>" * 500, "is nested too deeply"),
    "no XML": ("a.xml", "<annotation><object></annotation>", "is not valid XML: line 1: mismatched tag"),
    "an unknown encoding": ("a.xml", '<?xml version="1.0" encoding="x-none"?><annotation></annotation>', "encoding"),
    "no column": ("a.csv", "ImageID,XMin\n1,2\n", "a.csv has no column LabelName in its first line"),
    "no text": ("a.csv", b"ImageID,LabelName,XMin,XMax,YMin,YMax\n\xff", "a.csv is not UTF-8 text: line 2"),
    "a long cell": ("a.csv", f"ImageID,LabelName,XMin,XMax,YMin,YMax\n{'x' * 200_000}", "not valid CSV behind line 1"),
    "labels of CVAT": (
        "a.xml",
        "<annotations></annotations>",
        "labels of CVAT: export them from there as YOLO or COCO",
    ),
    "nothing": ("a.txt", "", "no labels are seen in"),
    "pictures that are not there": (
        "a.json",
        json.dumps(HEAVY | {"annotations": []}),
        "name their folder with --images",
    ),
}


@pytest.mark.parametrize(("name", "content", "message"), BAD.values(), ids=BAD)
def test_a_bad_source_is_one_sentence(name, content, message, tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as error:
        convert_data.run(tmp_path / "set", to=tmp_path / "new")
    assert message in str(error.value) and "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_mask_of_any_size_takes_no_memory(tmp_path):
    huge = {"counts": [10**9 * 10**9], "size": [10**9, 10**9]}
    coco_set(tmp_path / "set", [box(0, 0, 5, 5, segmentation=huge)])
    _, report = convert(tmp_path / "set", tmp_path / "new", task="segment")
    assert "its mask is one of a picture of 1000000000x1000000000" in report["losses"]["no_outline"]["examples"][0]


def test_files_have_a_size_that_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MAX_JSON", 1 << 20)
    (tmp_path / "a.json").write_bytes(b" " * (2 << 20))
    with pytest.raises(UserError, match=r"a\.json has more than the 1 MB that are read"):
        reading.read_json(tmp_path / "a.json")


def test_options_are_checked_before_anything_is_read(tmp_path):
    write_coco(tmp_path / "set", samples())
    for options, message in (
        ({"to": tmp_path / "set"}, "set exists: name a new folder with --to"),
        (
            {"to": tmp_path / "new", "split": [0.5, 0.4]},
            "two or three parts that add up to 1, such as 0.8 0.2, not 0.5 0.4",
        ),
        ({"to": tmp_path / "new", "images": tmp_path / "none"}, "none does not exist"),
        ({"to": tmp_path / "new", "format": "voc"}, "no labels are seen in .*: looked for those of Pascal VOC"),
    ):
        with pytest.raises(UserError, match=message):
            convert_data.run(tmp_path / "set", **options)
    train, val = (tmp_path / f"set/annotations/instances_{split}.json" for split in ("train", "val"))
    with pytest.raises(UserError, match=r"only in train: divide them anew, for instance with --split 0\.8 0\.2$"):
        convert_data.run(train, to=tmp_path / "new")
    with pytest.raises(UserError, match=r"--split 0\.8 0\.2 \(2 pictures that are not there, left out: .*v\.1\.png\)"):
        convert_data.run([train, val], to=tmp_path / "new", images=tmp_path / "set/images/train")
    write_json(tmp_path / "set/a.json", {"shapes": [], "imagePath": "a.png"})
    with pytest.raises(UserError, match=r"labels of LabelMe \(1 files\) and COCO \(2 files\): choose with --format"):
        convert_data.run(tmp_path / "set", to=tmp_path / "new")
    convert(tmp_path / "set", tmp_path / "new", format="coco")


@pytest.mark.parametrize("form", WRITERS)
def test_the_command_that_a_training_names_can_be_pasted(form, tmp_path, monkeypatch):
    folder = tmp_path / "my set's"
    WRITERS[form](folder, samples())
    monkeypatch.chdir(tmp_path)
    file = next(path for path in sorted(folder.rglob("*")) if form_of(path))
    for source in (folder, file):
        with pytest.raises(UserError) as error:
            load_dataset(source)
        name = next(one.name for one in FORMS if one.key == form)
        assert f"holds labels of {name}, which this command converts: python -m utils.convert_data" in str(error.value)
    command = re.search(r"python -m utils\.convert_data (.*)$", str(error.value))[1]
    assert convert_data.cli.run_script(convert_data.main, convert_data.make_parser(), shlex.split(command)) == 0
    made = Path(shlex.split(command)[2])
    assert load_dataset(made / "data.yaml")["nc"] == 2
    assert yaml.safe_load((made / "data.yaml").read_text())["train"] == "images/train"


def test_a_module_that_is_a_folder_is_a_script_too(monkeypatch):
    monkeypatch.setattr("sys.argv", ["-m"])
    for module, expected in (("utils.convert_data", True), ("utils.data", False)):
        monkeypatch.setattr("sys.orig_argv", ["python", "-m", module])
        assert is_script() is expected
    assert (ROOT / "utils/convert_data/__main__.py").is_file()
