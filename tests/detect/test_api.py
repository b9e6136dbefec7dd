"""`from models import load`: what it takes, that it finds what detect.py finds, and what it says of wrong input."""

import io
import itertools
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from ultralytics.engine.results import Results

import detect
from models import load
from models.errors import UserError
from tests.detecting import picture, video
from tests.networks import Disc, write_export
from utils.detect.predictor import create_predictor
from utils.detect.sources import open_source
from utils.paths import ROOT


@pytest.fixture(scope="module")
def detector(weights):
    return load(weights, device="cpu")


@pytest.fixture
def photo(tmp_path):
    return picture(tmp_path / "photo.png", 50, 90)


def data(results):
    return [result.boxes.data for result in results]


def same(results, others):
    return len(results) == len(others) and all(map(torch.equal, data(results), data(others)))


@pytest.mark.parametrize("suffix", ["pt", "onnx", "torchscript"])
def test_it_finds_what_the_script_finds(suffix, weights, tmp_path, photo):
    path = weights if suffix == "pt" else write_export(tmp_path, Disc(), suffix)
    options = {"conf_thres": 0.3, "iou_thres": 0.5}
    predictor = create_predictor(path, many=True, **options)
    wanted = [predictor.detect(frame).result for frame in open_source(photo)]
    found = load(path)(photo, conf=0.3, iou=0.5)
    assert len(wanted[0].boxes) and isinstance(found[0], Results)
    assert np.array_equal(found[0].boxes.data.numpy(), wanted[0].boxes.data)
    if suffix != "pt":
        assert np.array_equal(found[0].masks.data.numpy(), wanted[0].masks.data)


def test_every_kind_of_picture_is_the_same_picture(detector, photo):
    frame = cv2.imread(str(photo))
    rgb = np.ascontiguousarray(frame[..., ::-1])
    tensor = torch.from_numpy(rgb).permute(2, 0, 1)
    kinds = [photo, str(photo), photo.as_uri(), frame, np.dstack([frame, frame[..., :1]]), rgb[..., ::-1]]
    kinds += [Image.fromarray(rgb), Image.open(photo), tensor, tensor[None], tensor / 255]
    results = detector(kinds)
    assert len(results[0].boxes) == 1
    assert same(results, results[:1] * len(kinds))
    assert all(np.array_equal(result.orig_img, frame) for result in results)
    assert same(detector(np.stack([frame, frame])), results[:2])
    assert same(detector([[photo], (frame,)]), results[:2])


def test_a_grey_deep_or_turned_picture(detector, tmp_path):
    grey = np.random.default_rng(0).integers(0, 255, (40, 60), np.uint8)
    assert np.array_equal(detector(grey)[0].orig_img, np.dstack([grey] * 3))
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    assert np.array_equal(detector(deep)[0].orig_img, np.dstack([grey] * 3))
    turned = Image.new("RGB", (60, 40))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    pictures = [tmp_path / "turned.jpg", Image.open(tmp_path / "turned.jpg")]
    assert [result.orig_shape for result in detector(pictures)] == [(60, 40), (60, 40)]


def test_results_belong_to_their_pictures(detector, tmp_path, photo):
    clip = video(tmp_path / "clip.avi", 4)
    results = detector([clip, photo, photo], vid_stride=2)  # in this order, though detect.py takes pictures first
    assert [result.path for result in results] == [str(clip)] * 2 + [str(photo)] * 2
    assert results[0].orig_shape == (48, 64)
    assert results[2].speed["inference"] > 0
    assert detector([np.zeros((9, 9, 3), np.uint8)] * 2)[1].path == "image1.jpg"
    assert results[2].to_df().height == 1
    assert Image.open(results[2].save(str(tmp_path / "drawn.png"))).size == (90, 50)


def test_pictures_computed_together(detector, tmp_path):
    sizes = [(50, 90), (90, 50), (50, 90), (64, 64), (50, 90)]
    paths = [picture(tmp_path / f"{i}.png", *size) for i, size in enumerate(sizes)]
    one, together = detector(paths), detector(paths, batch=4)
    assert [result.path for result in together] == list(map(str, paths))
    assert [result.orig_shape for result in together] == sizes
    for a, b in zip(one, together, strict=True):
        assert torch.allclose(a.boxes.data, b.boxes.data, atol=1e-3)


def test_options_change_what_is_found(detector, photo):
    assert [len(detector(photo, conf=conf)[0].boxes) for conf in (0.5, 0.99, 0.5)] == [1, 0, 1]
    assert [len(detector(photo, classes=keep)[0].boxes) for keep in (1, [0, 2], "square", ["star"])] == [1, 0, 1, 0]
    assert len(detector(photo, max_det=1, conf=0, imgsz=[96, 64])[0].boxes) == 1


def test_an_iterator_is_read_as_it_is_asked_for(detector):
    frames = (np.zeros((32, 32, 3), np.uint8) for _ in itertools.count())
    assert len(list(itertools.islice(detector(frames), 3))) == 3
    assert len(list(detector([np.zeros((32, 32, 3), np.uint8)] * 2, stream=True))) == 2


def test_threads_share_a_detector(detector, tmp_path):
    paths = [picture(tmp_path / f"{i}.png", 40 + 16 * i, 64) for i in range(4)]
    jobs = [(path, conf) for path in paths for conf in (0.0, 0.5)] * 3
    wanted = [data(detector(path, conf=conf))[0] for path, conf in jobs]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda job: data(detector(job[0], conf=job[1]))[0], jobs))
    assert all(map(torch.equal, found, wanted))


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("missing.jpg", {}, "missing.jpg does not exist"),
        (None, {}, "a source is a path, a numpy array"),
        ({"a": 1}, {}, "not dict"),
        (np.zeros((8, 8, 3), np.float32), {}, "uint8, 0 to 255, not float32"),
        (np.zeros((8, 8, 2), np.uint8), {}, r"not of shape \(8, 8, 2\)"),
        (np.zeros((0, 8, 3), np.uint8), {}, r"not of shape \(0, 8, 3\)"),
        (torch.full((3, 8, 8), 2.0), {}, "outside"),
        (torch.full((3, 8, 8), float("nan")), {}, "outside"),
        (torch.zeros(8, 8, 3), {}, "in RGB, not of shape"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), {}, "not torch.int64"),
        (Image.new("F", (8, 8)), {}, "mode F"),
        ("file://host/a.jpg", {}, "another machine"),
        (np.zeros((8, 8, 3), np.uint8), {"conf": 2}, "conf: expected a number from 0 to 1"),
        (np.zeros((8, 8, 3), np.uint8), {"imgsz": "big"}, "imgsz: expected a whole number"),
        (np.zeros((8, 8, 3), np.uint8), {"classes": [7]}, "7 does not exist"),
        (np.zeros((8, 8, 3), np.uint8), {"classes": "squares"}, "did you mean 'square'"),
        (np.zeros((8, 8, 3), np.uint8), {"device": "99"}, "device: "),
        (np.zeros((8, 8, 3), np.uint8), {"batch": 0}, "batch: "),
    ],
)
def test_wrong_input_is_one_sentence(detector, source, options, message):
    with pytest.raises(UserError, match=message):
        detector(source, **options)


def test_a_broken_file(detector, log, photo):
    broken = photo.with_name("broken.jpg")
    broken.write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"broken\.jpg cannot be read: "):
        detector(broken)
    assert len(detector(photo.parent)) == 1
    assert any("broken.jpg cannot be read" in line for line in log)


def test_a_file_for_one_picture_refuses_more(tmp_path, photo):
    with pytest.raises(UserError, match="one picture at a time"):
        load(write_export(tmp_path, Disc(), "onnx"))(photo, batch=2)


def test_by_the_habit_of_torch_hub(weights, detector, photo):
    hub = torch.hub.load(str(ROOT), "custom", path=weights, source="local")
    assert same(hub(photo), detector(photo))


@pytest.mark.parametrize("form", ["utils.py", "utils/__init__.py", "utils/other.py"])
def test_an_application_with_utils_of_its_own(tmp_path, form):
    own = tmp_path / form
    own.parent.mkdir(exist_ok=True)
    own.write_text("")
    code = f"import sys, utils; sys.path.append({str(ROOT)!r}); from models.errors import UserError\n"
    code += "try: from models import load\nexcept UserError as error: print('SAID', error)"
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout.startswith("SAID RepYOLO's package 'utils' is in "), run.stdout + run.stderr
    assert run.stdout.count("\n") == 1


def test_supervision_takes_results(detector, photo):
    supervision = pytest.importorskip("supervision")
    found = supervision.Detections.from_ultralytics(detector(photo)[0])
    assert found.class_id.tolist() == [1]
    assert found.data["class_name"].tolist() == ["square"]


def test_sahi_takes_a_detector(detector, photo):
    sahi = pytest.importorskip("sahi")
    predict = pytest.importorskip("sahi.predict")
    model = sahi.AutoDetectionModel.from_pretrained(
        "ultralytics", model=detector, confidence_threshold=0.3, device="cpu"
    )
    found = predict.get_sliced_prediction(str(photo), model, slice_height=32, slice_width=32, verbose=0)
    assert {one.category.name for one in found.object_prediction_list} == {"square"}


# detect.run -----------------------------------------------------------------------------------------------------------
def test_the_script_as_a_function_returns_what_it_found(weights, detector, photo, tmp_path):
    clip = video(tmp_path / "clip.avi", frames=3, size=(90, 50))
    options = {"weights": weights, "project": tmp_path / "runs", "device": "cpu"}
    results = detect.run(source=[photo, clip], **options)
    assert len(results) == 4 and all(isinstance(result, Results) for result in results)
    assert same(results[:1], detector(photo)) and results[0].plot().shape == (50, 90, 3)
    assert [result.orig_img is None for result in results] == [False, True, True, True]
    followed = detect.run(source=clip, track="bytetrack", nosave=True, **options)
    assert followed[-1].boxes.id.tolist() == [1.0]


def test_the_script_as_a_function_with_nothing_to_read(weights, photo, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/broken.jpg").write_bytes(b"no picture")
    options = {"weights": weights, "source": tmp_path / "in", "nosave": True, "device": "cpu"}
    with pytest.raises(UserError, match=r"broken\.jpg cannot be read"):
        detect.run(**options)
    photo.replace(tmp_path / "in/photo.png")
    assert len(detect.run(**options)) == 1
    kept = detect.run(**options)
    assert [Path(result.path).name for result in kept] == ["photo.png"]


# What callers bring ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("classes", [np.int64(1), np.array([1]), torch.tensor(1), torch.tensor([1]), "square", [1]])
def test_classes_may_be_numbers_of_any_library(detector, photo, classes):
    assert same(detector(photo, classes=classes), detector(photo, classes=1))


@pytest.mark.parametrize("classes", [1.5, True, [None], b"1"])
def test_classes_that_are_no_numbers_are_one_sentence(detector, photo, classes):
    with pytest.raises(UserError, match="classes are numbers or names, not"):
        detector(photo, classes=classes)


def endless_list():
    found = []
    found.append(found)
    return found


def cut_off():
    data = io.BytesIO()
    Image.new("RGB", (90, 50), "red").save(data, "png")
    return Image.open(io.BytesIO(data.getvalue()[:60]))


def closed():
    picture = Image.new("RGB", (8, 8))
    picture.close()
    return picture


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (endless_list, "lists in lists"),
        (cut_off, "cannot be read"),
        (closed, "cannot be read"),
        (lambda: torch.zeros(3, 8, 8).to_sparse(), "not torch.sparse_coo"),
        (lambda: torch.zeros(3, 8, 8, device="meta"), "not none"),
    ],
)
def test_pictures_that_hold_no_pixels_are_one_sentence(detector, source, told):
    with pytest.raises(UserError, match=told):
        detector(source())


def test_attributes_of_yolov5_are_what_a_call_takes(weights, photo):
    habit = load(weights, device="cpu")
    assert len(habit(photo)[0].boxes) == 1
    habit.conf = 1.0
    assert len(habit(photo)[0].boxes) == 0
    assert len(habit(photo, conf=0.25)[0].boxes) == 1
    habit.conf, habit.classes = 0.25, [0]
    assert len(habit(photo)[0].boxes) == 0


@pytest.mark.parametrize(
    ("told", "expected"), [({"path": ["a.pt"]}, "path of one file, not list"), ({"half": "x"}, "half is True or False")]
)
def test_what_load_does_not_take(weights, told, expected):
    with pytest.raises(UserError, match=expected):
        load(**{"path": weights, **told})
