"""detect.py as its users meet it: broken input, options, exit codes, and its threads."""

import errno
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import detect
from models.errors import UserError
from tests.detecting import NOT_UTF8, count_frames, files_below, picture, start, video
from tests.networks import NAMES
from utils import cli
from utils.detect import predictor, sources, writers
from utils.detect.loop import Background


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
