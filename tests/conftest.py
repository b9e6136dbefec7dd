"""Models that are expensive to build, built once. Tests do not change them."""

import functools

import pytest
import torch

from models import DetectionModel, switch_to_deploy
from tests.helpers import randomize_

torch.set_num_threads(1)  # the tests' networks are small: more threads would only wait for one another


@pytest.fixture(scope="session")
def pair():
    """Return a function from a shipped YAML to (model, deploy), float64 in eval mode with random statistics."""

    @functools.cache
    def build(name):
        model = randomize_(DetectionModel(name, nc=3)).double().eval()
        return model, switch_to_deploy(model)

    return build
