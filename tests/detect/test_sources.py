"""What detect.py reads: pictures, videos, streams and lists of them, and what is none of these."""

import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from ultralytics.engine.results import Results
from ultralytics.utils import ASSETS

import detect
from models.errors import UserError
from tests.detecting import NOT_UTF8, count_frames, files_below, picture, video
from tests.networks import NAMES
from utils.detect import loop, sources, streams, writers
from utils.detect.frame import Frame


def huge_png(path, side=16000):
    """A PNG of a few bytes whose header promises 256 million pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b""))


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
