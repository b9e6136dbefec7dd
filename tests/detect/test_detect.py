"""detect.py as its users meet it: sources, files written, odd names, broken input, exit codes."""

import errno
import json
import os
import signal
import struct
import threading
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch

import detect
from models.errors import UserError
from tests.detecting import count_frames, files_below, picture, start, video
from tests.networks import NAMES, Disc, write_export
from utils import cli
from utils.deploy.trust import trust
from utils.detect import loop, names, predictor, sources, streams, writers

# isort: split
from ultralytics.engine.results import Results
from ultralytics.utils import ASSETS

from utils.detect.frame import Frame
from utils.detect.loop import Background

NOT_UTF8 = os.fsdecode(b"caf\xe9")


# What the tests need --------------------------------------------------------------------------------------------------
def huge_png(path, side=16000):
    """A PNG of a few bytes whose header promises 256 million pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b""))


# Sources --------------------------------------------------------------------------------------------------------------
def test_a_photograph(run, log, tmp_path):
    assert run(source=ASSETS / "bus.jpg") == 0
    saved = cv2.imread(str(tmp_path / "runs/detect/exp/bus.jpg"))
    assert saved.shape == cv2.imread(str(ASSETS / "bus.jpg")).shape
    assert log[0].startswith("detect: weights=") and "source=" in log[0]
    line = next(line for line in log if line.startswith("image 1/1 "))
    assert line.endswith("ms") and f"{ASSETS / 'bus.jpg'}: 64x64 1 square, " in line
    speed = next(line for line in log if line.startswith("Speed: "))
    assert "pre-process, " in speed and speed.endswith("ms NMS per image at shape (1, 3, 64, 64)")
    assert "Results saved to runs/detect/exp" in log


def test_defaults(run, weights, log, tmp_path):
    newest = tmp_path / "runs/train/exp/weights/best.pt"
    newest.parent.mkdir(parents=True)
    newest.write_bytes(weights.read_bytes())
    assert run(weights=None) == 0
    assert "no --weights given, using the newest: runs/train/exp/weights/best.pt" in log
    assert any(line.startswith("no --source given, using ") for line in log)
    assert len(files_below("runs/detect/exp")) >= 2


def test_folder_with_broken_files_does_the_others_and_says_so(run, log, tmp_path):
    folder = tmp_path / "pictures"
    for name in ("a.jpg", "b.png"):
        picture(folder / name)
    (folder / "cut.jpg").write_bytes((folder / "a.jpg").read_bytes()[:-200])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.png").write_text("no picture")
    (folder / "notes.pdf").write_text("not looked at")
    huge_png(folder / "huge.png")
    before = {p: p.read_bytes() for p in folder.iterdir()}
    assert run(source=folder) == 1
    assert files_below("runs/detect/exp") == ["a.jpg", "b.jpg"]
    assert log[-5].endswith("4 of 6 files could not be read:")
    assert [line.removeprefix(f"  {folder}/") for line in log[-4:]] == [
        "cut.jpg: damaged picture",
        "empty.jpg: empty file",
        "huge.png: 16000x16000 pixels, more than the 100 million allowed: give --megapixels 256",
        "text.png: not a picture, or a damaged one",
    ]
    assert {p: p.read_bytes() for p in folder.iterdir()} == before


def test_other_suffixes_and_none(run, tmp_path):
    folder = tmp_path / "in"
    for name in ("photo", "scan.jfif"):
        picture(folder / "x.jpg").rename(folder / name)
    video(tmp_path / "clip.avi").rename(folder / "clip.3gp")
    (folder / "README").write_text("about these pictures")
    assert run(source=folder) == 0
    assert files_below("runs/detect/exp") == ["clip.mp4", "photo.jpg", "scan.jpg"]
    assert run(source=folder / "photo") == 0


def test_pattern_and_list(run, log, tmp_path):
    for name in ("a1.jpg", "a2.jpg", "b.jpg", f"{NOT_UTF8}.jpg"):
        picture(tmp_path / "in" / name)
    assert run(source="in/a*.jpg") == 0
    assert files_below("runs/detect/exp") == ["a1.jpg", "a2.jpg"]
    names = ["a1.jpg", f"in/{NOT_UTF8}.jpg", str(tmp_path / "in/b.jpg"), "", "in/b.jpg"]
    (tmp_path / "in/list.txt").write_bytes(os.fsencode("\r\n".join(names)))
    assert run(source="in/list.txt") == 0
    assert files_below("runs/detect/exp2") == ["a1.jpg", "b.jpg", f"{NOT_UTF8}.jpg"]
    (tmp_path / "list.txt").write_text("in/b.jpg\nin/gone.jpg\n")
    assert run(source="list.txt") == 1
    assert log[-1].endswith("gone.jpg: does not exist")
    (tmp_path / "in/list.txt").write_text("in\\a1.jpg\na2.jpg\n.\\b.jpg\nin\\a*.jpg\n")  # of Windows
    assert run(source="in/list.txt") == 0
    assert files_below("runs/detect/exp4") == ["a1.jpg", "a2.jpg", "b.jpg"]
    (tmp_path / "list.txt").write_text("in/b.jpg\n", encoding="utf-16")
    with pytest.raises(UserError, match=r"the list list\.txt is text in UTF-16: save it as UTF-8"):
        run(source="list.txt")


def test_video(run, log, tmp_path):
    clip = video(tmp_path / "clip.avi")
    assert run(source=clip, save_txt=True) == 0
    assert any(f"video 1/1 (12/12) {clip}: 64x64 1 square, " in line for line in log)
    assert files_below("runs/detect/exp") == sorted(["clip.mp4"] + [f"labels/clip_{i}.txt" for i in range(1, 13)])
    assert count_frames("runs/detect/exp/clip.mp4") == 12
    assert run(source=clip, vid_stride=5, save_txt=True) == 0
    assert files_below("runs/detect/exp2/labels") == ["clip_10.txt", "clip_5.txt"]
    capture = cv2.VideoCapture("runs/detect/exp2/clip.mp4")
    assert any(f"video 1/1 (10/12) {clip}: " in line for line in log)
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 2 and capture.get(cv2.CAP_PROP_FPS) == pytest.approx(2)


@pytest.mark.parametrize(("frames", "size"), [(1, (64, 48)), (5, (65, 49))])
def test_short_and_odd_sized_video(run, tmp_path, frames, size):
    assert run(source=video(tmp_path / "clip.avi", frames, size)) == 0
    assert count_frames("runs/detect/exp/clip.mp4") == frames


def test_broken_videos(run, log, tmp_path):
    clip = video(tmp_path / "cut.avi", frames=40)
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    (tmp_path / "text.mp4").write_text("no video")
    video(tmp_path / "whole.avi")
    picture(tmp_path / "a.jpg")
    assert run(source=tmp_path) == 1
    reasons = dict(line.split("/")[-1].split(": ", 1) for line in log[-2:])
    assert reasons["text.mp4"] == "broken video: it cannot be opened"
    read = int(reasons["cut.avi"].split()[2])
    assert reasons["cut.avi"] == f"broken video: {read} of 40 frames could be read" and 0 < read < 38
    assert files_below("runs/detect/exp") == ["a.jpg", "cut.mp4", "whole.mp4"]
    assert count_frames("runs/detect/exp/cut.mp4") == read


def test_stream_frames_are_one_video_each(tmp_path):
    image = np.zeros((48, 64, 3), np.uint8)
    result = Results(image, "", NAMES, boxes=torch.zeros(0, 6)).numpy()
    with writers.Writers(tmp_path, writers.Wanted()) as out:
        for number in range(1, 4):
            for name in ("cam0", "cam1"):
                out.save(Frame(image, Path(name), "", number, live=True), result)
    assert files_below(tmp_path) == ["cam0.mp4", "cam1.mp4"]
    assert count_frames(tmp_path / "cam1.mp4") == 3


@pytest.mark.parametrize("source", ["0", "rtsp://host/x", "TCP://host:1", "cameras.streams"])
def test_live_sources_are_known(source):
    assert streams.is_live(source)
    assert not streams.is_live(f"folder/{source.replace('://', '')}.jpg")


def test_streams_from_a_list(run, log, tmp_path):
    clip = video(tmp_path / "clip.avi", frames=60, fps=30)
    (tmp_path / "cameras.streams").write_text(f"{clip}\n")
    assert run(source="cameras.streams") == 0
    [saved] = files_below("runs/detect/exp")
    assert saved.endswith("clip.avi.mp4")
    lines = [line for line in log if line.startswith("0: 64x64 1 square, ")]
    assert 0 < len(lines) == count_frames(f"runs/detect/exp/{saved}")


@pytest.mark.parametrize("number", ["99", "9" * 30])
def test_camera_that_is_not_there(run, number):
    with pytest.raises(UserError, match=f"the stream {number} cannot be opened"):
        run(source=number)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_what_is_no_file_is_named_and_not_opened(run, log, tmp_path):
    folder = tmp_path / "in"
    picture(folder / "a.jpg")
    os.mkfifo(folder / "pipe.jpg")
    os.mkfifo(folder / "pipe.mp4")
    (folder / "folder.png").mkdir()
    for name, target in {
        "loop.jpg": "loop.jpg",
        "gone.jpg": "nothing.jpg",
        "zero.mp4": "/dev/zero",
        "cpu.png": "/proc/cpuinfo",
    }.items():
        (folder / name).symlink_to(target)
    assert run(source=folder) == 1
    reasons = dict(line.removeprefix(f"  {folder}/").split(": ") for line in log[-7:])
    assert reasons == {
        "cpu.png": "is not a file of data but one of the system",
        "folder.png": "is not a file but a folder",
        "gone.jpg": "is a link to what does not exist",
        "loop.jpg": "is a link that leads to itself",
        "pipe.jpg": "is not a file but a pipe",
        "pipe.mp4": "is not a file but a pipe",
        "zero.mp4": "is not a file but a device",
    }
    assert files_below("runs/detect/exp") == ["a.jpg"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_lists_that_are_no_files_and_entries_that_no_file_can_have(run, log, tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(UserError, match=r"the list pipe\.txt is not a file but a pipe"):
        run(source="pipe.txt")
    picture(tmp_path / "a.jpg")
    (tmp_path / "list.txt").write_text(f"a.jpg\n{'x' * 5000}.jpg\nx\0.jpg\nnone*.jpg\n")
    assert run(source="list.txt") == 1
    assert log[-4].endswith("3 of 4 files could not be read:")
    assert files_below("runs/detect/exp") == ["a.jpg"]


def test_links_in_a_circle_below_a_pattern(tmp_path):
    picture(tmp_path / "a/b/1.jpg")
    for i in range(8):  # of which glob would follow every combination
        (tmp_path / f"a/b/{i}").symlink_to("..")
    found = sources.expand_source(tmp_path / "**/*.jpg")
    assert found == [tmp_path / "a/b/1.jpg"]
    assert sources.expand_source(tmp_path / "a/b/**")[-1] == tmp_path / "a/b/7"
    assert sources.expand_source(tmp_path / "a/*/1.jpg") == found


def test_a_name_with_a_star_is_a_name_where_there_is_such_a_file(tmp_path):
    picture(tmp_path / "a*.jpg")
    picture(tmp_path / "ab.jpg")
    assert sources.expand_source(tmp_path / "a*.jpg") == [tmp_path / "a*.jpg"]


def test_window_closes_with_q(run, log, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(detect, "check_imshow", lambda warn: True)
    monkeypatch.setattr(loop.cv2, "imshow", lambda name, image: shown.append((name, image.shape)))
    monkeypatch.setattr(loop.cv2, "waitKey", lambda wait: ord("q"))
    for i in range(3):
        picture(tmp_path / "in" / f"{i}.jpg")
    assert run(source="in", view_img=True) == 0
    assert shown == [("0.jpg", (48, 64, 3))]
    assert files_below("runs/detect/exp") == ["0.jpg"]


def test_an_address_with_half_a_bracket(run):
    with pytest.raises(UserError, match=r"the stream http://\[::1/clip\.mp4 is no address: "):
        run(source="http://[::1/clip.mp4")


@pytest.mark.parametrize("source", ["http://me:secret@host/x.jpg", "cameras.streams"])
def test_pictures_are_not_downloaded(run, tmp_path, source):
    (tmp_path / "cameras.streams").write_text("rtsp://host/1\nhttp://host/x.jpg?size=2\n")
    with pytest.raises(UserError, match=r"does not download pictures: save http://host/x\.jpg"):
        run(source=source)


# Files written --------------------------------------------------------------------------------------------------------
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


# What can go wrong ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "bets.pt"}, r"weights file bets\.pt does not exist \(did you mean 'best\.pt'\?\)"),
        ({"weights": "bad.pt"}, "bad.pt"),
        ({"weights": "bad.onnx"}, r"bad\.onnx is damaged, or no onnx file"),
        ({"weights": "bad.torchscript", "trust": True}, r"bad\.torchscript is damaged, or no torchscript file"),
        ({"weights": "a.jpg"}, r"a\.jpg is none of \.pt, \.torchscript, \.onnx"),
        ({"weights": None}, "train first"),
        ({"source": "b.jpg"}, r"the source b\.jpg does not exist \(did you mean 'a\.jpg'\?\)"),
        ({"source": "empty"}, "no picture and no video in the source empty"),
        ({"source": "none*.jpg"}, "no picture and no video"),
        ({"source": "bad.pt"}, "no picture and no video"),
        ({"source": "x.streams"}, "does not exist"),
        ({"data": "cocoo.yaml"}, r"did you mean 'coco\.yaml'"),
        ({"classes": [0, 3]}, r"--classes 3 does not exist: best\.pt knows 0 to 2"),
        ({"classes": ""}, "--classes names no class: give numbers or names"),
        ({"classes": ["", " ,"]}, "--classes names no class: give numbers or names"),
        ({"classes": "0,sqare"}, r"--classes 'sqare' is no class of best\.pt \(did you mean 'square'\?\)"),
        ({"imgsz": [64, 64, 64]}, "one side or height and width"),
        ({"imgsz": 10**6}, "a whole number of pixels from 1 to 8192"),
        ({"save_format": 2}, "invalid choice"),
        ({"project": "a.jpg"}, r"output folder a\.jpg/exp cannot be made"),
        ({"project": NOT_UTF8}, "is not UTF-8"),
    ],
)
def test_wrong_input_is_one_sentence_and_writes_nothing(run, weights, tmp_path, options, message):
    picture(tmp_path / "a.jpg")
    (tmp_path / "empty").mkdir()
    for suffix in ("pt", "onnx", "torchscript"):
        (tmp_path / f"bad.{suffix}").write_bytes(b"not weights at all")
    (tmp_path / "best.pt").write_bytes(weights.read_bytes())
    with pytest.raises(UserError, match=message) as caught:
        run(**{"weights": "best.pt", "source": "a.jpg", **options})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_full_disk_is_an_error_and_leaves_nothing_half_written(run, tmp_path, monkeypatch, capsys):
    def write_bytes(path, data):
        with path.open("wb") as file:
            file.write(data[:10])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    image = picture(tmp_path / "a.jpg")
    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    assert cli.run_script(lambda args: run(source=image), detect.make_parser(), []) == 2
    assert capsys.readouterr().err == "ERROR: cannot write runs/detect/exp/a.jpg: No space left on device\n"
    assert files_below("runs/detect/exp") == []


def test_file_in_the_place_of_a_folder(run, tmp_path):
    image = picture(tmp_path / "a.jpg")
    (tmp_path / "runs/detect/exp").mkdir(parents=True)
    (tmp_path / "runs/detect/exp/labels").write_text("")
    with pytest.raises(OSError, match=r"labels/a\.txt"):
        run(source=image, save_txt=True, exist_ok=True)


def test_video_that_lost_frames_is_an_error(tmp_path):
    clip = writers.Video(tmp_path, "clip.mp4", 10, (64, 48))
    clip.write(np.zeros((48, 64, 3), np.uint8))
    clip.frames += 5  # as if the disk had been full
    with pytest.raises(OSError, match="incomplete"):
        clip.close()
    assert files_below(tmp_path) == []


@pytest.mark.slow
def test_options_change_what_is_found(run, log, tmp_path):
    image = picture(tmp_path / "a.jpg")
    for options, expected in [
        ({"conf_thres": 0.99}, "64x64 (no detections), "),
        ({"classes": [0, 2]}, "64x64 (no detections), "),
        ({"classes": "0,2"}, "64x64 (no detections), "),
        ({"classes": ["0,2", NAMES[1]]}, "64x64 1 square, "),
        ({"imgsz": [33, 64]}, "64x64 1 square, "),
        ({"imgsz": 128}, "96x128 "),
        ({"augment": True}, " 1 square, "),
        ({"half": True, "device": "cpu"}, "64x64 1 square, "),
        ({"agnostic_nms": True, "max_det": 1, "hide_labels": True, "hide_conf": True}, "64x64 1 square, "),
    ]:
        run(source=image, nosave=True, **options)
        assert expected in next(line for line in reversed(log) if line.startswith("image ")), options
    assert not (tmp_path / "runs").exists()


# Exports --------------------------------------------------------------------------------------------------------------
METADATA = {"stride": 32, "task": "detect", "batch": 1, "imgsz": [64, 96], "names": NAMES, "channels": 3}


@pytest.fixture(scope="module")
def exports(square_finder, tmp_path_factory):
    """The model as ONNX and TorchScript for pictures of 64x96 pixels, and a function that changes the metadata."""
    folder = tmp_path_factory.mktemp("exports")
    deploy = square_finder.fuse().eval()
    deploy.model[-1].export = True
    example = torch.zeros(1, 3, 64, 96)
    torch.onnx.export(deploy, (example,), folder / "best.onnx", opset_version=17, dynamo=False)
    scripted = torch.jit.trace(deploy, example, check_trace=False)

    def write(suffix, **changes):
        metadata = {key: value for key, value in (METADATA | changes).items() if value is not None}
        path = folder / f"changed.{suffix}"
        if suffix == "torchscript":
            scripted.save(str(path), _extra_files={"config.txt": json.dumps(metadata)})
            trust(path)
            return path
        graph = onnx.load(folder / "best.onnx")
        for key, value in metadata.items():
            graph.metadata_props.add(key=key, value=str(value))
        onnx.save(graph, path)
        return path

    return write


@pytest.mark.parametrize("suffix", ["onnx", "torchscript"])
def test_exports_run(run, log, exports, tmp_path, suffix):
    image = picture(tmp_path / "a.jpg")
    assert run(weights=exports(suffix), source=image) == 0
    assert any("a.jpg: 64x96 1 square, " in line for line in log)
    assert files_below("runs/detect/exp") == ["a.jpg"]
    with pytest.raises(UserError, match="takes --imgsz 64 96 only"):
        run(weights=exports(suffix), source=image, imgsz=64)
    with pytest.raises(UserError, match="--augment needs PyTorch weights"):
        run(weights=exports(suffix), source=image, augment=True)


@pytest.mark.parametrize("suffix", ["onnx", "torchscript"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stride": 0}, "stride 0"),
        ({"stride": "many"}, "cannot be understood"),
        ({"batch": 10**9}, "batch 1000000000"),
        ({"channels": 4}, "4 channels"),
        ({"names": {0: "a", 5: "b"}}, "are not numbered from 0 to 1"),
        ({"names": {0: "a"}}, "its 1 classes need"),
        ({"names": ["a", "b" * 300, "c"]}, "class 1 has a name of 300 characters, more than 255"),
        ({"names": "-" * 200_000}, "cannot be understood"),
        ({"names": "__import__('os')"}, "cannot be understood"),
        ({"imgsz": [100_000, 100_000]}, "cannot be understood"),
        ({"task": "pose"}, "the task pose, not for detect or segment"),
        ({"task": "segment"}, r"gives \(1, 7, 126\) where its 3 classes need .* and \(1, masks, 16, 24\)"),
        ({"end2end": True}, r"gives \(1, 7, 126\) where its 3 classes need \(1, boxes, 6\)"),
    ],
)
def test_hostile_metadata(run, exports, tmp_path, suffix, changes, message):
    with pytest.raises(UserError, match=message):
        run(weights=exports(suffix, **changes), source=picture(tmp_path / "a.jpg"))


def test_names_that_cannot_be_written_are_escaped(run, log, exports, tmp_path):
    weights = exports("torchscript", names=["a", "b\ud800\n", "c"])
    everything = {"save_txt": True, "save_csv": True, "save_crop": True}
    assert run(weights=weights, source=picture(tmp_path / "a.jpg"), **everything) == 0
    assert any(r"a.jpg: 64x96 1 b\ud800\n, " in line for line in log)
    assert r"a.jpg,,b\ud800\n,0." in Path("runs/detect/exp/predictions.csv").read_text()


def test_names_of_weights_without_them_are_those_of_data(run, exports, tmp_path):
    weights, image, data = exports("onnx", names=None), picture(tmp_path / "a.jpg"), tmp_path / "d.yaml"
    data.write_text("names: [circle, box, disc]")
    assert run(weights=weights, source=image, data=data, save_csv=True) == 0
    assert "a.jpg,,box,0." in Path("runs/detect/exp/predictions.csv").read_text()
    data.write_text("path: .")
    with pytest.raises(UserError, match=r"d\.yaml: the key 'names' is missing"):
        run(weights=weights, source=image, data=data)


@pytest.mark.parametrize("suffix", ["onnx", "torchscript"])
def test_metadata_under_names_of_the_program_change_nothing(run, log, exports, tmp_path, suffix):
    """ultralytics would set them as attributes of what runs the network."""
    weights = exports(suffix, forward="x", device="x", session="x", model="x", _modules="x", fp16="x")
    assert run(weights=weights, source=picture(tmp_path / "a.jpg")) == 0
    assert any("a.jpg: 64x96 1 square, " in line for line in log)


def test_names_from_data_when_the_weights_hold_none(run, log, exports, tmp_path):
    (tmp_path / "kinds.yaml").write_text("names: [cat, dog, bird]\n")
    image = picture(tmp_path / "a.jpg")
    run(weights=exports("onnx", names=None), source=image, data="kinds.yaml", nosave=True)
    run(weights=exports("onnx", names=None), source=image, nosave=True)
    assert [line.split()[4:6] for line in log if line.startswith("image ")] == [["1", "dog,"], ["1", "class1,"]]


@pytest.mark.parametrize("suffix", ["onnx", "torchscript"])
def test_a_folder_is_no_file(run, tmp_path, suffix):
    (tmp_path / f"best.{suffix}").mkdir()
    with pytest.raises(UserError, match=r"is a folder, and .* models are files"):
        run(weights=tmp_path / f"best.{suffix}", source=picture(tmp_path / "a.jpg"))


def test_torchscript_for_another_size_than_it_says(run, exports, tmp_path):
    with pytest.raises(UserError, match="does not run on a picture of 128x128"):
        run(weights=exports("torchscript", imgsz=[128, 128]), source=picture(tmp_path / "a.jpg"))


# Masks ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("end2end", [False, True])
@pytest.mark.parametrize("suffix", ["onnx", "torchscript"])
def test_masks_of_an_export(run, log, tmp_path, suffix, end2end):
    image = picture(tmp_path / "a.jpg", 48, 64)
    weights = write_export(tmp_path, Disc(end2end=end2end), suffix)
    options = {"weights": weights, "source": image, "save_txt": True, "save_conf": True}
    assert run(**options, save_crop=True, save_csv=True) == 0
    assert any("a.jpg: 64x96 1 square, 1 star, " in line for line in log)
    assert files_below("runs/detect/exp") == [
        "a.jpg",
        "crops/square/a.jpg",
        "crops/star/a.jpg",
        "labels/a.txt",
        "predictions.csv",
    ]
    disc, dot = (line.split() for line in Path("runs/detect/exp/labels/a.txt").read_text().splitlines())
    assert disc[0] == "1" and float(disc[-1]) == pytest.approx(0.9) and dot[0] == "2" and len(dot) == 10
    points = np.array(disc[1:-1], float).reshape(-1, 2) * (64, 48)
    assert len(points) > 8 and np.allclose(np.linalg.norm(points - (32, 24), axis=1), 24 / (64 / 48), atol=1.5)
    run(**options, save_format=1)
    corners = np.loadtxt("runs/detect/exp2/labels/a.txt", ndmin=2)
    assert np.allclose(corners[0, 1:5] * (64, 48, 64, 48), [14, 6, 50, 42], atol=0.6)


def test_masks_are_drawn_and_finer_when_asked_for(run, tmp_path):
    image = tmp_path / "a.png"
    cv2.imwrite(str(image), np.zeros((480, 640, 3), np.uint8))
    weights = write_export(tmp_path, Disc(), "torchscript")
    inside = {}
    for name in ("coarse", "fine"):
        run(weights=weights, source=image, hide_labels=True, name=name, retina_masks=name == "fine", save_txt=True)
        drawn = cv2.imread(f"runs/detect/{name}/a.jpg")
        assert drawn[240, 320].max() > 50 and drawn[70, 150].max() < 20  # in the disc; in its box, but not in the disc
        line = Path(f"runs/detect/{name}/labels/a.txt").read_text().splitlines()[0]
        inside[name] = len(line.split())
    assert inside["fine"] > 1.5 * inside["coarse"]


def test_retina_masks_of_a_detector_are_of_no_use_and_said_so(run, log, tmp_path):
    run(source=picture(tmp_path / "a.jpg"), nosave=True, retina_masks=True)
    assert any("--retina-masks is of no use: best.pt finds boxes, not masks" in line for line in log)


@pytest.mark.parametrize("suffix", ["onnx", "torchscript"])
def test_boxes_without_nms_of_an_export(run, log, tmp_path, suffix):
    weights = write_export(tmp_path, Disc(end2end=True, masks=False), suffix)
    run(weights=weights, source=picture(tmp_path / "a.jpg", 48, 64), save_txt=True)
    assert any("a.jpg: 64x96 1 square, 1 star, " in line for line in log)
    square, star = np.loadtxt("runs/detect/exp/labels/a.txt", ndmin=2)
    assert np.allclose(square, [1, 0.5, 0.5, 0.5625, 0.75], atol=0.01) and star[0] == 2


@pytest.mark.parametrize(
    ("network", "changes", "message"),
    [
        (
            Disc(masks=False),
            {"task": "segment"},
            r"gives \(1, 7, 2\) where its 3 classes need \(1, 7, boxes\) and \(1, masks, 16, 24\)",
        ),
        (Disc(), {"task": "detect"}, r"and \(1, 2, 16, 24\) where its 3 classes need \(1, 7, boxes\)"),
        (Disc(), {"names": {0: "a"}}, r"gives \(1, 9, 2\) and .* its 1 classes need \(1, 7, boxes\)"),
        (Disc(), {"end2end": True}, r"gives \(1, 9, 2\) and .* need \(1, boxes, 8\) and \(1, 2, 16, 24\)"),
    ],
)
def test_outputs_that_are_not_those_of_the_task(run, tmp_path, network, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        run(weights=write_export(tmp_path, network, "torchscript", **changes), source=picture(tmp_path / "a.jpg"))
    assert "\n" not in str(caught.value)


# The loop -------------------------------------------------------------------------------------------------------------
def test_reading_computing_and_writing_have_a_thread_each(run, tmp_path, monkeypatch):
    threads = {}

    def record(owner, name):
        inner = getattr(owner, name)

        def wrapper(*args):
            threads.setdefault(name, set()).add(threading.current_thread().name)
            return inner(*args)

        monkeypatch.setattr(owner, name, wrapper)

    record(sources, "read_picture")
    record(predictor.Predictor, "detect")
    record(writers.Writers, "save")
    for i in range(4):
        picture(tmp_path / "in" / f"{i}.jpg")
    run(source="in")
    assert {name: {t.split("_")[0] for t in where} for name, where in threads.items()} == {
        "read_picture": {"reader"},
        "detect": {"MainThread"},
        "save": {"writer"},
    }


def test_background_keeps_order_and_bounds_what_waits():
    gate, done = threading.Event(), []
    with Background(limit=3) as writer:
        writer.submit(gate.wait, 10)
        for i in range(2):
            writer.submit(done.append, i)
        assert len(writer.jobs) == 3 and done == []
        blocked = threading.Thread(target=writer.submit, args=(done.append, 2))
        blocked.start()
        blocked.join(0.2)
        assert blocked.is_alive()
        gate.set()
        blocked.join(10)
    assert done == [0, 1, 2]


def test_background_passes_errors_on():
    def fail():
        raise OSError("full")

    with pytest.raises(OSError, match="full"), Background() as writer:
        writer.submit(fail)


def test_prefetch_reads_one_ahead_and_passes_errors_on():
    read = []

    def items():
        for i in range(5):
            read.append(i)
            yield i
        raise RuntimeError("broken")

    taken = sources.prefetch(items())
    assert next(taken) == 0 and len(read) <= 2
    assert next(taken) == 1 and len(read) <= 3
    with pytest.raises(RuntimeError, match="broken"):
        list(taken)


def test_the_end_does_not_wait_for_a_file_that_never_comes():
    never = threading.Event()

    def waiting():
        yield 1
        never.wait()

    taken = sources.prefetch(waiting())
    assert next(taken) == 1
    start = time.monotonic()
    taken.close()
    assert time.monotonic() - start < 1
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "reader")
    never.set()


# As a process ---------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_process_with_a_broken_file(weights, tmp_path):
    picture(tmp_path / "in/good.jpg")
    (tmp_path / "in" / f"{NOT_UTF8}.jpg").write_text("bad")
    process = start(tmp_path, "--weights", weights, "--source", "in", "--conf", "0.4", "--img", "64", "--save-txt")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1 and "Traceback" not in out + err
    assert files_below(tmp_path / "runs/detect/exp") == ["good.jpg", "labels/good.txt"]
    assert "caf\\udce9.jpg: not a picture" in out and "Results saved to runs/detect/exp" in out


@pytest.mark.slow
def test_process_without_weights(tmp_path):
    process = start(tmp_path)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2 and "Traceback" not in out + err
    assert err.startswith("ERROR: there are no weights in runs/train") and err.count("\n") == 1


@pytest.mark.slow
def test_process_ended_by_sigterm_keeps_the_video_so_far(weights, tmp_path):
    process = start(tmp_path, "--weights", weights, "--source", video(tmp_path / "clip.avi", frames=20_000))
    for line in process.stdout:
        if "(30/" in line:
            break
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 143 and err.endswith("ERROR: terminated\n") and "Traceback" not in err
    assert files_below(tmp_path / "runs/detect/exp") == ["clip.mp4"]
    assert 20 <= count_frames(tmp_path / "runs/detect/exp/clip.mp4") < 20_000
