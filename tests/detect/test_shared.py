"""Processes that share the files of a source find and write what one process does."""

import itertools
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

import detect
from models.errors import UserError
from tests.detecting import files_below, picture, video
from tests.helpers import random_model, save, tiny
from utils.detect import shared, writers
from utils.detect.loop import Speed
from utils.detect.shared import Crop, SharedWriters, check_shareable, check_splits, join_tables, name_crops
from utils.detect.sources import Files
from utils.detect.writers import Wanted
from utils.paths import ROOT

WANTED = ["--save-txt", "--save-conf", "--save-crop", "--save-csv", "--conf-thres=0.01", "--imgsz=64", "--max-det=3"]


@pytest.fixture
def folder(tmp_path):
    """Return a folder with three pictures, one that is broken, and two videos; crops of the first want one name."""
    for name, side in (("bus", 48), ("bus2", 64), ("cat", 80)):
        picture(tmp_path / f"in/{name}.png", height=side)
    (tmp_path / "in/broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    video(tmp_path / "in/clip.avi", frames=3)
    video(tmp_path / "in/film.avi", frames=2)
    return tmp_path


def is_alike(got, want):
    """Return whether two words of labels or tables are the same, but for the last digit of numbers."""
    return got == want or float(got) == pytest.approx(float(want), rel=1e-4, abs=0.02)


def test_each_file_is_read_by_one_process(folder):
    whole = [(frame.index, frame.title) for frame in Files(folder / "in")]
    parts = []
    for rank in range(2):
        source = Files(folder / "in")
        source.share = (rank, 2)
        parts.append([(frame.index, frame.title) for frame in source])
    assert {index % 2 for index, _ in parts[0]} != {index % 2 for index, _ in parts[1]}
    assert sorted(itertools.chain(*parts)) == sorted(whole)
    assert len({index for index, _ in whole}) == 5, "all but the broken one"


def test_rows_are_joined_in_the_order_of_the_files(tmp_path):
    rows = [["1,a.png,,cat,0.5"], ['2,"b, c.png",,cat,0.4', "2,b.png,,dog,0.3"], ["3,clip.avi,7,cat,0.2"]]
    for name, own in (("one", rows[0] + rows[2]), ("two", rows[1])):
        (tmp_path / name).write_text("".join(f"{row}\n" for row in own))
    join_tables([tmp_path / "one", tmp_path / "two"], tmp_path / "joined.csv")
    header = ",".join(writers.CSV_HEADER)
    wanted = [header, *(row.partition(",")[2] for some in rows for row in some)]
    assert (tmp_path / "joined.csv").read_text().splitlines() == wanted


def test_crops_have_the_names_of_one_process(tmp_path):
    for i in range(4):
        (tmp_path / str(i)).write_text(str(i))
    cat = tmp_path / "cat"
    kept = [(2, "bus2", "0"), (3, "bus22", "1"), (1, "bus", "2"), (1, "bus", None), (2, "bus2", "3")]
    name_crops([Crop(index, cat, stem, tmp_path / file if file else None) for index, stem, file in kept])
    names = {path.name: path.read_text() for path in cat.iterdir()}
    assert names == {"bus.jpg": "2", "bus22.jpg": "0", "bus23.jpg": "3", "bus222.jpg": "1"}


def test_what_cannot_be_shared_is_said(log, tmp_path, monkeypatch):
    args = detect.make_parser().parse_args(["--view-img"])
    with pytest.raises(UserError, match="--view-img is for one process"):
        check_shareable(args)
    with pytest.raises(UserError, match="returns what one process finds"):
        detect.run(device="cpu,cpu")
    monkeypatch.setattr(shared, "is_shared", lambda: True)
    monkeypatch.setattr(shared, "group_size", lambda: 3)
    with pytest.raises(UserError, match="a stream or the screen cannot be split among 3 processes"):
        check_splits(SimpleNamespace(live=True))
    video(tmp_path / "clip.avi", frames=1)
    check_splits(Files(tmp_path / "clip.avi"))
    assert "2 of 3 processes have nothing to do" in "".join(log)


def test_speeds_add_up():
    both = Speed(2, [1.0, 2.0, 3.0], (1, 3, 64, 64), 5.0) + Speed(1, [1.0, 1.0, 1.0], (), 4.0)
    assert both == Speed(3, [2.0, 3.0, 4.0], (1, 3, 64, 64), 5.0)


def test_a_process_that_fails_leaves_nothing_of_its_own(tmp_path):
    outputs = SharedWriters(tmp_path, Wanted(table=True))
    with pytest.raises(UserError), outputs:
        assert outputs.part.is_dir()
        raise UserError("it failed")
    assert not outputs.part.exists()


@pytest.mark.slow
def test_two_processes_write_what_one_does(folder, log, monkeypatch):
    monkeypatch.chdir(folder)
    weights = save(random_model(tiny()), folder / "random.pt")
    words = [f"--weights={weights}", "--source=in", *WANTED, "--project=."]
    assert detect.main(detect.make_parser().parse_args([*words, "--device=cpu", "--name=alone"])) == 1, "one is broken"
    command = [sys.executable, str(ROOT / "detect.py"), *words, "--device=cpu,cpu", "--name=shared"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1, result.stderr[-3000:]
    names = files_below(folder / "alone")
    assert files_below(folder / "shared") == names
    assert any(name.startswith("crops/") for name in names)
    for name in names:
        both = [(folder / run / name).read_bytes() for run in ("shared", "alone")]
        if name.endswith((".txt", ".csv")):
            words = [re.split(r"[\s,]", text.decode()) for text in both]
            assert all(itertools.starmap(is_alike, zip(*words, strict=True))), name
        else:
            assert both[0] == both[1], name
    said = [*log], (result.stdout + result.stderr).splitlines()
    alone, shared_lines = (sorted(line.split(": ")[0] for line in lines if "/6 " in line) for lines in said)
    assert alone == shared_lines
    assert len(alone) == 8
    text = "\n".join(said[1])
    assert text.count("Speed: ") == text.count("1 of 6 files could not be read") == 1
    assert "Total: 8 images in" in text
