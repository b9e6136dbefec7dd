"""What detect.py does beyond one network on one frame: several weights, objects that are followed, feature maps."""

import importlib.util
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from models import DetectionModel
from models.errors import UserError
from tests.detecting import files_below, picture, video
from tests.helpers import tiny_backbone
from tests.networks import NAMES, Disc, write_export
from utils.checkpoint import load_checkpoint, pack_model, save_checkpoint
from utils.detect import ensemble, feature_maps, predictor, tracking
from utils.detect.frame import Found, Frame
from utils.detect.predictor import create_predictor

# isort: split
from ultralytics.data.augment import LetterBox
from ultralytics.engine.results import Results

from utils.detect.loop import in_order

needs_lap = pytest.mark.skipif(importlib.util.find_spec("lap") is None, reason="the trackers need the package lap")


# Several weights ------------------------------------------------------------------------------------------------------
def boxes_of(finder, image):
    return finder.detect(Frame(image, Path("a"), "")).result.boxes.data


def test_two_networks_find_what_either_finds(tmp_path):
    """Both find the disc in the middle, of which NMS leaves one, and each a line in another place."""
    image = np.zeros((96, 192, 3), np.uint8)
    small = write_export(tmp_path, Disc(64, 96, masks=False), "torchscript").rename(tmp_path / "small.torchscript")
    large = write_export(tmp_path, Disc(128, 160, masks=False), "torchscript").rename(tmp_path / "large.torchscript")
    single = boxes_of(create_predictor(small), image)
    joined = boxes_of(ensemble.create_ensemble([small, large]), image)
    assert len(single) == 2 and len(joined) == 3
    _, line = boxes_of(create_predictor(large), image)
    for expected in [*single, line]:
        assert np.abs(joined - expected).max(1).min() < 0.01


def test_the_same_network_twice_finds_the_same(weights):
    image = np.random.default_rng(0).integers(0, 255, (50, 90, 3), dtype=np.uint8)
    once, twice = ensemble.create_ensemble([weights]), ensemble.create_ensemble([weights, weights])
    assert np.allclose(boxes_of(once, image), boxes_of(twice, image), atol=1e-4)


@pytest.mark.parametrize("size", [(720, 1280), (333, 500), (50, 700)])
@pytest.mark.parametrize("source", [(640, 640), (384, 640), (320, 512)])
def test_boxes_move_between_inputs_as_pictures_do(size, source):
    def centre_of_the_mark(shape):
        fitted = LetterBox(shape, auto=False)(image=mark)[..., 0] > 127
        return [float(values.mean()) for values in np.nonzero(fitted)[::-1]]

    mark = np.zeros((*size, 3), np.uint8)
    mark[size[0] // 2 :, size[1] // 2 :] = 255
    target = (448, 576)
    x, y = centre_of_the_mark(source)
    moved = ensemble.move(torch.tensor([[[x + 0.5], [y + 0.5], [8.0], [4.0], [0.9]]]), source, target, size)
    assert np.allclose(moved[0, :2, 0].numpy() - 0.5, centre_of_the_mark(target), atol=1.5)
    assert moved[0, 2] / moved[0, 3] == 2 and moved[0, 4].item() == pytest.approx(0.9)


@pytest.mark.slow
def test_weights_that_cannot_be_joined(run, weights, tmp_path):
    image = picture(tmp_path / "a.jpg")
    other = DetectionModel("yolov5n-u.yaml", nc=2)
    other.names = {0: "circle", 1: "cube"}
    save_checkpoint({**pack_model(other), "ema": other.state_dict()}, tmp_path / "other.pt")
    masks = write_export(tmp_path, Disc(), "torchscript")
    with pytest.raises(UserError, match=r"knows 3 \(circle, square, star\) and other\.pt 2 \(circle, cube\)"):
        run(weights=[weights, tmp_path / "other.pt"], source=image)
    with pytest.raises(UserError, match=r"disc\.torchscript finds masks as well: use it alone"):
        run(weights=[weights, masks], source=image)
    with pytest.raises(UserError, match="needs no NMS"):
        run(weights=[write_export(tmp_path, Disc(end2end=True, masks=False), "torchscript"), weights], source=image)
    assert not (tmp_path / "runs").exists()


def test_several_weights_on_the_command_line(run, weights, log, tmp_path):
    onnx = write_export(tmp_path, Disc(masks=False), "onnx")
    assert run(weights=[weights, onnx], source=picture(tmp_path / "a.jpg"), save_txt=True) == 0
    assert any("64x64 2 squares, 1 star, " in line for line in log)  # of which one is the checkpoint's
    assert files_below("runs/detect/exp") == ["a.jpg", "labels/a.txt"]


# Several frames at once -----------------------------------------------------------------------------------------------
def test_an_onnx_file_computes_several_frames_at_once_and_keeps_their_order(monkeypatch, tmp_path):
    monkeypatch.setattr(predictor, "threads_of_process", lambda: 3)
    path = write_export(tmp_path, Disc(masks=False), "onnx")
    assert create_predictor(path, device="cpu").workers == 1
    finder = create_predictor(path, device="cpu", many=True)
    assert finder.workers == 3
    frames = [Frame(np.full((48 + i, 64, 3), i, np.uint8), Path(str(i)), "") for i in range(20)]
    found = list(in_order(finder.detect, frames, finder.workers))
    assert [f.frame.path.name for f in found] == [str(i) for i in range(20)]
    for one in found:
        assert np.allclose(one.result.boxes.data, boxes_of(create_predictor(path, device="cpu"), one.frame.image))


def test_no_more_frames_are_taken_than_are_computed():
    taken = []
    results = in_order(lambda x: x, (taken.append(i) or i for i in range(100)), 2)
    assert [next(results), next(results)] == [0, 1] and len(taken) <= 6
    results.close()


# Objects that are followed --------------------------------------------------------------------------------------------
def result_of(*boxes):
    return Results(np.zeros((200, 300, 3), np.uint8), "", NAMES, boxes=torch.tensor(boxes).reshape(-1, 6)).numpy()


def found_in(path, number, *boxes, live=False):
    result = result_of(*boxes)
    return Found(Frame(result.orig_img, Path(path), "", number, live=live), result, (1, 3, 64, 64), (0.0, 0.0, 0.0))


def square(x, conf=0.9):
    return [x, 50, x + 40, 90, conf, 1]


@needs_lap
@pytest.mark.parametrize("kind", tracking.TRACKERS)
def test_objects_keep_their_numbers(kind):
    tracker = tracking.Tracking(kind, 0.4)
    for i in range(1, 11):
        weak = 0.2 if i == 6 else 0.9  # below the threshold, which does not end a track
        found = tracker.follow(found_in("a.mp4", i, square(5 * i, weak), square(200 - 5 * i), [0, 0, 9, 9, 0.2, 0]))
        boxes = found.result.boxes
        numbers = {int(n): x for n, x in zip(boxes.id, boxes.xyxy[:, 0], strict=True)}
        assert set(numbers) == {1, 2} and boxes.cls.tolist() == [1, 1]
        assert numbers[1] == pytest.approx(5 * i, abs=6) and numbers[2] == pytest.approx(200 - 5 * i, abs=6)


@needs_lap
def test_each_video_counts_from_one_and_each_stream_for_itself():
    tracker = tracking.Tracking("bytetrack", 0.4)
    for path in ("a.mp4", "b.mp4", "a.mp4"):
        for i in (1, 2, 3):
            assert tracker.follow(found_in(path, i, square(10))).result.boxes.id.tolist() == [1]
    for i in (1, 2, 3):
        for path, x in (("cam0", 10), ("cam1", 200)):
            found = tracker.follow(found_in(path, i, square(x), live=True))
            assert found.result.boxes.id.tolist() == [1] and found.result.boxes.xyxy[0, 0] == pytest.approx(x, abs=1)
    assert len(tracker.follow(found_in("cam0", 4, live=True)).result) == 0


@needs_lap
def test_pictures_have_no_numbers():
    found = tracking.Tracking("bytetrack", 0.4).follow(found_in("a.jpg", None, square(10), square(90, 0.2)))
    assert found.result.boxes.conf.tolist() == pytest.approx([0.9]) and not found.result.boxes.is_track


@needs_lap
def test_numbers_are_written(run, log, tmp_path):
    assert run(source=video(tmp_path / "a.avi", 4), track="botsort", save_txt=True, save_conf=True, save_csv=True) == 0
    for i in range(1, 5):
        [line] = Path(f"runs/detect/exp/labels/a_{i}.txt").read_text().splitlines()
        assert len(line.split()) == 7 and line.split()[-1] == "1"
    _, *rows = Path("runs/detect/exp/predictions.csv").read_text().splitlines()
    assert [row.split(",")[:2] + row.split(",")[8:] for row in rows] == [["a.avi", str(i), "1"] for i in range(1, 5)]


def test_tracking_without_its_package(run, tmp_path, monkeypatch):
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--track needs the package lap: pip install lap=="):
        run(source=video(tmp_path / "a.avi", 2), track="bytetrack")


# Feature maps ---------------------------------------------------------------------------------------------------------
def test_feature_maps(run, tmp_path):
    picture(tmp_path / "in/a.jpg", 64, 64)
    video(tmp_path / "in/clip.avi", 3)
    assert run(source="in", visualize=True, nosave=True) == 0
    levels = [f"P{i}.png" for i in range(1, 6)]
    assert files_below("runs/detect/exp") == [f"features/{name}/{level}" for name in ("a", "clip") for level in levels]
    drawn = cv2.imread("runs/detect/exp/features/a/P3.png")
    assert drawn.shape == (4 * 98, 8 * 98, 3) and drawn.std() > 10


def test_feature_maps_are_those_of_the_backbone(weights, tmp_path):
    finder = create_predictor(weights)
    maps = feature_maps.FeatureMaps(finder)
    found = finder.detect(Frame(np.zeros((64, 96, 3), np.uint8), Path("a.jpg"), ""))
    assert maps.writer(tmp_path)(found) is found
    strides = {name: found.shape[2] / kept.shape[2] for name, kept in maps._maps.items()}
    assert strides == {"P1": 2, "P2": 4, "P3": 8, "P4": 16, "P5": 32}
    assert maps._maps["P5"].shape[1] == 256  # of SPPF, the backbone's last row


def test_p5_is_the_list_backbones_and_not_that_of_a_row_behind_it():
    options = {"num_blocks": [1, 1, 1, 1], "width_multiplier": [0.25, 0.25, 0.25, 0.25]}
    rows = [[-1, 1, "RepVGG", ["A0", options]], [-1, 1, "SPPF", [64, 5]]]
    model = DetectionModel(tiny_backbone("RepVGG", backbone=rows))
    assert feature_maps.level_outputs(model) == {"P3": (0, 0), "P4": (0, 1), "P5": (0, 2)}
    assert list(feature_maps.row_outputs(model)) == ["02_RepVGG", "03_RepVGG", "04_RepVGG", "05_SPPF"]


def test_every_row_is_drawn_and_kept_as_an_array(run, weights, tmp_path):
    picture(tmp_path / "in/a.jpg", 64, 96)
    assert run(source="in", visualize="all", save_npy=True, nosave=True) == 0
    model = load_checkpoint(weights)
    names = sorted(f"{row.index:02d}_{row.module}" for row in model.spec.rows[:-1])
    files = [f"features/a/{name}.{end}" for name in names for end in ("npy", "png")]
    assert files_below("runs/detect/exp") == files
    maps = np.load("runs/detect/exp/features/a/05_SPPF.npy")
    assert (maps.dtype, maps.shape) == (np.float32, (256, 2, 2))
    drawn = cv2.imread("runs/detect/exp/features/a/05_SPPF.png")
    assert np.array_equal(drawn, feature_maps.draw_maps(maps))


def test_arrays_are_those_of_feature_maps(run, tmp_path):
    with pytest.raises(UserError, match="--save-npy writes the maps of --visualize: give that as well"):
        run(source=picture(tmp_path / "a.jpg"), save_npy=True)


def test_a_constant_map_is_drawn():
    assert feature_maps.draw_maps(np.full((3, 2, 5), 7.0, np.float32)).dtype == np.uint8


def test_feature_maps_of_an_export_are_out_of_reach(run, tmp_path):
    with pytest.raises(UserError, match="needs one file of PyTorch weights"):
        run(weights=write_export(tmp_path, Disc(), "onnx"), source=picture(tmp_path / "a.jpg"), visualize=True)
