"""Versions of libraries: the ranges hold what is pinned, and what is outside of them is one sentence at start."""

import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from models import versions
from models.versions import check_versions, installed_version, is_script, is_within, read_ranges

ROOT = Path(__file__).parents[1]
PINS = dict(re.findall(r"^([\w-]+)==([\w.]+)", (ROOT / "requirements.txt").read_text(), flags=re.MULTILINE))


@pytest.fixture
def installed(monkeypatch):
    """Return a dictionary of packages that takes the place of what is installed."""
    packages = {}

    def version(name):
        if name not in packages:
            raise PackageNotFoundError(name)
        return packages[name]

    monkeypatch.setattr("importlib.metadata.version", version)
    return packages


def test_the_ranges_hold_the_pins_of_the_same_packages():
    ranges = read_ranges(versions.RANGES.read_text(encoding="utf-8"))
    assert ranges.keys() == PINS.keys()
    for package, pin in PINS.items():
        assert is_within(pin, ranges[package]), f"{package} {pin} is not {ranges[package]}"
    assert [package for package, limits in ranges.items() if limits.startswith("==")] == ["ultralytics"]


@pytest.mark.parametrize("version", ["2.8.0", "2.8", "2.14.1+cu130", "2.8.0a0+5228986c39.nv25.06", "2.99"])
def test_within(version):
    assert is_within(version, ">=2.8,<3")


@pytest.mark.parametrize("version", ["2.7.1", "3.0.0", "3", "1.13.1+cu117", "0+unknown"])
def test_outside(version):
    assert not is_within(version, ">=2.8,<3")


def test_what_is_installed_here_is_within(capsys):
    check_versions()
    assert capsys.readouterr() == ("", "")


def test_another_package_with_the_same_module_counts(installed):
    installed.update({"opencv-python-headless": "4.13.0.92", "onnxruntime-gpu": "1.23.0"})
    assert installed_version("opencv-python") == ("opencv-python-headless", "4.13.0.92")
    assert installed_version("onnxruntime") == ("onnxruntime-gpu", "1.23.0")
    assert installed_version("torch") is None


def test_versions_outside_of_the_ranges_are_one_sentence(installed, capsys):
    installed.update(PINS)
    installed.update(torch="2.4.1+cu121", numpy="3.1.0")
    check_versions()
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert "not tested with torch 2.4.1+cu121 (>=2.8.0,<3), numpy 3.1.0 (>=2.0.2,<3): see" in err


def test_another_ultralytics_is_refused(installed, capsys, monkeypatch):
    installed.update(PINS, ultralytics="8.3.0")
    with pytest.raises(
        ImportError, match=r"does not run with ultralytics 8\.3\.0 \(==.*\): pip install -r requirements"
    ):
        check_versions()
    for program in ("-m", str(ROOT / "detect.py")):
        monkeypatch.setattr("sys.argv", [program])
        monkeypatch.setattr("sys.orig_argv", ["python", program, "utils.convert"])
        with pytest.raises(SystemExit) as stopped:
            check_versions()
        assert stopped.value.code == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    "words",
    [
        ["mine.py"],
        ["-m", "mine"],
        ["-m", "mine", "/", f".{'a' * 5000}"],
        ["-c", "import models"],
        ["elsewhere/detect.py"],
    ],
)
def test_another_program_is_no_script(words, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    for name in ("mine.py", "elsewhere/detect.py"):
        (tmp_path / name).touch()
    monkeypatch.setattr("models.versions.REPOSITORY", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", words[:1])
    monkeypatch.setattr("sys.orig_argv", ["python", *words])
    assert not is_script()


def test_without_the_file_nothing_is_checked(installed, tmp_path, capsys):
    installed.update(ultralytics="1.0")
    check_versions(tmp_path / "none.txt")
    assert capsys.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.parametrize("words", [["detect.py"], ["-m", "utils.convert"]], ids=" ".join)
def test_a_script_ends_before_it_imports_anything(words, tmp_path):
    (tmp_path / "ultralytics-8.3.0.dist-info").mkdir()
    (tmp_path / "ultralytics-8.3.0.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: ultralytics\nVersion: 8.3.0\n"
    )
    (tmp_path / "torch.py").write_text("raise SystemError('imported')")
    done = subprocess.run(
        [sys.executable, *words, "x"],
        cwd=ROOT,
        env={"PYTHONPATH": str(tmp_path)},
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("ERROR: RepYOLO does not run with ultralytics 8.3.0")
    assert len(done.stderr.splitlines()) == 1
