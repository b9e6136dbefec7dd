"""How a script of ours manages its memory, and that other programs keep their ways."""

import atexit
import gc
import os
import subprocess
import sys

import pytest

from models import environment
from utils.paths import ROOT

COUNT = """
import ctypes, resource, sys
from models import environment

def faults():
    block = c.malloc(SIZE)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    c.memset(block, 1, SIZE)
    found = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    c.free(block)
    return found

c, SIZE = ctypes.CDLL(None), 100 << 20
c.malloc.restype, c.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
c.free.argtypes, c.memset.argtypes = [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
if "keep" in sys.argv:
    environment.keep_freed_memory()
print(faults(), faults())
"""


def faults_of(*words, **variables):
    """Return how often the system was asked for pages of a large block, and of another one after that was freed."""
    command = [sys.executable, "-c", COUNT, *words]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True, check=True, timeout=60
    )
    return tuple(map(int, done.stdout.split()))


@pytest.mark.skipif(sys.platform != "linux", reason="not glibc")
def test_freed_memory_is_kept_where_it_was_asked_for():
    kept, usual, own = faults_of("keep"), faults_of(), faults_of("keep", MALLOC_MMAP_THRESHOLD_="1000000")
    assert min(kept[0], *usual, *own) > 10 * kept[1]


@pytest.mark.parametrize("ours", [True, False])
def test_scripts_alone_manage_their_memory(ours, monkeypatch):
    done, usual = [], gc.get_threshold()
    monkeypatch.setattr(environment, "is_main_script", lambda: ours)
    monkeypatch.setattr(environment, "keep_freed_memory", lambda: done.append("kept"))
    monkeypatch.setattr(atexit, "register", done.append)
    try:
        gc.set_threshold(700)
        environment.prepare_memory()
        assert done == [gc.freeze, "kept"] * ours
        assert (gc.get_threshold()[0] > 700) == ours
    finally:
        gc.set_threshold(*usual)
