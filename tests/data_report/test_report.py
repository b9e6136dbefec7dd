"""The report on a data set: copies, suspicious labels, and what is written."""

import json
import re

import cv2
import numpy as np
import pytest

import train
from models.errors import UserError
from tests.helpers import TINY_DETECT, TINY_HEAD, tiny, write
from tests.runs import make_data, make_folders
from utils.data.scan import Record
from utils.data_report.copies import BITS, MOST_BITS, alike, find_copies, look_at
from utils.data_report.report import DATA, PAGE, PICTURE
from utils.data_report.suspicious import look_for_kinds

STRANGE = ["a $b", "细胞$_{x"]


def scene(seed: int, size: int = 256) -> np.ndarray:
    """Return a picture (size, size, 3) of soft spots."""
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)


# Copies ---------------------------------------------------------------------------------------------------------------
def test_pairs_are_those_that_a_comparison_of_all_finds():
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, (60, BITS), np.uint8)
    for i in range(30):  # as many that differ by up to twice the limit
        bits[30 + i] = bits[i]
        bits[30 + i, rng.choice(BITS, i * 2 * MOST_BITS // 30, replace=False)] ^= 1
    packed = np.packbits(np.pad(bits, ((0, 0), (0, -BITS % 64))), axis=1)
    found = {(int(a), int(b)) for some in alike(packed) for a, b in zip(*some, strict=True)}
    wanted = {(a, b) for a in range(60) for b in range(60) if a != b and (bits[a] != bits[b]).sum() <= MOST_BITS}
    assert found == wanted
    assert len(found) > 20


def test_copies_are_found_however_they_are_encoded(tmp_path):
    pictures = {
        "a.png": scene(0),
        "b.png": scene(1),
        "a.jpg": cv2.resize(scene(0), (120, 100)),
        "twin.png": scene(1),
        "grey.png": np.full((64, 64, 3), 90, np.uint8),
        "grey.jpg": np.full((64, 64, 3), 91, np.uint8),
    }
    for name, picture in pictures.items():
        cv2.imwrite(str(tmp_path / name), picture, [cv2.IMWRITE_JPEG_QUALITY, 40])
    (tmp_path / "broken.png").write_bytes((tmp_path / "a.png").read_bytes()[:20])
    names = [*pictures, "broken.png"]
    looks = look_at([str(tmp_path / name) for name in names], "")
    splits = np.array([0, 0, 1, 1, 1, 0, 0])
    copies = find_copies(looks, splits, 2)
    assert [names[i] if i >= 0 else "" for i in copies.exact[0]] == ["", "", "", "b.png", "", "", ""]
    assert [names[i] if i >= 0 else "" for i in copies.exact[1]] == ["", "twin.png", "", "", "", "", ""]
    assert [names[i] if i >= 0 else "" for i in copies.near[0]] == ["", "", "a.png", "", "", "", ""]
    assert [copies.count(kind, splits == 1, 0) for kind in ("exact", "near")] == [1, 1]
    assert looks[-1].problem


# Labels ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("rows", "kinds"),
    [
        ([(0, 0.5, 0.5, 0.4, 0.4)], []),
        ([(0, 0.5, 0.5, 0.01, 0.4)], ["tiny", "thin"]),
        ([(0, 0.5, 0.5, 0.4, 0.4), (0, 0.5, 0.5, 0.4, 0.41)], ["twice"]),
        ([(0, 0.5, 0.5, 0.4, 0.4), (1, 0.5, 0.5, 0.4, 0.41)], ["two_classes"]),
        ([(0, 0.5, 0.5, 0.4, 0.4), (0, 0.5, 0.5, 0.4, 0.5)], []),
        ([(0, 0.2, 0.5, 0.4, 0.4)], ["edge"]),
        ([(0, 0.19, 0.5, 0.4, 0.4)], ["beyond"]),
        ([(0, 0.5, 0.5, 1.0, 1.0)], ["whole", "edge"]),
    ],
)
def test_suspicious_labels(rows, kinds):
    record = Record("a.png", (0, 0, 0, 0), shape=(200, 400), rows=np.array(rows, np.float32))
    assert [kind for kind, _ in look_for_kinds(record, 160, outlines=False)] == kinds
    with_outlines = [kind for kind, _ in look_for_kinds(record, 160, outlines=True)]
    assert with_outlines.count("no_outline") == len(rows)


# What is written ------------------------------------------------------------------------------------------------------
@pytest.fixture
def data(tmp_path):
    """Return a data set whose classes have strange names, with a leak, a double box and a broken picture."""
    file = make_data(tmp_path / "ds", train=6, names=STRANGE)
    images, labels = tmp_path / "ds/images", tmp_path / "ds/labels"
    for i, path in enumerate(sorted(images.rglob("*.png"))):
        cv2.imwrite(str(path), scene(i, 64))
    (images / "val/0.png").write_bytes((images / "train/3.png").read_bytes())
    (labels / "val/0.txt").write_text("0 0.5 0.5 0.4 0.4\n")
    (labels / "train/1.txt").write_text("1 0.5 0.5 0.4 0.4\n1 0.5 0.5 0.4 0.405\n1 0.3 0.3 0.01 0.2\n")
    (labels / "train/2.txt").unlink()
    (images / "train/4.png").write_bytes(b"none")
    return file


def test_a_report_alone_is_a_picture_a_page_and_json(data, tmp_path, monkeypatch, log):
    monkeypatch.chdir(tmp_path)
    head = [*TINY_HEAD, [*TINY_DETECT[:3], ["nc", [[8, 8], [32, 32]]]]]
    write(tmp_path, tiny(head=head), "net.yaml")
    folder = train.run(data=data, cfg="net.yaml", report="only", imgsz=64)
    assert folder.parts[:2] == ("runs", "report")
    assert cv2.imread(str(folder / PICTURE)).shape[1] > 800
    found = json.loads((folder / DATA).read_text())
    assert found["splits"]["train"]["pictures"] == 6
    assert {key: found["splits"]["train"][key] for key in ("labelled", "missing", "rejected")} == {
        "labelled": 4,
        "missing": 1,
        "rejected": 1,
    }
    assert found["splits"]["train"]["classes"][STRANGE[1]] == {"objects": 6, "pictures": 4}
    assert [(one["of"], one["in"], one["kind"], one["pictures"]) for one in found["copies"]] == [
        ("val", "train", "exact", 1)
    ]
    counts = {kind: one["count"] for kind, one in found["suspicious"].items()}
    assert counts == {"tiny": 1, "twice": 1, "thin": 1, "labelled_twice": 1}
    assert found["suspicious"]["twice"]["examples"][0]["rows"] == [0, 1]
    said = " ".join(found["findings"])
    assert "1 of 2 val pictures (50.0%) have exact copies in train: accuracy on val may look better" in said
    assert f"train has no objects of {STRANGE[0]}" in said
    assert re.search(r"an anchor of net.yaml fits \d+\.\d% of the objects", said)
    page = (folder / PAGE).read_text()
    assert page.count("data:image/jpeg") == 2 + 4 + 1  # pairs of copies, and cut out boxes
    assert "http" not in page
    assert STRANGE[1] in page
    assert any("Report saved to" in line for line in log)
    assert not (tmp_path / "runs/train").exists()


@pytest.mark.slow
def test_a_report_on_outlines_and_one_class(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ds/labels/train/0.txt").write_text("0 0.2 0.2 0.6 0.2 0.6 0.6\n")
    folder = train.run(data=data, task="segment", report="only", imgsz=64, single_cls=True)
    found = json.loads((folder / DATA).read_text())
    assert found["splits"]["train"]["classes"] == {"item": {"objects": 6, "pictures": 4}}
    assert found["suspicious"]["no_outline"]["count"] == 7
    assert found["network"]["strides"] == [8, 16, 32]


@pytest.mark.slow
def test_a_report_on_class_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    top = make_folders(tmp_path / "colours", train=3, val=2)
    (top / "val/red/copy.png").write_bytes((top / "train/blue/0.png").read_bytes())
    (top / "val/red/broken.png").write_bytes(b"none")
    folder = train.run(data=top, report="only")
    found = json.loads((folder / DATA).read_text())
    assert found["splits"]["val"]["classes"]["red"]["pictures"] == 3
    assert found["splits"]["val"]["rejected"] == 1
    assert found["suspicious"]["labelled_twice"]["count"] == 1
    assert (folder / PICTURE).is_file()


@pytest.mark.slow
def test_a_new_run_has_its_report_in_its_folder(data, tmp_path):
    write(tmp_path, tiny(), "net.yaml")
    own = {"cfg": tmp_path / "net.yaml", "data": data, "epochs": 1, "imgsz": 64, "batch_size": 2}
    run = train.new_run(train.make_parser().from_keywords(**own, project=tmp_path, name="run", report=True))
    assert {PICTURE, PAGE, DATA} <= {path.name for path in (tmp_path / "run").iterdir()}
    assert run.left == "epochs"


def test_a_report_is_not_for_a_run_that_is_resumed():
    with pytest.raises(UserError, match="leave out --resume, or --report"):
        train.run(report="only", resume="last.pt")
