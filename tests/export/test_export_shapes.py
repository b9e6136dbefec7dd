"""Shapes of ONNX files: the batch alone may stay free, sides have numbers or names, and other runtimes read them."""

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import detect
import export as script
import val
from models import load
from tests.exporting import command, report_in, sides_of
from tests.helpers import TINY_HEAD, random_model, save, tiny, write
from utils.data.samples import make_pictures
from utils.deploy.formats import FORMATS
from utils.deploy.run import load_runner

# isort: split
from ultralytics import YOLO
from ultralytics.utils import ASSETS

ANCHORS = [[10, 13, 16, 30], [60, 90, 110, 70]]
HEADS = {
    "anchors": tiny(anchors=ANCHORS, head=[*TINY_HEAD, [[5, 3], 1, "Detect", ["nc", "anchors"]]]),
    "no anchors": tiny(),
    "no NMS": tiny(end2end=True),
    "masks": {
        **tiny(anchors=ANCHORS, backbone=[[-1, 1, "Conv", [16, 3, 2]], *tiny()["backbone"]]),
        "head": [*TINY_HEAD[:2], [[-1, 3], 1, "Concat", [1]], [[6, 4], 1, "Segment", ["nc", "anchors", 4, 16]]],
    },
}
OUTPUTS = {  # at 64 x 64
    "anchors": {"output0": [1, 6, 640]},
    "no anchors": {"output0": [1, 6, 320]},
    "no NMS": {"output0": [1, 300, 6]},
    "masks": {"output0": [1, 10, 160], "output1": [1, 4, 16, 16]},
}
WAYS = [["--simplify"], ["--half"], ["--exporter", "dynamo"], ["--preprocess", "bgr"]]


SLOW = ("no NMS", "masks")


@pytest.fixture(scope="module", params=[pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in HEADS])
def head(request, tmp_path_factory):
    """The name of a head and a checkpoint with it."""
    model = random_model(HEADS[request.param])
    model.imgsz = 64
    return request.param, save(model, tmp_path_factory.mktemp("head") / "best.pt")


def exported(weights, folder, *words):
    """Return the ONNX file of an export, and its graph."""
    assert command("--weights", weights, "--output", folder, "--include", "onnx", *words) == 0
    return folder / "best.onnx", onnx.load(folder / "best.onnx").graph


@pytest.mark.slow
def test_every_side_has_a_number_or_a_name(head, tmp_path):
    kind, weights = head
    static = OUTPUTS[kind]
    graph = exported(weights, tmp_path / "static")[1]
    assert (sides_of(graph.input), sides_of(graph.output)) == ({"images": [1, 3, 64, 64]}, static)
    graph = exported(weights, tmp_path / "batch", "--dynamic", "batch")[1]
    free = {name: ["batch", *sides[1:]] for name, sides in static.items()}
    assert (sides_of(graph.input), sides_of(graph.output)) == ({"images": ["batch", 3, 64, 64]}, free)
    graph = exported(weights, tmp_path / "all", "--dynamic", "--imgsz", 128)[1]
    last = [6] if kind == "no NMS" else ["anchors"]
    free = {"output0": ["batch", static["output0"][1], *last]}
    free |= {"output1": ["batch", 4, "mask_height", "mask_width"]} if kind == "masks" else {}
    assert (sides_of(graph.input), sides_of(graph.output)) == ({"images": ["batch", 3, "height", "width"]}, free)


@pytest.mark.slow
@pytest.mark.parametrize("words", WAYS, ids=" ".join)
@pytest.mark.parametrize("dynamic", [["--dynamic"], ["--dynamic", "batch"]], ids=" ".join)
@pytest.mark.parametrize("head", ["masks"], indirect=True)
def test_no_way_to_write_it_leaves_other_names(head, tmp_path, words, dynamic):
    graph = exported(head[1], tmp_path, *words, *dynamic)[1]
    assert not graph.value_info
    names = {side for sides in sides_of([*graph.input, *graph.output]).values() for side in sides}
    names = {name for name in names if isinstance(name, str)}
    known = {"batch", "anchors", "height", "width", "mask_height", "mask_width"}
    assert names == {"batch"} if dynamic[-1] == "batch" else names <= known
    assert sides_of(graph.output)["output0"][1:] != ["anchors"]


@pytest.mark.slow
@pytest.mark.parametrize("include", [["onnx", "torchscript"], pytest.param(["openvino"], marks=pytest.mark.slow)])
def test_a_free_batch_is_proven_at_one_two_and_three(best, model, include):
    assert command("--weights", best, "--dynamic", "batch", "--include", *include) == 0
    report = report_in(best.parent)
    assert report["dynamic"] == "batch"
    images = torch.stack([make_pictures((64, 64))[name] for name in ("bus.jpg", "noise", "zidane.jpg")])
    for name in include:
        cases = {(case["file"], case["batch"], *case["size"]) for case in report["formats"][name]["cases"]}
        file = f"best{FORMATS[name].ending}"
        assert cases == {*((file, batch, 64, 64) for batch in (1, 2, 3)), ("temporary", 1, 64, 48)}
        (output,) = load_runner(best.parent / file)(images)
        torch.testing.assert_close(output, model(images)[0], atol=1e-3, rtol=1e-5)


@pytest.mark.slow
def test_a_file_that_computes_one_picture_only_is_refused(best, monkeypatch):
    def bake(path, network, nms, preprocess):
        model = onnx.load(path)
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
        onnx.save(model, path)

    monkeypatch.setattr("utils.deploy.write.surround", bake)
    assert command("--weights", best, "--dynamic", "batch", "--include", "onnx") == 1
    assert not best.with_suffix(".onnx").exists()


@pytest.mark.slow
@pytest.mark.parametrize("include", ["onnx", "torchscript", pytest.param("openvino", marks=pytest.mark.slow)])
def test_our_programs_give_it_batches_of_its_one_size(best, tmp_path, monkeypatch, include):
    monkeypatch.chdir(tmp_path)
    assert script.run(weights=best, include=[include], dynamic="batch") == 0
    file = best.parent / f"best{FORMATS[include].ending}"
    assert len(detect.run(weights=file, source=ASSETS, nosave=True)) == 2
    detector = load(file)
    assert detector.weights.network.takes_batches
    sizes = []
    forward = detector.weights.network.backend.forward
    monkeypatch.setattr(detector.weights.network.backend, "forward", lambda im: sizes.append(im.shape) or forward(im))
    pictures = [cv2.resize(cv2.imread(str(ASSETS / "bus.jpg")), size) for size in ((60, 40), (60, 40), (60, 40))]
    together, alone = detector(pictures, batch=3), detector(pictures)
    assert sizes.count((3, 3, 64, 64)) == 1
    assert {tuple(size[1:]) for size in sizes} == {(3, 64, 64)}
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one.boxes.data, other.boxes.data, atol=1e-3, rtol=1e-5)


@pytest.mark.slow
def test_val_and_yolo_take_it(best, tmp_path):
    assert script.run(weights=best, include=["onnx"], dynamic="batch") == 0
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    for name in "abc":
        cv2.imwrite(str(tmp_path / f"images/{name}.png"), np.full((60, 40, 3), 90, np.uint8))
        (tmp_path / f"labels/{name}.txt").write_text("0 0.5 0.5 0.4 0.4\n")
    data = {"path": str(tmp_path), "train": "images", "val": "images", "names": ["cat", "it's"]}
    own = {"data": write(tmp_path, data, "data.yaml"), "project": tmp_path / "runs", "imgsz": 64}
    val.run(weights=best.with_suffix(".onnx"), **own)
    network = YOLO(best.with_suffix(".onnx"), task="detect")
    results = network.predict([ASSETS / "bus.jpg"] * 3, imgsz=64, rect=False, batch=3, conf=0.1, verbose=False)
    assert len(results) == 3 and len(results[0].boxes)


# Other runtimes -------------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("words", [[], ["--nms"], ["--nms", "--preprocess", "bgr", "--dynamic"]], ids=" ".join)
def test_onnx_runtime_warns_of_nothing(best, tmp_path, capfd, words):
    file = exported(best, tmp_path, *words)[0]
    capfd.readouterr()
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    image = np.zeros([1 if isinstance(side, str) else side for side in session.get_inputs()[0].shape])
    assert [port.name for port in session.get_inputs()] == ["images"]
    assert not session.get_overridable_initializers()
    if "--preprocess" not in words:
        session.run(None, {"images": image.astype(np.float32)})
    assert capfd.readouterr() == ("", "")


def test_onnx_runtime_sets_the_thresholds_of_a_file(best, tmp_path):
    file = exported(best, tmp_path, "--nms", "--conf-thres", 0.001)[0]
    images = make_pictures((64, 64))["bus.jpg"][None].numpy()
    found = {}
    for conf in (0.001, 0.6):
        options = onnxruntime.SessionOptions()
        value = onnxruntime.OrtValue.ortvalue_from_numpy(np.float32([conf]))
        options.add_initializer("conf_thres", value)
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        scores = session.run(None, {"images": images})[0][0, :, 4]
        found[conf] = scores[scores > 0]
    assert 0 < len(found[0.6]) < len(found[0.001])
    assert found[0.6].min() > 0.6
    (own,) = load_runner(file)(torch.from_numpy(images), conf_thres=np.float32([0.6]))
    np.testing.assert_array_equal(own[0, : len(found[0.6]), 4], found[0.6])


@pytest.mark.slow
@pytest.mark.parametrize("words", [[], ["--dynamic", "batch"]], ids=" ".join)
def test_opencv_computes_the_same(head, tmp_path, words):
    file, graph = exported(head[1], tmp_path, *words)
    images = make_pictures((64, 64))["bus.jpg"][None].numpy()
    network = cv2.dnn.readNetFromONNX(str(file))
    network.setInput(images)
    found = network.forward([port.name for port in graph.output])
    wanted = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]).run(None, {"images": images})
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == other.shape
        assert np.abs(one - other).max() < 1e-3


@pytest.mark.slow
def test_a_file_from_before_with_thresholds_as_inputs_still_runs(best, tmp_path):
    file = exported(best, tmp_path, "--nms")[0]
    model = onnx.load(file)
    for name, kind in (("conf_thres", onnx.TensorProto.FLOAT), ("iou_thres", onnx.TensorProto.FLOAT)):
        model.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, [1]))
    onnx.save(model, file)
    images = make_pictures((64, 64))["bus.jpg"][None]
    assert load_runner(file)(images, conf_thres=np.float32([1.0]))[0].eq(0).all()
