"""Fixtures of several test files: models that are expensive to build, built once; tests do not change them.

What takes seconds to import is imported inside: pytest-xdist has a process that computes nothing but reads this file
before it starts those that do.
"""

import gc
import os
import signal

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # the networks are small: more threads would only wait for one another

from models.environment import keep_freed_memory  # reads that; before onnxruntime, which looks up servers otherwise

LONG = "docs parity widen offline backbones compare processes quantize reparam export_shapes timm export".split()
LONG += "classify deploy_form ultralytics_yaml summary words gradients ends train kills attacks pages".split()
LONG += "published detect export_formats convert repvgg repvgg_weights resume segment plugins check_weights".split()
LONG += "repmlpnet openvino divergence fuzz int8 custom_l2".split()

gc.set_threshold(50_000, 20, 100)  # while libraries and tests are imported
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells have what runs in the background ignore it


def pytest_collection_modifyitems(items):
    """Put the files that take longest first: what is short at the end keeps both processes busy until then."""
    order = {f"test_{name}": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


def pytest_collection_finish():
    """Prepare a process for thousands of small tests that build large networks."""
    gc.collect()
    gc.freeze()  # the libraries are a million objects that every full collection would look through again
    gc.set_threshold(5000, 10, 10)  # a network is thousands of objects: as a rule none of them is garbage
    keep_freed_memory()


@pytest.fixture(scope="session", autouse=True)
def _no_waiting():
    """Measure latency without a pause between two runs, and do not wait for the disk: no test looks at either."""
    from utils import latency

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(latency, "PAUSE", 0)
        patched.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture
def never_opened(monkeypatch):
    """No pipe, device or file of the system may be opened, which would hang here."""
    from pathlib import Path

    from models.files import why_no_file

    path_open = Path.open

    def check(file, *args, **kwargs):
        assert why_no_file(file) in ("", "does not exist"), f"{file} is opened"
        return path_open(file, *args, **kwargs)

    monkeypatch.setattr(Path, "open", check)


# Exporting ------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="session")
def model():
    """A small detector for tests of exporting."""
    from tests.helpers import random_model, tiny

    model = random_model(tiny())
    model.names, model.imgsz = {0: "cat", 1: "it's"}, 64
    return model


@pytest.fixture
def best(model, tmp_path):
    """A checkpoint of it in a folder of its own."""
    from tests.helpers import save

    return save(model, tmp_path / "weights/best.pt")


# Detecting ------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="session")
def square_finder():
    """A small detector that sees one confident square, as large as the picture, wherever it looks."""
    import torch

    from models import DetectionModel
    from tests.networks import NAMES

    rows = [[-1, 1, "Conv", [16 * 2**level, 3, 2]] for level in range(5)]
    head = [[[2, 3, 5], 1, "Detect", ["nc"]]]
    torch.manual_seed(0)
    model = DetectionModel({"nc": len(NAMES), "backbone": [*rows, [-1, 1, "SPPF", [256, 5]]], "head": head})
    model.names, model.imgsz = NAMES, 64
    with torch.no_grad():
        for stride, scores in zip(model.stride.tolist(), model.model[-1].cv3, strict=True):
            scores[-1].bias.fill_(-9)
            scores[-1].bias[1] = 3 if stride == 32 else -9
    return model.eval()


@pytest.fixture(scope="session")
def weights(square_finder, tmp_path_factory):
    """A checkpoint of it."""
    from tests.helpers import save

    return save(square_finder, tmp_path_factory.mktemp("weights") / "best.pt")


@pytest.fixture
def log():
    """The lines that were printed."""
    from ultralytics.utils import LOGGER

    lines = []

    class Keep(type(LOGGER.handlers[0])):
        def emit(self, record):
            lines.append(record.getMessage())

    handler = Keep()
    LOGGER.addHandler(handler)
    yield lines
    LOGGER.removeHandler(handler)


@pytest.fixture
def run(weights, tmp_path, monkeypatch):
    """`detect.main` in an empty folder, with the weights above and options as keywords; returns the exit code."""
    import detect

    monkeypatch.chdir(tmp_path)
    parser = detect.make_parser()
    return lambda **options: detect.main(parser.from_keywords(**{"weights": weights, **options}))
