"""Models that are expensive to build, built once. Tests do not change them."""

import functools
import signal

import pytest
import torch

from models import create_model, switch_to_deploy
from tests.helpers import pictures_for, random_model, randomize_, save, tiny
from utils.deploy.fresh import see

signal.signal(signal.SIGINT, signal.default_int_handler)  # shells have what runs in the background ignore it
torch.set_num_threads(1)  # the tests' networks are small: more threads would only wait for one another


@pytest.fixture(scope="session")
def pair():
    """Return a function from a shipped YAML to (model, deploy), float64 in eval mode with random weights.

    Statistics are those of random pictures: with random ones deep networks forget what they are shown.
    """

    @functools.cache
    def build(name):
        model = randomize_(create_model(name, nc=3)).double()
        see(model, pictures_for(model, 4, 4))
        return model, switch_to_deploy(model)

    return build


@pytest.fixture(scope="module")
def model():
    """A small detector for tests of exporting."""
    model = random_model(tiny())
    model.names, model.imgsz = {0: "cat", 1: "it's"}, 64
    return model


@pytest.fixture
def best(model, tmp_path):
    """A checkpoint of it in a folder of its own."""
    return save(model, tmp_path / "weights/best.pt")
