"""Train, detect and export make no network attempt and start no installer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.helpers import tiny

ROOT = Path(__file__).parents[1]
PROGRAM = """
import sys

def forbid(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        raise RuntimeError(f"network: {event} {args}")
    if event == "subprocess.Popen" and "pip" in str(args):
        raise RuntimeError(f"installer: {args}")

seen = []
sys.addaudithook(lambda event, args: seen.append(event) or forbid(event, args))

import detect, export, train, val
from utils.data.shapes import NAMES, Recipe, ensure_shapes
from pathlib import Path
import yaml

ensure_shapes(Path("shapes"), Recipe(side=64, train=4, val=2, test=2, film_side=64, film_frames=2))
splits = {split: f"images/{split}" for split in ("train", "val", "test")}
Path("data.yaml").write_text(yaml.safe_dump({"path": str(Path("shapes").resolve()), **splits, "names": list(NAMES)}))
train.run(cfg="tiny.yaml", data="data.yaml", epochs=1, imgsz=64, batch_size=2)
val.run(data="data.yaml")
detect.run()
export.run()
import openvino
openvino.convert_model(str(next(Path("runs").rglob("best.onnx"))))
assert "open" in seen, "the audit hook saw nothing"
print("quiet")
"""


@pytest.mark.slow
def test_no_script_touches_the_network_or_installs(tmp_path):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny()))
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.splitlines()[-1] == "quiet"
    assert list(tmp_path.glob("runs/train/exp/weights/best.onnx"))
