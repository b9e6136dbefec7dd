"""What stays when an export is killed, or finds the disk full or the folder read-only: all that was there before."""

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

import utils.deploy.write
import utils.export.pipeline
from models.errors import UserError
from tests.detecting import picture
from tests.exporting import command
from utils.export.pipeline import check_replaced

ROOT = Path(__file__).parents[2]
FIRST_CLASS = ("torchscript", "onnx", "openvino")
NOBODY = 65534
PROGRAM = """
import sys, time
from pathlib import Path
import export, utils.export
from utils import cli

def wait(*_):
    Path("proving").touch()
    time.sleep(120)

if {wait}:
    utils.export.pipeline.prove = wait
sys.exit(cli.run_script(export.main, export.make_parser()))
"""


def content(folder):
    """Return every file below a folder with what is in it, and the folders."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")
    }


def older_export(best):
    """Put something in the place of every file that an export writes, and return what is there."""
    (best.parent / "best_openvino_model").mkdir()
    for name in ("best.torchscript", "best.onnx", "best_openvino_model/best.xml", "best.export.json"):
        (best.parent / name).write_text(f"older {name}")
    return content(best.parent)


def start(best, cwd, wait=False, **options):
    """Start an export of all formats of the first class in a process of its own."""
    words = ["--weights", best, "--imgsz", "64", "--include", *FIRST_CLASS]
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(wait=wait), *map(str, words)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def end(process):
    """Return the exit code and the last line of a process's complaints."""
    _, told = process.communicate(timeout=240)
    return process.returncode, (told.splitlines() or [""])[-1]


def wait_for(path, process):
    deadline = time.monotonic() + 200
    while not path.exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "told"), [(signal.SIGTERM, 143, "ERROR: terminated"), (signal.SIGKILL, -9, "")]
)
def test_killed_while_it_proves(best, tmp_path, number, code, told):
    before = older_export(best)
    process = start(best, tmp_path, wait=True)
    wait_for(tmp_path / "proving", process)
    process.send_signal(number)
    assert end(process) == (code, told)
    left = {name: data for name, data in content(best.parent).items() if not name.startswith(".export-")}
    assert left == before
    if number == signal.SIGKILL:
        assert list(best.parent.glob(".export-*"))
    assert command("--weights", best, "--imgsz", 64, "--include", "onnx") == 0
    assert not list(best.parent.glob(".export-*"))
    changed = {name for name, data in content(best.parent).items() if data != before.get(name)}
    assert changed == {"best.onnx", "best.export.json"}


@pytest.mark.slow
def test_the_disk_is_full(best, tmp_path):
    before = older_export(best)
    limit = (100_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    process = start(best, tmp_path, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))
    assert end(process) == (2, f"ERROR: cannot write {best.parent}: {os.strerror(27)}")
    assert content(best.parent) == before


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root may be somebody else")
def test_the_folder_is_read_only(best, capsys):
    with tempfile.TemporaryDirectory(prefix="repyolo-") as name:
        folder = Path(name)
        shutil.copy(best, folder)
        (folder / "best.onnx").write_text("older")
        before = content(folder)
        folder.chmod(0o555)
        os.seteuid(NOBODY)
        try:
            code = command("--weights", folder / "best.pt", "--imgsz", 64)  # nobody may not see packages of root's
        finally:
            os.seteuid(0)
        assert code == 2
        assert f"the folder {folder} cannot be written to: {os.strerror(13)}" in capsys.readouterr().err
        assert content(folder) == before


@pytest.mark.parametrize("name", ["best.onnx", "best.export.json", "best_openvino_model"])
def test_what_is_no_older_export_is_not_replaced(best, capsys, name):
    place = best.parent / name
    if name.endswith("_model"):
        place.write_text("a file of somebody's own")
    else:
        place.mkdir()
        (place / "notes.txt").write_text("somebody's own")
    before = content(best.parent)
    assert command("--weights", best, "--imgsz", 64, "--include", *FIRST_CLASS) == 2
    wanted = "folder" if name.endswith("_model") else "file"
    assert f"the export would put a {wanted} in its place: move it away" in capsys.readouterr().err
    assert content(best.parent) == before


@pytest.mark.parametrize("name", ["best.export.jpg", "best.export-failed.jpg", "best_openvino_model/a.jpg"])
@pytest.mark.parametrize("option", ["source", "data"])
def test_a_picture_of_the_proof_is_not_replaced(best, capsys, name, option):
    image = picture(best.parent / name, 64, 64)
    picture(best.parent / "other.jpg", 64, 64)
    given = image
    if option == "data":
        image.with_suffix(".txt").write_text("0 0.5 0.5 0.5 0.5\n")
        given = best.parent / "d.yaml"
        (best.parent / "list.txt").write_text(f"{image}\n")
        given.write_text("train: list.txt\nval: list.txt\nnames: [a, b]\n")
    before = content(best.parent)
    arguments = ["--weights", best, "--imgsz", 64, "--include", "openvino"]
    assert command(*arguments, f"--{option}", given) == 2
    assert re.search(
        r"ERROR: .*\.jpg .*(would|could) be replaced.*: choose another --output\n", capsys.readouterr().err
    )
    assert content(best.parent) == before


@pytest.mark.parametrize("name", ["best.onnx", "best.torchscript"])
def test_the_weights_are_not_replaced(best, capsys, name):
    weights = best.rename(best.with_name(name))
    before = content(weights.parent)
    assert command("--weights", weights, "--imgsz", 64, "--include", "onnx", "torchscript") == 2
    assert f"{name} would be replaced by the results: choose another --output" in capsys.readouterr().err
    assert content(weights.parent) == before


@pytest.mark.parametrize("name", ["metadata.yaml", "val.txt", "val/labels/a.txt"])
def test_the_files_of_a_data_set_are_not_replaced(best, capsys, name):
    place = best.parent / "best_openvino_model"
    image = picture(place.parent / "val/images/a.jpg", 64, 64)
    for file, text in {
        "metadata.yaml": "train: val.txt\nval: val.txt\nnames: [a, b]\n",
        "val.txt": f"{image}\n",
        "val/labels/a.txt": "0 0.5 0.5 0.5 0.5\n",
    }.items():
        own = (place if file == name else place.parent) / file
        own.parent.mkdir(parents=True, exist_ok=True)
        own.write_text(text)
    if name == "val.txt":
        (place.parent / name).symlink_to(place / name)
    elif name.endswith("a.txt"):
        (place.parent / "val/labels").symlink_to(place / "val/labels")
    else:
        (place / "val.txt").write_text(f"{image}\n")
    data = next(best.parent.rglob("metadata.yaml"))
    before = content(best.parent)
    assert command("--weights", best, "--imgsz", 64, "--include", "openvino", "--data", data) == 2
    assert re.search(r"ERROR: .* (would|could) be replaced.*: choose another --output\n", capsys.readouterr().err)
    assert content(best.parent) == before


@pytest.mark.parametrize("name", ["mine.txt", "mine.xml", "mine/notes.txt", "link"])
def test_a_file_of_somebodys_own_in_the_folder_of_an_export_is_named(tmp_path, name):
    made, place = tmp_path / "made/best_openvino_model", tmp_path / "best_openvino_model"
    for folder in (made, place):
        folder.mkdir(parents=True)
        (folder / "best.xml").touch()
    check_replaced([made], tmp_path)
    own = place / name
    own.parent.mkdir(exist_ok=True)
    own.symlink_to(tmp_path) if name == "link" else own.touch()
    with pytest.raises(UserError, match=f"{name} is no file of an export, .*: move it away$"):
        check_replaced([made], tmp_path)


@pytest.mark.slow
def test_a_file_of_somebodys_own_in_the_folder_of_an_export_stays(best, capsys):
    own = best.parent / "best_openvino_model/mine.txt"
    own.parent.mkdir()
    own.write_text("somebody's own")
    before = content(best.parent)
    assert command("--weights", best, "--imgsz", 64, "--include", "openvino") == 2
    assert f"{own} is no file of an export, which would replace the folder that it is in" in capsys.readouterr().err
    assert content(best.parent) == before


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_a_disk_that_fills_up_while_it_writes_is_named_as_the_reason(best, monkeypatch, capsys, name):
    before = older_export(best)
    reserve, calls = utils.deploy.write.reserve, []

    def late(folder, count):
        calls.append(count)
        if len(calls) > 1:
            reserve(folder, count)

    monkeypatch.setattr("utils.deploy.write.reserve", late)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        assert command("--weights", best, "--imgsz", 64, "--include", name) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.strerror(27) in capsys.readouterr().err
    assert content(best.parent) == before
