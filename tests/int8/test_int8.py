"""Quantization: what is in the files, what is known of the layers, and when nothing is written."""

import copy
import json
import math
import re
import sys

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import export as script
import train
import utils.int8.search
from models import create_model, switch_to_deploy
from models.blocks.reparam import Reparameterizable
from models.blocks.repmlp import TileFC, from_tiles, to_tiles
from models.blocks.rounding import KINDS, Rounding, rounded_share, start_rounding, stop_rounding
from models.errors import UserError
from models.spec import load_spec
from tests.helpers import randomize_, relative_error, tiny, write
from tests.runs import make_data, stopped
from utils import cli
from utils.checkpoint import load_checkpoint, pack_model, save_checkpoint
from utils.data.files import find_data
from utils.data.samples import PHOTOS, make_pictures
from utils.deploy.formats import FORMATS
from utils.deploy.fresh import calibrate_batch_norms
from utils.deploy.run import load_runner
from utils.deploy.write import write as write_file
from utils.evaluate.accuracy import Accuracy
from utils.export import Options
from utils.int8.calibration import batches, calibration_pictures
from utils.int8.quantize import FloatGraph, LayerNoise, quantize_openvino
from utils.int8.search import check_int8, search
from utils.int8.share import layers_of_onnx, layers_of_openvino, share_of
from utils.train.qat import insert_rounding, observe

# isort: split
from ultralytics.nn.autobackend import AutoBackend
from ultralytics.utils import ASSETS

SHAPE = (1, 3, 64, 64)
OUTLIER = "model.1.conv"  # the layer of the tiny networks that is given large weights
KEPT = 3  # layers, when each of the 20 costs 0.1 points and 1.75 are allowed
FLOAT_KERNELS = {"Conv", "FusedConv"}


def photographs():
    return batches(PHOTOS, SHAPE, "test")


def network(activation):
    """Return a tiny network; in each channel of one layer, one weight is much larger than the others, and unused."""
    model = randomize_(create_model(tiny(activation=activation)))
    model.names, model.imgsz = {0: "cat", 1: "dog"}, 64
    with torch.no_grad():
        model.get_submodule(OUTLIER).weight[:, 0, 0, 0] = 20.0
        model.get_submodule("model.0.bn").weight[0] = 0  # it reads zeros
        model.get_submodule("model.0.bn").bias[0] = 0
    calibrate_batch_norms(model, torch.stack(list(make_pictures((64, 64)).values())))
    return model


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
def layers(graph, ranges):
    return graph.measure_noise(graph.quantized(ranges), photographs())


def saved(quantized, path):
    onnx.save(quantized, str(path))
    return path


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


# The search -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("needed", "tried"),
    [(0, [0]), (1, [0, 1]), (3, [0, 1, 2, 3, 4]), (6, [0, 1, 2, 4, 5, 6, 8]), (9, [0, 1, 2, 4, 8])],
)
def test_the_fewest_layers_that_are_enough(needed, tried, tmp_path):
    layers = [LayerNoise(str(i), 1.0, 1.0, float(i)) for i in range(16)]
    reference = tmp_path / "float"
    reference.write_text("16")

    def write_text(floats):
        assert list(floats) == [str(i) for i in range(len(floats))]
        (tmp_path / str(len(floats))).write_text(str(len(floats)))
        return tmp_path / str(len(floats))

    def evaluate(path):
        return Accuracy(0.95, 0.9 if int(path.read_text()) >= needed else 0.8)

    points = search(FORMATS["onnx"], layers, write_text, reference, evaluate, max_drop=1.0)
    assert [point.floats for point in points] == [*tried, 16]
    found = utils.int8.search.Quantization(FORMATS["onnx"], layers, points, 1.0, 8, "data.yaml")
    assert found.ok is (needed <= 8)  # half of them
    assert found.kept == ([str(i) for i in range(needed)] if found.ok else [])


# As a command ---------------------------------------------------------------------------------------------------------
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


def command(*words):
    return cli.run_script(script.main, script.make_parser(), list(map(str, words)))


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def judge(monkeypatch, drop):
    """Let files be judged by the layers that are quantized: each of them costs `drop` points."""

    def measure(path, model, data, size):
        lost = drop / 100 * onnx_layers(path)
        return Accuracy(0.99 - lost, 0.9 - lost)

    monkeypatch.setattr("utils.int8.search.measure_file", measure)


def onnx_layers(path):
    """Return how many convolutions of a file read quantized weights."""
    graph = onnx.load(path).graph
    made = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    return sum(node.op_type == "Conv" and node.input[1] in made for node in graph.node)


def test_files_and_report(best, monkeypatch, caplog):
    judge(monkeypatch, drop=0.1)
    assert command("--weights", best, "--include", "onnx", "--int8", "--max-drop", 1.75) == 0
    folder = best.parent
    assert names_in(folder) == ["best-int8.onnx", "best.export.json", "best.int8.png", "best.onnx", "best.pt"]
    report = json.loads((folder / "best.export.json").read_text(encoding="utf-8"))
    found = report["int8"]["onnx"]
    count = len(found["layers"])
    assert found["file"] == "best-int8.onnx"
    assert found["bytes"] == (folder / "best-int8.onnx").stat().st_size < (folder / "best.onnx").stat().st_size
    assert found["drop"] <= 1.75 < 0.1 * count
    assert found["float_layers"] == [layer["name"] for layer in found["layers"]][:KEPT]
    assert OUTLIER in found["float_layers"]
    assert onnx_layers(folder / "best-int8.onnx") == count - KEPT
    assert [point["float_layers"] for point in found["curve"]][-1] == count
    assert all(point["latency_min_ms"] > 0 for point in found["curve"])
    assert 0.5 < found["share"]["parameters"] < 1
    assert f"{found['share']['operations']:.1%} of the operations are in INT8" in caplog.text
    assert (found["data"], found["calibration_pictures"], found["ok"]) == (str(best.parents[1] / "data.yaml"), 2, True)
    assert "<- written" in caplog.text
    assert OUTLIER in caplog.text


@pytest.mark.slow
def test_nothing_is_written_when_the_drop_is_too_large(best, monkeypatch, caplog):
    judge(monkeypatch, drop=10)
    assert command("--weights", best, "--include", "onnx", "--int8") == 1
    assert [name for name in names_in(best.parent) if not name.startswith("best.export-failed.")] == ["best.pt"]
    assert "nothing was written" in caplog.text


@pytest.mark.slow
def test_the_val_split_judges(best):
    assert command("--weights", best, "--include", "onnx", "--int8", "--max-drop", 100) == 0
    found = json.loads(best.with_name("best.export.json").read_text(encoding="utf-8"))["int8"]["onnx"]
    assert [point["float_layers"] for point in found["curve"]] == [0, len(found["layers"])]
    assert all(0 <= point["map50_95"] <= 100 for point in found["curve"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--half"], "--int8 and --half are two precisions: choose one"),
        (["--nms"], "--int8 quantizes the network alone: leave out --nms and --preprocess"),
        (["--include", "torchscript"], "--int8 is for onnx and openvino, of which --include names none"),
        (["--max-drop", "101"], "--max-drop is a number of points of mAP50-95 from 0 to 100, not 101"),
        (["--max-drop", "-1"], "--max-drop is a number of points of mAP50-95 from 0 to 100, not -1"),
        (["--opset", "12"], "--int8 needs an --opset of at least 13"),
        (["--imgsz", "64", "96"], "--int8 is judged by mAP50-95, on square pictures"),
        (["--batch-size", "2"], "--int8 is judged by mAP50-95, a picture at a time"),
        (["--data", "nothing.yaml"], "there is no file nothing.yaml"),
        (["--data", "shapes.yaml"], "the weights know 2 classes and"),
        (["--calibration-pictures", "0"], "expected a whole number of at least 1"),
    ],
)
def test_wrong_options_are_one_sentence(best, words, message, capsys):
    include = [] if "--include" in words else ["--include", "onnx"]
    assert command("--weights", best, "--int8", *include, *words) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1
    assert names_in(best.parent) == ["best.pt"]


@pytest.mark.parametrize("what", ["no pictures", "broken pictures"])
def test_a_train_split_without_pictures(best, what, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    if what == "broken pictures":
        (tmp_path / "labels").mkdir()
        (tmp_path / "empty/images").mkdir()
        (tmp_path / "empty/labels").mkdir()
        (tmp_path / "empty/images/a.jpg").write_bytes(b"broken")
        (tmp_path / "empty/labels/a.txt").write_text("")
    data = {"path": str(tmp_path / "set"), "train": str(tmp_path / "empty"), "val": "images", "names": ["cat", "dog"]}
    assert command("--weights", best, "--include", "onnx", "--int8", "--data", write(tmp_path, data)) == 2
    told = capsys.readouterr().err
    assert ("there are no pictures in" if what == "no pictures" else "can be read, nothing to calibrate with") in told
    assert names_in(best.parent) == ["best.pt"]


def test_calibration_pictures_are_spread_over_the_split(best):
    data = find_data("", best)
    assert [path.name for path in calibration_pictures(data, 1)] == ["bus.jpg"]
    assert [path.name for path in calibration_pictures(data, 100)] == ["bus.jpg", "zidane.jpg"]
    assert len({images.shape for images in batches(calibration_pictures(data, 100), (3, 1, 32, 64), "test")}) == 1
    assert find_data("shapes.yaml", best)["nc"] == 4


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


# Steps of an optimizer that are scaled --------------------------------------------------------------------------------
@pytest.mark.slow
def test_what_learns_by_scaled_steps_loses_no_more_in_int8(tmp_path):
    """RepOptimizer leaves a plain network: of the scores, relative to their spread, INT8 takes no more than there."""
    data, cfg = make_data(tmp_path / "set", train=16), write(tmp_path, tiny(activation="nn.ReLU()"))
    lost = {}
    for scaled in (False, True):
        options = {"epochs": 1, "imgsz": 64, "batch_size": 4, "noplots": True, "project": tmp_path / "runs"}
        run = train.run(cfg=cfg, data=data, rep_optimizer=scaled, **options)
        deploy = load_checkpoint(run / "weights/best.pt").fuse()
        write_file(deploy, tmp_path / "float.onnx", Options(size=SHAPE[2:]))
        graph = FloatGraph(tmp_path / "float.onnx")
        quantized = graph.quantized(graph.calibrate(photographs(), tmp_path, {}))
        files = graph.path, saved(quantized, tmp_path / "int8.onnx")
        exact, rounded = (torch.cat([load_runner(file)(x)[0][:, 4:] for x in photographs()]) for file in files)
        lost[scaled] = ((rounded - exact).square().mean() / (exact - exact.mean((0, 2), True)).square().mean()).sqrt()
    assert 0 < lost[True] <= 1.1 * lost[False]


# Quantization-aware fine-tuning ---------------------------------------------------------------------------------------
def test_training_rounds_as_the_file_does(model, deploy, graph, ranges, tmp_path):
    """With the same ranges, a rounding network and the INT8 file differ by less than what rounding changes."""
    learner = switch_to_deploy(model)
    learner.ranges = {
        name: tuple(x.item() for x in ranges[node.input[0]].range_value) for name, node in graph.layers.items()
    }
    insert_rounding(learner)
    assert {n for n, m in learner.named_modules() if isinstance(m, Rounding)} == set(graph.layers)
    run = load_runner(saved(graph.quantized(ranges), tmp_path / "int8.onnx"))
    images = next(iter(photographs()))
    with torch.inference_mode():
        exact, rounded, file = deploy(images)[0], learner.eval()(images)[0], run(images)[0]
    assert 0 < (rounded - file).square().mean() < (exact - file).square().mean()


LAYERS = {  # a layer of each kind that rounds, and the shape of its input
    "convolution": (lambda: nn.Conv2d(4, 6, 3, groups=2), (2, 4, 8, 9)),
    "transposed convolution": (lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2), (2, 4, 8, 9)),
    "linear layer": (lambda: nn.Linear(5, 4), (2, 7, 5)),
    "layer of a tile": (lambda: TileFC(4, 2, 3, 5, groups=2, bias=True), (6, 4, 3, 5)),
}
each_kind = pytest.mark.parametrize(("make", "shape"), LAYERS.values(), ids=LAYERS)


def test_every_kind_that_rounds_is_tested():
    assert {type(make()) for make, _ in LAYERS.values()} == set(KINDS)


@each_kind
def test_gradients_pass_the_rounding(make, shape):
    torch.manual_seed(0)
    layer = make()
    rounding = start_rounding(copy.deepcopy(layer), 0.0, 1.0).eval()
    x = torch.rand(*shape, requires_grad=True)
    difference = (rounding(x) - layer(x)).abs().max()
    assert 0 < difference < 0.05
    rounding(x).sum().backward()
    got = x.grad.clone(), rounding.weight.grad
    x.grad = None
    layer(x).sum().backward()
    torch.testing.assert_close(got[0], x.grad, atol=0.05, rtol=0.05)
    torch.testing.assert_close(got[1], layer.weight.grad, atol=0.5, rtol=0.05)


@each_kind
def test_a_layer_that_rounds_no_more_computes_what_it_has_learnt(make, shape):
    torch.manual_seed(0)
    layer = start_rounding(make())
    observe(layer, [torch.rand(shape) * 2 for _ in range(3)])
    rounded = copy.deepcopy(layer.double()).eval()
    low, high = stop_rounding(layer)
    assert type(layer) in KINDS
    assert (low, high) == (rounded.input_low.item(), rounded.input_high.item())
    assert {name for name, _ in layer.named_parameters()} == {"weight", "bias"}
    assert not [*layer.buffers()]
    assert all(p.dtype == torch.float64 and p.requires_grad for p in layer.parameters())
    rounded.rounded = lambda x: (x, rounded.weight)  # what it computes but for the rounding
    x = torch.rand(shape).double()
    assert relative_error(layer.eval()(x), rounded(x)) <= 1e-12


def test_the_norm_behind_a_layer_of_a_tile_starts_without_effect():
    torch.manual_seed(0)
    layer = TileFC(4, 2, 3, 5, groups=2, bias=True)
    x = torch.randn(16, 4, 3, 5)
    rounding = start_rounding(copy.deepcopy(layer), x.amin().item(), x.amax().item())
    alone = layer.multiply(*rounding.rounded(x)).detach()
    for _ in range(2):  # by the statistics of the batch, then by those that are kept
        assert relative_error(rounding(x).detach(), alone) <= 1e-3
        rounding.eval()
    rounding.train()(3 * x + 1)
    assert relative_error(rounding.eval()(x).detach(), alone) > 1e-2, "it does not learn"


def test_rounding_in_the_training_is_that_of_the_layer_that_is_deployed():
    """A norm scales each row of weights and the row's step alike, so that folding it moves no rounded weight."""
    torch.manual_seed(0)
    layer = start_rounding(TileFC(4, 2, 3, 5, groups=2))
    observe(layer, [torch.randn(16, 4, 3, 5)])
    x = torch.randn(8, 4, 3, 5)
    learnt = layer.eval()(x)
    deployed = start_rounding(layer, *stop_rounding(layer)).eval()
    assert relative_error(deployed(x).detach(), learnt.detach()) <= 1e-4


@pytest.mark.parametrize(("cfg", "share"), [("repmlpnet-yolo.yaml", 0.95), ("repmlp-yolo.yaml", 0.95)])
def test_what_repmlp_fuses_is_rounded(cfg, share):
    with torch.device("meta"):
        model = create_model(cfg)
    for name, module in list(model.named_modules()):  # as fusing does
        if isinstance(module, Reparameterizable):
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, module.fuse())
    insert_rounding(model)
    assert share < rounded_share(model) < 1


def test_ranges_follow_what_is_seen():
    rounding = start_rounding(nn.Conv2d(1, 1, 1))
    observe(rounding, [torch.tensor([-1.0, 3.0]).view(1, 1, 1, 2), torch.tensor([-2.0, 3.0]).view(1, 1, 1, 2)])
    assert (rounding.input_low.item(), rounding.input_high.item()) == (pytest.approx(-1.01), 3.0)
    before = rounding.input_high.clone()
    rounding.eval()(torch.full((1, 1, 1, 2), 9.0))
    assert rounding.input_high.equal(before)


def test_a_checkpoint_of_the_fused_form(deploy, tmp_path):
    learner = copy.deepcopy(deploy)
    insert_rounding(learner)
    observe(learner, photographs())
    path = tmp_path / "best.pt"
    save_checkpoint({**pack_model(learner), "ema": learner.state_dict()}, path)
    loaded = load_checkpoint(path)
    assert loaded.is_fused()
    assert not any(isinstance(m, (Rounding, nn.BatchNorm2d)) for m in loaded.modules())
    assert set(loaded.ranges) == {n for n, m in learner.named_modules() if isinstance(m, Rounding)}
    images = next(iter(photographs()))
    with torch.inference_mode():
        assert loaded(images)[0].equal(deploy(images)[0])
    assert loaded.fuse().ranges == loaded.ranges


def test_layers_that_saw_nothing_have_no_range(deploy, tmp_path):
    """Such as one whose weights are read by another module: 0 to 0 would leave nothing of its input."""
    learner = copy.deepcopy(deploy)
    insert_rounding(learner)
    observe(learner, photographs())
    learner.get_submodule(OUTLIER).input_low.zero_()
    learner.get_submodule(OUTLIER).input_high.zero_()
    save_checkpoint({**pack_model(learner), "ema": learner.state_dict()}, tmp_path / "best.pt")
    rounding = {n for n, m in learner.named_modules() if isinstance(m, Rounding)}
    assert set(load_checkpoint(tmp_path / "best.pt").ranges) == rounding - {OUTLIER}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--qat"], "--qat fine-tunes the network of --weights: name them, and leave out --cfg"),
        (["--qat", "--cfg", "yolov5n.yaml"], "--qat fine-tunes the network of --weights: name them, and leave out"),
        (["--qat", "--weights", "BEST", "--data", "shapes.yaml"], "knows 2 classes and 3 channels, the data set has 4"),
    ],
)
def test_wrong_options_of_qat(best, words, message, tmp_path, capsys):
    words = [str(best) if word == "BEST" else word for word in words]
    code = cli.run_script(train.main, train.make_parser(), [*words, "--project", str(tmp_path / "runs")])
    assert code == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_fine_tuning_and_exporting(best, tmp_path, monkeypatch):
    """The run is stopped after its first epoch and resumed, and the file has the ranges that it learnt."""
    options = {"qat": True, "weights": best, "data": best.parents[1] / "data.yaml", "imgsz": 64, "batch_size": 2}
    with stopped(monkeypatch, "on_model_save", 0):
        train.run(**options, epochs=2, noplots=True, project=tmp_path / "runs")
    run = train.run(resume=tmp_path / "runs/exp/weights/last.pt")
    weights = load_checkpoint(run / "weights/best.pt")
    assert weights.is_fused()
    code = script.run(weights=run / "weights/best.pt", include=["onnx"], int8=True, max_drop=100)
    assert code == 0
    model = onnx.load(run / "weights/best-int8.onnx")
    scales = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    low, high = weights.ranges["model.1.conv"]
    reader = next(node for node in model.graph.node if node.name == "/model.1/conv/Conv")
    dequantize = next(node for node in model.graph.node if reader.input[0] in node.output)
    assert scales[dequantize.input[1]].item() == pytest.approx((max(high, 0) - min(low, 0)) / 255, rel=1e-5)


def test_the_relu_neck_is_the_same_network_with_another_activation():
    silu, relu = (create_model(f"{name}.yaml", nc=4) for name in ("repvgg-yolo", "repvgg-relu-yolo"))
    assert [p.shape for p in silu.parameters()] == [p.shape for p in relu.parameters()]
    assert any(isinstance(m, nn.SiLU) for m in silu.modules())
    assert not any(isinstance(m, nn.SiLU) for m in relu.modules())
