"""Runs a program and tells which tries it and its children made to reach a network, native code included."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

COUNTERS = Path("/proc/net/snmp")
NAMESPACE = ["unshare", "--user", "--map-root-user", "--net"]
STRACE = ["strace", "-f", "-qq", "--seccomp-bpf", "-e", "trace=connect,sendto,sendmsg,sendmmsg", "-e", "signal=none"]
COUNTED = f"""
import subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
names, numbers = [line.split() for line in open("{COUNTERS}") if line.startswith("Ip:")]
open("tries", "w").write(dict(zip(names, numbers))["OutNoRoutes"])
sys.exit(code)
"""
ADDRESS = re.compile(r"sa_family=AF_INET.*?(?:htons\((\d+)\)).*?\"([^\"]+)\"")
LOOPBACK = ("127.", "::1")
PATIENCE = 300  # seconds; the machine may be busy
DNS = "53"  # on the loopback address too this asks others


class Watched(NamedTuple):
    """A program that ended, and its tries to reach a network."""

    result: subprocess.CompletedProcess[str]
    tries: list[str]


def run_watched(command: Sequence[str], folder: Path, env: Mapping[str, str]) -> Watched:
    """Run a program in a folder, under strace or, without that, in a namespace that has no network.

    In the namespace not even the loopback address is there, and tries are counted only.
    """
    ways = [way for way, works in ((_strace, can_trace), (_namespace, can_isolate)) if works()]
    if not ways:
        pytest.skip("neither strace nor a network namespace is to be had here")
    return ways[0](command, folder, env)


def _strace(command: Sequence[str], folder: Path, env: Mapping[str, str]) -> Watched:
    trace = folder / "strace"
    result = _run([*STRACE, "-o", str(trace), *command], folder, env)
    return Watched(result, [line for line in trace.read_text(errors="replace").splitlines() if leaves(line)])


def leaves(line: str) -> bool:
    """Return whether a system call is for another machine: an address of the internet, or a question for a name."""
    found = ADDRESS.search(line)
    return found is not None and found[1] != "0" and (found[1] == DNS or not found[2].startswith(LOOPBACK))


def _namespace(command: Sequence[str], folder: Path, env: Mapping[str, str]) -> Watched:
    result = _run([*NAMESPACE, sys.executable, "-c", COUNTED, *command], folder, env)
    count = int((folder / "tries").read_text())
    return Watched(result, [f"{count} packets without a route"] * bool(count))


def _run(command: Sequence[str], folder: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=PATIENCE)


@functools.cache
def can_trace() -> bool:
    """Return whether strace is there, and allowed to trace."""
    return shutil.which("strace") is not None and _run([*STRACE, "true"], Path(), os.environ).returncode == 0


@functools.cache
def can_isolate() -> bool:
    """Return whether a network namespace can be had."""
    there = COUNTERS.exists() and shutil.which(NAMESPACE[0]) is not None
    return there and _run([*NAMESPACE, "true"], Path(), os.environ).returncode == 0
