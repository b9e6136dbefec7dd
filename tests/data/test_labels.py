"""Pictures and labels of a data set: where they are looked for, and what is said of broken ones."""

import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from models.errors import UserError
from tests.data.folders import build, digest, options, write_label, write_picture, write_yaml
from utils.data.dataset import build_dataset
from utils.data.description import load_dataset
from utils.data.files import check_images, list_images
from utils.data.scan import Settings, parse_labels

pytestmark = pytest.mark.usefixtures("private_cache")

SETTINGS = Settings(nc=3, channels=3, single_cls=False)


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
