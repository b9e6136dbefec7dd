"""What the processes that measure memory share: the server that they are copies of imports this module.

OpenVINO comes after `utils`, which keeps it from reporting to its makers.
"""

from __future__ import annotations

import contextlib

from utils.benchmark import forms  # noqa: F401

with contextlib.suppress(ImportError):
    import openvino  # noqa: F401
