"""The server of the page: which weights it offers, where it listens, and Gradio's switches."""

from __future__ import annotations

import importlib.util
import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ultralytics.utils import LOGGER

from models.environment import restored_environment
from models.errors import UserError
from utils.deploy.formats import format_of
from utils.detect.writers import Wanted
from utils.paths import find_weights, newest_weights
from utils.text import printable
from utils.web.service import DetectionService

GRADIO_VERSION = "6.31.0"  # that was tested
MAX_PORT = 65535
LOOK = 0.5  # seconds until the main thread looks for a signal again


def find_listed(named: Sequence[str], project: str | Path = "runs/train") -> dict[str, Path]:
    """Return the weights that the page offers: those that the user named, then all of this folder's trainings.

    Raises:
        UserError: a named file does not exist, or there are none at all.
    """
    found = [find_weights(name) for name in named]
    trained = sorted(Path(project).glob("*/weights/*"), key=lambda path: path.stat().st_mtime, reverse=True)
    found += [path for path in trained if path.suffix == ".pt" or format_of(path)]
    if not found:
        newest_weights(project)  # which says what to do
    return {printable(path): path for path in dict.fromkeys(found)}


def serve(weights: dict[str, Path], port: int | None, wanted: Wanted, **options: Any) -> None:
    """Serve the page until Ctrl-C.

    Args:
        weights: what the page offers, from `find_listed`; the first is chosen at the start.
        port: on 127.0.0.1; None: the first free one from 7860 on.
        wanted: how boxes are drawn.
        options: of `create_predictor`; `conf_thres` and `iou_thres` are where the sliders start.

    Raises:
        UserError: Gradio is not installed, or the port is taken.
    """
    if importlib.util.find_spec("gradio") is None:
        raise UserError(f"--web needs the package gradio: pip install gradio=={GRADIO_VERSION}")
    if port and port > MAX_PORT:
        raise UserError(f"--port goes up to {MAX_PORT}, not {port}")
    with tempfile.TemporaryDirectory(prefix="repyolo-web-") as folder, _private_gradio(Path(folder) / "uploads"):
        from utils.web.page import Page  # noqa: PLC0415 (it imports Gradio, which is optional and has its switches now)

        page = Page(DetectionService(weights, Path(folder), wanted, options))
        try:
            address = page.launch(port)
        except OSError as error:
            raise UserError(f"--port {port or '7860 to 7959'} is taken: name another one") from error
        try:
            LOGGER.info(f"The page is at {address} (Ctrl-C ends it)")
            while not threading.Event().wait(LOOK):  # a signal that the system gives another thread wakes none
                pass
        finally:
            page.close()


@contextmanager
def _private_gradio(uploads: Path) -> Iterator[None]:
    """Set Gradio's switches before it is imported: no statistics, and files in a folder that goes with the page."""
    with restored_environment():
        os.environ.update(GRADIO_ANALYTICS_ENABLED="False", GRADIO_TEMP_DIR=str(uploads), GRADIO_SHARE="False")
        os.environ.update(HF_HUB_OFFLINE="1")
        yield
