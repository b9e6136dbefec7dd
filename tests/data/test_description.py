"""The YAML of a data set: as others write it too; a wrong one is one sentence, and nothing in it is run."""

from pathlib import Path

import pytest
import yaml

from models.errors import UserError
from tests.data.folders import options, write_yaml
from utils.data import description, scenes, shapes
from utils.data.dataset import build_dataset
from utils.data.description import load_dataset
from utils.data.files import check_images, list_images

pytestmark = pytest.mark.usefixtures("private_cache")


ROOT = Path(__file__).parents[2]


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
    "nc too large": ({"nc": 10**18, "names": None}, "nc must be a whole number"),
    "nc of no machine": ({"nc": 10**400, "names": None}, "line 1: a whole number of 401 digits"),
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
