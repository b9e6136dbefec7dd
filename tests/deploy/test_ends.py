"""What is put around an exported network, bytes before it and NMS behind it: alone in a graph, then in whole files."""

import dataclasses
import json
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

import detect
import export as script
import utils.deploy.write
import val
from models import create_model
from models.errors import UserError, WeightsError
from tests.exporting import sides_of
from tests.helpers import random_model, tiny, write
from utils.checkpoint import load_checkpoint, pack_model, save_checkpoint
from utils.deploy.ends import ORDERS, Nms, Preprocess, as_bytes, nms_of, threshold_inputs
from utils.deploy.formats import FORMATS
from utils.deploy.onnx_graph import add_nms, add_preprocess, with_threshold_inputs
from utils.deploy.run import load_runner, open_session
from utils.deploy.write import ExportError
from utils.export import Options, export
from utils.prove.compare import Tolerance, measure_nms

# isort: split
import cv2
from ultralytics import YOLO
from ultralytics.utils import ASSETS
from ultralytics.utils.nms import non_max_suppression


def identity(shape, opset=17, kind=TensorProto.FLOAT):
    """Return an ONNX model that gives back its input."""
    ports = [helper.make_tensor_value_info(name, kind, shape) for name in ("images", "output0")]
    node = helper.make_node("Identity", ["images"], ["output0"])
    graph = helper.make_graph([node], "identity", ports[:1], ports[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 7
    return model


def run(model, images, **thresholds):
    """Return what a model gives as it is, or with thresholds."""
    onnx.checker.check_model(model, full_check=True)
    content = model.SerializeToString()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "a.onnx")
        file.write_bytes(content)
        session = open_session(with_threshold_inputs(file) if thresholds else content)
    (output,) = session.run(None, {"images": images, **thresholds})
    return torch.from_numpy(output)


def candidates(batch=3, nc=80, nm=0, count=500, seed=0):
    """Return random boxes that overlap much, with scores of every size."""
    generator = torch.Generator().manual_seed(seed)
    xy = torch.rand(batch, 2, count, generator=generator) * 60 + 20
    wh = torch.rand(batch, 2, count, generator=generator) * 30 + 4
    scores = torch.rand(batch, nc, count, generator=generator) ** 6
    masks = torch.randn(batch, nm, count, generator=generator)
    return torch.cat([xy, wh, scores, masks], 1)


# NMS ------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("opset", [11, 13, 17, 18, 20])
@pytest.mark.parametrize(("nc", "nm"), [(80, 0), (1, 0), (3, 8)])
def test_nms_finds_what_our_own_finds(opset, nc, nm):
    x = candidates(nc=nc, nm=nm)
    model = add_nms(identity(["batch", 4 + nc + nm, "anchors"], opset), Nms(max_det=200), nc, nm)
    for conf, iou, agnostic in ((0.25, 0.45, False), (0.6, 0.7, False), (0.01, 0.3, True), (0.9, 0.05, False)):
        reference = non_max_suppression(x.clone(), conf, iou, agnostic=agnostic, max_det=200, nc=nc)
        output = run(model, x.numpy(), **threshold_inputs(conf, iou, agnostic))
        assert output.shape == (3, 200, 6 + nm)
        for wanted, rows in zip(reference, output, strict=True):
            found = rows[rows[:, 4] > 0]
            assert len(found) == len(wanted) > 0
            assert rows[len(found) :].eq(0).all()
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_thresholds_may_be_left_out_one_by_one():
    x = candidates()
    model = add_nms(identity([3, 84, 500]), Nms(0.5, 0.6, max_det=100), 80)
    told = threshold_inputs(0.5, 0.6)
    for names in ((), ("conf_thres",), ("iou_thres", "agnostic_nms"), tuple(told)):
        assert run(model, x.numpy(), **{name: told[name] for name in names}).equal(run(model, x.numpy(), **told))
    assert not run(model, x.numpy(), **threshold_inputs(0.5, 0.1)).equal(run(model, x.numpy()))


@pytest.mark.parametrize("count", [1, 5, 40])
def test_fewer_candidates_than_boxes_to_give(count):
    x = candidates(count=count)
    output = run(add_nms(identity(["batch", 84, "anchors"]), Nms(0.01, 0.9, max_det=40), 80), x.numpy())
    wanted = non_max_suppression(x.clone(), 0.01, 0.9)
    assert output.shape == (3, 40, 6)
    assert [int((rows[:, 4] > 0).sum()) for rows in output] == [len(rows) for rows in wanted]


def test_nothing_seen_is_zeros():
    model = add_nms(identity([3, 84, 500]), Nms(max_det=50), 80)
    assert run(model, candidates().numpy(), **threshold_inputs(1.0, 0.5)).eq(0).all()


def test_shapes_are_stated_and_the_file_has_one_input():
    model = add_nms(identity(["batch", 12, "anchors"]), Nms(max_det=50), 5, 3)
    assert sides_of(model.graph.output) == {"output0": ["batch", 50, 9]}
    assert sides_of(model.graph.input) == {"images": ["batch", 12, "anchors"]}
    assert not model.graph.value_info


# The proof of it ------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def pair():
    """What a model gives, and what a file with NMS makes of it."""
    x, nms = candidates(nc=3, nm=4), Nms(max_det=100)
    return x, run(add_nms(identity([3, 11, 500]), nms, 3, 4), x.numpy()), nms


def judge(pair, got=None, **changes):
    x, output, nms = pair
    return measure_nms((x,), (output if got is None else got,), 3, dataclasses.replace(nms, **changes))[0]


def test_the_proof_accepts_what_is_right(pair):
    d = judge(pair)
    assert d.within(Tolerance(1e-5, 1e-6, 1e-6))
    assert d.matched == d.reference > 50
    assert d.min_iou > 0.9999


@pytest.mark.parametrize(("column", "by"), [(0, 0.02), (3, -1), (4, 2e-4), (5, 1), (8, 0.5)])
def test_the_proof_sees_one_wrong_number(pair, column, by):
    changed = pair[1].clone()
    changed[1, 7, column] += by
    assert not judge(pair, changed).within(Tolerance())


def test_the_proof_sees_what_is_lost_and_what_is_too_much(pair):
    x, output, nms = pair
    lost, doubled = output.clone(), output.clone()
    lost[0, 3] = 0
    doubled[0, -1] = doubled[0, 0]
    assert not judge(pair, lost).within(Tolerance())
    assert "overlap by 1.000" in judge(pair, doubled).problem
    assert "leaves a score of" in judge(pair, conf_thres=0.9).problem
    assert "puts out (3, 100, 10) where (3, 50, 10) is due" in judge(pair, max_det=50).problem
    assert "NaN" in judge(pair, output * torch.nan).problem
    loose = run(add_nms(identity([3, 11, 500]), dataclasses.replace(nms, iou_thres=0.6), 3, 4), x.numpy())
    assert "over 0.45" in judge(pair, loose).problem


# Bytes ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16])
def test_bytes_become_numbers(order, kind):
    images = torch.randint(256, (2, 3, 5, 7), generator=torch.Generator().manual_seed(0)) / 255
    given = as_bytes(images, order)
    assert (given.shape, given.dtype) == ((2, 5, 7, 3), torch.uint8)
    pixel = [round(255 * value) for value in images[0, :, 1, 2].tolist()]
    assert given[0, 1, 2].tolist() == (pixel[::-1] if order == "bgr" else pixel)
    output = run(add_preprocess(identity(["batch", 3, "height", "width"], kind=kind), order), given.numpy())
    assert output.equal(images.half() if kind == TensorProto.FLOAT16 else images)
    network = create_model(tiny()).eval()
    with torch.no_grad():
        assert Preprocess(network, order)(as_bytes(images[..., :5, :5].repeat(1, 1, 8, 8), order))[0].isfinite().all()


# Whole files ----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def best(tmp_path_factory):
    """A checkpoint in a folder of its own."""
    model = random_model(tiny())
    model.names, model.imgsz = {0: "cat", 1: "dog"}, 64
    path = tmp_path_factory.mktemp("weights") / "best.pt"
    save_checkpoint({**pack_model(model), "ema": model.state_dict()}, path)
    return path


def exported(best, tmp_path, **options):
    assert script.run(weights=best, output=tmp_path, **options) == 0
    return tmp_path / f"best{FORMATS[options['include'][0]].ending}"


@pytest.mark.parametrize("dynamic", [False, True])
def test_bytes_in_and_boxes_out(best, tmp_path, dynamic):
    path = exported(best, tmp_path, include=["onnx"], nms=True, preprocess="bgr", dynamic=dynamic, iou_thres=0.5)
    report = json.loads((tmp_path / "best.export.json").read_text())
    assert (report["preprocess"], report["nms"]) == ("bgr", dataclasses.asdict(Nms(iou_thres=0.5)))
    entry = report["formats"]["onnx"]
    assert entry["detections"]["matched"] == entry["detections"]["reference"] > 0
    assert entry["detections"]["min_iou"] > 0.999
    assert {case["picture"] for case in entry["cases"]} > {"noise, conf 0.25, IoU 0.5", "noise, conf 0.25, IoU 0.7"}
    metadata = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert metadata["preprocess"] == "bgr"
    assert nms_of(metadata) == Nms(iou_thres=0.5)
    images = torch.rand(2 if dynamic else 1, 3, 64, 64)
    (output,) = load_runner(path)(images)
    assert output.shape == (len(images), 300, 6)


@pytest.mark.slow
def test_ultralytics_runs_a_file_with_nms(best, tmp_path):
    path = exported(best, tmp_path, include=["onnx"], nms=True)
    options = {"imgsz": 64, "conf": 0.25, "iou": 0.45, "verbose": False, "save": False}
    (result,) = YOLO(path, task="detect").predict(ASSETS / "bus.jpg", **options)
    plain = exported(best, tmp_path / "plain", include=["onnx"])
    (wanted,) = YOLO(plain, task="detect").predict(ASSETS / "bus.jpg", **options)
    assert len(wanted.boxes) > 5
    torch.testing.assert_close(result.boxes.data, wanted.boxes.data, atol=1e-3, rtol=1e-5)


OPTIONS = [
    {"include": ["onnx"], "nms": True},
    {"include": ["onnx"], "nms": True, "preprocess": "bgr", "dynamic": True, "simplify": True},
    {"include": ["torchscript"], "preprocess": "rgb"},
    {"include": ["openvino"], "preprocess": "bgr"},
]


def noise(folder):
    """Write a picture of noise into a folder, and return that."""
    folder.mkdir()
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    cv2.imwrite(str(folder / "a.png"), picture)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_detect_takes_the_files_and_gives_them_its_thresholds(best, tmp_path, options):
    told = {"source": noise(tmp_path / "images"), "project": tmp_path / "runs", "save_txt": True, "nosave": True}
    for name, weights in (("pt", best), ("file", exported(best, tmp_path, **options))):
        detect.run(weights=weights, name=name, conf_thres=0.35, iou_thres=0.3, agnostic_nms=True, imgsz=[64], **told)
    pt, file = (np.loadtxt(tmp_path / f"runs/{name}/labels/a.txt", ndmin=2) for name in ("pt", "file"))
    assert len(pt) > 3
    np.testing.assert_allclose(pt, file, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_val_takes_the_files_and_gives_them_its_thresholds(best, tmp_path, options, monkeypatch):
    own = val.validator_options
    monkeypatch.setattr(val, "validator_options", lambda *args: {**own(*args), "plots": False})  # they take seconds
    noise(tmp_path / "images")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/a.txt").write_text("0 0.5 0.5 0.5 0.5\n1 0.3 0.3 0.4 0.4\n1 0.7 0.7 0.5 0.4\n")
    data = {"path": str(tmp_path), "train": "images", "val": "images", "names": ["cat", "dog"]}
    told = {"data": write(tmp_path, data, "data.yaml"), "project": tmp_path / "runs", "conf_thres": 0.35, "imgsz": 64}
    pt, file = (
        [val.run(weights=weights, iou_thres=iou, **told)["metrics/recall(B)"] for iou in (0.2, 0.9)]
        for weights in (best, exported(best, tmp_path, **options))
    )
    assert file == pytest.approx(pt)


@pytest.mark.slow
def test_nms_that_is_not_ours_is_refused(best, tmp_path, monkeypatch):
    def wrong(model, nms, nc, nm):
        return add_nms(model, dataclasses.replace(nms, iou_thres=0.7), nc, nm)

    monkeypatch.setattr("utils.deploy.write.add_nms", wrong)
    assert script.run(weights=best, output=tmp_path / "out", include=["onnx"], nms=True) == 1
    assert not list((tmp_path / "out").glob("*.onnx"))


@pytest.mark.slow
def test_masks_go_with_their_boxes(tmp_path):
    model = random_model("yolov5n-seg.yaml")
    options = Options(size=(64, 64), formats=("onnx",), nms=Nms(), preprocess="rgb", dynamic=True)
    report = export(model, tmp_path, "best", "best.pt", options)
    assert report.ok
    d = report.proofs["onnx"].as_dict()
    assert d["detections"]["matched"] == d["detections"]["reference"] > 0
    assert 0 < d["max_mask_error"] < 1e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nms": True}, "--nms is not for torchscript: give --include onnx"),
        ({"nms": True, "include": ["torchscript"]}, "--nms is not for torchscript"),
        ({"preprocess": "yuv"}, "--preprocess"),
        ({"include": ["onnx"], "exporter": "dynamo", "half": True}, "--half cannot convert what --exporter dynamo"),
    ],
)
def test_what_cannot_be_is_one_sentence(best, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        script.run(weights=best, output=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"end2end": True}, {"nms": True, "include": ["onnx"]}, "needs no NMS: leave out --nms"),
        ({"ch": 4}, {"preprocess": "bgr"}, "pictures of 3 channels, and the model takes 4"),
    ],
)
def test_models_that_cannot_have_it(tmp_path, changes, options, message):
    cfg = write(tmp_path, tiny(**changes), "small.yaml")
    with pytest.raises(UserError, match=message):
        script.run(cfg=cfg, output=tmp_path / "out", **options)


@pytest.mark.slow
def test_an_order_of_bytes_from_elsewhere_is_refused(best, tmp_path):
    path = exported(best, tmp_path, include=["onnx"], preprocess="bgr")
    graph = onnx.load(path)
    next(entry for entry in graph.metadata_props if entry.key == "preprocess").value = "yuv"
    onnx.save(graph, path)
    with pytest.raises(WeightsError, match="takes bytes in an order that is not known here: yuv"):
        detect.run(weights=path, source=ASSETS / "bus.jpg", nosave=True)


# torch.export ---------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_the_newer_exporter_is_proven_alike(best, tmp_path):
    options = {"include": ["onnx"], "exporter": "dynamo", "opset": 20, "nms": True, "preprocess": "bgr"}
    path = exported(best, tmp_path, **options, dynamic=True, simplify=True)
    report = json.loads((tmp_path / "best.export.json").read_text())
    entry = report["formats"]["onnx"]
    assert (report["exporter"], entry["opset"]) == ("dynamo", 20)
    assert entry["detections"]["matched"] == entry["detections"]["reference"] > 0
    model = onnx.load(path)
    assert model.opset_import[0].version == 20
    sides = [side.dim_param or side.dim_value for side in model.graph.input[0].type.tensor_type.shape.dim]
    assert sides == ["batch", "height", "width", 3]


@pytest.mark.slow
def test_what_depends_on_the_data_is_refused_by_it(best, tmp_path):
    model = load_checkpoint(best)
    model.model[0].act = Choosy()
    options = Options(size=(64, 64), formats=("onnx",), exporter="dynamo", opset=18)
    with pytest.raises(ExportError, match="ONNX cannot be written for this model: "):
        export(model, tmp_path / "out", "best", "best.pt", options)
    assert list((tmp_path / "out").iterdir()) == []


class Choosy(torch.nn.Module):
    """An activation that does what the picture says, of which tracing keeps what it did once."""

    def forward(self, x):
        return x if x.mean() > 0 else -x


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exporter": "dynamo", "opset": 17}, "--opset goes from 18 to 22 with --exporter dynamo, not 17"),
        ({"exporter": "dynamo", "opset": 23}, "--opset goes from 18 to 22 with --exporter dynamo, not 23"),
        ({"opset": 21}, "--opset goes from 11 to 20, not 21"),
        ({"exporter": "onnx"}, "--exporter"),
    ],
)
def test_opsets_of_the_exporters(best, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        script.run(weights=best, output=tmp_path / "out", **options)


def test_a_missing_package_is_one_sentence(best, tmp_path, monkeypatch):
    monkeypatch.setattr("utils.deploy.write.find_spec", lambda _: None)
    with pytest.raises(UserError, match="--exporter dynamo needs the package onnxscript: pip install onnxscript=="):
        script.run(weights=best, output=tmp_path / "out", exporter="dynamo")


def test_another_opset_than_was_asked_for_is_refused(best, tmp_path, monkeypatch):
    own = utils.deploy.write.surround

    def convert(path, *args):
        own(path, *args)
        model = onnx.load(path)
        model.opset_import[0].version = 16
        onnx.save(model, path)

    monkeypatch.setattr("utils.deploy.write.surround", convert)
    with pytest.raises(ExportError, match="opset 17 was asked for, and the file needs 16"):
        export(load_checkpoint(best), tmp_path / "out", "best", "best.pt", Options(size=(64, 64), formats=("onnx",)))
    assert list((tmp_path / "out").iterdir()) == []
