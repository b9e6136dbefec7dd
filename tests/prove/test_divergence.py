"""Where a file parts from its model: faults put into files and into fusing are named with their row."""

import copy
from functools import cached_property

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from models import create_model, switch_to_deploy
from tests.helpers import randomize_, tiny
from utils.data.samples import make_pictures
from utils.deploy.ends import Nms
from utils.deploy.fresh import calibrate_batch_norms
from utils.deploy.write import write
from utils.export import Options
from utils.prove.compare import Tolerance
from utils.prove.divergence import FLOOR, ModuleOutputs, _first_difference, explain, find_divergence
from utils.prove.inside import _groups, watch
from utils.prove.reference import Reference

SIZE = (64, 64)
SEGMENT = tiny(head=[[-1, 1, "Conv", [32, 3, 2]], [-1, 1, "Conv", [32, 3, 2]], [[3, 4], 1, "Segment", ["nc", 8, 16]]])
REPVGG = tiny(backbone=[[-1, 1, "Conv", [16, 3, 2]], [-1, 1, "Conv", [32, 3, 2]], [-1, 2, "RepConv", [32]]])
CFGS = {"detect": tiny(), "segment": SEGMENT, "end2end": tiny(end2end=True)}


class Written:
    """A model, fused, and its files."""

    def __init__(self, cfg, folder, **options):
        model = randomize_(create_model(cfg))
        calibrate_batch_norms(model, torch.stack(list(make_pictures(SIZE).values())))
        self.folder, self.reference, self.deploy = folder, Reference(model), switch_to_deploy(model)
        self.options = Options(size=SIZE, **options)

    @cached_property
    def good(self):
        """The path of its ONNX file."""
        return write(self.deploy, self.folder / "good.onnx", self.options).path

    @cached_property
    def onnx(self):
        return onnx.load(self.good)

    def explain(self, path, deploy=None):
        cases = list(self.reference.cases(path, SIZE, 1, Tolerance(), path.name))
        return explain(self.reference, deploy or self.deploy, path, cases, Tolerance())

    def broken(self, name, by=0.5):
        """Return the ONNX file with one number of one weight changed by so much of the largest."""
        graph = onnx.ModelProto()
        graph.CopyFrom(self.onnx)
        (weight,) = (tensor for tensor in graph.graph.initializer if tensor.name == name)
        values = numpy_helper.to_array(weight).copy()
        values.flat[values.size // 2] += by * abs(values).max()
        weight.CopyFrom(numpy_helper.from_array(values, name))
        return self.save(graph)

    def save(self, graph):
        path = self.folder / "bad.onnx"
        onnx.save(graph, path)
        return path

    def biased(self, name):
        """Return a copy of the fused model with a wrong bias in one convolution."""
        wrong = copy.deepcopy(self.deploy)
        with torch.no_grad():
            wrong.get_submodule(name).bias[0] += 0.5
        return wrong


@pytest.fixture(scope="module", params=CFGS)
def written(request, tmp_path_factory):
    return Written(CFGS[request.param], tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    return Written(tiny(), tmp_path_factory.mktemp("detector"))


def weights(graph):
    found = [tensor for tensor in graph.graph.initializer if tensor.name.startswith("model.")]
    return [tensor.name for tensor in found if len(tensor.dims) > 1]


def test_a_changed_weight_of_an_onnx_file_is_named_with_its_row(written):
    names = weights(written.onnx)
    for name in (names[0], names[len(names) // 3], names[-2]):
        found = written.explain(written.broken(name, by=2))
        assert found["by"] == "file", name
        assert f"model.{found['row']}." in name
        assert found["module"] == name.removesuffix(".weight")
        assert found["text"].startswith(f"fusing is right, the ONNX file is not: row {found['row']} {found['word']} is")


WAYS = [
    {"simplify": True},
    {"dynamic": True},
    {"opset": 12},
    {"preprocess": "bgr", "dynamic": True},
    {"nms": Nms()},
    pytest.param({"exporter": "dynamo", "opset": 18}, marks=pytest.mark.slow),
]


@pytest.mark.slow
@pytest.mark.parametrize("options", WAYS)
def test_other_ways_to_write_the_graph(options, tmp_path):
    written = Written(tiny(), tmp_path, **options)
    path = write(written.biased("model.3.conv"), tmp_path / "wrong.onnx", written.options).path
    found = written.explain(path)
    assert (found["by"], found["row"], found["word"], found["module"]) == ("file", 3, "Conv", "model.3.conv")


def test_wrong_nms_behind_a_right_network(tmp_path):
    written = Written(tiny(), tmp_path, nms=Nms())
    (threshold,) = (tensor for tensor in written.onnx.graph.initializer if tensor.name == "conf_thres")
    threshold.CopyFrom(numpy_helper.from_array(np.array([0.5], np.float32), "conf_thres"))
    found = written.explain(written.save(written.onnx))
    assert found["text"] == "fusing is right, the ONNX file is not: its network is, so the NMS behind it is not"


def test_names_in_the_graph_do_not_matter(detector):
    graph = onnx.load(detector.broken("model.2.cv3.conv.weight"))
    for i, node in enumerate(graph.graph.node):
        node.name = f"n{i}"
    kept = {value.name for value in (*graph.graph.input, *graph.graph.output)}
    for node in graph.graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name and name not in kept:
                    names[i] = f"t{name.replace('/', '').replace('.', '')}"
    for tensor in graph.graph.initializer:
        tensor.name = f"t{tensor.name.replace('/', '').replace('.', '')}"
    del graph.graph.value_info[:]
    found = detector.explain(detector.save(graph))
    assert (found["row"], found["word"], found["module"]) == (2, "C3", "model.2.cv3.conv")


@pytest.mark.slow
def test_a_wrong_bias_in_what_was_fused_is_fusing(written):
    wrong = written.biased("model.2.m.0.cv2.conv")
    path = write(wrong, written.folder / "wrong.onnx", written.options).path
    found = written.explain(path, wrong)
    assert (found["by"], found["row"], found["module"]) == ("fusing", 2, "model.2.m.0.cv2.bn")
    assert found["text"].startswith("fusing changes the model: row 2 C3 is the first that differs, by ")


def test_a_wrong_block_is_fusing(tmp_path):
    written = Written(REPVGG, tmp_path)
    convolutions = [name for name, module in written.deploy.named_modules() if isinstance(module, nn.Conv2d)]
    name = next(name for name in convolutions if name.startswith("model.2.1"))
    wrong = written.biased(name)
    path = write(wrong, tmp_path / "wrong.onnx", written.options).path
    found = written.explain(path, wrong)
    assert (found["by"], found["row"]) == ("fusing", 2)
    assert found["module"].startswith("model.2.1")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "title"), [("a.torchscript", "TorchScript"), ("a_openvino_model", "OpenVINO")])
def test_a_wrong_file_of_another_format_is_the_file(written, name, title):
    path = write(written.biased("model.2.cv3.conv"), written.folder / "wrong" / name, written.options).path
    found = written.explain(path)
    assert (found["by"], found["row"], found["module"]) == ("file", 2, "model.2.cv3.conv")
    assert f"the {title} file is not" in found["text"]


def test_what_agrees_parts_nowhere(detector):
    assert detector.explain(detector.save(detector.onnx)) is None


def test_what_does_not_run_has_nothing_to_look_into(detector):
    path = detector.folder / "bad.onnx"
    path.write_bytes(b"no graph")
    assert detector.explain(path) is None


def test_a_format_that_shows_nothing(detector, monkeypatch):
    monkeypatch.setattr("utils.prove.divergence.watch", lambda *_: None)
    found = detector.explain(detector.broken("model.3.conv.weight"))
    assert found == {
        "by": "file",
        "text": "fusing is right, the ONNX file is not: this format does not show what it computes between its layers",
    }


def test_a_file_that_agrees_once_it_is_looked_into(detector, monkeypatch):
    path = detector.broken("model.3.conv.weight")
    monkeypatch.setattr("utils.prove.divergence.watch", lambda _, images, *__: detector.reference(images))
    assert "its runtime's optimization is what differs" in detector.explain(path)["text"]


def test_a_file_that_does_not_run_with_its_inside_shown(detector, monkeypatch):
    def fail(*_):
        raise RuntimeError("no")

    monkeypatch.setattr("utils.prove.divergence.watch", fail)
    assert "does not run with its inside shown" in detector.explain(detector.broken("model.3.conv.weight"))["text"]


def test_a_model_without_finite_outputs_has_nothing_to_compare(detector):
    reference = Reference(detector.reference.model)
    with torch.no_grad():
        reference.model.model[0].conv.weight[0] = float("nan")
    path = detector.good
    (case, *_) = reference.cases(path, SIZE, 1, Tolerance(), path.name)
    assert not case.ok
    assert find_divergence(reference, detector.deploy, path, case, Tolerance()) is None


def test_a_row_that_sound_rows_depend_on_is_not_to_blame(detector):
    model = detector.reference.model  # 0 → 1 → 2 → 3 → 4 (upsampled) → 5 (concatenated with 2) → 6 Detect of 5 and 3
    assert [node.sources for node in model.nodes[4:]] == [(3,), (4, 2), (5, 3)]
    assert _first_difference(model, [True, False, True, False, False, False, False]) == 3
    assert _first_difference(model, [True, True, True, False, True, True, False]) == 6
    assert _first_difference(model, [False] * 7) == 0


def test_inner_tensors_are_taken_in_groups(monkeypatch):
    monkeypatch.setattr("utils.prove.inside.BUDGET", 100)
    shapes = [(10,), (10,), (10,), (100,), None, (1,)]
    groups = list(_groups(shapes, lambda shape: shape))
    assert [len(group) for group in groups] == [2, 1, 1, 1, 1]
    assert [shape for group in groups for shape in group] == shapes


def test_watching_gives_the_outputs_and_each_inner_tensor(detector):
    images = make_pictures(SIZE)["noise"][None]
    expected = detector.reference(images)
    for suffix in ("onnx", "torchscript"):
        path = write(detector.deploy, detector.folder / f"good.{suffix}", detector.options).path
        seen = []
        outputs = watch(path, images, {(1, 16, 16, 16)}, seen.append)
        torch.testing.assert_close(outputs[0], expected[0], atol=1e-3, rtol=1e-4)
        assert any(tensor.shape == (1, 16, 16, 16) for tensor in seen)
    assert watch(detector.folder / "good.unknown", images, set(), print) is None


def test_an_order_that_float32_and_float64_do_not_share_says_nothing_of_a_file():
    site = ModuleOutputs("model.6", [torch.ones(1)], rounding=[0.2], errors=[0.3])
    assert site.is_undecided
    assert site.is_sound(FLOOR)
    sharp = ModuleOutputs("model.6", [torch.ones(1)], rounding=[1e-6], errors=[0.3])
    assert not sharp.is_undecided
    assert not sharp.is_sound(FLOOR)
