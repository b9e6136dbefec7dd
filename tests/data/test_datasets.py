"""Data sets: a wrong YAML is one sentence, nothing in a data set runs or changes, a broken picture ends no run."""

import hashlib
import os
import pickle
import re
import struct
import zlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from models.errors import UserError
from utils.data import dataset, description, scan, scenes, shapes
from utils.data.dataset import build_dataset
from utils.data.description import load_dataset
from utils.data.files import check_images, list_images

# isort: split
import cv2
import numpy as np
import torch
from ultralytics.cfg import get_cfg
from ultralytics.data.build import build_dataloader

from utils.data.scan import Record, Settings, examine, load_records, parse_labels, save_records

ROOT = Path(__file__).parents[2]
SETTINGS = Settings(nc=3, channels=3, single_cls=False)


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory, monkeypatch):
    """Keep label caches of tests out of the user's folder."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(folder))
    return folder


@pytest.fixture
def logged(monkeypatch):
    """The lines that are logged, as a list."""
    lines = []
    for level in ("info", "warning"):
        monkeypatch.setattr(dataset.LOGGER, level, lines.append)
    return lines


def write_picture(path: Path, height: int = 48, width: int = 64, seed: int = 0) -> Path:
    """Write a random picture whose format follows the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    assert cv2.imwrite(str(path), pixels)
    return path


def write_label(folder: Path, name: str, text: str) -> None:
    path = folder / "labels" / f"{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def folder(tmp_path):
    """A data set of four training pictures and two for validation, with two classes."""
    for i, name in enumerate(("train/a", "train/b", "train/c", "train/d", "val/a", "val/b")):
        write_picture(tmp_path / "set" / "images" / f"{name}.jpg", seed=i)
        write_label(tmp_path / "set", name, f"{i % 2} 0.5 0.5 0.25 0.{i + 1}\n")
    return tmp_path / "set"


def write_yaml(folder: Path, **changes: object) -> Path:
    """Write the YAML of the data set in `folder`; a change to None leaves the key away."""
    described = {"path": ".", "train": "images/train", "val": "images/val", "names": {0: "cat", 1: "dog"}} | changes
    file = folder / "pets.yaml"
    file.write_text(yaml.safe_dump({k: v for k, v in described.items() if v is not None}, allow_unicode=True))
    return file


def options(**changes: object) -> object:
    """The trainer's options, at 64 pixels and without workers."""
    return get_cfg(overrides={"imgsz": 64, "task": "detect", "workers": 0} | changes)


def build(folder: Path, split: str = "train", mode: str = "train", **changes: object):
    """Build the dataset of one split."""
    data = load_dataset(write_yaml(folder))
    return build_dataset(options(**changes), data[split], 2, data, mode=mode)


def digest(folder: Path) -> str:
    """Return a hash over names, contents and times below `folder`."""
    parts = [
        f"{path} {path.lstat().st_mtime_ns}".encode() + (path.read_bytes() if path.is_file() else b"")
        for path in sorted(folder.rglob("*"))
    ]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


# The YAML -------------------------------------------------------------------------------------------------------------
def test_good_yaml_gives_what_the_trainer_wants(folder):
    data = load_dataset(write_yaml(folder))
    assert data["train"] == str(folder / "images" / "train")
    assert data["val"] == str(folder / "images" / "val")
    assert data["test"] is None
    assert (data["nc"], data["names"], data["channels"]) == (2, {0: "cat", 1: "dog"}, 3)
    assert (data["path"], data["yaml_file"]) == (folder, str(folder / "pets.yaml"))


def test_lists_of_folders_and_list_files(folder):
    (folder / "few.txt").write_text("./images/train/a.jpg\nimages/train/b.jpg\n\n")
    data = load_dataset(write_yaml(folder, train=["images/train", "few.txt"], names=["cat", "dog"], nc=2))
    assert data["train"] == [str(folder / "images" / "train"), str(folder / "few.txt")]
    assert [Path(path).stem for path in list_images(data["train"])] == list("aabbcd")
    check_images(data)


LISTS = {
    "relative to the list": ("images", "train/{}.jpg"),
    "relative to the list, YOLOv5's way": ("images", "./train/{}.jpg"),
    "relative to the data set": ("lists", "images/train/{}.jpg"),
    "relative to the current folder": ("lists", "set/images/train/{}.jpg"),
    "absolute": ("lists", "{root}/images/train/{}.jpg"),
    "of Windows, relative to the list": ("images", "train\\{}.jpg"),
    "of Windows, YOLOv5's way": ("images", ".\\train\\{}.jpg"),
    "of Windows, relative to the data set": ("lists", "images\\train\\{}.jpg"),
    "of Windows, relative to the current folder": ("lists", "set\\images\\train\\{}.jpg"),
}


@pytest.mark.parametrize(("where", "line"), LISTS.values(), ids=LISTS)
def test_pictures_of_a_list(folder, tmp_path, monkeypatch, where, line):
    monkeypatch.chdir(tmp_path)
    (folder / where).mkdir(exist_ok=True)
    (folder / where / "train.txt").write_text("".join(line.format(name, root=folder) + "\r\n" for name in "ca"))
    data = load_dataset(write_yaml(folder, train=f"{where}/train.txt"))
    check_images(data)
    dataset = build_dataset(options(), data["train"], 2, data)
    assert dataset.rejected == []
    assert [Path(path).resolve() for path in dataset.im_files] == [folder / f"images/train/{n}.jpg" for n in "ac"]
    assert [len(label["cls"]) for label in dataset.labels] == [1, 1]


def test_pictures_of_a_list_that_are_not_there_are_named(folder):
    (folder / "train.txt").write_text("images/train/a.jpg\nimages/train/gone.jpg\n")
    data = load_dataset(write_yaml(folder, train="train.txt"))
    rejected = build_dataset(options(), data["train"], 2, data).rejected
    assert rejected == [("images/train/gone.jpg", "it does not exist")]


def test_a_list_of_which_nothing_is_there(folder):
    (folder / "train.txt").write_text("C:\\pets\\a.jpg\nC:\\pets\\b.jpg\n")
    with pytest.raises(UserError, match=r"none of the 2 pictures on .*train\.txt is there, such as C:\\pets\\a\.jpg"):
        check_images(load_dataset(write_yaml(folder, train="train.txt")))


def test_backslashes_in_a_yaml(folder):
    file = write_yaml(folder, path=r"..\set", train=r"images\train", val=r"..\images\val")
    data = load_dataset(file)
    assert (data["path"], data["train"], data["val"]) == (folder, f"{folder}/images/train", f"{folder}/images/val")


@pytest.mark.parametrize("path", ["set", None], ids=["path from the working folder", "no path"])
def test_yolov5_paths(folder, tmp_path, monkeypatch, path):
    (tmp_path / "yamls").mkdir()
    file = write_yaml(folder, path=path).rename(tmp_path / "yamls" / "pets.yaml")
    monkeypatch.chdir(tmp_path if path else folder)
    assert load_dataset(file)["train"] == str(folder / "images" / "train")


def test_roboflow_paths(folder):
    data = load_dataset(write_yaml(folder, path=None, train="../images/train", val="../images/val"))
    assert data["val"] == str(folder / "images" / "val")


def test_numbers_are_names_too(folder):
    assert load_dataset(write_yaml(folder, names=[7, 0.5]))["names"] == {0: "7", 1: "0.5"}


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"channels": "3"}, ["cat", "dog"]),
        ({"names": {"1": "dog", "0": "cat"}}, ["cat", "dog"]),
        ({"names": {0: "cat", "1": "dog"}, "nc": "2"}, ["cat", "dog"]),
        ({"names": ["cat", "dog"], "nc": 2.0}, ["cat", "dog"]),
        ({"names": None, "nc": 2}, ["class_0", "class_1"]),
        ({"names": None, "nc": "2"}, ["class_0", "class_1"]),
    ],
)
def test_classes_as_yolov5_and_ultralytics_take_them(folder, changes, names):
    data = load_dataset(write_yaml(folder, **changes))
    assert (data["names"], data["nc"]) == (dict(enumerate(names)), 2)


def test_validation_stands_for_val(folder):
    assert load_dataset(write_yaml(folder, val=None, validation="images/val"))["val"] == str(folder / "images/val")
    assert load_dataset(write_yaml(folder, validation="gone"))["val"] == str(folder / "images/val")


BAD_YAMLS = {
    "train missing": ({"train": None}, "key 'train' is missing"),
    "val misspelt": ({"val": None, "vla": "images/val"}, "'val' is missing; 'vla' is unknown (did you mean 'val'?)"),
    "names missing": ({"names": None}, "key 'names' is missing"),
    "train of a wrong kind": ({"train": 3}, "train must be a folder, a list file or a list of them, not int 3"),
    "train an empty list": ({"train": []}, "not list []"),
    "train a list of numbers": ({"train": ["images/train", 5]}, "not int 5"),
    "train with a zero character": ({"train": "a\0b"}, "train must be a folder"),
    "train with a long name": ({"train": "x" * 300}, "train must be a folder"),
    "train not there": ({"train": "images/trian"}, "images/trian, which is not there (did you mean 'train'?)"),
    "train a zip": ({"train": "pets.yaml"}, "a .txt list of them, not"),
    "path not there": ({"path": "nowhere"}, "looked for"),
    "path of a wrong kind": ({"path": ["a"]}, "path must be the data set's folder, not list ['a']"),
    "names a text": ({"names": "cat"}, "names must be a list"),
    "names empty": ({"names": []}, "not list []"),
    "names with a gap": ({"names": {0: "cat", 2: "dog"}}, "numbered from 0 to 1 without gaps, but has int 2"),
    "names from 1": ({"names": {1: "cat", 2: "dog"}}, "without gaps, but has int 2"),
    "names with other text keys": ({"names": {"0": "cat", "b": "dog"}}, "but has str 'b'"),
    "names with a long text key": ({"names": {"0": "cat", "1" * 5000: "dog"}}, "without gaps, but has str '111"),
    "names with a number twice": ({"names": {0: "cat", "0": "dog"}}, "names has class 0 more than once"),
    "names with a bool key": ({"names": {0: "cat", True: "dog"}}, "but has bool True"),
    "name a bool": ({"names": ["yes", True]}, "class 1 of names is true, so put it in quotes"),
    "name nothing": ({"names": ["cat", None]}, "class 1 of names must be a text, not nothing"),
    "name a list": ({"names": [["cat"]]}, "class 0 of names must be a text, not list ['cat']"),
    "name blank": ({"names": ["cat", " "]}, "class 1 of names must be a text"),
    "half of a character in a name": ({"names": ["\ud800cat"]}, r"cannot be printed: '\ud800cat'"),
    "long name": ({"names": ["c" * 900]}, "class 0 has a name of 900 characters, more than 255"),
    "too many names": ({"names": [f"{i}" for i in range(20_001)]}, "names of 20,001 classes, more than 20,000"),
    "name with a line break": ({"names": ["c\nat"]}, "cannot be printed: 'c\\nat'"),
    "names twice": ({"names": ["cat", "dog", "cat"]}, "names has 'cat' 2 times"),
    "nc wrong": ({"nc": 3}, "nc is 3, but names has 2 classes"),
    "nc as a text wrong": ({"nc": "3"}, "nc is 3, but names has 2 classes"),
    "nc a text": ({"nc": "two"}, "nc must be a whole number from 1 to 20000, not str 'two'"),
    "nc a bool": ({"nc": True, "names": ["cat"]}, "nc must be a whole number from 1 to 20000, not bool True"),
    "nc not whole": ({"nc": 1.5, "names": None}, "not float 1.5"),
    "nc nothing like one": ({"nc": "nan", "names": None}, "not str 'nan'"),
    "nc too large": ({"nc": 10**400, "names": None}, "nc must be a whole number"),
    "nc 0": ({"nc": 0, "names": None}, "nc must be a whole number"),
    "validation not there": ({"val": None, "validation": "images/vali"}, "val names"),
    "channels wrong": ({"channels": 0}, "channels must be a whole number"),
    "kpt_shape wrong": ({"kpt_shape": "many"}, "kpt_shape must be two whole numbers"),
}


@pytest.mark.parametrize(("changes", "message"), BAD_YAMLS.values(), ids=BAD_YAMLS)
def test_bad_yaml_is_one_sentence(folder, changes, message):
    (folder / "pets.yaml").touch()
    file = write_yaml(folder, **changes)
    with pytest.raises(UserError) as caught:
        load_dataset(file)
    assert message in str(caught.value)
    assert "pets.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert type(caught.value) is UserError


BAD_FILES = {
    "a list": (b"- train", "expected keys such as train, val and names, got list"),
    "nothing": (b"", "got nothing"),
    "broken": (b"train: [a\nval: b", "is not valid YAML: line 2"),
    "not text": (b"\xff\xfe\x00\xd8", "is not valid YAML"),
    "a Python object": (b"train: !!python/object/apply:os.system [ls]", "is not valid YAML: line 1"),
    "a bad date": (b"train: 2021-99-99", "is not valid YAML"),
    "nested too deeply": (b"[" * 1500, "is not valid YAML"),
    "too large": (b"#" * 2_000_000, "is larger than 1 MB"),
}


@pytest.mark.parametrize(("content", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_file_is_one_sentence(tmp_path, content, message):
    (tmp_path / "bad.yaml").write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_dataset(tmp_path / "bad.yaml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["nowhere.yaml", "coco129", ROOT / "data", "https://example.com/coco.yaml"])
def test_missing_yaml_is_one_sentence(name):
    with pytest.raises(UserError, match=r"there is no file|is not a file but a folder") as caught:
        load_dataset(name)
    assert ("did you mean 'coco128.yaml'" in str(caught.value)) == ("coco" in str(name))


def test_test_split_is_needed_only_when_asked_for(folder):
    file = write_yaml(folder, test="images/test")
    assert load_dataset(file)["test"] == str(folder / "images" / "test")
    with pytest.raises(UserError, match=r"test names .*images/test, which is not there"):
        load_dataset(file, split="test")
    with pytest.raises(UserError, match="key 'test' is missing"):
        load_dataset(write_yaml(folder), split="test")


@pytest.mark.parametrize(
    ("name", "split", "classes"),
    [
        ("shapes", "test", ["circle", "square", "triangle", "star"]),
        ("shapes.yaml", "test", ["circle", "square", "triangle", "star"]),
        (ROOT / "data/shapes.yaml", "test", ["circle", "square", "triangle", "star"]),
        ("scenes", "val", list(scenes.NAMES)),
    ],
)
def test_built_in_set_is_drawn_at_first_use(name, split, classes, tmp_path, monkeypatch):
    few = {
        description.SHAPES: shapes.Recipe(train=2, val=1, test=1, film_frames=1),
        description.SCENES: scenes.Recipe(train=2, val=1),
    }
    monkeypatch.setattr(description, "DRAWN", few)
    monkeypatch.setattr(description, "drawn_folder", lambda _, recipe: tmp_path / recipe.name)
    data = load_dataset(name, split=split)
    assert Path(data[split]) == tmp_path / Path(name).stem / "images" / split
    assert len(list(Path(data["train"]).iterdir())) == 2
    assert list(data["names"].values()) == classes


@pytest.mark.parametrize("name", ["coco", "coco128", "VOC"])
def test_the_other_yamls_are_sound(name, tmp_path, monkeypatch):
    described = yaml.safe_load((ROOT / "data" / f"{name}.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for split in ("train", "val"):
        for entry in described[split] if isinstance(described[split], list) else [described[split]]:
            path = tmp_path / "here" / described["path"] / entry
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch() if path.suffix else path.mkdir(exist_ok=True)
    data = load_dataset(name)
    assert data["nc"] == {"coco": 80, "coco128": 80, "VOC": 20}[name]
    assert str(tmp_path) in str(data["val"])


@pytest.mark.parametrize("script", ["bash -c 'touch {marker}'", "open({marker!r}, 'w')", "https://example.com/a.zip"])
def test_download_is_not_run(folder, tmp_path, logged, script):
    marker = tmp_path / "marker"
    load_dataset(write_yaml(folder, download=script.format(marker=str(marker))))
    assert not marker.exists()
    assert [line for line in logged if "'download' is ignored" in line]
    with pytest.raises(UserError):
        load_dataset(write_yaml(folder, train="gone", download=script.format(marker=str(marker))))
    assert not marker.exists()


# Pictures and labels --------------------------------------------------------------------------------------------------
def test_empty_split_is_an_error(folder):
    (folder / "images" / "none").mkdir()
    data = load_dataset(write_yaml(folder, val="images/none"))
    with pytest.raises(UserError, match=r"there are no pictures in .*images/none"):
        check_images(data)
    check_images(data, splits=["train"])
    with pytest.raises(UserError, match="describes no test split"):
        check_images(data, splits=["test"])


def test_split_without_labels_is_an_error(folder):
    for path in (folder / "labels" / "train").iterdir():
        path.unlink()
    with pytest.raises(
        UserError, match=r"no labels found for the train split: looked for .*labels/train/a\.txt and 3 more"
    ):
        check_images(load_dataset(write_yaml(folder)))


def test_no_label_file_is_told_apart_from_an_empty_one(folder, logged):
    (folder / "labels" / "train" / "b.txt").unlink()
    write_label(folder, "train/c", "\n")
    states = {Path(label["im_file"]).name: len(label["cls"]) for label in build(folder).labels}
    assert states == {"a.jpg": 1, "b.jpg": 0, "c.jpg": 0, "d.jpg": 1}
    said = "\n".join(logged)
    assert "2 with objects, 1 with an empty label file, 1 without a label file, 0 rejected" in said
    assert f"there is no {folder}/labels/train/b.txt" in said


def test_labels_beside_pictures_in_a_folder_called_images(folder):
    for path in (folder / "labels" / "train").iterdir():
        path.rename(folder / "images" / "train" / path.name)
    data = load_dataset(write_yaml(folder))
    check_images(data, training=True)
    for split in ("train", "val"):
        found = build_dataset(options(), data[split], 2, data, mode="val")
        assert all(len(label["cls"]) == 1 for label in found.labels)
    write_label(folder, "train/a", "1 0.5 0.5 0.5 0.5\n1 0.25 0.25 0.5 0.5\n")  # where YOLOv5 looks: that counts
    assert [len(label["cls"]) for label in build(folder).labels] == [2, 0, 0, 0]


@pytest.mark.parametrize("line", ["images/train/{}.jpg", r"images\train\{}.jpg", "./images/train/{}.jpg"])
def test_labels_of_a_list_with_relative_lines_from_the_folder_of_the_data(folder, monkeypatch, line):
    (folder / "few.txt").write_text("\n".join(line.format(name) for name in "abcd"))
    monkeypatch.chdir(folder)
    data = load_dataset(write_yaml(folder, train="few.txt"))
    check_images(data, training=True)
    found = build_dataset(options(), data["train"], 2, data, mode="val").labels
    assert [len(label["cls"]) for label in found] == [1, 1, 1, 1]


@pytest.mark.parametrize("split", ["images/{}", "../set/images/{}"])
@pytest.mark.parametrize("place", ["beside the link", "at its target"])
@pytest.mark.parametrize("linked", ["images", "images/train"])
def test_labels_of_a_folder_that_is_a_link(folder, tmp_path, linked, place, split):
    target = tmp_path / "pool" / linked.replace("images", "pictures" if place == "beside the link" else "images")
    target.parent.mkdir(parents=True)
    (folder / linked).rename(target)
    (folder / linked).symlink_to(target, target_is_directory=True)
    if place == "at its target":
        labels = linked.replace("images", "labels")
        (tmp_path / "pool" / labels).parent.mkdir(exist_ok=True)
        (folder / labels).rename(tmp_path / "pool" / labels)
    data = load_dataset(write_yaml(folder, train=split.format("train"), val=split.format("val")))
    check_images(data, training=True)
    found = build_dataset(options(), data["train"], 2, data, mode="val").labels
    assert [len(label["cls"]) for label in found] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"the train split has no objects: .*a\.txt and 3 more label files have no rows"),
        ("\n\n", "the train split has no objects"),
        ("1 .5 .5 0 .1\n0 .5 .5 .1 0", r"no object that can be used: a\.txt has 2 boxes without area left out"),
        ("7 .5 .5 .1 .1", r"no object that can be used: a\.txt, line 1 has the class 7, but the classes are 0 to 1"),
    ],
)
def test_a_training_split_without_objects_is_refused(folder, text, message):
    for name in "abcd":
        write_label(folder, f"train/{name}", text)
    data = load_dataset(write_yaml(folder))
    check_images(data)  # enough to validate, quantize or compare
    with pytest.raises(UserError, match=message):
        check_images(data, training=True)
    if "7" not in text:
        assert len(build(folder, mode="val")) == 4
        with pytest.raises(UserError, match="nothing to train on: the 4 pictures that can be used have no objects"):
            build(folder)


VOC = "<annotation><filename>a.jpg</filename><object><name>cat</name></object></annotation>"
COCO = '{"info": {}, "images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [], "categories": []}'
LABELME = '{"version": "5.4.1", "flags": {}, "shapes": [{"label": "cat"}], "imagePath": "a.jpg"}'
FOREIGN = {
    "VOC in its folder": ("Annotations/a.xml", f'<?xml version="1.0"?>\n{VOC}', "Pascal VOC"),
    "VOC beside pictures": ("images/train/a.xml", VOC, "Pascal VOC"),
    "VOC where labels belong": ("labels/train/a.xml", VOC, "Pascal VOC"),
    "COCO": ("annotations/instances_train.json", COCO, "COCO"),
    "COCO beside pictures": ("images/train/_annotations.coco.json", COCO, "COCO"),
    "LabelMe": ("images/train/a.json", LABELME, "LabelMe"),
    "CVAT": ("annotations.xml", "<annotations><image/></annotations>", "CVAT"),
    "CreateML": ("images/train/_annotations.createml.json", '[{"image": "a.jpg", "annotations": []}]', "CreateML"),
}


@pytest.mark.parametrize(("name", "text", "form"), FOREIGN.values(), ids=FOREIGN)
def test_labels_of_other_tools_are_named(folder, name, text, form):
    for path in (folder / "labels" / "train").iterdir():
        path.unlink()
    (folder / "package.json").write_text('{"name": "not labels"}')
    (folder / name).parent.mkdir(exist_ok=True, parents=True)
    (folder / name).write_text(text)
    with pytest.raises(UserError) as caught:
        check_images(load_dataset(write_yaml(folder)))
    what = f"python -m utils.convert_data {folder} --to {folder}-yolo"
    todo = ": export them from there as YOLO or COCO" if form == "CVAT" else f", which this command converts: {what}"
    assert str(caught.value).endswith(f"and 3 more; {folder / name} holds labels of {form}{todo}")


def test_a_split_that_is_a_file_of_another_tool(folder):
    (folder / "train.json").write_text(COCO)
    said = rf"train\.json, which holds labels of COCO, which this command converts: .* {folder} --to {folder}-yolo$"
    with pytest.raises(UserError, match=said):
        load_dataset(write_yaml(folder, train="train.json"))


def test_a_list_of_names_without_suffix(folder):
    (folder / "train.txt").write_text("2007_000027\n2007_000032\n")
    (folder / "Annotations").mkdir()
    (folder / "Annotations" / "2007_000027.xml").write_text(VOC)
    first = "its first line is '2007_000027'"
    for source, said in (("train.txt", f"{first}; .*"), ("Annotations", ".*")):
        with pytest.raises(UserError, match=rf"no pictures in .*{source} .*; {said}/2007_000027\.xml holds labels"):
            check_images(load_dataset(write_yaml(folder, train=source)))


ENCODED = {
    "UTF-16 as Windows writes it": ("\ufeff{}", "utf-16-le", "is text in UTF-16: save it as UTF-8"),
    "UTF-16, big-endian": ("\ufeff{}", "utf-16-be", "is text in UTF-16: save it as UTF-8"),
    "UTF-16 without its mark": ("{}", "utf-16-le", "is text in UTF-16: save it as UTF-8"),
    "UTF-32": ("{}", "utf-32", "is text in UTF-32: save it as UTF-8"),
    "Latin-1": ("{}\n\xe9\n", "latin-1", "is not UTF-8 text: line 2 has the byte 0xe9"),
}


@pytest.mark.parametrize(("form", "encoding", "message"), ENCODED.values(), ids=ENCODED)
def test_text_in_another_encoding_is_named(folder, form, encoding, message):
    (folder / "labels" / "train" / "b.txt").write_bytes(form.format("0 .5 .5 .2 .2").encode(encoding))
    assert [reason for _, reason in build(folder).rejected] == [f"its label file b.txt {message}"]
    (folder / "list.txt").write_bytes(form.format("images/train/a.jpg").encode(encoding))
    with pytest.raises(UserError, match=rf"the list of pictures .*list\.txt {message}"):
        list_images(str(folder / "list.txt"))


def test_a_mark_of_utf_8_is_no_part_of_the_text(folder):
    (folder / "labels" / "train" / "b.txt").write_bytes(b"\xef\xbb\xbf1 .5 .5 .2 .2\r\n")
    assert build(folder).rejected == []


def test_links_in_a_circle_and_hidden_files(folder):
    (folder / "images" / "train" / "again").symlink_to(folder / "images" / "train", target_is_directory=True)
    write_picture(folder / "images" / "train" / ".trash" / "x.jpg")
    (folder / "images" / "train" / "._a.jpg").write_bytes(b"junk")
    assert len(list_images(str(folder / "images" / "train"))) == 4


def test_pictures_of_any_name(folder):
    names = ["e.jfif", "f.JPE", "g.ppm", "h", "h.v2/i"]
    for name in names:
        path = folder / "images" / "train" / name
        write_picture(path.with_name("x.ppm" if name == "g.ppm" else "x.jpg")).rename(path)
        write_label(folder, f"train/{Path(name).with_suffix('')}", "1 0.5 0.5 0.25 0.25\n")
    (folder / "images" / "train" / "README").write_text("about these pictures")
    (folder / "train.txt").write_text("".join(f"images/train/{name}\n" for name in names))
    for source in ("images/train", "train.txt"):
        data = load_dataset(write_yaml(folder, train=source))
        found = build_dataset(options(), data["train"], 2, data, mode="val")
        assert found.rejected == []
        used = {str(Path(path).relative_to(folder / "images/train")) for path in found.im_files}
        assert used - set("abcd") >= set(names) and not used & {"README"}
        assert all(len(label["cls"]) for label in found.labels)


def png_that_claims(width: int, height: int) -> bytes:
    """Return a valid PNG header with almost no pixels behind it."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def spoil(path: Path, how: str) -> None:
    """Make the JPEG or PNG at `path` unusable."""
    whole = path.read_bytes()
    contents = {
        "is empty": b"",
        "known format": b"<html>404</html>",
        "truncated": whole[: len(whole) // 2],
        "20000x20000 pixels, more than the 100 million allowed": png_that_claims(20000, 20000),
        "12000x12000 pixels, more than the 100 million allowed": png_that_claims(12000, 12000),
        "cannot be decoded": png_that_claims(64, 64),
    }
    if how == "too few":
        write_picture(path, 5, 64)
    elif how == "does not exist":
        path.unlink()
        path.symlink_to("nowhere")
    else:
        path.write_bytes(contents[how])


@pytest.mark.parametrize(
    "how",
    [
        "is empty",
        "known format",
        "truncated",
        "20000x20000 pixels, more than the 100 million allowed",
        "12000x12000 pixels, more than the 100 million allowed",
        "cannot be decoded",
        "too few",
        "does not exist",
    ],
)
def test_bad_picture_is_skipped_named_and_left_as_it_is(folder, logged, how):
    bad = folder / "images" / "train" / "b.jpg"
    spoil(bad, how)
    file, before = write_yaml(folder), digest(folder)
    data = load_dataset(file)
    dataset = build_dataset(options(), data["train"], 2, data)
    assert [(path, how in reason) for path, reason in dataset.rejected] == [(str(bad), True)], dataset.rejected
    assert len(dataset) == len(dataset.im_files) == 3
    assert "4 pictures: 3 with objects, 0 with an empty label file, 0 without a label file, 1 rejected" in "\n".join(
        logged
    )
    assert str(bad) in "\n".join(logged)
    assert digest(folder) == before
    assert len([dataset[i] for i in range(3)]) == 3


def test_junk_after_the_end_of_a_jpeg_is_no_reason_to_reject_or_rewrite(folder):
    path = folder / "images" / "train" / "b.jpg"
    path.write_bytes(path.read_bytes() + b"junk")
    before = digest(folder / "images")
    assert build(folder).rejected == []
    assert digest(folder / "images") == before


def test_shape_is_the_decoded_one(folder):
    path = folder / "images" / "train" / "b.jpg"
    whole = path.read_bytes()
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"  # turned by 90°
    path.write_bytes(whole[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + whole[2:])
    dataset = build(folder)
    assert [label["shape"] for label in dataset.labels] == [(48, 64), (64, 48), (48, 64), (48, 64)]
    assert dataset.load_image(1)[1] == (64, 48)


def test_only_some_rejected_pictures_are_named(folder, logged):
    for i in range(15):
        (folder / "images" / "train" / f"bad{i}.jpg").write_bytes(b"")
    assert len(build(folder).rejected) == 15
    warning = next(line for line in logged if "15 rejected:" in line)
    assert warning.count(".jpg") == 10
    assert warning.endswith("and 5 more")


def test_no_usable_picture_is_an_error(folder):
    for path in (folder / "images" / "train").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"none of the 4 pictures can be used: .*the file is empty"):
        build(folder)


BAD_LABELS = {
    "0 0.5 0.5 0.5": "line 1 has 4 columns instead of the 5",
    "0 0.5 0.5 0.5 0.5 0.9": "line 1 has 6 columns: class x y w h are 5, and a polygon of 3 points and its class are 7",
    "0 .1 .1 .2 .2 .3 .3\n0 .1 .1 .2 .2 .3 .3 .4": "line 2 has a polygon with an odd number of coordinates, 7",
    "0 .1 .1 .2 .2 .3 1.3": "line 1 has coordinates that are not from 0 to 1",
    "0 .1 .1 .2 .2 .3 nan": "line 1 has coordinates that are not from 0 to 1",
    "0 0.5 0.5 0.5 0.5\n\n0 a 0.5 0.5 0.5": "line 3 holds something that is not a number",
    "0.5 0.5 0.5 0.5 0.5": "class 0.5, which is no class number",
    "-1 0.5 0.5 0.5 0.5": "class -1, which is no class number",
    "nan 0.5 0.5 0.5 0.5": "class nan, which is no class number",
    "3 0.5 0.5 0.5 0.5": "class 3, but the classes are 0 to 2",
    "0 0.5 0.5 0.5 1.5": "coordinates that are not from 0 to 1",
    "0 0.5 nan 0.5 0.5": "coordinates that are not from 0 to 1",
    "0 0.5 0.5 0.5 inf": "coordinates that are not from 0 to 1",
    "0 0.5 0.5 -0.005 0.5": "negative width or height",
}


@pytest.mark.parametrize(("text", "reason"), BAD_LABELS.items())
def test_bad_label_row_names_the_line(text, reason):
    with pytest.raises(ValueError, match=re.escape(reason)):
        parse_labels(text, SETTINGS)


def test_good_label_rows():
    rows, segments, note = parse_labels("0 .5 .5 .2 .2\n2 .5 .5 1 1.005\n0 .5 .5 .2 .2\n1 .5 .5 0 .1\n", SETTINGS)
    assert np.allclose(rows, [[0, 0.5, 0.5, 0.2, 0.2], [2, 0.5, 0.5, 1, 1.005]])
    assert (segments, note) == ([], "1 repeated rows left out, 1 boxes without area left out")
    assert rows.dtype == np.float32


def test_polygons_become_boxes():
    rows, segments, _ = parse_labels("1 .1 .2 .5 .2 .5 .8\n", SETTINGS)
    assert np.allclose(rows, [[1, 0.3, 0.5, 0.4, 0.6]])
    assert np.allclose(segments[0], [[0.1, 0.2], [0.5, 0.2], [0.5, 0.8]])


def test_boxes_and_polygons_are_mixed():
    rows, segments, note = parse_labels("2 .5 .5 .2 .4\n1 .1 .2 .5 .2 .5 .8\n0 .5 .5 0 .1\n", SETTINGS)
    assert np.allclose(rows, [[2, 0.5, 0.5, 0.2, 0.4], [1, 0.3, 0.5, 0.4, 0.6]])
    assert [segment.shape for segment in segments] == [(0, 2), (3, 2)]
    assert note == "1 boxes without area left out"


def test_keypoints_are_skipped_and_one_class_takes_all():
    posed = Settings(nc=1, channels=3, single_cls=True, keypoint_columns=6)
    rows, _, _ = parse_labels("7 .5 .5 .2 .2 0 0 1 0 0 1", posed)
    assert np.allclose(rows, [[7, 0.5, 0.5, 0.2, 0.2]])


def test_bad_label_rejects_its_picture(folder):
    write_label(folder, "train/c", "9 0.5 0.5 0.5 0.5")
    (folder / "labels" / "train" / "d.txt").unlink()
    (folder / "labels" / "train" / "d.txt").mkdir()
    for name, target in {"e": "/dev/zero", "f": "f.txt"}.items():
        write_picture(folder / "images" / "train" / f"{name}.jpg", 64, 64)
        (folder / "labels" / "train" / f"{name}.txt").symlink_to(target)
    reasons = {Path(path).name: reason for path, reason in build(folder).rejected}
    assert reasons == {
        "c.jpg": "c.txt, line 1 has the class 9, but the classes are 0 to 1",
        "d.jpg": "its label file d.txt is not a file but a folder",
        "e.jpg": "its label file e.txt is not a file but a device",
        "f.jpg": "its label file f.txt is a link that leads to itself",
    }


# The cache ------------------------------------------------------------------------------------------------------------
class Evil:
    """Touches a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return Path.touch, (self.marker,)


def test_yolov5s_pickled_caches_are_neither_loaded_nor_changed(folder, tmp_path):
    marker = tmp_path / "marker"
    np.save(tmp_path / "evil.npy", np.array(Evil(marker)), allow_pickle=True)
    (folder / "train.txt").write_text("./images/train/a.jpg\n")
    for place in ("labels/train.cache", "labels/train/labels.cache", "images/train.cache", "train.cache"):
        (folder / place).write_bytes((tmp_path / "evil.npy").read_bytes())
    data = load_dataset(write_yaml(folder, train=["images/train", "train.txt"]))
    before = digest(folder)
    assert len(build_dataset(options(), data["train"], 2, data)) == 5
    assert digest(folder) == before
    assert not marker.exists()
    np.load(tmp_path / "evil.npy", allow_pickle=True)
    assert marker.exists()  # the trap works


def test_pickled_cache_in_our_own_folder_is_not_loaded(folder, private_cache, tmp_path):
    marker = tmp_path / "marker"
    build(folder)
    (cache,) = (private_cache / "labels").iterdir()
    np.savez(cache, text=np.array(Evil(marker)))
    assert len(build(folder)) == 4
    cache.write_bytes(pickle.dumps(Evil(marker)))
    assert len(build(folder)) == 4
    assert not marker.exists()


def test_scan_leaves_the_data_set_as_it_is_and_is_remembered(folder, private_cache, monkeypatch):
    file = write_yaml(folder)
    before = digest(folder)
    data = load_dataset(file)
    first = build_dataset(options(), data["train"], 2, data)
    for i in range(len(first)):
        first[i]
    assert digest(folder) == before
    assert len(list(private_cache.rglob("*.npz"))) == 1
    monkeypatch.setattr("utils.data.scan.examine", lambda *_: pytest.fail("looked again"))
    second = build(folder)
    assert second.im_files == first.im_files
    for one, two in zip(first.labels, second.labels, strict=True):
        assert one["shape"] == two["shape"]
        assert np.array_equal(one["cls"], two["cls"])
        assert np.array_equal(one["bboxes"], two["bboxes"])


def test_only_changed_files_are_looked_at_again(folder, monkeypatch):
    build(folder)
    looked, original = [], examine
    monkeypatch.setattr(
        "utils.data.scan.examine", lambda image, *rest: looked.append(Path(image).name) or original(image, *rest)
    )
    label, times = folder / "labels" / "train" / "b.txt", (folder / "labels" / "train" / "b.txt").stat()
    label.write_text(label.read_text().replace("0.25", "0.75"))
    os.utime(label, ns=(times.st_atime_ns, times.st_mtime_ns))  # as if it had not been touched
    write_picture(folder / "images" / "train" / "e.jpg")
    again = build(folder)
    assert sorted(looked) == ["b.jpg", "e.jpg"]
    assert again.labels[1]["bboxes"][0][2] == np.float32(0.75)
    assert len(again.labels[4]["cls"]) == 0


def test_rejected_pictures_are_looked_at_again(folder, monkeypatch):
    imread = scan.imread
    monkeypatch.setattr(
        "utils.data.scan.imread", lambda path, flags: None if path.endswith("b.jpg") else imread(path, flags)
    )
    assert len(build(folder).rejected) == 1
    monkeypatch.setattr("utils.data.scan.imread", imread)  # as when the disk or the rights have been repaired
    assert build(folder).rejected == []


def test_cache_keeps_polygons_and_odd_names(tmp_path):
    polygons = [np.random.rand(n, 2).astype(np.float32) for n in (3, 5)]
    records = [
        Record("a\udcff\n.jpg", (1, 2, 3, 4), "labelled", (10, 20), np.ones((2, 5), np.float32), polygons, "note"),
        Record("b.jpg", (5, 6, -1, -1), "missing", (30, 40)),
        Record("c.jpg", (5, 6, 7, 8), "labelled", (3, 4), np.ones((1, 5), np.float32), polygons[:1]),
    ]
    save_records(tmp_path / "cache.npz", records)
    assert [path.name for path in tmp_path.iterdir()] == ["cache.npz"]
    for one, two in zip(records, load_records(tmp_path / "cache.npz"), strict=True):
        assert (one.path, one.stamp, one.state, one.shape, one.note) == (
            two.path,
            two.stamp,
            two.state,
            two.shape,
            two.note,
        )
        assert np.array_equal(one.rows, two.rows)
        assert all(np.array_equal(a, b) for a, b in zip(one.segments, two.segments, strict=True))


@pytest.mark.parametrize("damage", ["cut", "other version"])
def test_damaged_cache_is_no_cache(tmp_path, monkeypatch, damage):
    file = tmp_path / "cache.npz"
    save_records(file, [Record("b.jpg", (5, 6, -1, -1), "missing", (30, 40))])
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-40])
    else:
        monkeypatch.setattr("utils.data.scan.CACHE_VERSION", 99)
    assert load_records(file) == []
    assert load_records(tmp_path / "nowhere.npz") == []


def test_cache_that_cannot_be_written_costs_only_time(folder, private_cache, logged):
    (private_cache / "labels").write_text("a file in the way")
    assert len(build(folder)) == 4
    assert [line for line in logged if "was not written" in line]


# Loading --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("mode", "rect"), [("train", False), ("val", True)])
def test_a_batch_comes_out(folder, mode, rect):
    data = load_dataset(write_yaml(folder))
    dataset = build_dataset(options(mosaic=1.0), data[mode], 2, data, mode=mode, rect=rect)
    assert dataset.augment == (mode == "train")
    loader = build_dataloader(dataset, batch=2, workers=0, shuffle=mode == "train", device="cpu")
    batch = next(iter(loader))
    assert batch["img"].dtype == torch.uint8
    assert batch["img"].shape == (2, 3, 64, 64) if mode == "train" else (2, 3, 64, 96)
    assert batch["bboxes"].shape == (len(batch["cls"]), 4)
    assert len(batch["cls"]) > 0


def test_pictures_sorted_for_rectangles_keep_their_shapes(folder):
    write_picture(folder / "images" / "train" / "b.jpg", 64, 48)
    found = build(folder, rect=True)
    shapes = {Path(label["im_file"]).name: label["shape"] for label in found.labels}
    assert shapes == {"a.jpg": (48, 64), "b.jpg": (64, 48), "c.jpg": (48, 64), "d.jpg": (48, 64)}
    assert "shape" not in found[0]


def test_npy_beside_a_picture_does_not_replace_it(folder):
    np.save(folder / "images" / "train" / "a.npy", np.zeros((48, 64, 3), np.uint8))
    os.utime(folder / "images" / "train" / "a.npy", (2e9, 2e9))
    assert build(folder).load_image(0)[0].any()


def test_ram_cache_works(folder):
    dataset = build(folder, cache="ram")
    (folder / "images" / "train" / "a.jpg").unlink()
    assert dataset.load_image(0)[0].any()


def test_a_lost_picture_is_replaced_with_its_labels(folder, logged):
    dataset = build(folder, mode="val")
    (folder / "images" / "train" / "b.jpg").unlink()
    (folder / "images" / "train" / "c.jpg").write_bytes(b"\xff\xd8 broken")
    sample, fourth = dataset[1], dataset[3]
    assert sample["im_file"] == str(folder / "images" / "train" / "d.jpg")
    assert torch.equal(sample["img"], fourth["img"])
    assert torch.equal(sample["bboxes"], fourth["bboxes"])
    assert [line for line in logged if "b.jpg cannot be read any more" in line]
    assert len(dataset) == 4


def test_all_pictures_lost_is_an_error(folder, logged):
    dataset = build(folder)
    for path in (folder / "images" / "train").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="cannot be read any more"):
        dataset[0]


def test_fraction_takes_the_first_pictures(folder):
    assert len(build(folder, fraction=0.5)) == 2
    assert len(build(folder, split="val", mode="val", fraction=0.5)) == 2


def test_one_class_for_all(folder):
    write_label(folder, "train/a", "7 0.5 0.5 0.5 0.5")
    for split, mode in (("train", "train"), ("val", "val")):
        dataset = build(folder, split, mode, single_cls=True)
        assert dataset.rejected == []
        assert not any(label["cls"].any() for label in dataset.labels)


POLYGON = "{} .1 .1 .9 .1 .9 .9 .1 .8\n"


@pytest.mark.parametrize("split", ["train", "val"])
def test_segmentation_needs_polygons(folder, split):
    with pytest.raises(UserError, match=rf"needs polygons, .*images/{split} are boxes only") as caught:
        build(folder, split, split, task="segment")
    assert "\n" not in str(caught.value)


def test_polygons_become_masks(folder):
    for i, name in enumerate("abcd"):
        write_label(folder, f"train/{name}", POLYGON.format(i % 2))
    assert build(folder, task="segment")[0]["masks"].any()
    sample = build(folder, mode="val", task="segment")[0]
    assert sample["masks"].shape == (1, 16, 16)  # of the letterboxed picture, a quarter of its size
    assert sample["masks"].sum() == pytest.approx(0.8 * 16 * 0.75 * 12, rel=0.2)
    separate = build(folder, mode="val", task="segment", overlap_mask=False, mask_ratio=1)[0]
    assert separate["masks"].shape == (1, 64, 64)


def test_a_box_among_polygons_is_its_own_mask(folder, logged):
    for i, name in enumerate("abcd"):
        write_label(folder, f"train/{name}", POLYGON.format(i % 2))
    write_label(folder, "train/a", "0 0.5 0.5 0.5 0.25\n" + POLYGON.format(1))
    write_label(folder, "train/b", "0 0.5 0.5 0.5 0.25\n")
    dataset = build(folder, mode="val", task="segment", mask_ratio=1)
    assert [line for line in logged if "2 of 5 objects have no polygon" in line]
    assert [len(label["segments"]) for label in dataset.labels] == [2, 1, 1, 1]
    assert dataset[1]["masks"].sum() == pytest.approx(0.5 * 64 * 0.25 * 48, rel=0.15)


def test_detection_uses_polygons_when_each_object_has_one(folder):
    for i, name in enumerate("abcd"):
        write_label(folder, f"train/{name}", POLYGON.format(i % 2))
    assert all(len(label["segments"]) == 1 for label in build(folder).labels)
    write_label(folder, "train/a", "0 0.5 0.5 0.5 0.5")
    assert not any(label["segments"] for label in build(folder).labels)


def test_other_tasks_are_refused(folder):
    data = load_dataset(write_yaml(folder))
    with pytest.raises(UserError, match="not for pose"):
        build_dataset(options(task="pose"), data["train"], 2, data)


def test_validators_options_are_enough(folder):
    data = load_dataset(write_yaml(folder))
    few = SimpleNamespace(**{**vars(options()), "split": "val"})
    assert len(build_dataset(few, data["val"], 2, data, mode="val")) == 2
