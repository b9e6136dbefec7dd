"""The metadata of an exported file, checked before anything reads it: exports come from strangers."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

from models.errors import UserError, WeightsError
from models.spec import TASKS
from utils.deploy.ends import ORDERS
from utils.deploy.run import RUN_ERRORS, read_metadata
from utils.sizes import check_imgsz
from utils.text import class_names

MAX_METADATA = 1_000_000  # characters of one entry
LITERALS = ("imgsz", "names", "args", "end2end", "nms")  # metadata that ultralytics reads as Python literals
KNOWN = {*LITERALS, *"stride batch channels task preprocess free kpt_shape kpt_names".split()}  # entries that are read


def check_metadata(path: Path) -> str:
    """Return the task in the metadata of an export.

    Raises:
        WeightsError: an entry that is known holds something else than it should.
    """
    try:
        values = {k: _literal(v) if k in LITERALS else v for k, v in read_metadata(path).items()}
        stride, batch = int(values.get("stride", 32)), int(values.get("batch", 1))
        channels = int(values.get("channels", 3))
        check_imgsz(values.get("imgsz", 640), 1)
        if not isinstance(values.get("args", {}), dict):
            raise TypeError("options are named")
    except (*RUN_ERRORS, ValueError, SyntaxError, TypeError, AttributeError, MemoryError) as error:
        raise WeightsError(f"{path} holds metadata that cannot be understood") from error
    task = values.get("task", "detect")
    try:
        class_names(values.get("names", {0: ""}))
    except UserError as error:
        raise WeightsError(f"{path}: {error}") from error
    if not (1 <= stride <= 1024 and 1 <= batch <= 1024 and channels == 3):
        raise WeightsError(f"{path} is for stride {stride}, batch {batch} and {channels} channels, which cannot run")
    if values.get("preprocess", ORDERS[0]) not in ORDERS:
        raise WeightsError(f"{path} takes bytes in an order that is not known here: {values['preprocess']}")
    if task not in TASKS:
        raise WeightsError(f"{path} was made for the task {task}, not for {' or '.join(TASKS)}")
    return task


def _literal(value: Any) -> Any:
    """Return the Python literal that a text stands for; other values as they are."""
    if not isinstance(value, str):
        return value
    if len(value) > MAX_METADATA:
        raise ValueError("too long")
    return ast.literal_eval(value)
