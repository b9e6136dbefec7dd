"""Fine-tuning with the rounding of INT8: what rounds, how ranges are learnt, and what the files lose."""

import copy

import onnx
import pytest
import torch
from torch import nn

import export as script
import train
from models import create_model, switch_to_deploy
from models.blocks.reparam import Reparameterizable
from models.blocks.repmlp import TileFC
from models.blocks.rounding import KINDS, Rounding, rounded_share, start_rounding, stop_rounding
from tests.helpers import relative_error, tiny, write
from tests.int8.quantizing import OUTLIER, SHAPE, photographs, saved
from tests.runs import make_data, stopped
from utils import cli
from utils.checkpoint import load_checkpoint, pack_model, save_checkpoint
from utils.deploy.run import load_runner
from utils.deploy.write import write as write_file
from utils.export import Options
from utils.int8.quantize import FloatGraph
from utils.train.qat import insert_rounding, observe


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
