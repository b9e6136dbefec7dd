"""How tests start processes that share their work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]


def run_by(processes: int, words: list[str], cwd: Path = ROOT) -> str:
    """Return what so many processes of a script print, given as its path and options, or as -m and a module."""
    code, printed = start_by(processes, words, cwd)
    assert code == 0, printed[-3000:]
    return printed


def run_forked(processes: int, store: Path, module: str, *arguments: str) -> None:
    """Run so many processes of a module, forked from one that has imported torch: for what torchrun is not a part of.

    Args:
        processes: how many.
        store: a file that is not there, by which they find each other.
        module: run as a script.
        arguments: of the script.
    """
    command = [sys.executable, "-m", "tests.distributed.forked", str(processes), str(store), module, *arguments]
    result = subprocess.run(
        command, check=False, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, timeout=100
    )
    assert result.returncode == 0, result.stderr.decode()[-3000:]


def start_by(processes: int, words: list[str], cwd: Path = ROOT, **variables: str) -> tuple[int, str]:
    """Return the exit code of so many processes of a script, and what they print.

    Args:
        processes: how many.
        words: its path and options, or -m and a module.
        cwd: the folder that they run in.
        variables: of their environment.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    command = [*LAUNCH, str(processes), *words]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "timeout": 100}
    result = subprocess.run(command, check=False, cwd=cwd, env=environment, **options)
    return result.returncode, result.stdout
