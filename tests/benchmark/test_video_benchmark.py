"""The comparison of detect.py with ultralytics' predictor on a video, on a short one."""

import numpy as np
import pytest

from models.errors import UserError
from tests.networks import Disc, write_export
from utils import video_benchmark
from utils.video_benchmark import Round

# isort: split
from ultralytics.utils import LOGGER


@pytest.mark.slow
def test_both_find_the_same_boxes(tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(LOGGER, "info", lines.append)
    weights = write_export(tmp_path, Disc(masks=False), "onnx")
    args = video_benchmark.make_parser().from_keywords(weights=weights, frames=12, rounds=1)
    assert video_benchmark.main(args) == 0
    assert any("frames a second" in line and "ultralytics" in line for line in lines)
    assert "boxes: 24, at most 0.0000 px apart" in lines


def test_the_video_moves():
    first, second = video_benchmark.benchmark_frames(2)
    assert first.shape == (720, 1280, 3) and first.dtype == np.uint8 and (first != second).any(2).mean() > 0.5


def test_what_counts_as_the_same():
    box = np.array([[0.0, 0, 10, 10, 0.9, 1]])
    same, moved, other = (Round([box + np.array(by)]) for by in ([0] * 6, [3, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1]))
    assert video_benchmark.farthest(same, same) == 0 and video_benchmark.farthest(same, moved) == 3
    assert video_benchmark.farthest(same, other) == video_benchmark.farthest(same, Round([box[:0]])) == np.inf
    assert video_benchmark.growth([100] * 100 + [102]) == pytest.approx(0.02)


def test_a_video_that_is_not_there(tmp_path):
    weights = write_export(tmp_path, Disc(masks=False), "torchscript")
    with pytest.raises(UserError, match=r"gone\.mp4 does not exist"):
        video_benchmark.main(video_benchmark.make_parser().from_keywords(weights=weights, video="gone.mp4"))


@pytest.mark.parametrize(
    ("name", "message"), [("photo.jpg", "takes one video, not photo.jpg"), ("clip.mp4", r"clip\.mp4: broken video")]
)
def test_what_is_no_video(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text("hello")
    weights = write_export(tmp_path, Disc(masks=False), "torchscript")
    with pytest.raises(UserError, match=message):
        video_benchmark.main(video_benchmark.make_parser().from_keywords(weights=weights, video=name))
