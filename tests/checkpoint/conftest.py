"""Fixtures of several tests of checkpoints."""

import pytest

from models import create_model
from tests.checkpoint.yolov5 import ANCHORED, save_as_yolov5
from tests.helpers import randomize_, tiny


@pytest.fixture
def yolov5(tmp_path, monkeypatch):
    """Return a model with anchors and its file."""
    model = randomize_(create_model(tiny(**ANCHORED))).half().float().eval()
    model.model[-1].anchor_sizes *= 1.5  # as AutoAnchor leaves them
    return model, save_as_yolov5(model, tmp_path / "yolov5t.pt", monkeypatch)
