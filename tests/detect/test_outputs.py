"""What detect.py writes: labels, crops, tables, drawings, and under which names."""

from pathlib import Path

import numpy as np
import pytest
import torch
from ultralytics.engine.results import Results

from models.errors import UserError
from tests.detecting import NOT_UTF8, files_below, picture, video
from tests.networks import NAMES
from utils.detect import names, writers
from utils.detect.frame import Frame


def test_labels(run, tmp_path):
    image = picture(tmp_path / "a.jpg", 96, 64)
    run(source=image, save_txt=True, name="centre")
    run(source=image, save_txt=True, save_conf=True, save_format=1, name="corners")
    [centre] = np.loadtxt("runs/detect/centre/labels/a.txt", ndmin=2)
    [corners] = np.loadtxt("runs/detect/corners/labels/a.txt", ndmin=2)
    assert len(centre) == 5 and len(corners) == 6 and corners[5] > 0.9
    (cls, x, y, w, h), (left, top, right, bottom) = centre, corners[1:5]
    assert cls == 1
    assert np.allclose([left, top, right, bottom], [x - w / 2, y - h / 2, x + w / 2, y + h / 2], atol=1e-5)


def test_a_second_run_in_the_same_folder_replaces(run, tmp_path):
    image = picture(tmp_path / "a.jpg")
    options = {"source": image, "save_txt": True, "save_crop": True, "save_csv": True, "exist_ok": True}
    run(**options)
    first = {name: (tmp_path / "runs/detect/exp" / name).read_bytes() for name in files_below("runs/detect/exp")}
    run(**options)
    assert {n: (tmp_path / "runs/detect/exp" / n).read_bytes() for n in files_below("runs/detect/exp")} == first
    run(**options, classes=[0])
    assert "labels/a.txt" not in files_below("runs/detect/exp")


def test_labels_that_lie_in_the_folder_of_results_are_not_replaced(run, tmp_path):
    image, own = picture(tmp_path / "images/a.jpg"), tmp_path / "runs/detect/exp/labels/a.txt"
    own.parent.mkdir(parents=True)
    own.write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "labels").symlink_to(own.parent)
    with pytest.raises(UserError, match=r"labels.a\.txt lies in the folder of the results"):
        run(source=image, save_txt=True, exist_ok=True)
    assert own.read_text() == "0 0.5 0.5 0.5 0.5\n"


def test_crops_and_table(run, tmp_path):
    for name in ("a.jpg", "=b.jpg"):
        picture(tmp_path / "in" / name)
    run(source="in", save_crop=True, save_csv=True, nosave=True)
    assert files_below("runs/detect/exp") == ["crops/square/=b.jpg", "crops/square/a.jpg", "predictions.csv"]
    header, *rows = (tmp_path / "runs/detect/exp/predictions.csv").read_text().splitlines()
    assert header == "file,frame,class,confidence,x1,y1,x2,y2,track"
    cells = [row.split(",") for row in rows]
    assert [row[:3] for row in cells] == [["in/=b.jpg", "", "square"], ["in/a.jpg", "", "square"]]
    assert all(0.9 < float(row[3]) <= 1 and row[8] == "" for row in cells)
    assert all(
        0 <= float(x1) < float(x2) <= 64 and 0 <= float(y1) < float(y2) <= 48
        for x1, y1, x2, y2 in (row[4:8] for row in cells)
    )


def test_boxes_are_drawn_to_the_size_of_the_picture(tmp_path):
    def drawn(side, **wanted):
        box = torch.tensor([[side / 4, side / 4, side / 2, side / 2, 0.9, 1]])
        result = Results(np.zeros((side, side, 3), np.uint8), "", NAMES, boxes=box).numpy()
        return np.count_nonzero(writers.draw(result, writers.Wanted(**wanted)).any(2)) / side**2

    assert drawn(160) < drawn(160, line_width=3) / 2
    assert drawn(160, draw_names=False) < drawn(160, draw_confidence=False) < drawn(160)


def test_results_never_replace_their_sources(run, tmp_path):
    picture(tmp_path / "results/a.jpg")
    video(tmp_path / "results/v.mp4", fourcc="mp4v")
    picture(tmp_path / "elsewhere/b.jpg")
    (tmp_path / "linked").symlink_to("results")
    (tmp_path / "results/c.jpg").symlink_to(tmp_path / "elsewhere/b.jpg")
    (tmp_path / "elsewhere/d.jpg").symlink_to(tmp_path / "results/a.jpg")
    (tmp_path / "results/list.txt").write_text("../elsewhere/b.jpg\n")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.suffix != ".pt"}
    for source in ("results", "results/v.mp4", "results/c.jpg", "elsewhere/d.jpg", "linked", "results/list.txt"):
        for name in ("results", "linked"):
            with pytest.raises(UserError, match=r"lies in the folder of the results, .*choose another --project or"):
                run(source=source, project=tmp_path, name=name, exist_ok=True, save_txt=True)
    assert {path: path.read_bytes() for path in before} == before
    assert len(list(tmp_path.rglob("*.*"))) == len(before)


def test_nothing_is_written_through_a_link(run, tmp_path):
    image = picture(tmp_path / "in/a.jpg")
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    (tmp_path / "runs/detect/exp/labels").mkdir(parents=True)
    for name in ("a.jpg", "labels/a.txt", "predictions.csv"):
        (tmp_path / "runs/detect/exp" / name).symlink_to(mine)
    assert run(source=image, save_txt=True, save_csv=True, exist_ok=True) == 0
    assert mine.read_text() == "mine"
    assert all(path.is_file() and not path.is_symlink() for path in (tmp_path / "runs/detect/exp").rglob("*.*"))


def test_a_row_says_which_file_and_frame_it_is_of(run, tmp_path):
    for name in ("day/1.jpg", "night/1.jpg"):
        picture(tmp_path / "in" / name)
    video(tmp_path / "v.avi", 3)
    outside = picture(tmp_path.parent / f"{tmp_path.name}-outside" / "1.jpg")
    assert run(source=["in/**/*.jpg", "v.avi", outside], save_csv=True, save_txt=True, visualize=True) == 0
    rows = [line.split(",")[:2] for line in Path("runs/detect/exp/predictions.csv").read_text().splitlines()[1:]]
    images = [["in/day/1.jpg", ""], ["in/night/1.jpg", ""], [str(outside), ""]]
    assert rows == [*images, ["v.avi", "1"], ["v.avi", "2"], ["v.avi", "3"]]
    written = files_below("runs/detect/exp")
    for folder, end in (("", ".jpg"), ("labels/", ".txt"), ("features/", "/P3.png")):
        assert {f"{folder}1{n}{end}" for n in ("", "-2", "-3")} <= set(written)


def test_names_of_outputs():
    images = [
        "a/bus.jpg",
        "b/bus.jpg",
        "b/BUS.png",
        "bus-2.jpg",
        "clip_12.jpg",
        f"a/{'x' * 251}.jpg",
        f"b/{'x' * 251}.jpg",
    ]
    videos = ["clip.avi", "a/clip.mp4", "bus.mp4", f"{'é' * 125}.avi"]
    named = names.output_names([*map(Path, images)], [*map(Path, videos)])
    assert [*named.values()][:5] == ["bus", "bus-2", "BUS-3", "bus-2-2", "clip_12"]
    assert [*named.values()][7:10] == ["clip-2", "clip-3", "bus-4"]
    assert len({name.casefold() for name in named.values()}) == len(named)
    assert all(len(f"{name}.jpg".encode()) <= 255 for name in named.values())
    assert len(f"{named[Path(videos[3])]}_99999999.txt".encode()) <= 255


def test_same_stem_twice(run, tmp_path):
    for name in ("bus.jpg", "bus.png"):
        picture(tmp_path / "in" / name)
    run(source="in", save_txt=True)
    assert files_below("runs/detect/exp") == ["bus-2.jpg", "bus.jpg", "labels/bus-2.txt", "labels/bus.txt"]


def test_many_crops_of_one_class(tmp_path):
    boxes = torch.tensor([[0, 0, 20, 20, 0.9, 1], [10, 10, 40, 40, 0.8, 1]])
    result = Results(np.zeros((48, 64, 3), np.uint8), "", {1: "../x"}, boxes=boxes).numpy()
    with writers.Writers(tmp_path, writers.Wanted(pictures=False, crops=True)) as out:
        for name in ("a.jpg", "a2.jpg"):
            out.save(Frame(result.orig_img, Path(name), ""), result)
    assert files_below(tmp_path) == [f"crops/_.._x/a{n}.jpg".replace("_.._x", "_x") for n in ("", "2", "22", "23")]


ODD_NAMES = [
    "a b",
    "é中🚀",
    "line\nbreak",
    "100%d",
    "[x]",
    "-dash",
    "'quote\"",
    "x" * 251,
    NOT_UTF8,
    "a.b.c",
    "\x1b[31m",
]


def test_odd_names(run, log, tmp_path):
    for name in ODD_NAMES:
        picture(tmp_path / "in" / f"{name}.jpg")
    assert run(source="in", save_txt=True, save_crop=True, save_csv=True) == 0
    written = files_below("runs/detect/exp")
    for folder, suffix in (("", ".jpg"), ("labels/", ".txt"), ("crops/square/", ".jpg")):
        assert {f"{folder}{name}{suffix}" for name in ODD_NAMES} <= set(written)
    assert len(written) == 3 * len(ODD_NAMES) + 1
    assert all("\n" not in line and "\x1b" not in line for line in log)


def test_odd_video_names(run, tmp_path):
    for name in (NOT_UTF8, "é\n"):
        video(tmp_path / "clip.avi", 3).rename(tmp_path / f"{name}.avi")
    assert run(source=tmp_path) == 0
    assert files_below("runs/detect/exp") == sorted([f"{NOT_UTF8}.mp4", "é\n.mp4"])


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("../../etc", "_.._etc"),
        ("/abs", "_abs"),
        ("..", "_"),
        ("", "_"),
        ("CON", "_CON"),
        ("a\nb\0", "a_b_"),
        ("é" * 100, "é" * 60),
        ("person", "person"),
    ],
)
def test_class_names_as_folders(name, safe):
    assert names.safe_name(name) == safe
