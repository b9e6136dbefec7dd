"""Streams as detect.py reads them, from servers in this process: several at once, lost ones, ends, names, the screen.

Cameras, RTSP and RTMP are not there to be tested; OpenCV opens them by the same call as the addresses below.
"""

import os
import signal
import sys
import threading
import time
import types
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count, islice
from pathlib import Path

import cv2
import numpy as np
import pytest

import detect
from models.errors import UserError
from models.secrets import without_secrets
from tests.detecting import count_frames, files_below, start, video
from utils.detect import sources, streams

# isort: split
from ultralytics.utils import LOGGER


@contextmanager
def serve(*visits, port=0):
    """Serve streams as an IP camera does (Motion JPEG); yield the address and the server.

    Args:
        visits: what each connection gives, one after the other: (grey, seconds before it) pairs. Further connections
            are refused.
        port: 0 takes any.
    """
    left = list(visits)

    class Camera(BaseHTTPRequestHandler):
        def do_GET(self):
            if not left:
                return self.send_error(503)
            frames = left.pop(0)
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            try:
                for grey, pause in frames:
                    time.sleep(pause)
                    data = cv2.imencode(".jpg", np.full((48, 64, 3), grey, np.uint8))[1].tobytes()
                    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
                    self.wfile.write(head.encode() + data + b"\r\n")
            except OSError:
                pass  # the reader left
            return None

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Camera)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/video.mjpg"
    finally:
        server.shutdown()
        server.server_close()


def greys(frames):
    return [int(frame.image.mean().round()) for frame in frames]


@pytest.fixture
def soon(monkeypatch):
    """Connect to lost streams again at once."""
    monkeypatch.setattr(streams, "PAUSES", (0.05, 0.1))


@pytest.fixture
def log(monkeypatch):
    lines = []
    monkeypatch.setattr(LOGGER, "info", lines.append)
    monkeypatch.setattr(LOGGER, "warning", lines.append)
    return lines


def test_a_stream_until_it_ends():
    with serve([(10 * i, 0.05) for i in range(10)]) as address:
        source = sources.open_source(address, patience=0)
        frames = list(source)
    assert len(source) == 1 and source.unreadable == {}
    assert 5 <= len(frames) <= 10 and greys(frames) == sorted(greys(frames))
    assert [frame.number for frame in frames] == list(range(1, len(frames) + 1))
    name = address.replace("://", "_").replace("/", "_").replace(":", "_")
    assert {frame.path.name for frame in frames} == {name} and all(frame.live for frame in frames)


def test_frames_of_a_stream_with_an_end_have_the_numbers_that_they_have_in_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    video(tmp_path / "clip.avi", frames=17)
    (tmp_path / "clips.streams").write_text("clip.avi\n")
    frames = list(sources.open_source("clips.streams", vid_stride=5))
    assert [frame.number for frame in frames] == [5, 10, 15]
    assert greys(frames) == pytest.approx([40, 90, 140], abs=3)


def test_the_newest_frame_is_taken_and_older_ones_are_dropped():
    with serve([(2 * i, 0.01) for i in range(100)]) as address:
        taken = []
        for frame in sources.open_source(address, patience=0):
            taken += greys([frame])
            time.sleep(0.2)
    assert len(taken) < 20 and taken == sorted(taken)
    assert np.diff(taken).max() >= 10


@pytest.mark.slow
def test_a_slow_stream_does_not_hold_up_another(tmp_path):
    fast, slow = [(100, 0.02) for _ in range(110)], [(200, 0.4) for _ in range(4)]
    with serve(fast) as first, serve(slow) as second:
        (tmp_path / "cameras.streams").write_text(f"{first}\n{second}\n")
        frames = list(sources.open_source(str(tmp_path / "cameras.streams"), patience=0))
    by_title = {title: [f for f in frames if f.title == title] for title in ("0: ", "1: ")}
    assert len(by_title["0: "]) > 3 * len(by_title["1: "]) > 0
    assert set(greys(by_title["0: "])) == {100} and set(greys(by_title["1: "])) == {200}


def test_one_stream_twice_has_two_names():
    with serve([(9, 0.01)] * 5, [(9, 0.01)] * 5) as address:
        frames = list(sources.open_source([address, address], patience=0))
    first, second = sorted({frame.path.name for frame in frames})
    assert second == f"{first}-2"


def test_a_lost_stream_comes_back_and_gives_no_black_frames(soon, log):
    with serve([(100, 0.02)] * 5, [(150, 0.02)] * 5) as address:
        source = sources.open_source(address, patience=0.5)
        frames = list(source)
    assert set(greys(frames)) == {100, 150}
    [reason] = source.unreadable.values()
    assert reason == "lost, and not back within 0 s"
    assert [line.replace(address, "X") for line in log] == [
        "the stream X is lost, connecting again for up to 0 s",
        "the stream X is back after 0 s",
        "the stream X is lost, connecting again for up to 0 s",
    ]


def test_a_camera_that_was_switched_off_for_a_while(soon, log):
    with serve([(100, 0.02)] * 5) as address:
        frames = iter(sources.open_source(address, patience=30))
        assert greys([next(frames)]) == [100]
    time.sleep(0.5)  # nothing listens at the address
    with serve([(150, 0.02) for _ in range(200)], port=int(address.split(":")[2].split("/")[0])):
        assert 150 in greys(islice(frames, 10))
    frames.close()
    assert sum("is lost" in line for line in log) == 1 and sum("is back" in line for line in log) == 1


def test_pauses_get_longer(monkeypatch):
    waited = []
    stream = object.__new__(streams.Stream)
    stream.__dict__ |= {"shown": "x", "patience": 100.0, "_total": 0, "_closed": types.SimpleNamespace()}
    clock = count(step=0)
    monkeypatch.setattr(streams.time, "monotonic", lambda: sum(waited) + next(clock))
    stream._closed.wait, stream._closed.is_set = waited.append, lambda: False
    visits = iter([[(1, np.zeros((2, 2, 3)))]])
    stream._connection = lambda: next(visits, [])
    stream._offer = lambda image, number: None
    assert stream._read_all() == "lost, and not back within 100 s"
    assert waited == [1, 2, 4, 8, 16, 30, 30, 9]


def test_a_video_behind_an_address_is_read_frame_by_frame(tmp_path):
    clip = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for i in range(20):
        writer.write(np.full((48, 64, 3), 10 * i, np.uint8))
    writer.release()

    class File(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(clip.stat().st_size))
            self.end_headers()
            self.wfile.write(clip.read_bytes())

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), File) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        source = sources.open_source(f"http://127.0.0.1:{server.server_port}/clip.avi")
        taken = []
        for frame in source:
            taken += greys([frame])
            time.sleep(0.01)
        server.shutdown()
    assert np.allclose(taken, 10 * np.arange(20), atol=2) and frame.fps == 10 and source.unreadable == {}


def test_reading_ends_when_nobody_takes_frames():
    with serve([(100, 0.01) for _ in range(1000)]) as address:
        frames = iter(sources.open_source(address))
        next(frames)
        frames.close()
        time.sleep(0.1)
        assert not [t for t in threading.enumerate() if t.name.startswith("stream ")]


def test_streams_that_cannot_be_opened(tmp_path):
    with serve() as refused, pytest.raises(UserError, match=r"the stream http://127.* cannot be opened"):
        sources.open_source(refused)
    (tmp_path / "empty.streams").write_text("\n")
    with pytest.raises(UserError, match="there is no stream in"):
        sources.open_source(str(tmp_path / "empty.streams"))
    with pytest.raises(UserError, match="files or streams, not both at once: 0 is a stream"):
        sources.open_source(["a.jpg", "0"])


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("0", "0"),
        ("rtsp://me:secret@host:554/live/1", "rtsp_host_554_live_1"),
        ("http://host/a%20b?token=b&channel=2&d=../..", "http_host_a_20b_channel_2"),
        ("clips/a b.mp4", "clips_a_b.mp4"),
        ("http://host/" + "x" * 300, "http_host_" + "x" * 90),
    ],
)
def test_names_of_streams(address, name):
    assert streams.stream_name(without_secrets(address)) == name.strip("_.")


@pytest.mark.parametrize(
    "line",
    ["concat:a.mp4|b.mp4", "file:///etc/passwd", "subfile,,start,0,end,9,,:a.mp4", "/dev/video0", "data:x", "ftp://a"],
)
def test_a_list_of_streams_opens_nothing_else(line, tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "connect", pytest.fail)
    (tmp_path / "cameras.streams").write_text(f"0\n{line}\n")
    with pytest.raises(UserError, match="where a camera's number, the path of a video, or an address with one of"):
        sources.open_source(str(tmp_path / "cameras.streams"))


def test_a_line_that_names_a_pipe_or_a_device_says_so(tmp_path):
    os.mkfifo(tmp_path / "clip.avi")
    for line, said in ((str(tmp_path / "clip.avi"), "pipe"), ("/dev/full", "device")):
        (tmp_path / "cameras.streams").write_text(f"0\n{line}\n")
        with pytest.raises(UserError, match=f"has the line {line}, which is not a file but a {said}"):
            sources.open_source(str(tmp_path / "cameras.streams"))


# YouTube and the screen, through packages that may be missing ---------------------------------------------------------
def test_youtube(monkeypatch):
    class Page:
        def __init__(self, options):
            assert options["noplaylist"]

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def extract_info(self, address, download):
            if "gone" in address:
                raise Gone("ERROR: this video\nis gone")
            return {"url": f"played from {address}", "download": download}

    class Gone(Exception):
        pass

    package = types.ModuleType("yt_dlp")
    package.YoutubeDL, package.utils = Page, types.ModuleType("yt_dlp.utils")
    package.utils.YoutubeDLError = Gone
    monkeypatch.setitem(sys.modules, "yt_dlp", package)
    monkeypatch.setitem(sys.modules, "yt_dlp.utils", package.utils)
    assert streams.find_stream("https://youtu.be/x") == "played from https://youtu.be/x"
    assert streams.find_stream("https://youtube.example/x") == "https://youtube.example/x"
    with pytest.raises(UserError, match=r"does not give .*watch: ERROR: this video is gone"):
        streams.find_stream("https://www.youtube.com/watch?v=gone")


def test_youtube_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "yt_dlp", None)
    with pytest.raises(UserError, match=r"https://youtu\.be/x needs the package yt-dlp: pip install yt-dlp"):
        sources.open_source("https://youtu.be/x")


def screen_package(monkeypatch, **names):
    package, error = types.ModuleType("mss"), types.ModuleType("mss.exception")
    package.__spec__ = object()
    error.ScreenShotError = type("ScreenShotError", (Exception,), {})
    package.__dict__.update(names)
    monkeypatch.setitem(sys.modules, "mss", package)
    monkeypatch.setitem(sys.modules, "mss.exception", error)
    monkeypatch.setattr("ultralytics.data.loaders.check_requirements", lambda *_: True)
    return error.ScreenShotError


def test_screen(monkeypatch):
    class Screens:
        monitors = ({"left": 0, "top": 0, "width": 64, "height": 48},) * 2

        def grab(self, area):
            return np.full((area["height"], area["width"], 4), 7, np.uint8)

    screen_package(monkeypatch, mss=Screens)
    for words, shape in [("screen", (48, 64, 3)), (["screen", "1"], (48, 64, 3)), ("screen 0 1 2 30 20", (20, 30, 3))]:
        first, second = islice(sources.open_source(words), 2)
        assert first.image.shape == shape and first.image.flags.c_contiguous
        assert (first.number, second.number) == (1, 2) and first.path in (Path("screen0"), Path("screen1"))
    for words in ("screen 9", "screen left"):
        with pytest.raises(UserError, match=f"'{words}' is no screen"):
            sources.open_source(words)


def test_screen_that_cannot_be_read(monkeypatch):
    def fail():
        raise error("no display")

    error = screen_package(monkeypatch, mss=fail)
    with pytest.raises(UserError, match="the screen cannot be read: no display"):
        sources.open_source("screen")
    monkeypatch.setattr(streams.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs the package mss"):
        sources.open_source("screen")


# detect.py on a stream ------------------------------------------------------------------------------------------------
def test_detect_on_two_streams(weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with serve([(50, 0.02)] * 20) as first, serve([(90, 0.02)] * 20) as second:
        (tmp_path / "cameras.streams").write_text(f"{first}\n{second}\n")
        options = {"weights": weights, "reconnect": 0, "save_txt": True, "exist_ok": True}
        assert detect.run(source="cameras.streams", **options) == []  # nothing is kept of what may have no end
    videos = sorted(path.name for path in Path("runs/detect/exp").glob("*.mp4"))
    assert len(videos) == 2 and all(count_frames(f"runs/detect/exp/{name}") > 0 for name in videos)
    frames = sum(count_frames(f"runs/detect/exp/{name}") for name in videos)
    assert len(list(Path("runs/detect/exp/labels").iterdir())) == frames


@pytest.mark.slow
def test_ctrl_c_finishes_the_video(weights, tmp_path):
    with serve([(50, 0.02) for _ in range(5000)]) as address:
        process = start(tmp_path, "--weights", weights, "--source", address)
        seen = 0
        for line in process.stdout:
            seen += line.startswith("0: ")
            if seen == 20:
                break
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err.endswith("ERROR: interrupted\n") and "Traceback" not in err
    [video] = files_below(tmp_path / "runs/detect/exp")
    assert video.endswith(".mp4")
    assert count_frames(tmp_path / "runs/detect/exp" / video) >= 19  # perhaps not the one at hand
