"""Kills and stops at the moments in which a training writes: no file is lost, and the end is the same to the last bit.

`REPYOLO_KILLS=50 pytest tests/train/test_kills.py` tries 50 of each, which takes minutes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.helpers import tiny
from tests.runs import make_data

ROOT = Path(__file__).parents[2]
FILES = ("args.yaml", "data.yaml", "results.csv", "best.pt", "last.pt", "final.json")  # that are replaced as a whole
STAGES = ("before", "inside", "written", "after")
NUMBER = int(os.environ.get("REPYOLO_KILLS", "4"))


@pytest.mark.slow
def test_kills_and_stops_while_files_are_written_lose_nothing(tmp_path):
    (tmp_path / "net.yaml").write_text(yaml.safe_dump(tiny()))
    make_data(tmp_path)
    command = [sys.executable, "-m", "tests.kills", str(tmp_path), str(NUMBER), str(NUMBER)]
    result = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr[-3000:]
    figures = json.loads(result.stdout.splitlines()[-1])
    print(json.dumps(figures, indent=2))
    assert figures["wrong"] == []
    assert figures["at"].keys() == {f"{file} {stage}" for file in FILES for stage in STAGES}
    assert figures["kills"] >= NUMBER
    assert figures["stops"] >= NUMBER
