"""Fixtures of several tests of models."""

import pytest
import torch

from models import create_backbone
from tests.helpers import golden_tensor
from tests.models.repvgg import ORIGINAL


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A file in the authors' layout, classifier included."""
    path = tmp_path_factory.mktemp("weights") / "RepVGG-A0-train.pth"
    torch.save({name: golden_tensor(name, shape) for name, shape in ORIGINAL["keys"].items()}, path)
    return path


@pytest.fixture(scope="module")
def original(published):
    """The golden network in float64, built through `weights:`."""
    return create_backbone("RepVGG", "A0", weights=published).double().eval()
