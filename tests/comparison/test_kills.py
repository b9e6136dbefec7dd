"""Kills at the moments in which a comparison writes: no file is lost, and it ends with the same numbers.

`REPYOLO_KILLS=50 pytest tests/comparison/test_kills.py` tries 50 of them, which takes minutes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = ("plan.json", "result.json", "found.npz", "compare.json", "compare.html", "compare.png", "disagreement.jpg")
STAGES = ("before", "inside", "written", "after")
NUMBER = int(os.environ.get("REPYOLO_KILLS", "1"))


@pytest.mark.slow
def test_kills_while_files_are_written_lose_nothing(tmp_path):
    command = [sys.executable, "-m", "tests.comparison.kills", str(tmp_path), str(NUMBER)]
    result = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr[-3000:]
    figures = json.loads(result.stdout.splitlines()[-1])
    print(json.dumps(figures, indent=2))
    assert figures["wrong"] == []
    assert figures["at"].keys() >= {f"{file} {stage}" for file in FILES for stage in STAGES}
    assert sum(figures["at"].values()) == NUMBER
