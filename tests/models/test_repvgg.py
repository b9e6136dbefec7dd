"""RepVGG against the original implementation's features, its sizes, and its networks in fused form.

After a change that is meant to change sizes, rewrite tests/golden/parameters-repvgg.json with

    python -m tests.models.test_repvgg --write
"""

import copy
import json
import math
import pickle
import sys

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from models import DetectionModel, create_backbone, switch_to_deploy
from models.backbones.repvgg import ARCHS, STRIDES, RepVGG
from models.blocks.reparam import fuse_blocks
from models.blocks.repconv import RepConv
from models.errors import UserError
from tests.helpers import (
    GOLDEN,
    assert_golden,
    golden_tensor,
    pictures,
    randomize_,
    relative_error,
    tiny_backbone,
    worst_error,
)
from tests.models.repvgg import EXACT, NARROW, ORIGINAL, SAME, SINGLE, each_style, narrow

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


# The original ---------------------------------------------------------------------------------------------------------
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


if __name__ == "__main__" and "--write" in sys.argv:
    COUNTS.write_text(json.dumps({arch: parameter_counts(arch) for arch in ARCHS}, indent=2) + "\n")
