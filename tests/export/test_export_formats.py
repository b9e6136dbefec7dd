"""Every format in the table that this machine can write: options, proof and report, and who can run the file."""

import numpy as np
import pytest
import torch

import detect
from models.errors import UserError
from tests.exporting import command, names_in, report_in
from tests.helpers import DETECTORS, random_model, save
from utils.data.samples import make_pictures
from utils.deploy.files import digest, size_of
from utils.deploy.formats import FORMATS, needs
from utils.deploy.run import load_runner

# isort: split
from ultralytics.utils import ASSETS

QUICK = ("torchscript", "onnx", "mnn")  # of which one export takes a second
PYTHON = {".py", ".pyc", ".pt", ".pth", ".pkl"}  # what no export is made of


def formats(condition=lambda _: True):
    """Return the formats that can be written here, the slow ones marked; the others are skipped with the reason."""
    marks = {row.name: [] if row.name in QUICK else [pytest.mark.slow] for row in FORMATS.values()}
    for row in FORMATS.values():
        if row.gpu or (missing := needs(row.writers)):
            marks[row.name].append(pytest.mark.skip(reason="needs a GPU" if row.gpu else missing))
    return [pytest.param(row, marks=marks[row.name], id=row.name) for row in FORMATS.values() if condition(row)]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("row", formats())
def test_written_and_proven_or_said_why_not(best, model, caplog, row):
    assert command("--weights", best, "--include", row.name, "--imgsz", 64, 96) == 0
    file = best.parent / f"best{row.ending}"
    assert names_in(best.parent) == sorted(["best.export.json", "best.pt", file.name])
    entry = report_in(best.parent)["formats"][row.name]
    assert (entry["file"], entry["bytes"], entry["sha256"]) == (file.name, size_of(file), digest(file))
    assert not [path for path in file.rglob("*") if path.suffix in PYTHON]
    if row.not_run:
        assert (entry["ok"], entry["not_proven"]) == (None, row.not_run)
        assert "not proven here" in caplog.text
        with pytest.raises(UserError, match="does not run here"):
            detect.run(weights=file)
        return
    assert entry["ok"] is True
    assert entry["max_box_error_px"] <= 1e-3 and entry["max_score_error"] <= 1e-5
    assert entry["detections"]["matched"] == entry["detections"]["reference"] > 0
    assert {tuple(case["size"]) for case in entry["cases"]} == {(64, 96), (64, 64)}
    assert entry["latency_ms"]["this"] > 0
    images = make_pictures((64, 96))["zidane.jpg"][None]
    torch.testing.assert_close(load_runner(file, threads=1)(images)[0], model(images)[0], atol=1e-3, rtol=1e-4)
    assert len(detect.run(weights=file, source=ASSETS / "bus.jpg", conf_thres=0.2, save_txt=True, nosave=True)) == 1
    assert len(np.loadtxt("runs/detect/exp/labels/bus.txt", ndmin=2))


@pytest.mark.slow
@pytest.mark.parametrize("row", formats(lambda row: row.name in ("ncnn", "mnn")))
@pytest.mark.parametrize("cfg", [name for name in DETECTORS if name.startswith(("repyolo-", "yolov5n."))])
def test_small_networks_are_proven_in_the_formats_of_phones_and_boards(cfg, row, tmp_path):
    best = save(random_model(cfg), tmp_path / "weights/best.pt")
    assert command("--weights", best, "--include", row.name, "--fuse", "--imgsz", 128) == 0
    entry = report_in(best.parent)["formats"][row.name]
    assert entry["ok"] is True
    assert entry["max_box_error_px"] <= 1e-3 and entry["max_score_error"] <= 1e-5
    assert entry["detections"]["matched"] == entry["detections"]["reference"] > 0
    assert {tuple(case["size"]) for case in entry["cases"]} == {(128, 128), (128, 96)}


@pytest.mark.slow
@pytest.mark.parametrize("row", formats(lambda row: row.dynamic))
def test_dynamic_files_are_proven_at_three_shapes(best, row):
    assert command("--weights", best, "--include", row.name, "--dynamic") == 0
    cases = report_in(best.parent)["formats"][row.name]["cases"]
    assert {(case["batch"], *case["size"]) for case in cases} == {(1, 64, 64), (1, 64, 48), (2, 32, 48)}


@pytest.mark.slow
@pytest.mark.parametrize("row", formats(lambda row: row.half == "cpu"))
def test_float16_weighs_half_and_stays_within_its_tolerance(best, row):
    sizes = []
    for words in ((), ("--half",)):
        assert command("--weights", best, "--include", row.name, *words) == 0
        sizes.append(size_of(best.parent / f"best{row.ending}"))
    assert sizes[1] < 0.8 * sizes[0]
    report = report_in(best.parent)
    assert report["tolerance"]["box_px"] == 0.5
    if not row.not_run:
        assert 0 < report["formats"][row.name]["max_box_error_px"] < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("row", formats(lambda row: row.batches))
def test_batches(best, row):
    assert command("--weights", best, "--include", row.name, "--batch-size", 3) == 0
    entry = report_in(best.parent)["formats"][row.name]
    assert row.not_run or {case["batch"] for case in entry["cases"]} == {3}


@pytest.mark.parametrize("row", formats(lambda row: not row.not_run))
def test_a_damaged_file_is_one_sentence(tmp_path, monkeypatch, row):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"bad{row.ending}"
    file = path
    if row.content:
        path.mkdir()
        file = path / row.content.replace("*", "bad")
    for damage in (b"", b"hello" * 100):
        file.write_bytes(damage)
        with pytest.raises(UserError) as caught:
            detect.run(weights=path, source=ASSETS / "bus.jpg")
        assert "\n" not in str(caught.value)
