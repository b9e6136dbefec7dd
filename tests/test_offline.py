"""No script makes a try to reach the network, be it in Python or in the native code of a library, or installs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from models import DetectionModel
from tests import network
from tests.helpers import save, tiny, write
from tests.runs import make_data, make_folders

ROOT = Path(__file__).parents[1]
TRY = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect_ex(('192.0.2.1', 53))"
WATCH = """
import sys

def forbid(event, args):
    if event == "subprocess.Popen" and "pip" in str(args):
        raise RuntimeError(f"installer: {args}")

seen = []
sys.addaudithook(lambda event, args: seen.append(event) or forbid(event, args))
"""
SCRIPTS = """
import benchmark, detect, export, train, val
from utils.data.shapes import NAMES, Recipe, ensure_shapes
from utils.deploy.formats import FORMATS
from pathlib import Path
import yaml

ensure_shapes(Path("shapes"), Recipe(side=64, train=4, val=2, test=2, film_side=64, film_frames=2))
splits = {split: f"images/{split}" for split in ("train", "val", "test")}
Path("data.yaml").write_text(yaml.safe_dump({"path": str(Path("shapes").resolve()), **splits, "names": list(NAMES)}))
train.run(cfg="tiny.yaml", data="data.yaml", epochs=1, imgsz=64, batch_size=2)
val.run(data="data.yaml")
detect.run()
export.run(include=[name for name, row in FORMATS.items() if not row.gpu and not row.not_run])
for weights in ("best.onnx", "best_openvino_model"):
    detect.run(weights=[next(Path("runs").rglob(weights))])
best = next(Path("runs").rglob("best.pt"))
rows = benchmark.run(weights=[best], forms=["eager", "onnx", "openvino"], imgsz=64, rounds=1)
assert all(row.peak_mb for row in rows)
assert "open" in seen, "the audit hook saw nothing"
print("quiet")
"""
OTHERS = """
import compare, detect, export, train, val
from pathlib import Path
from utils.comparison import train_ultralytics

short = {"epochs": 1, "batch_size": 2, "noplots": True}
run = train.run(cfg="classifier.yaml", data="folders", imgsz=32, device="cpu", **short)
best = run / "weights/best.pt"
val.run(weights=best)
export.run(weights=best, include=["onnx"])
for weights in (best, best.with_suffix(".onnx")):
    detect.run(weights=[weights], source="folders/val/red")
train.run(cfg="tiny.yaml", data="data.yaml", imgsz=64, device="cpu,cpu", name="shared", **short)
assert Path("runs/train/shared/weights/best.pt").is_file()
once = {"epochs": 1, "seeds": 1, "rounds": 1, "device": ["cpu"]}
rows = compare.run(cfg=["tiny.yaml"], data="data.yaml", imgsz=64, batch_size=2, **once)
assert all(row.accuracy for row in rows), rows
theirs = train_ultralytics.run(cfg="yolo11n", data="data.yaml", epochs=1, imgsz=64, batch_size=2, device="cpu")
assert (theirs / "weights/best.pt").is_file()
assert "open" in seen, "the audit hook saw nothing"
print("quiet")
"""
PAGE = """
import os, signal, sys, threading, urllib.error, urllib.request
import detect
from utils.web import page

def look(self, port, launch=page.Page.launch):
    address = launch(self, port)
    print(len(urllib.request.urlopen(address).read()), "bytes of a page")
    try:
        urllib.request.urlopen(urllib.request.Request(address, headers={"Host": "stranger.example"}))
    except urllib.error.HTTPError as error:
        print("a stranger's name:", error.code)
    threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT)).start()
    return address

page.Page.launch = look
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells have what runs in the background ignore it
try:
    detect.run(web=True, weights=[sys.argv[1]])
except KeyboardInterrupt:
    print("quiet")
"""


def environment(folder: Path) -> dict[str, str]:
    """Return the environment of a user's shell, without the switches of this process, whose home is `folder`."""
    shell = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    ours = {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "cache"), "HOME": str(folder)}
    return {**shell, **ours, "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize(("watch", "works"), [("_strace", "can_trace"), ("_namespace", "can_isolate")])
@pytest.mark.parametrize(("program", "tries"), [(TRY, 1), ("print()", 0)])
def test_a_try_is_seen(watch, works, program, tries, tmp_path):
    if not getattr(network, works)():
        pytest.skip(f"no {works.removeprefix('can_')} here")
    command = [
        sys.executable,
        "-S",
        "-c",
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {program!r}])",
    ]
    watched = getattr(network, watch)(command, tmp_path, os.environ)
    assert watched.result.returncode == 0
    assert len(watched.tries) == tries


def test_onnx_runtime_is_told_not_to_report():
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"


@pytest.mark.slow
def test_no_script_touches_the_network_or_installs(tmp_path):
    write(tmp_path, tiny(), "tiny.yaml")
    check_is_quiet(SCRIPTS, tmp_path)
    assert list(tmp_path.glob("runs/train/exp/weights/best.onnx"))


@pytest.mark.slow
def test_comparisons_classifiers_and_several_processes_do_not_either(tmp_path):
    write(tmp_path, tiny(), "tiny.yaml")
    write(tmp_path, tiny(nc=3, head=[[-1, 1, "Classify", ["nc"]]]), "classifier.yaml")
    make_data(tmp_path)
    make_folders(tmp_path / "folders", train=2, val=1)
    check_is_quiet(OTHERS, tmp_path)


def check_is_quiet(program: str, folder: Path) -> None:
    """Run a program in a folder and check that it comes to its end without a try to reach a network or to install."""
    result, tries = network.run_watched([sys.executable, "-c", WATCH + program], folder, environment(folder))
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.splitlines()[-1] == "quiet"
    assert tries == []
    assert (folder / "cache/repyolo").is_dir()
    assert not (folder / "cache/Microsoft").exists(), "ONNX Runtime keeps a number for this machine"
    assert not (folder / "intel").exists(), "OpenVINO keeps one"


@pytest.mark.slow
def test_the_page_touches_the_loopback_address_only(tmp_path):
    pytest.importorskip("gradio")
    if not network.can_trace():
        pytest.skip("strace, which tells the loopback address from others, is not there or not allowed")
    save(DetectionModel(tiny()), tmp_path / "tiny.pt")
    command = [sys.executable, "-c", PAGE, str(tmp_path / "tiny.pt")]
    result, tries = network.run_watched(command, tmp_path, environment(tmp_path))
    assert result.stdout.splitlines()[-1:] == ["quiet"], result.stderr[-3000:]
    assert "a stranger's name: 400" in result.stdout  # a site whose name was led to this machine reads nothing
    assert tries == []
