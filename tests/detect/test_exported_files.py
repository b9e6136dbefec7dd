"""Detecting with exported files: their metadata, masks, and boxes without NMS."""

import json
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch

from models.errors import UserError
from tests.detecting import files_below, picture
from tests.networks import NAMES, Disc, write_export
from utils.deploy.trust import trust

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
