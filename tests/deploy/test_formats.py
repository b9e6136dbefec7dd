"""The table of formats: its names, what it refuses before anything is written, and what an export is made of."""

import importlib
import subprocess
import sys

import pytest

import export as script
from models.environment import REPORTERS
from models.errors import UserError
from tests.helpers import tiny, write
from utils import cli
from utils.deploy.files import digest, files_in, size_of
from utils.deploy.formats import ALIASES, DEFAULT_FORMATS, FORMATS, UNWRITTEN, check_formats, check_possible, format_of

# isort: split
from ultralytics.engine.exporter import export_formats

ULTRALYTICS = export_formats()
YOLOV5 = (
    "torchscript",
    "onnx",
    "openvino",
    "engine",
    "coreml",
    "saved_model",
    "pb",
    "tflite",
    "edgetpu",
    "tfjs",
    "paddle",
)
each_format = pytest.mark.parametrize("name", FORMATS)


@pytest.fixture
def everything_is_installed(monkeypatch):
    monkeypatch.setattr("utils.deploy.formats._is_installed", lambda _: True)


@pytest.mark.parametrize("name", [*ULTRALYTICS["Argument"][1:], *YOLOV5, "tensorrt", "mlpackage"])
def test_every_name_that_others_know_is_a_format_or_has_a_reason_why_not(name):
    assert (name in ALIASES) != (name in UNWRITTEN)
    if name in UNWRITTEN:
        with pytest.raises(UserError, match=f"--include {name} is not written: ") as caught:
            check_formats(["onnx", name])
        assert "\n" not in str(caught.value)
    else:
        assert check_formats([name.upper(), name]) == (ALIASES[name],)


@pytest.mark.parametrize("names", [["onnx,TorchScript"], ["onnx,", "torchscript"], ["onnx", ",torchscript,onnx"]])
def test_formats_may_be_joined_by_commas(names):
    assert check_formats(names) == ("onnx", "torchscript")


@pytest.mark.parametrize("names", [[], [""], [" , "]])
def test_no_format_is_an_error(names):
    with pytest.raises(UserError, match="--include names no format, choose of torchscript, onnx"):
        check_formats(names)


@each_format
def test_endings_are_those_that_ultralytics_writes_and_runs(name):
    row = FORMATS[name]
    assert row.ending == dict(zip(ULTRALYTICS["Argument"], ULTRALYTICS["Suffix"], strict=True))[name]
    assert format_of(f"runs/best{row.ending}") is row
    assert [other.name for other in FORMATS.values() if f"best{row.ending}".endswith(other.ending)] == [name]
    assert bool(row.content) == (row.ending.startswith("_") or name == "coreml")  # these are folders


@each_format
def test_options_are_those_that_ultralytics_takes(name):
    known = dict(zip(ULTRALYTICS["Argument"], ULTRALYTICS["Arguments"], strict=True))[name]
    row = FORMATS[name]
    assert not row.dynamic or "dynamic" in known
    assert not row.half or "quantize" in known
    assert row.onnx == ("opset" in known)


def test_defaults_need_nothing_that_is_not_required():
    check_possible(DEFAULT_FORMATS, dynamic=True, batch=3)


@each_format
@pytest.mark.usefixtures("everything_is_installed")
def test_options_that_a_format_does_not_know_are_one_sentence(name):
    row = FORMATS[name]
    options = {"dynamic": row.dynamic, "half": row.half == "cpu", "batch": row.batches}
    for option, known in options.items():
        value = 3 if option == "batch" else True
        if known:
            check_possible([name], **{option: value}, gpu=row.gpu)
        else:
            with pytest.raises(UserError, match=f"^{row.title} ") as caught:
                check_possible([name], **{option: value})
            assert "\n" not in str(caught.value)


def test_what_is_missing_is_named_with_the_command_that_installs_it(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("utils.deploy.formats._is_installed", lambda name: name != "pnnx")
    cfg = write(tmp_path, tiny(), "small.yaml")
    parser, out = script.make_parser(), tmp_path / "out"
    assert cli.run_script(script.main, parser, ["--cfg", str(cfg), "--output", str(out), "--include", "ncnn"]) == 2
    assert capsys.readouterr().err == "ERROR: --include ncnn needs pnnx: pip install pnnx==20260526\n"
    assert not out.exists()


@pytest.mark.usefixtures("everything_is_installed")
def test_a_format_of_other_machines_is_refused_and_one_that_is_not_run_here_says_why(monkeypatch):
    with pytest.raises(UserError, match="TensorRT is built on an NVIDIA GPU: name it with --device"):
        check_possible(["engine"])
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(UserError, match="CoreML is written on linux and darwin only, not on win32"):
        check_possible(["coreml"])
    assert "macOS" in FORMATS["coreml"].not_run
    assert FORMATS["onnx"].not_run == FORMATS["ncnn"].not_run == ""


def test_a_runtime_that_is_missing_is_why_a_file_is_not_run(monkeypatch):
    monkeypatch.setattr("utils.deploy.formats._is_installed", lambda name: name != "ai-edge-litert")
    assert FORMATS["litert"].not_run == "needs ai-edge-litert: pip install ai-edge-litert==2.3.0"


def test_a_folder_has_the_bytes_and_the_digest_of_its_files(tmp_path):
    (tmp_path / "b.bin").write_bytes(b"123")
    (tmp_path / "a.xml").write_text("<>")
    assert [path.name for path in files_in(tmp_path)] == ["a.xml", "b.bin"]
    assert size_of(tmp_path) == 5
    lines = subprocess.run("sha256sum *", shell=True, cwd=tmp_path, capture_output=True, check=True).stdout
    total = subprocess.run("sha256sum", input=lines, capture_output=True, check=True).stdout
    assert digest(tmp_path) == total.decode().split()[0]
    assert size_of(tmp_path / "b.bin") == 3
    assert len(digest(tmp_path / "b.bin")) == 64 != digest(tmp_path / "a.xml")


@pytest.mark.parametrize("name", REPORTERS)
def test_what_reports_to_others_or_installs_cannot_be_imported(name):
    with pytest.raises(ImportError):
        importlib.import_module(name)
