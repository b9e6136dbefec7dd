"""RepMLP in a ResNet-50: its published layer, any picture size, its published files, and its fused form."""

import copy
import json

import onnxruntime
import pytest
import torch
from torch.nn import functional as F

from models import create_backbone, switch_to_deploy
from models.backbones.repmlp_resnet import ARCHS
from models.blocks.reparam import fuse_blocks
from models.blocks.repmlp import NormLinear, PartitionPerceptron, RepMLP
from models.errors import UserError
from tests.helpers import GOLDEN, pictures, randomize_, relative_error, worst_error

COUNTS = json.loads((GOLDEN / "parameters-repmlp.json").read_text())["RepMLPResNet"]
SMALL = {"out_strides": (4, 8)}  # one stage with RepMLP blocks


# The layer ------------------------------------------------------------------------------------------------------------
def by_definition(layer, x):
    """The paper's layer on a map that is its grid of tiles, one tile at a time."""
    (h, w), (rows, columns) = layer.tile, layer.perceptron.grid
    n, c, height, width = x.shape
    assert (height, width) == (rows * h, columns * w)
    means = layer.perceptron.fc1.bn(F.avg_pool2d(x, (h, w))).reshape(n, -1)
    said = layer.perceptron.fc2(F.relu(layer.perceptron.fc1.fc(means))).reshape(n, c, rows, columns)
    out = torch.empty_like(x)
    for row in range(rows):
        for column in range(columns):
            at = ..., slice(row * h, row * h + h), slice(column * w, column * w + w)
            tile = x[at] + said[:, :, row, column, None, None]
            flat = F.conv2d(tile.reshape(n, -1, 1, 1), layer.local.fc3.weight, groups=layer.local.fc3.groups)
            y = layer.local.fc3_bn(flat.flatten(1)).reshape(tile.shape)
            out[at] = y + sum(getattr(layer.local, f"repconv{k}")(tile) for k in (1, 3, 5))
    return out


@pytest.fixture(scope="module")
def layer():
    return randomize_(RepMLP(8, (4, 3), (2, 3), groups=4)).double().eval()


def test_at_its_own_size_the_layer_is_the_published_one(layer):
    x = torch.randn(3, 8, 8, 9, dtype=torch.float64)
    with torch.no_grad():
        want = by_definition(layer, x)
        assert relative_error(layer(x), want) <= 1e-13
        assert relative_error(fuse_blocks(layer)(x), want) <= 1e-12


@pytest.mark.parametrize("size", [(8, 9), (7, 10), (1, 1), (20, 13), (4, 3), (9, 40)], ids=str)
def test_the_layer_takes_any_size_and_fuses_there(layer, size):
    x = torch.randn(2, 8, *size, dtype=torch.float64)
    with torch.no_grad():
        want = layer(x)
        assert want.shape == x.shape
        assert relative_error(fuse_blocks(layer)(x), want) <= 1e-12
        other = torch.cat([x[:1], torch.randn_like(x[1:])])
        assert relative_error(layer(other)[:1], want[:1]) <= 1e-12


def test_one_tile_needs_no_perceptron():
    assert RepMLP(8, (4, 4), (1, 1), groups=4).perceptron is None


def test_the_perceptrons_norm_goes_into_its_first_layer():
    part = randomize_(NormLinear(3, 4, 5)).double().eval()
    x = torch.randn(6, 12, dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(part.fuse()(x), part(x)) <= 1e-14


def test_a_grid_that_fits_is_not_resampled():
    perceptron = randomize_(PartitionPerceptron(3, (2, 4))).double().eval()
    x = torch.randn(2, 3, 2, 4, dtype=torch.float64)
    with torch.no_grad():
        traced = torch.jit.trace(perceptron, x, check_trace=False)  # always resamples, so that other sizes work
        assert relative_error(traced(x), perceptron(x)) <= 1e-14


# The network ----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module", params=ARCHS)
def small(request):
    return randomize_(create_backbone("RepMLPResNet", request.param, **SMALL)).double().eval()


@pytest.fixture(scope="module")
def deploy(small):
    return switch_to_deploy(small)


@pytest.fixture(scope="module")
def copies(small):
    """A copy of the network and one whose weights were in half precision, each with its fused form."""
    copied = (copy.deepcopy(small), copy.deepcopy(small).half().double())
    return [(network, switch_to_deploy(network)) for network in copied]


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
def test_parameters_are_the_published_ones(arch):
    with torch.device("meta"):
        classifier = create_backbone("RepMLPResNet", arch, num_classes=1000).eval()
        deploy = switch_to_deploy(classifier)
    assert [sum(p.numel() for p in net.parameters()) for net in (classifier, deploy)] == COUNTS[arch]


@pytest.mark.parametrize("size", [(64, 96), (97, 65)], ids=str)
def test_the_fused_network_is_the_network(small, deploy, copies, size):
    assert not deploy.report.left
    assert deploy.report.fused["RepTileFC"] == deploy.report.fused["NormLinear"] == 3
    for network, fused in ((small, deploy), *copies):
        assert worst_error(fused, network, pictures(*size)) <= 1e-9


@pytest.mark.parametrize("batch", [1, 2])
def test_any_batch_trains(batch):
    backbone = create_backbone("RepMLPResNet", "light-224", **SMALL).train()
    sum(m.mean() for m in backbone(torch.rand(batch, 3, 96, 128))).backward()
    assert all(p.grad is not None for p in backbone.parameters())


def test_the_grid_of_the_perceptrons_is_a_choice():
    backbone = create_backbone("RepMLPResNet", "light-224", img_size=336, **SMALL)
    assert backbone.stage2[1].light_repmlp.perceptron.grid == (6, 6)


@pytest.mark.parametrize("value", [0, 225, "224", True, 1e3, 112000])
def test_other_sizes_are_listed(value):
    with pytest.raises(UserError, match="RepMLPResNet's img_size is one of 112, 224, 336, "):
        create_backbone("RepMLPResNet", "light-224", img_size=value)


@pytest.mark.slow
@pytest.mark.parametrize("form", [lambda m: m, switch_to_deploy], ids=["train", "deploy"])
def test_onnx_agrees_at_any_size(form, tmp_path):
    backbone = form(randomize_(create_backbone("RepMLPResNet", "light-224", **SMALL)).eval())
    axes = {"x": {0: "batch", 2: "height", 3: "width"}}
    options = {"input_names": ["x"], "dynamic_axes": axes, "opset_version": 17, "dynamo": False}
    torch.onnx.export(backbone, torch.rand(1, 3, 64, 64), tmp_path / "a.onnx", **options)
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"])
    for shape in ((1, 3, 64, 64), (2, 3, 96, 160), (1, 3, 224, 224)):
        x = torch.rand(*shape)
        with torch.no_grad():
            want = backbone(x)
        for got, reference in zip(session.run(None, {"x": x.numpy()}), want, strict=True):
            assert relative_error(torch.from_numpy(got), reference) <= 2e-5


# Published files ------------------------------------------------------------------------------------------------------
def published_name(name):
    for ours, theirs in (
        (".perceptron.fc1.bn.", ".avg.bn."),
        (".perceptron.fc1.fc.", ".fc1_fc2.fc1."),
        (".perceptron.fc", ".fc1_fc2.fc"),
        (".local.fc3", ".fc3"),
        (".local.repconv", ".repconv"),
        (".local.", ".fc3."),
        ("head.fc.", "linear."),
    ):
        name = name.replace(ours, theirs)
    return name


@pytest.mark.slow
@pytest.mark.parametrize("form", ["train", "deploy"])
def test_published_files_are_read(small, deploy, form, tmp_path):
    """Deploy files have every convolution with its BatchNorm fused as well."""
    source = small if form == "train" else deploy
    content = {published_name(k): v.float() for k, v in source.state_dict().items()}
    content["linear.weight"] = torch.zeros(1000, 2048)
    torch.save(content, tmp_path / "a.pth")
    arch = "light-224" if hasattr(small.stage2[1], "light_repmlp") else "bottleneck-224"
    got = create_backbone("RepMLPResNet", arch, weights=tmp_path / "a.pth", **SMALL).double().eval()
    report = got.weights_report
    assert (report.missing, report.unexpected, report.deploy) == ((), (), form == "deploy")
    assert worst_error(got, small, pictures(64, 96)) <= 1e-5
