"""Quantized files: which layers are in INT8, how close they are, and which lose most."""

import math
import re
import sys

import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from ultralytics.nn.autobackend import AutoBackend

from models import create_model
from models.blocks.repmlp import TileFC, from_tiles, to_tiles
from models.errors import UserError
from models.spec import load_spec
from tests.helpers import randomize_, relative_error
from tests.int8.quantizing import OUTLIER, SHAPE, photographs, saved
from utils.deploy.run import load_runner
from utils.deploy.write import write as write_file
from utils.export import Options
from utils.int8.quantize import FloatGraph, quantize_openvino
from utils.int8.search import check_int8
from utils.int8.share import layers_of_onnx, layers_of_openvino, share_of

FLOAT_KERNELS = {"Conv", "FusedConv"}


@pytest.fixture(scope="module")
def layers(graph, ranges):
    return graph.measure_noise(graph.quantized(ranges), photographs())


def kernels(file):
    """Return the operators that ONNX Runtime really runs for a file."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(file.with_name("optimized.onnx"))
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]


# Files ----------------------------------------------------------------------------------------------------------------
def test_every_convolution_is_a_layer(deploy, graph):
    convolutions = {name for name, m in deploy.named_modules() if isinstance(m, nn.Conv2d) and ".dfl" not in name}
    assert {*graph.layers, *graph.ends} == convolutions
    assert OUTLIER in graph.layers
    assert set(graph.ends) == {f"model.6.{branch}.{level}.2" for branch in ("cv2", "cv3") for level in (0, 1)}


def test_the_chain_stays_in_int8(graph, ranges, tmp_path):
    file = saved(graph.quantized(ranges), tmp_path / "int8.onnx")
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in onnx.load(file).graph.node}
    run = kernels(file)
    assert run.count("QLinearConv") == len(graph.layers)
    assert run.count("QuantizeLinear") == 1  # of the picture
    assert "QLinearConcat" in run
    assert "QuickGelu" not in run
    assert sum(kernel in FLOAT_KERNELS for kernel in run) == len(graph.ends)


def test_layers_with_equal_constants_stay_in_int8(tmp_path):
    network = nn.Sequential(*(nn.Conv2d(8, 8, 3) for _ in range(4))).eval()
    for layer in network:
        nn.init.zeros_(layer.bias)
    network[1].load_state_dict(network[0].state_dict())
    torch.onnx.export(network, (torch.rand(1, 8, 16, 16),), str(tmp_path / "float.onnx"), dynamo=False)
    assert any(node.op_type == "Identity" for node in onnx.load(tmp_path / "float.onnx").graph.node)
    graph = FloatGraph(tmp_path / "float.onnx")
    assert len(graph.layers) == 3
    file = saved(graph.quantized(graph.calibrate([torch.rand(1, 8, 16, 16)], tmp_path, {})), tmp_path / "int8.onnx")
    assert kernels(file).count("QLinearConv") == 3


def test_outputs_are_close(deploy, graph, ranges, tmp_path):
    layers = graph.measure_noise(graph.quantized(ranges), photographs())
    images = next(iter(photographs()))
    with torch.inference_mode():
        expected = deploy(images)[0]
    errors = []
    for count in (0, len(layers) // 2):
        file = saved(graph.quantized(ranges, [layer.name for layer in layers[:count]]), tmp_path / f"{count}.onnx")
        got = load_runner(file)(images)[0]
        assert got.shape == expected.shape
        errors.append((got - expected)[:, 4:].abs().mean().item())
    assert 0 < errors[1] < errors[0] < 0.1


def test_a_file_is_what_ultralytics_reads(graph, ranges, tmp_path):
    backend = AutoBackend(saved(graph.quantized(ranges), tmp_path / "int8.onnx"))
    assert (backend.names, backend.stride, backend.imgsz) == ({0: "cat", 1: "dog"}, 8, [64, 64])


def test_seven_bits(graph, ranges):
    weights = {}
    for reduce_range in (False, True):
        model = graph.quantized(ranges, reduce_range=reduce_range)
        tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        weights[reduce_range] = abs(tensors[f"{OUTLIER}.weight_quantized"].astype(int)).max()
    assert weights == {False: 127, True: 64}


# Layers ---------------------------------------------------------------------------------------------------------------
def test_the_layer_with_an_outlier_is_the_worst(layers, graph):
    assert layers[0].name == OUTLIER
    assert layers[0].sqnr < layers[1].sqnr - 3
    weight = torch.from_numpy(graph.weight(OUTLIER).copy())
    expected = weight.abs().amax(1) / weight.std(1, correction=0)
    assert layers[0].weight_range == pytest.approx(expected.max().item(), rel=1e-4)
    assert layers[0].typical_range == pytest.approx(expected.quantile(0.5).item(), rel=1e-2)
    assert [layer.sqnr for layer in layers] == sorted(layer.sqnr for layer in layers)


def test_the_ratio_is_that_of_a_layer_alone(deploy, layers, ranges, graph):
    """By torch, for the first layer: its picture and its weights rounded, nothing else."""
    first = deploy.get_submodule("model.0.conv")
    low, high = (x.item() for x in ranges[graph.model.graph.input[0].name].range_value)
    scale = (max(high, 0) - min(low, 0)) / 255
    signal = noise = 0.0
    with torch.inference_mode():
        weight = first.weight
        steps = weight.abs().amax((1, 2, 3)) / 127
        rounded = torch.fake_quantize_per_channel_affine(weight, steps, torch.zeros(len(steps)), 0, -127, 127)
        for images in photographs():
            exact = first(images)
            seen = torch.fake_quantize_per_tensor_affine(images, scale, round(-min(low, 0) / scale), 0, 255)
            error = nn.functional.conv2d(seen, rounded, first.bias, first.stride, first.padding) - exact
            signal, noise = signal + exact.square().sum().item(), noise + error.square().sum().item()
    found = next(layer for layer in layers if layer.name == "model.0.conv")
    assert found.sqnr == pytest.approx(10 * math.log10(signal / noise), abs=0.2)


@pytest.mark.parametrize("names", [[OUTLIER], [OUTLIER, "model.3.conv"]])
def test_layers_kept_in_float_run_in_float(graph, ranges, names, tmp_path):
    """ONNX Runtime would quantize their weights by itself, with one scale for all channels."""
    run = kernels(saved(graph.quantized(ranges, names), tmp_path / "kept.onnx"))
    assert sum(kernel in FLOAT_KERNELS for kernel in run) == len(graph.ends) + len(names)
    assert run.count("QLinearConv") == len(graph.layers) - len(names)


def test_the_share_in_int8_is_that_of_the_file(deploy, graph, ranges, tmp_path):
    """Counted by hand: multiply-adds of each convolution from the shapes that pass, weights from the modules."""
    work, handles = {}, []
    for name, module in deploy.named_modules():
        if isinstance(module, nn.Conv2d) and ".dfl" not in name:  # which decodes

            def count(module, _, output, name=name):
                work[name] = 2 * module.weight.numel() * output.shape[2] * output.shape[3]

            handles.append(module.register_forward_hook(count))
    with torch.inference_mode():
        deploy(torch.zeros(SHAPE))
    for handle in handles:
        handle.remove()
    parameters = sum(p.numel() for p in deploy.parameters())
    for floats in ([], [OUTLIER]):
        layers = layers_of_onnx(graph, saved(graph.quantized(ranges, floats), tmp_path / f"{len(floats)}.onnx"))
        assert set(layers) == set(graph.layers) - set(floats)
        share = share_of(deploy, layers, SHAPE[2:])
        weights = sum(deploy.get_submodule(name).weight.numel() for name in layers)
        assert share.parameters == pytest.approx(weights / parameters)
        assert share.operations == pytest.approx(sum(work[name] for name in layers) / sum(work.values()))


def test_learned_ranges_take_the_place_of_observed_ones(graph):
    ranges = graph.calibrate(photographs(), graph.path.parent, {OUTLIER: (-1.0, 3.0)})
    assert [float(x) for x in ranges[graph.layers[OUTLIER].input[0]].range_value] == [-1, 3]


# Stacks of matrices ---------------------------------------------------------------------------------------------------
class Tiles(nn.Module):
    """A convolution, a fused layer over tiles, a linear layer and a convolution, (B, 4, H, W) to the same."""

    def __init__(self, groups, bias):
        super().__init__()
        self.first, self.last = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.blocks = nn.ModuleList([nn.Sequential(TileFC(4, 4, 3, 5, groups, bias=bias))])
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        x = self.first(x)
        x = from_tiles(self.blocks[0](to_tiles(x, 3, 5, 4)), x, 4)
        return self.last(self.linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_layers_over_tiles_are_layers_of_the_graph(groups, bias, tmp_path):
    torch.manual_seed(0)
    network = randomize_(Tiles(groups, bias)).eval()
    names = {name: network.get_submodule(name) for name in ("first", "blocks.0.0", "linear")}
    file, x, other = tmp_path / "float.onnx", torch.randn(2, 4, 7, 10), torch.randn(1, 4, 3, 4)
    torch.onnx.export(network, (x,), str(file), input_names=["x"], dynamic_axes={"x": [0, 2, 3]}, dynamo=False)
    graph = FloatGraph(file)
    assert (set(graph.layers), set(graph.ends)) == (set(names), {"last"})
    for name, module in names.items():
        weight = module.weight.detach().flatten(1).numpy()
        assert (graph.weight(name) == weight).all()
        assert graph.channels(name) == weight.shape[1] * (groups if name == "blocks.0.0" else 1)
    ranges = graph.calibrate([x, other], tmp_path, {})
    rewritten = saved(graph.model, tmp_path / "rewritten.onnx")
    quantized = saved(graph.quantized(ranges), tmp_path / "int8.onnx")
    in_float = saved(graph.quantized(ranges, list(names)), tmp_path / "kept.onnx")
    for images in (x, other):
        want = network(images).detach()
        assert relative_error(run_onnx(rewritten, images), want) <= 1e-5
        assert 0 < relative_error(run_onnx(quantized, images), want) <= 0.1
        assert relative_error(run_onnx(in_float, images), want) <= 0.1
    assert kernels(quantized).count("QLinearConv") == 2
    assert not FLOAT_KERNELS & set(kernels(rewritten)) - {"Conv"}
    assert sorted(layers_of_onnx(graph, quantized)) == sorted(names)
    assert layers_of_onnx(graph, in_float) == []


def run_onnx(file, images):
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"x": images.numpy()})[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cfg", "groups"), [("repmlpnet-yolo.yaml", None), ("repmlp-yolo.yaml", 32), ("riformer-yolo.yaml", None)]
)
def test_nearly_all_parameters_of_the_families_are_in_int8(cfg, groups, tmp_path):
    spec = load_spec(cfg)
    deploy = create_model(spec.with_option(0, "groups", groups) if groups else spec).fuse()
    write_file(deploy, tmp_path / "float.onnx", Options(size=SHAPE[2:]))
    graph = FloatGraph(tmp_path / "float.onnx")
    file = saved(graph.quantized(graph.calibrate(photographs(), tmp_path, {})), tmp_path / "int8.onnx")
    share = share_of(deploy, layers_of_onnx(graph, file), SHAPE[2:])
    assert kernels(file).count("QLinearConv") >= sum(node.op_type == "Conv" for node in graph.layers.values())
    assert 0.95 <= share.parameters < 1
    assert 0.9 <= share.operations < 1
    assert file.stat().st_size < 0.3 * graph.path.stat().st_size


# OpenVINO -------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_openvino_keeps_layers_in_float(deploy, graph, tmp_path):
    pytest.importorskip("nncf")
    import openvino  # noqa: PLC0415

    folder = tmp_path / "best_openvino_model"
    write_file(deploy, folder, Options(size=SHAPE[2:]))
    floats = {OUTLIER, *graph.ends}
    target = tmp_path / "best-int8_openvino_model"
    quantize_openvino(folder, target, photographs(), graph.ends, {OUTLIER})
    model = openvino.Core().read_model(next(target.glob("*.xml")))
    in_float = set()
    for node in model.get_ordered_ops():
        found = re.match(r"__module\.(.+)/aten::_convolution", node.get_friendly_name())
        if found and node.get_type_name() == "Convolution":
            source = node.input(0).get_source_output().get_node()
            while source.get_type_name() in ("Concat", "Interpolate"):  # of what is quantized
                source = source.input(0).get_source_output().get_node()
            in_float |= set() if source.get_type_name() == "FakeQuantize" else {found[1]}
    assert {name for name in in_float if "dfl" not in name} == floats
    head = f"model.{len(deploy.model) - 1}"
    rounded = [n.get_friendly_name() for n in model.get_ordered_ops() if n.get_type_name() == "FakeQuantize"]
    assert rounded, "something is quantized"
    decoded = [name for name in rounded if re.match(rf"__module\.{head}(\.dfl(\.conv)?)?/", name)]
    assert not decoded, "boxes are decoded in float: 8 bits are steps of pixels"
    found = [name for name in layers_of_openvino(target) if "dfl" not in name]
    assert sorted(found) == sorted(set(graph.layers) - floats)
    images = next(iter(photographs()))
    with torch.inference_mode():
        assert (load_runner(target)(images)[0] - deploy(images)[0])[:, 4:].abs().mean() < 0.1
    assert (target / "metadata.yaml").read_text() == (folder / "metadata.yaml").read_text()


def test_a_missing_package_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(UserError, match=re.escape("needs the package nncf: pip install nncf==3.4.0")):
        check_int8(["openvino"], 17, False, [64, 64], 1, 1.0, "mAP50-95")
