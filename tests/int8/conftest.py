"""Fixtures of several tests of quantization."""

import pytest
from ultralytics.utils import ASSETS

from models import switch_to_deploy
from tests.helpers import write
from tests.int8.quantizing import SHAPE, network, photographs
from utils.checkpoint import pack_model, save_checkpoint
from utils.deploy.write import write as write_file
from utils.export import Options
from utils.int8.quantize import FloatGraph


@pytest.fixture(scope="module", params=["nn.SiLU()", "nn.ReLU()"])
def model(request):
    return network(request.param)


@pytest.fixture(scope="module")
def deploy(model):
    return switch_to_deploy(model)


@pytest.fixture(scope="module")
def graph(deploy, tmp_path_factory):
    path = tmp_path_factory.mktemp("float") / "float.onnx"
    write_file(deploy, path, Options(size=SHAPE[2:]))
    return FloatGraph(path)


@pytest.fixture(scope="module")
def ranges(graph):
    return graph.calibrate(photographs(), graph.path.parent, {})


@pytest.fixture(scope="module")
def trained():
    return network("nn.SiLU()")


@pytest.fixture
def best(trained, tmp_path):
    """A checkpoint in the folder of its run, with the data set that it was trained on."""
    images = tmp_path / "set/images"
    images.mkdir(parents=True)
    for name in ("bus", "zidane"):
        (images / f"{name}.jpg").write_bytes((ASSETS / f"{name}.jpg").read_bytes())
        labels = tmp_path / "set/labels"
        labels.mkdir(exist_ok=True)
        (labels / f"{name}.txt").write_text("0 0.5 0.5 0.4 0.4\n")
    run = tmp_path / "run"
    (run / "weights").mkdir(parents=True)
    write(
        run, {"path": str(tmp_path / "set"), "train": "images", "val": "images", "names": ["cat", "dog"]}, "data.yaml"
    )
    save_checkpoint({**pack_model(trained), "ema": trained.state_dict()}, run / "weights/best.pt")
    return run / "weights/best.pt"
