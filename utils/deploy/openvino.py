"""OpenVINO's entrance, which needs none of what else this folder imports."""

from __future__ import annotations

import functools
from typing import Any


@functools.cache
def openvino_core() -> Any:
    """Return the one Core of OpenVINO in this process.

    Each Core sets a stack for signals, and at its end puts back what was there before: where several end in another
    order than they began, that is memory which was freed, and the next Ctrl-C crashes the process.
    """
    import openvino  # noqa: PLC0415 (slow, and few need it)

    return openvino.Core()
