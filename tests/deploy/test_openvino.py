"""OpenVINO as a format: folders that are proven, replaced, read, refused when damaged, and computed in float32."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import openvino
import pytest
import torch
import yaml

import detect
import utils.deploy.backends
import utils.deploy.files
import utils.writing
import val
from models import switch_to_deploy
from models.errors import UserError
from tests.exporting import command, names_in, report_in
from utils.data.samples import make_pictures
from utils.deploy.backends import Backend
from utils.deploy.files import digest
from utils.deploy.run import load_runner
from utils.export import Options, export

# isort: split
from ultralytics import YOLO
from ultralytics.utils import ASSETS, LOGGER

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


FILES = ["best.bin", "best.xml", "metadata.yaml"]


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    """A proven folder, best_openvino_model, that the tests leave as it is."""
    folder = tmp_path_factory.mktemp("exported")
    assert export(model, folder, "best", "best.pt", Options(size=(64, 96), formats=("openvino",))).ok
    return folder / "best_openvino_model"


@pytest.fixture
def copied(exported, tmp_path):
    """A copy of it to damage."""
    return shutil.copytree(exported, tmp_path / exported.name)


@pytest.mark.slow
def test_written_proven_and_replaced(best):
    folder = best.parent / "best_openvino_model"
    assert command("--weights", best, "--include", "openvino") == 0
    assert names_in(best.parent) == ["best.export.json", "best.pt", "best_openvino_model"]
    assert names_in(folder) == FILES
    first = report_in(best.parent)["formats"]["openvino"]
    assert first["ok"] and first["max_box_error_px"] <= 1e-3 and first["max_score_error"] <= 1e-5
    assert first["file"] == "best_openvino_model"
    assert first["bytes"] == sum(path.stat().st_size for path in folder.iterdir())
    assert first["sha256"] == digest(folder)
    assert command("--weights", best, "--include", "openvino", "--dynamic", "--batch-size", 2) == 0
    assert names_in(best.parent) == ["best.export.json", "best.pt", "best_openvino_model"]
    assert names_in(folder) == FILES
    second = report_in(best.parent)
    assert second["formats"]["openvino"]["sha256"] == digest(folder) != first["sha256"]
    assert second["versions"]["openvino"].startswith("20")
    cases = second["formats"]["openvino"]["cases"]
    assert {(c["batch"], *c["size"]) for c in cases} == {(2, 64, 64), (2, 64, 48), (2, 32, 48)}
    graph = openvino.Core().read_model(folder / "best.xml")
    assert str(graph.input().partial_shape) == "[?,3,?,?]"


def test_an_older_folder_comes_back_when_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    new, place, former = (tmp_path / name for name in ("new", "place", "former"))
    place.mkdir()
    (place / "old").write_text("kept")
    with pytest.raises(FileNotFoundError):  # there is no new one
        utils.deploy.files._replace(new, place, former)
    assert names_in(tmp_path) == ["place"]
    assert (place / "old").read_text() == "kept"


@pytest.mark.slow
def test_what_a_killed_export_left_is_removed_and_what_it_was_replacing_comes_back(best):
    left, at_work = best.parent / ".export-left", best.parent / ".export-at-work"
    (left / "replaced/best_openvino_model").mkdir(parents=True)
    (left / "replaced/best_openvino_model/best.xml").write_text("older")
    at_work.mkdir()
    lock = utils.writing.lock_folder(at_work)
    assert command("--weights", best, "--include", "onnx") == 0
    kept = [".export-at-work", "best.export.json", "best.onnx", "best.pt", "best_openvino_model"]
    assert names_in(best.parent) == kept
    os.close(lock)
    assert command("--weights", best, "--include", "onnx") == 0
    assert names_in(best.parent) == kept[1:]
    assert names_in(best.parent / "best_openvino_model") == ["best.xml"]


@pytest.mark.slow
def test_half_weighs_half_and_is_proven_with_the_tolerance_of_float16(model, best):
    sizes = {}
    for words in ((), ("--half",)):
        assert command("--weights", best, "--include", "openvino", "onnx", *words) == 0
        report = report_in(best.parent)
        assert report["ok"] and report["half"] is bool(words)
        sizes[words] = {name: entry["bytes"] for name, entry in report["formats"].items()}
    assert report["tolerance"]["box_px"] == 0.5
    assert all(sizes["--half",][name] < 0.8 * sizes[()][name] for name in ("openvino", "onnx"))
    images = make_pictures((64, 64))["bus.jpg"][None]
    expected = model(images)[0]
    for name in ("best.onnx", "best_openvino_model"):
        (boxes,) = load_runner(best.parent / name)(images)
        assert 0 < (boxes - expected)[:, :4].abs().max() < 0.5


@pytest.mark.slow
def test_computed_in_float32_on_as_many_threads_as_asked(exported, model, monkeypatch):
    settings = []
    compile_model = openvino.Core.compile_model

    def record(self, graph, device, config):
        settings.append((device, config))
        return compile_model(self, graph, device, config)

    monkeypatch.setattr(openvino.Core, "compile_model", record)
    run = load_runner(exported, threads=1)
    ((device, config),) = settings
    assert device == "CPU"
    assert config["INFERENCE_NUM_THREADS"] == 1
    assert config["INFERENCE_PRECISION_HINT"] == openvino.Type.f32
    images = make_pictures((64, 96))["zidane.jpg"][None]
    torch.testing.assert_close(run(images)[0], switch_to_deploy(model)(images)[0], atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("half", [False, True])
def test_detection_computes_in_float32_even_where_the_processor_would_not(exported, monkeypatch, half):
    class Bfloat16Core(openvino.Core):
        """A processor that computes in bfloat16 unless it is told not to, as one with AMX does."""

        def compile_model(self, model, device_name, config):
            return super().compile_model(model, device_name, {"INFERENCE_PRECISION_HINT": openvino.Type.bf16, **config})

    monkeypatch.setattr(openvino, "Core", Bfloat16Core)
    told = []
    monkeypatch.setattr(LOGGER, "info", told.append)
    network = Backend(str(exported), fp16=half)
    hint = network.ov_compiled_model.get_property("INFERENCE_PRECISION_HINT")
    assert (hint == openvino.Type.f32) is not half
    assert any("computes in float32" in line for line in told) is not half


SIGNAL = """
import gc, os, signal, sys, time
from pathlib import Path
from utils.deploy.opened import open_weights
from utils.deploy.run import load_runner
first, second, run = (f(Path(sys.argv[1])) for f in (open_weights, open_weights, load_runner))
for _ in range(2):
    first, second, run = second, run, None
    gc.collect()
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(5)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.slow
def test_a_signal_does_not_crash_the_process_after_networks_have_ended(exported):
    run = [sys.executable, "-c", SIGNAL, str(exported)]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["interrupted"]), done.stderr[-500:]


# Who takes them -------------------------------------------------------------------------------------------------------
def test_detect_takes_the_folder(exported, tmp_path):
    (found,) = detect.run(weights=f"{exported}/", source=ASSETS / "bus.jpg", conf_thres=0.1, save_txt=True)
    assert len(found.boxes)
    assert (tmp_path / "runs/detect/exp/labels/bus.txt").read_text()
    with pytest.raises(UserError, match="takes --imgsz 64 96 only"):
        detect.run(weights=exported, source=ASSETS / "bus.jpg", imgsz=64)
    with pytest.raises(UserError, match="--augment needs PyTorch weights"):
        detect.run(weights=exported, source=ASSETS / "bus.jpg", augment=True)


def test_yolo_of_ultralytics_runs_it(exported):
    (result,) = YOLO(exported, task="detect").predict(ASSETS / "bus.jpg", imgsz=(64, 96), verbose=False, save=False)
    assert result.names == {0: "cat", 1: "it's"}


@pytest.mark.slow
def test_val_gives_the_numbers_of_the_weights(best, tmp_path):
    assert command("--weights", best, "--include", "openvino") == 0
    images = tmp_path / "images"
    images.mkdir()
    for name in ("bus", "zidane"):
        shutil.copy(ASSETS / f"{name}.jpg", images)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/bus.txt").write_text("0 0.5 0.5 0.6 0.7\n1 0.3 0.6 0.2 0.4\n")
    data = {"path": str(tmp_path), "train": "images", "val": "images", "names": ["cat", "it's"]}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(data))
    metrics = [
        val.run(weights=weights, data="data.yaml", imgsz=64) for weights in (best, best.parent / "best_openvino_model")
    ]
    assert metrics[0].keys() == metrics[1].keys()
    assert metrics[1]["metrics/mAP50(B)"] == pytest.approx(metrics[0]["metrics/mAP50(B)"], abs=0.02)


@pytest.mark.slow
def test_val_of_a_folder_without_metadata(copied, model, tmp_path, monkeypatch):
    (copied / "metadata.yaml").unlink()
    with pytest.raises(UserError, match="has no metadata and takes 64x96 pixels"):
        val.run(weights=copied)
    with pytest.raises(UserError, match="takes --imgsz 64 96 only"):
        val.run(weights=copied, imgsz=128)
    assert export(model, tmp_path, "best", "best.pt", Options(size=(64, 64), formats=("openvino",))).ok
    (tmp_path / "best_openvino_model/metadata.yaml").unlink()
    monkeypatch.setattr(val, "VALIDATORS", {"detect": lambda args, **_: lambda **_: args["imgsz"]})
    assert val.run(weights=tmp_path / "best_openvino_model") == 64


# Damaged ones ---------------------------------------------------------------------------------------------------------
def cut(path, share=0.5):
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "best.xml").unlink(), r"is no OpenVINO model: that is a folder with a file \*\.xml"),
        (lambda folder: (folder / "best.bin").unlink(), "is damaged, or no openvino file that runs here"),
        (lambda folder: cut(folder / "best.bin"), "is damaged, or no openvino file that runs here"),
        (lambda folder: cut(folder / "best.xml"), "is damaged, or no openvino file that runs here"),
        (lambda folder: (folder / "best.xml").write_text("hello"), "is damaged, or no openvino file that runs here"),
        (lambda folder: (folder / "metadata.yaml").write_text("[1, 2]"), "cannot be understood"),
        (lambda folder: (folder / "metadata.yaml").write_text("names: {"), "cannot be understood"),
        (lambda folder: (folder / "metadata.yaml").write_text("#" * 2_000_000), "cannot be understood"),
        (lambda folder: (folder / "metadata.yaml").write_text("1: 2"), "cannot be understood"),
    ],
)
def test_damaged_folders_are_one_sentence(copied, damage, message):
    damage(copied)
    for script in (detect, val):
        with pytest.raises(UserError, match=message) as caught:
            script.run(weights=copied)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": ["detect"]}, r"made for the task \['detect'\], not for"),
        ({"args": [1]}, "cannot be understood"),
        ({"stride": {}}, "cannot be understood"),
        ({"names": {0: "a"}}, "its 1 classes need"),
        ({"imgsz": [32, 32]}, "takes --imgsz 64 96 only|does not run"),
    ],
)
def test_hostile_metadata(copied, changes, message):
    path = copied / "metadata.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))
    with pytest.raises(UserError, match=message):
        detect.run(weights=copied, source=ASSETS / "bus.jpg", **({"imgsz": 32} if "imgsz" in changes else {}))


def test_metadata_under_names_of_the_program_change_nothing(copied):
    path = copied / "metadata.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"compile_model": "x", "ov": "x"}))
    assert len(detect.run(weights=copied, source=ASSETS / "bus.jpg")) == 1


def test_metadata_with_python_in_it_is_not_run(copied, tmp_path):
    (copied / "metadata.yaml").write_text(f"names: !!python/object/apply:os.mkdir ['{tmp_path}/made']\n")
    with pytest.raises(UserError):
        detect.run(weights=copied, source=ASSETS / "bus.jpg", imgsz=[64, 96])
    assert not (tmp_path / "made").exists()


def test_a_file_with_the_ending_of_a_folder(tmp_path):
    path = tmp_path / "best_openvino_model"
    path.write_text("")
    with pytest.raises(UserError, match="is no OpenVINO model"):
        detect.run(weights=path)


def test_the_report_is_json(exported):
    assert json.loads((exported.parent / "best.export.json").read_text())["ok"] is True
