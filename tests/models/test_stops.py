"""Threads that read in a library when the process ends."""

import subprocess
import sys
import time

import pytest

from models import stops
from utils.paths import ROOT

# a thread comes back from OpenCV in the second in which the interpreter is taken down
ENDING = """
import threading, time
import cv2, numpy
from models.stops import start_reader

class Slow:
    def __del__(self, sleep=time.sleep):
        sleep(1)

slow = Slow()
reading = (cv2.medianBlur, numpy.zeros((1500, 1500, 3), numpy.uint8), 31)
"""
DAEMON = "threading.Thread(target=reading[0], args=reading[1:], daemon=True).start()"
UNWOUND = pytest.mark.skipif(sys.version_info >= (3, 14), reason="since Python 3.14 such a thread waits for the end")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("start", "code"), [pytest.param(DAEMON, -6, marks=UNWOUND), ("start_reader('reader', *reading)", 0)]
)
def test_a_reader_does_not_abort_the_process_at_its_end(start, code):
    command = [sys.executable, "-c", ENDING + start]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60, check=False).returncode == code


def test_the_end_waits_for_a_reader_no_longer_than_it_must(monkeypatch):
    monkeypatch.setattr(stops, "GRACE", 0.05)
    thread = stops.start_reader("reader", time.sleep, 0.2)
    stops._wait_for_readers()
    assert thread.is_alive() and thread.daemon
    monkeypatch.setattr(stops, "GRACE", 60)
    stops._wait_for_readers()
    assert not thread.is_alive()
