"""RepVGG against the original implementation's features, every publisher's names, its fused form, and its custom L2.

After a change that is meant to change sizes, rewrite tests/golden/parameters-repvgg.json with

    python -m tests.models.test_repvgg --write
"""

import copy
import json
import math
import pickle
import sys
from dataclasses import replace

import pytest
import timm
import torch
import yaml
from timm.models.byobnet import ByobNet, model_cfgs
from timm.utils.model import reparameterize_model
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import train
from models import DetectionModel, create_backbone, switch_to_deploy
from models.backbones.repvgg import ARCHS, STRIDES, RepVGG
from models.blocks.reparam import fuse_blocks
from models.blocks.repconv import RepConv, RepVGGBlock, SqueezeExcite
from models.errors import ConfigError, UserError, WeightsError
from tests.helpers import (
    GOLDEN,
    assert_golden,
    golden,
    golden_tensor,
    pictures,
    randomize_,
    relative_error,
    tiny,
    tiny_backbone,
    worst_error,
)
from tests.runs import stopped
from utils.checkpoint import read_checkpoint
from utils.data.shapes import NAMES, Recipe, ensure_shapes
from utils.train.trainer import Trainer

EXACT, SAME, SINGLE = 1e-12, 1e-9, 1e-5  # a block in float64, a network in float64, a network in float32
ORIGINAL = golden("repvgg-a0")
COUNTS = GOLDEN / "parameters-repvgg.json"
PUBLISHED = {  # million parameters of the classifier, in training and deploy form
    **{"A0": (9.109, 8.309), "A1": (14.092, 12.790), "A2": (28.211, 25.500), "B0": (15.818, 14.339)},
    **{"B1": (57.415, 51.829), "B1g2": (45.782, 41.360), "B1g4": (39.966, 36.125)},
    **{"B2": (89.022, 80.315), "B2g2": (70.846, 63.957), "B2g4": (61.758, 55.778)},
    **{"B3": (123.085, 110.961), "B3g2": (96.912, 87.405), "B3g4": (83.825, 75.627), "D2se": (133.335, 120.388)},
}
CHANNELS = {
    **{"A0": (48, 48, 96, 192, 1280), "A1": (64, 64, 128, 256, 1280), "A2": (64, 96, 192, 384, 1408)},
    **{"B0": (64, 64, 128, 256, 1280), **dict.fromkeys(("B1", "B1g2", "B1g4"), (64, 128, 256, 512, 2048))},
    **dict.fromkeys(("B2", "B2g2", "B2g4", "D2se"), (64, 160, 320, 640, 2560)),
    **dict.fromkeys(("B3", "B3g2", "B3g4"), (64, 192, 384, 768, 2560)),
}
NARROW = {"width_multiplier": (0.25, 0.125, 0.125, 0.125)}  # 16, 16, 16, 32, 64 channels: every block, little work


def narrow(arch="A0", **options):
    return randomize_(create_backbone("RepVGG", arch, **NARROW, **options)).eval()


# The original ---------------------------------------------------------------------------------------------------------
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


@pytest.mark.parametrize("form", [lambda m: m, fuse_blocks, switch_to_deploy], ids=["train", "blocks", "deploy"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)], ids=str)
def test_features_are_the_originals(form, dtype, tolerance, original):
    assert_golden(form(copy.deepcopy(original).to(dtype)), ORIGINAL, dtype, tolerance)


def test_every_tensor_came_from_the_file(original):
    report = original.weights_report
    assert (report.matched, report.missing, report.unexpected) == (349, (), ())
    assert "349 of 349 tensors from RepVGG-A0-train.pth" in str(report)


def test_logits_come_from_the_published_classifier(published, original):
    network = create_backbone("RepVGG", "A0", num_classes=1000, weights=published).double().eval()
    assert (network.weights_report.matched, network.weights_report.missing) == (351, ())
    weight, bias = (golden_tensor(f"linear.{p}", ORIGINAL["keys"][f"linear.{p}"]).double() for p in ("weight", "bias"))
    x = pictures(64, 96)
    with torch.no_grad():
        want = original(x)[-1].mean((2, 3)) @ weight.T + bias
        assert relative_error(network(x), want) <= EXACT
        assert relative_error(switch_to_deploy(network)(x), want) <= SAME


# Sizes ----------------------------------------------------------------------------------------------------------------
def parameter_counts(arch):
    """Return the parameters of the classifier in training and deploy form; counting needs no data."""
    with torch.device("meta"):
        network = create_backbone("RepVGG", arch, num_classes=1000)
    return [sum(p.numel() for p in form.parameters()) for form in (network, fuse_blocks(network))]


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
def test_parameters_are_the_published_numbers(arch):
    counts = parameter_counts(arch)
    assert counts == json.loads(COUNTS.read_text())[arch]
    assert tuple(round(count / 1e6, 3) for count in counts) == PUBLISHED[arch]


def test_architectures_are_those_that_were_published():
    assert tuple(ARCHS) == tuple(PUBLISHED) == tuple(json.loads(COUNTS.read_text()))


@pytest.mark.parametrize("arch", ARCHS)
def test_channels_and_strides_are_the_published_ones(arch):
    with torch.device("meta"):
        backbone = create_backbone("RepVGG", arch)
    assert (backbone.channels, backbone.strides) == (CHANNELS[arch], (2, 4, 8, 16, 32))


@pytest.mark.parametrize(("arch", "groups"), [("B1", 1), ("B1g2", 2), ("B2g4", 4)])
def test_every_second_block_has_groups(arch, groups):
    with torch.device("meta"):
        backbone = create_backbone("RepVGG", arch)
    stages = [[block.conv.rbr_dense.conv.groups for block in backbone.get_submodule(f"stage{i}")] for i in (1, 2, 3, 4)]
    assert stages == [[1, groups] * 2, [1, groups] * 3, [1, groups] * 8, [1]]


def test_only_blocks_that_keep_their_shape_have_an_identity():
    backbone = create_backbone("RepVGG", "A1")  # its stages 0 and 1 have as many channels
    with_identity = [name for name, m in backbone.named_modules() if isinstance(m, RepConv) and m.rbr_identity]
    assert with_identity == [f"stage{s}.{i}.conv" for s, n in enumerate((2, 4, 14, 1), start=1) for i in range(1, n)]


@pytest.mark.parametrize("in_channels", [1, 4])
def test_pictures_may_have_other_channels(in_channels):
    backbone = create_backbone("RepVGG", "A0", in_channels=in_channels, out_strides=(4,)).eval()
    assert backbone(torch.rand(1, in_channels, 32, 32))[0].shape == (1, 48, 8, 8)


@pytest.mark.slow
@pytest.mark.parametrize("strides", [(2,), (8,), (32,), (2, 16), (16, 8)], ids=str)
def test_chosen_levels_are_the_same_maps_and_build_no_stage_behind(strides):
    whole, part = narrow().double(), narrow(out_strides=strides).double()
    part.load_state_dict({k: v for k, v in whole.state_dict().items() if k in part.state_dict()})
    x = pictures(64, 64)
    with torch.no_grad():
        maps = dict(zip(whole.strides, whole(x), strict=True))
        assert part.strides == tuple(sorted(strides))
        assert all(torch.equal(got, maps[stride]) for stride, got in zip(part.strides, part(x), strict=True))
    assert [name for name, _ in part.named_children()] == [f"stage{i}" for i in range(STRIDES.index(max(strides)) + 1)]


def test_every_parameter_takes_part():
    """Parameters without gradient stop distributed training."""
    backbone = create_backbone("RepVGG", "D2se", out_strides=(8,), **NARROW)
    sum(m.square().sum() for m in backbone(pictures(32, 32, dtype=torch.float32))).backward()
    assert not [name for name, p in backbone.named_parameters() if p.grad is None]


def test_building_runs_nothing_and_draws_for_weights_alone(monkeypatch):
    torch.manual_seed(0)
    RepVGG("A0", out_strides=(4,))
    state = torch.get_rng_state()
    torch.manual_seed(0)
    monkeypatch.setattr(nn.Module, "__call__", lambda *args, **kwargs: pytest.fail("a forward pass while building"))
    for conv in (m for m in RepVGG("A0", out_strides=(4,)).modules() if isinstance(m, nn.Conv2d)):
        assert conv.weight.std() > 0
    assert torch.equal(torch.get_rng_state(), state)


# One's own widths and depths ------------------------------------------------------------------------------------------
def test_widths_and_depths_can_be_ones_own():
    options = {"num_blocks": (1, 2, 3, 2), "width_multiplier": [0.5, 0.25, 0.5, 0.5]}
    backbone = create_backbone("RepVGG", "B1g4", **options)
    assert backbone.channels == (32, 32, 32, 128, 256)
    assert [len(backbone.get_submodule(f"stage{i}")) for i in (1, 2, 3, 4)] == [1, 2, 3, 2]
    groups = [m.rbr_dense.conv.groups for m in backbone.modules() if isinstance(m, RepConv)]
    assert groups == [1, 1, 4, 1, 4, 1, 4, 1, 4]


def test_widths_and_depths_are_read_from_a_yaml():
    options = {"num_blocks": [1, 1, 1, 1], "width_multiplier": [0.25, 0.125, 0.125, 0.5], "style": "qarep"}
    model = DetectionModel(tiny_backbone("RepVGG", options))
    assert (model.model[0].channels, model.model[0].style) == ((16, 32, 256), "qarep")
    assert DetectionModel(model.yaml).model[0].channels == (16, 32, 256)


WRONG = {
    "three depths": (
        {"num_blocks": [2, 4, 14]},
        r"num_blocks are 4 whole numbers .* \[2, 4, 14, 1\], got \[2, 4, 14\]",
    ),
    "five depths": ({"num_blocks": (1, 2, 4, 14, 1)}, r"one for each stage behind the stem.* got \[1, 2, 4, 14, 1\]"),
    "no block": ({"num_blocks": [2, 0, 14, 1]}, "num_blocks"),
    "half a block": ({"num_blocks": [2, 1.5, 14, 1]}, "num_blocks"),
    "true blocks": ({"num_blocks": [2, True, 14, 1]}, "num_blocks"),
    "one depth": ({"num_blocks": 4}, "num_blocks .* got 4"),
    "text": ({"num_blocks": "2414"}, "num_blocks"),
    "endless": ({"num_blocks": [2, 4, 10**9, 1]}, "num_blocks"),
    "two widths": ({"width_multiplier": [1, 1]}, r"width_multiplier are 4 numbers .* got \[1, 1\]"),
    "no width": ({"width_multiplier": [1, 1, 0, 1]}, "width_multiplier"),
    "nan": ({"width_multiplier": [1, 1, math.nan, 1]}, "width_multiplier"),
    "no channel": ({"width_multiplier": [0.01, 1, 1, 1]}, "gives stage 1 0 of them"),
    "groups": (
        {"arch": "B1g4", "width_multiplier": [1, 0.77, 1, 1]},
        r"multiple of 4 .* 0.77 gives stage 2 98 of them",
    ),
    "style": ({"style": "QARep"}, r"unknown style 'QARep' \(did you mean 'qarep'\?\), expected repvgg or qarep"),
    "no style": ({"style": None}, "unknown style None"),
    "arch": ({"arch": "a0"}, "did you mean 'A0'"),
    "option": ({"blocks": 3}, "its options are .*num_blocks"),
    "stride": ({"out_strides": (64,)}, "no map at P6"),
}


@pytest.mark.parametrize(("options", "message"), WRONG.values(), ids=WRONG)
def test_wrong_options_are_explained(options, message):
    with pytest.raises(UserError, match=message) as caught:
        create_backbone("RepVGG", **options)
    assert "\n" not in str(caught.value)


# The linear part ------------------------------------------------------------------------------------------------------
BLOCKS = {
    "plain": lambda **kw: RepConv(6, 8, **kw),
    "identity": lambda **kw: RepConv(6, 6, identity=True, **kw),
    "no identity": lambda **kw: RepConv(6, 6, **kw),
    "stride": lambda **kw: RepConv(6, 8, s=2, **kw),
    "stride 3": lambda **kw: RepConv(6, 6, s=3, **kw),
    "groups": lambda **kw: RepConv(6, 8, g=2, **kw),
    "groups, identity": lambda **kw: RepConv(8, 8, g=4, identity=True, **kw),
    "depthwise, identity": lambda **kw: RepConv(6, 6, g=6, identity=True, **kw),
    "5x5": lambda **kw: RepConv(4, 4, 5, identity=True, **kw),
    "7x7, dilation, stride": lambda **kw: RepConv(4, 6, 7, 2, d=2, **kw),
    "1x1": lambda **kw: RepConv(4, 4, 1, identity=True, **kw),
    "dilation": lambda **kw: RepConv(4, 4, d=3, identity=True, **kw),
    "reflect": lambda **kw: RepConv(4, 4, identity=True, padding_mode="reflect", **kw),
    "circular": lambda **kw: RepConv(4, 4, g=2, identity=True, padding_mode="circular", **kw),
}
each_block = pytest.mark.parametrize("make", BLOCKS.values(), ids=BLOCKS)
each_style = pytest.mark.parametrize("style", ["repvgg", "qarep"])


def random_block(make, style="repvgg"):
    block = randomize_(make(style=style)).double().eval()
    generator = torch.Generator().manual_seed(2)
    return block, torch.randn(2, block.rbr_dense.conv.in_channels, 13, 17, generator=generator).double()


@each_block
@each_style
def test_the_fused_convolution_is_the_block(make, style):
    block, x = random_block(make, style)
    fused = block.fuse()
    assert type(fused) is nn.Conv2d
    assert relative_error(fused(x), block(x)) <= EXACT
    single = copy.deepcopy(block).float()
    assert relative_error(single.fuse()(x.float()), single(x.float())) <= SINGLE


@each_block
def test_the_fused_convolution_is_that_of_the_dense_branch(make):
    block, _ = random_block(make)
    fused, dense = block.fuse(), block.rbr_dense.conv
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    assert [getattr(fused, name) for name in names] == [getattr(dense, name) for name in names]
    assert fused.bias is not None


@each_block
@each_style
def test_a_forgotten_branch_would_show(make, style):
    block, x = random_block(make, style)
    want = block(x)
    for branch in (block.rbr_dense, block.rbr_1x1):
        changed = copy.deepcopy(block)
        kernel = changed.rbr_dense if branch is block.rbr_dense else changed.rbr_1x1
        with torch.no_grad():
            kernel.conv.weight.zero_()
        assert relative_error(changed(x), want) > 1e-2
        assert relative_error(changed.fuse()(x), changed(x)) <= EXACT


@each_style
def test_fusing_leaves_the_block_alone_and_shares_nothing(style):
    block, x = random_block(BLOCKS["identity"], style)
    before = copy.deepcopy(block.state_dict())
    fused = block.train().fuse()
    with torch.no_grad():
        fused.weight.zero_()
        fused.bias.zero_()
    assert block.training
    assert all(torch.equal(before[name], tensor) for name, tensor in block.state_dict().items())
    assert relative_error(block.eval().fuse()(x), block(x)) <= EXACT


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("trains", [True, False], ids=["trains", "frozen"])
def test_dtype_and_requires_grad_are_kept(dtype, trains):
    block = randomize_(RepConv(4, 4, identity=True)).requires_grad_(trains).to(dtype)
    fused = block.fuse()
    assert (fused.weight.dtype, fused.bias.dtype) == (dtype, dtype)
    assert fused.weight.requires_grad == fused.bias.requires_grad == trains
    assert fused.weight.is_leaf
    exact = copy.deepcopy(block).double().fuse()
    assert torch.equal(fused.weight, exact.weight.to(dtype)), "rounded more than once"


def test_the_device_is_kept():
    with torch.device("meta"):
        block = RepConv(4, 4, identity=True)
    assert block.fuse().weight.is_meta


@each_style
def test_eps_is_read_from_every_batch_norm(style):
    block, x = random_block(BLOCKS["identity"], style)
    for norm in (m for m in block.modules() if isinstance(m, nn.BatchNorm2d)):
        before = block(x)
        norm.eps = 0.5
        assert relative_error(block(x), before) > 1e-3
        assert relative_error(block.fuse()(x), block(x)) <= EXACT


@each_style
def test_synchronized_and_plain_batch_norms_are_folded(style):
    block, x = random_block(BLOCKS["groups, identity"], style)
    want = block(x)
    assert relative_error(nn.SyncBatchNorm.convert_sync_batchnorm(block).fuse()(x), want) <= EXACT
    bare, x = random_block(BLOCKS["identity"], style)
    for norm in [m for m in bare.modules() if isinstance(m, _BatchNorm)]:
        norm.weight = norm.bias = None
    assert relative_error(bare.fuse()(x), bare(x)) <= EXACT


@each_style
@pytest.mark.parametrize("name", ["rbr_dense.bn", "post_bn", "rbr_identity"])
def test_a_norm_that_depends_on_the_batch_is_refused(style, name):
    block = BLOCKS["identity"](style=style)
    parent, _, last = name.rpartition(".")
    for norm, text in (
        (nn.BatchNorm2d(6, track_running_stats=False), "running statistics"),
        (nn.GroupNorm(1, 6), "Gr"),
    ):
        setattr(block.get_submodule(parent), last, norm)
        with pytest.raises(ValueError, match=text):
            block.fuse()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 4}, "odd kernel.*k=4"),
        ({"g": 3}, "3 groups needs multiples of 3 channels, got 4 in and 8 out"),
        ({"identity": True}, "got 4 channels in, 8 out and stride 1"),
        ({"c2": 4, "s": 2, "identity": True}, "4 out and stride 2: leave the identity out"),
        ({"style": "acnet"}, "unknown style 'acnet', expected repvgg or qarep"),
    ],
    ids=str,
)
def test_impossible_blocks_are_explained(arguments, message):
    with pytest.raises(UserError, match=message):
        RepConv(4, **{"c2": 8, **arguments})


# The equivalent kernel ------------------------------------------------------------------------------------------------
@each_block
@each_style
def test_gradients_through_the_equivalent_kernel_are_those_through_the_block(make, style):
    block, x = random_block(make, style)
    target = torch.randn_like(block(x))
    (block(x) * target).sum().backward()
    want = {name: p.grad.clone() for name, p in block.named_parameters()}
    block.zero_grad()
    conv = block.rbr_dense.conv
    kernel, bias = block.get_equivalent_kernel_bias()
    x = nn.functional.pad(
        x, conv._reversed_padding_repeated_twice, "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    )
    y = nn.functional.conv2d(x, kernel, bias, conv.stride, 0, conv.dilation, conv.groups)
    (y * target).sum().backward()
    assert want
    for name, parameter in block.named_parameters():
        assert relative_error(parameter.grad, want[name]) <= SAME, name


def test_the_identity_is_a_kernel_of_ones_on_its_channels():
    block = RepConv(4, 4, g=2, identity=True).eval()
    with torch.no_grad():
        block.rbr_dense.conv.weight.zero_()
        block.rbr_1x1.conv.weight.zero_()
        kernel, _ = block.get_equivalent_kernel_bias()
    scale = (1 + 1e-5) ** -0.5
    assert torch.allclose(kernel[:, :, 1, 1], scale * torch.tensor([[1.0, 0], [0, 1], [1, 0], [0, 1]]))
    assert kernel.sum().item() == pytest.approx(4 * scale)


# QARep ----------------------------------------------------------------------------------------------------------------
def test_qarep_has_its_batch_norms_where_the_paper_has_them():
    block = RepConv(4, 4, identity=True, style="qarep")
    norms = [name for name, m in block.named_modules() if isinstance(m, _BatchNorm)]
    assert norms == ["rbr_dense.bn", "post_bn"]
    x = torch.rand(2, 4, 5, 5)
    want = block.post_bn(block.rbr_dense.bn(block.rbr_dense.conv(x)) + block.rbr_1x1.conv(x) + x)
    assert torch.equal(block(x), want)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["A0", "B1g4", "D2se"])
def test_qarep_deploys_as_the_same_graph(arch):
    graphs = {str(switch_to_deploy(narrow(arch, style=style))) for style in ("repvgg", "qarep")}
    assert len(graphs) == 1
    assert "BatchNorm" not in graphs.pop()


# Squeeze-excite -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [(5, 9), (9, 5), (4, 20), (16, 8), (1, 1)], ids=str)
def test_squeeze_excite_averages_the_whole_map(size):
    se = randomize_(SqueezeExcite(32)).double()
    x = torch.rand(2, 32, *size).double()
    hidden = torch.einsum("bc,dc->bd", x.sum((2, 3)) / math.prod(size), se.down.weight[:, :, 0, 0]) + se.down.bias
    factor = torch.sigmoid(hidden.clamp(min=0) @ se.up.weight[:, :, 0, 0].T + se.up.bias)
    assert relative_error(se(x), x * factor[:, :, None, None]) <= EXACT
    assert se.down.out_channels == 2


def test_squeeze_excite_stands_between_sum_and_activation_and_stays():
    block = randomize_(RepVGGBlock(RepConv(16, 16, identity=True), nn.ReLU(), squeeze=True)).double().eval()
    x = torch.randn(2, 16, 6, 9).double()
    assert torch.equal(block(x), block.se(block.conv(x)).relu())
    deploy = switch_to_deploy(block, x)
    assert torch.equal(deploy.se.down.weight, block.se.down.weight)
    assert type(deploy.conv) is nn.Conv2d
    assert worst_error(deploy, block, x) <= EXACT


# Whole networks -------------------------------------------------------------------------------------------------------
def assert_plain(deploy, arch):
    assert deploy.report.fused == {"RepConv": 1 + sum(ARCHS[arch].num_blocks)}
    assert not deploy.report.left
    assert not [m for m in deploy.modules() if isinstance(m, _BatchNorm | RepConv)]


@pytest.mark.parametrize("arch", ARCHS)
def test_fused_networks_are_the_networks(arch):
    """Every block of every architecture, with few channels."""
    backbone = narrow(arch).double()
    deploy = switch_to_deploy(backbone)
    assert_plain(deploy, arch)
    assert worst_error(deploy, backbone, pictures(64, 96)) <= SAME
    single = [copy.deepcopy(m).float() for m in (deploy, backbone)]
    assert worst_error(*single, pictures(64, 96, dtype=torch.float32)) <= SINGLE


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["A0", "B1g2", "B2g4", "D2se"])
def test_fused_networks_of_published_width_are_the_networks_in_style_qarep(arch):
    """As many channels as published; of the chains of equal blocks, three each."""
    backbone = randomize_(create_backbone("RepVGG", arch, style="qarep", num_blocks=(3, 3, 3, 1))).eval()
    deploy = switch_to_deploy(backbone)
    assert worst_error(deploy, backbone, pictures(64, 32, dtype=torch.float32)) <= SINGLE
    backbone.double()
    assert worst_error(switch_to_deploy(backbone), backbone, pictures(64, 32)) <= SAME


@pytest.mark.slow
@pytest.mark.parametrize("size", [(97, 61), (33, 130), (64, 64)], ids=str)
@pytest.mark.parametrize("arch", ["A0", "B1g2", "D2se"])
def test_odd_sizes_are_the_same_too(arch, size):
    backbone = narrow(arch).double()
    assert worst_error(switch_to_deploy(backbone), backbone, pictures(*size)) <= SAME
    with torch.no_grad():
        shapes = [m.shape[2:] for m in backbone(pictures(*size))]
    assert shapes == [tuple(-(-side // stride) for side in size) for stride in STRIDES]


def test_fusing_twice_changes_nothing():
    once = switch_to_deploy(narrow("D2se"))
    twice = switch_to_deploy(once)
    assert str(twice) == str(once)
    assert twice.report == once.report
    assert all(torch.equal(a, b) for a, b in zip(once.state_dict().values(), twice.state_dict().values(), strict=True))


@pytest.mark.slow
@each_style
def test_networks_survive_files_copies_and_half_precision(style, tmp_path):
    backbone = narrow("B1g4", style=style)
    x = pictures(64, 64, dtype=torch.float32)
    torch.save(backbone.state_dict(), tmp_path / "own.pth")
    loaded = create_backbone("RepVGG", "B1g4", style=style, weights=tmp_path / "own.pth", **NARROW).eval()
    for twin in (loaded, copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
        assert worst_error(twin, backbone, x) == 0
        assert worst_error(switch_to_deploy(twin), backbone, x) <= SINGLE
    halved = copy.deepcopy(backbone).half()
    assert {p.dtype for p in switch_to_deploy(halved).parameters()} == {torch.float16}
    assert worst_error(switch_to_deploy(halved).float(), backbone, x) <= 0.05
    assert worst_error(switch_to_deploy(halved.float()), halved, x) <= SINGLE


def test_a_deployed_network_can_be_trained_on():
    deploy = switch_to_deploy(narrow("D2se"))
    sum(m.square().mean() for m in deploy(pictures(64, 64, dtype=torch.float32))).backward()
    assert all(p.grad is not None for p in deploy.parameters())


# Custom L2 ------------------------------------------------------------------------------------------------------------
def loop_l2(block):
    """Add up the penalty of the paper's code one weight at a time; a QARep 1x1 branch has a factor of 1."""
    k3, k1 = block.rbr_dense.conv.weight.tolist(), block.rbr_1x1.conv.weight.tolist()

    def factor(norm, channel):
        if isinstance(norm, nn.Identity):
            return 1.0
        return norm.weight[channel].item() / math.sqrt(norm.running_var[channel].item() + norm.eps)

    total = 0.0
    for out, kernels in enumerate(k3):
        t3, t1 = factor(block.rbr_dense.bn, out), factor(block.rbr_1x1.bn, out)
        for into, kernel in enumerate(kernels):
            middle = len(kernel) // 2
            for row, values in enumerate(kernel):
                total += sum(v * v for column, v in enumerate(values) if (row, column) != (middle, middle))
            fused = t3 * kernel[middle][middle] + t1 * k1[out][into][0][0]
            total += fused * fused / (t3 * t3 + t1 * t1)
    return total


@each_block
@each_style
def test_custom_l2_is_the_papers(make, style):
    block, _ = random_block(make, style)
    assert block.get_custom_l2().item() == pytest.approx(loop_l2(block), rel=1e-12)


def test_custom_l2_moves_the_kernels_alone():
    block, _ = random_block(BLOCKS["identity"])
    block.get_custom_l2().backward()
    moved = {name for name, p in block.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"rbr_dense.conv.weight", "rbr_1x1.conv.weight"}
    assert {id(p) for p in block.decayed_by_custom_l2()} == {id(block.get_parameter(name)) for name in moved}


def test_dead_channels_have_a_custom_l2_and_a_gradient():
    block, _ = random_block(BLOCKS["identity"])
    with torch.no_grad():
        block.rbr_dense.bn.weight[1] = block.rbr_1x1.bn.weight[1] = 0
    penalty = block.get_custom_l2()
    penalty.backward()
    dense, point = block.rbr_dense.conv.weight, block.rbr_1x1.conv.weight
    assert penalty.isfinite()
    assert dense.grad.isfinite().all()
    assert not point.grad[1].any()
    assert not dense.grad[1, :, 1, 1].any()
    assert torch.equal(dense.grad[1, :, 0], 2 * dense[1, :, 0])


# Files ----------------------------------------------------------------------------------------------------------------
OFFICIAL = [(".conv.rbr_", ".rbr_"), ("head.fc.", "linear.")]
TIMM = [(".conv.rbr_dense.", ".conv_kxk."), (".conv.rbr_1x1.", ".conv_1x1."), (".conv.rbr_identity.", ".identity.")]
TIMM += [(".se.down.", ".attn.fc1."), (".se.up.", ".attn.fc2."), ("stage0.", "stem.")]
MM = [(".conv.rbr_dense.bn.", ".branch_3x3.norm."), (".conv.rbr_1x1.bn.", ".branch_1x1.norm.")]
MM += [
    (".conv.rbr_dense.", ".branch_3x3."),
    (".conv.rbr_1x1.", ".branch_1x1."),
    (".conv.rbr_identity.", ".branch_norm."),
]
MM += [(".se.down.", ".se_layer.conv1.conv."), (".se.up.", ".se_layer.conv2.conv."), ("stage0.", "stem.")]
MM_STAGES = [(f"stage{i}.", f"stage_{i}.") for i in (1, 2, 3, 4)]
PUBLISHERS = {  # our names to theirs
    "official": (OFFICIAL, ".rbr_reparam."),
    "timm": (TIMM + [(f"stage{i}.", f"stages.{i - 1}.") for i in (1, 2, 3, 4)], ".reparam_conv."),
    "timm features": (TIMM + [(f"stage{i}.", f"stages_{i - 1}.") for i in (1, 2, 3, 4)], ".reparam_conv."),
    "mmpretrain": (MM + MM_STAGES, ".branch_reparam."),
}


def as_published(network, publisher, deploy):
    """Return a classifier's tensors under the names of a publisher."""
    renames, fused = PUBLISHERS[publisher]
    form = fuse_blocks(network) if deploy else network
    renames = [("backbone.", ""), *([(".conv.", fused)] if deploy else []), *renames]
    tensors = {name: tensor.clone() for name, tensor in form.state_dict().items()}
    for ours, theirs in renames:
        tensors = {name.replace(ours, theirs): tensor for name, tensor in tensors.items()}
    return tensors


@pytest.mark.slow
@pytest.mark.parametrize("publisher", PUBLISHERS)
@pytest.mark.parametrize("deploy", [False, True], ids=["training", "deploy"])
@pytest.mark.parametrize("arch", ["A0", "B1g4", "D2se"])
def test_every_publishers_names_are_read(publisher, deploy, arch, tmp_path):
    options = {**NARROW, "num_blocks": (1, 2, 11, 1)}  # numbers of one and of two digits
    want = randomize_(create_backbone("RepVGG", arch, num_classes=7, **options)).eval()
    content = as_published(want, publisher, deploy)
    content = {"meta": {}, "state_dict": {f"backbone.{k}" if k[:4] == "stag" else k: v for k, v in content.items()}}
    torch.save(content if publisher == "mmpretrain" else content["state_dict"], tmp_path / "a.pth")
    x = pictures(64, 64, dtype=torch.float32)
    for classes in (None, 7):
        got = create_backbone("RepVGG", arch, weights=tmp_path / "a.pth", num_classes=classes, **options).eval()
        report = got.weights_report
        assert (report.missing, report.unexpected, report.deploy) == ((), (), deploy)
        assert publisher.split()[0] in report.dialect.replace("the authors of RepVGG", "official")
        assert bool([m for m in got.modules() if isinstance(m, RepConv)]) is not deploy
        error = relative_error(got(x), want(x)) if classes else worst_error(got, want.backbone, x)
        assert error <= (SINGLE if deploy else 0)


@pytest.mark.parametrize(("form", "names"), [("training", 351), ("deploy", 46)])
def test_official_names_are_those_of_the_golden_file(form, names):
    with torch.device("meta"):
        network = create_backbone("RepVGG", "A0", num_classes=1000)
    tensors = as_published(network, "official", form == "deploy")
    assert len(tensors) == names
    if form == "training":
        assert {name: list(tensor.shape) for name, tensor in tensors.items()} == ORIGINAL["keys"]
    else:
        assert {"stage0.rbr_reparam.weight", "stage4.0.rbr_reparam.bias", "linear.weight"} <= tensors.keys()


@pytest.mark.slow
@pytest.mark.parametrize("form", ["training", "deploy", "features"])
def test_timms_own_network_gives_the_same_maps(form, tmp_path):
    theirs = randomize_(timm.create_model("repvgg_a0", features_only=form == "features")).eval()
    x = pictures(64, 96, dtype=torch.float32)
    with torch.no_grad():
        want = theirs(x)
        torch.save((reparameterize_model(theirs) if form == "deploy" else theirs).state_dict(), tmp_path / "a.pth")
        classes = None if form == "features" else 1000
        network = create_backbone("RepVGG", "A0", weights=tmp_path / "a.pth", num_classes=classes).eval()
        got = network(x)
    assert not network.weights_report.missing
    pairs = zip(got, want, strict=True) if form == "features" else [(got, want)]
    assert all(relative_error(g, w) <= SINGLE for g, w in pairs)


def test_timms_squeeze_excite_network_gives_the_same_logits(tmp_path):
    cfg = model_cfgs["repvgg_d2se"]  # a block a stage: after all 47 with random values nothing of a picture is left
    shallow = replace(cfg, blocks=tuple(replace(block, d=1) for block in cfg.blocks))
    theirs = randomize_(ByobNet(shallow)).eval()
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    options = {"num_blocks": (1, 1, 1, 1), "num_classes": 1000}
    network = create_backbone("RepVGG", "D2se", weights=tmp_path / "a.pth", **options).eval()
    assert not network.weights_report.missing
    x = pictures(64, 96, dtype=torch.float32)
    x[1] *= 0.1  # or their means, of which logits are made, would be the same
    assert worst_error(network, theirs, x) <= SINGLE


def test_counters_of_batches_may_be_missing(published, original, tmp_path):
    tensors = torch.load(published, weights_only=True)
    torch.save({k: v for k, v in tensors.items() if not k.endswith("num_batches_tracked")}, tmp_path / "old.pth")
    backbone = create_backbone("RepVGG", "A0", weights=tmp_path / "old.pth").double().eval()
    assert not backbone.weights_report.missing
    assert worst_error(backbone, original, pictures(64, 64)) == 0


def test_a_slim_last_stage_takes_the_rest_of_the_published_weights(published, original):
    options = {"width_multiplier": (0.75, 0.75, 0.75, 1)}
    slim = create_backbone("RepVGG", "A0", weights=published, **options).double().eval()
    assert slim.channels == (48, 48, 96, 192, 512)
    assert {name.split(".")[0] for name in slim.weights_report.missing} == {"stage4"}
    x = pictures(64, 64)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(slim(x)[:4], original(x)[:4], strict=True))


def test_fewer_levels_take_their_part_of_the_published_weights(published, original):
    part = create_backbone("RepVGG", "A0", weights=published, out_strides=(8, 16)).double().eval()
    assert not part.weights_report.missing
    with torch.no_grad():
        assert torch.equal(part(pictures(64, 64))[1], original(pictures(64, 64))[3])


def test_fewer_blocks_take_their_part_when_they_are_asked_for(published):
    part = create_backbone("RepVGG", "A0", weights=published, num_blocks=(2, 4, 6, 1))
    assert not part.weights_report.missing
    assert len(part.weights_report.unexpected) == 8 * 17


OTHERS = [  # what the file holds, what it is loaded into
    ("A0", "A1", r"holds \d+ of the \d+ tensors .* another architecture"),
    ("A0", "B0", "not of this RepVGG B0: stage 1 has 4 blocks, theirs 2"),
    ("B0", "A1", "not of this RepVGG A1: stage 1 has 2 blocks, theirs 4"),
    ("B1", "B1g2", r"stage1.1.conv are \(128, 64, 3, 3\), theirs \(128, 128, 3, 3\), of other groups"),
    ("B1g4", "B1", r"stage1.1.conv are \(128, 128, 3, 3\), theirs \(128, 32, 3, 3\), of other groups"),
    ("B2", "D2se", "stage 1 has 8 blocks, theirs 4"),
    ("D2se", "B2", "stage 1 has 4 blocks, theirs 8"),
]


@pytest.mark.parametrize(("file", "arch", "message"), OTHERS, ids=[f"{a} into {b}" for a, b, _ in OTHERS])
@pytest.mark.parametrize("deploy", [False, True], ids=["training", "deploy"])
def test_weights_of_another_architecture_are_refused(file, arch, message, deploy, tmp_path):
    part = {"out_strides": (4,)}
    torch.save(as_published(create_backbone("RepVGG", file, **part), "official", deploy), tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=message) as caught:
        create_backbone("RepVGG", arch, weights=tmp_path / "a.pth", **part)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("came", "has"), [("repvgg", "qarep"), ("qarep", "repvgg")])
def test_branches_of_the_other_style_are_refused_and_its_deploy_form_is_taken(came, has, tmp_path):
    network = narrow(style=came)
    torch.save(as_published(network, "official", deploy=False), tmp_path / "train.pth")
    with pytest.raises(WeightsError, match=f"style is {has}, theirs {came} .a file in deploy form fits both"):
        create_backbone("RepVGG", "A0", style=has, weights=tmp_path / "train.pth", **NARROW)
    torch.save(as_published(network, "official", deploy=True), tmp_path / "deploy.pth")
    got = create_backbone("RepVGG", "A0", style=has, weights=tmp_path / "deploy.pth", **NARROW).eval()
    assert worst_error(got, network, pictures(64, 64, dtype=torch.float32)) <= SINGLE


# The word -------------------------------------------------------------------------------------------------------------
def with_word(*args, **changes):
    """Return the tiny YAML with a RepConv of its arguments behind a map of 16 channels and stride 8."""
    cfg = tiny(**changes)
    head = copy.deepcopy(cfg["head"])
    head[2:] = [[3, 1, "RepConv", list(args)], [[5, 3], 1, "Detect", ["nc"]]]
    head[3][0] = [2, 5] if len(args) < 3 or args[2] != 2 else [3, 5]
    return {**cfg, "head": head}


@pytest.mark.parametrize(
    "args",
    [[32], [64], [32, 3, 2], [32, 5, 1, None, 2], [32, {"identity": True}], [32, {"style": "qarep", "identity": True}]],
    ids=str,
)
def test_the_word_fuses(args):
    model = randomize_(DetectionModel(with_word(*args))).double().eval()
    deploy = switch_to_deploy(model)
    assert deploy.report.fused["RepConv"] == 1
    assert not [m for m in deploy.modules() if isinstance(m, _BatchNorm)]
    assert type(deploy.model[5].conv) is nn.Conv2d
    assert worst_error(deploy, model, pictures(64, 96)) <= SAME
    assert model.features[5].channels == model.spec.width(args[0])


def test_the_word_has_the_yamls_activation_and_its_repeats():
    assert isinstance(DetectionModel(with_word(32)).model[5].act, nn.SiLU)
    assert isinstance(DetectionModel(with_word(32, activation="nn.ReLU()")).model[5].act, nn.ReLU)
    assert isinstance(DetectionModel(with_word(32, {"act": "nn.GELU()"})).model[5].act, nn.GELU)
    assert isinstance(DetectionModel(with_word(32, {"act": False})).model[5].act, nn.Identity)
    cfg = with_word(32)
    cfg["head"][2][1] = 3
    assert len([m for m in DetectionModel(cfg).modules() if isinstance(m, RepConv)]) == 3


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([32, 4], "row 5 .*odd kernel"),
        ([32, 3, 1, 0], "row 5 .*pads by 1, .* not by 0"),
        ([64, {"identity": True}], "row 5 .*16 channels in, 32 out"),
        ([32, {"g": 3}], "row 5 .*3 groups"),
        ([32, {"style": "repqa"}], "row 5 .*unknown style 'repqa'"),
        ([32, {"bn": True}], "row 5 .*RepConv takes"),
    ],
    ids=str,
)
def test_a_wrong_word_is_explained(args, message):
    with pytest.raises(ConfigError, match=message):
        DetectionModel(with_word(*args))


# Training with custom L2 ----------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a small data set and a small model."""
    root = tmp_path_factory.mktemp("train")
    ensure_shapes(root / "shapes", Recipe(side=64, train=8, val=4, test=4, film_side=64, film_frames=2))
    data = {"path": str(root / "shapes"), "names": list(NAMES), **{k: f"images/{k}" for k in ("train", "val", "test")}}
    (root / "data.yaml").write_text(yaml.safe_dump(data))
    options = {**NARROW, "width_multiplier": list(NARROW["width_multiplier"]), "num_blocks": [1, 2, 2, 1]}
    (root / "rep.yaml").write_text(yaml.safe_dump(tiny_backbone("RepVGG", "A0", options)))
    (root / "tiny.yaml").write_text(yaml.safe_dump(tiny()))
    return root


def run_options(folder, name, **changes):
    return {
        **{"cfg": folder / "rep.yaml", "data": folder / "data.yaml", "epochs": 3, "imgsz": 64, "batch_size": 4},
        **{"noplots": True, "project": folder / "runs", "name": name, "optimizer": "SGD", "custom_l2": True},
        **changes,
    }


def trainer_of(folder, name, **changes):
    args = train.make_parser().from_keywords(**run_options(folder, name, **changes))
    trainer = Trainer(train.new_run(args))
    trainer._setup_train()
    return trainer


def branch_kernels(model):
    return {n for n, _ in model.named_parameters() if n.endswith(("rbr_dense.conv.weight", "rbr_1x1.conv.weight"))}


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["SGD", "AdamW", "MuSGD"])
def test_custom_l2_takes_the_place_of_weight_decay(optimizer, folder):
    trainer = trainer_of(folder, f"groups-{optimizer}", optimizer=optimizer)
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    every = [names[id(p)] for group in trainer.optimizer.param_groups for p in group["params"]]
    assert sorted(every) == sorted(names.values())
    decayed = {names[id(p)] for g in trainer.optimizer.param_groups if g["weight_decay"] > 0 for p in g["params"]}
    assert decayed
    assert len(branch_kernels(trainer.model)) == 2 * 7
    assert not decayed & branch_kernels(trainer.model)
    assert trainer.decay == pytest.approx(5e-4)


@pytest.mark.slow
def test_a_step_goes_down_the_penalty(folder):
    trainer = trainer_of(folder, "step")
    trainer.decay = 0.1
    kernels = [p for block in trainer.penalized for p in block.decayed_by_custom_l2()]
    penalty = sum(block.get_custom_l2() for block in trainer.penalized) * 0.5 * trainer.decay
    gradients = torch.autograd.grad(penalty, kernels)
    rates = {id(p): g["lr"] * (1 + g["momentum"]) for g in trainer.optimizer.param_groups for p in g["params"]}
    for parameter in trainer.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = [p.detach().clone() for p in kernels]
    trainer.optimizer_step()
    for parameter, old, gradient in zip(kernels, before, gradients, strict=True):
        assert relative_error(old - parameter, rates[id(parameter)] * gradient) <= 1e-3


@pytest.mark.slow
def test_a_run_with_custom_l2_trains_otherwise_and_resumes_to_the_last_bit(folder, monkeypatch):
    whole = train.run(**run_options(folder, "whole"))
    plain = train.run(**run_options(folder, "plain", custom_l2=False))
    assert yaml.safe_load((whole / "args.yaml").read_text())["custom_l2"] is True
    printed = [(run / "results.csv").read_text().splitlines()[0].split(",") for run in (whole, plain)]
    losses = [[column for column in columns if "loss" in column] for columns in printed]
    assert losses[0] == losses[1] != [], "the printed losses are the same ones"

    with stopped(monkeypatch, "on_train_batch_end", 1):
        train.run(**run_options(folder, "stopped"))
    resumed = train.run(resume=folder / "runs/stopped/weights/last.pt")
    runs = [read_checkpoint(run / "weights/last.pt")["model"] for run in (whole, resumed, plain)]
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert any(not torch.equal(runs[0][name], runs[2][name]) for name in runs[0] if name.endswith("conv.weight"))


@pytest.mark.slow
def test_custom_l2_without_branches_is_refused(folder):
    with pytest.raises(UserError, match=r"--custom-l2 is for .* of which tiny.yaml has none to train") as caught:
        train.run(**run_options(folder, "none", cfg=folder / "tiny.yaml"))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="has none to train"):
        train.run(**run_options(folder, "frozen", freeze=["backbone"]))


if __name__ == "__main__" and "--write" in sys.argv:
    COUNTS.write_text(json.dumps({arch: parameter_counts(arch) for arch in ARCHS}, indent=2) + "\n")
