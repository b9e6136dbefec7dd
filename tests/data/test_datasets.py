"""Data sets as a training reads them: what is remembered of a scan, batches, classes and masks."""

import os
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ultralytics.data.build import build_dataloader

from models.errors import UserError
from tests.data.folders import build, digest, options, write_label, write_picture, write_yaml
from utils.data import scan
from utils.data.dataset import build_dataset
from utils.data.description import load_dataset
from utils.data.scan import Record, examine, load_records, save_records

pytestmark = pytest.mark.usefixtures("private_cache")


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
