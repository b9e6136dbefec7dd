"""RepMLPNet against the original's features, the tile-by-tile definition, its published files, and its fused form."""

import copy
import json

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from models import create_backbone, switch_to_deploy
from models.backbones.repmlpnet import ARCHS, resample_fc
from models.blocks.reparam import fuse_blocks
from models.blocks.repmlp import RepMLPBlock, RepTileFC, TileFC, conv_as_fc
from models.errors import UserError, WeightsError
from tests.helpers import (
    GOLDEN,
    assert_golden,
    golden,
    golden_tensor,
    pictures,
    randomize_,
    relative_error,
    worst_error,
)

ORIGINAL = golden("repmlpnet-t224")
COUNTS = json.loads((GOLDEN / "parameters-repmlp.json").read_text())["RepMLPNet"]
SMALL = {"hs": (5, 4, 3, 2), "ws": (4, 3, 2, 3)}  # tiles
SIZES = [(20, 23), (14, 15), (7, 5), (40, 24), (33, 64), (8, 8), (1, 1), (5, 4), (4, 5), (10, 8)]


# The original ---------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def tensors():
    return {name: golden_tensor(name, shape) for name, shape in ORIGINAL["keys"].items()}


@pytest.fixture(scope="module")
def published(tensors, tmp_path_factory):
    """A file in the published layout."""
    path = tmp_path_factory.mktemp("weights") / "RepMLPNet-T224-train.pth"
    torch.save({"model": tensors}, path)
    return path


@pytest.fixture(scope="module")
def original(published):
    return create_backbone("RepMLPNet", "T224", weights=published).eval()


@pytest.mark.slow
@pytest.mark.parametrize("form", [lambda m: m, fuse_blocks, switch_to_deploy], ids=["train", "blocks", "deploy"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)], ids=str)
def test_features_are_the_originals(form, dtype, tolerance, original):
    assert_golden(form(copy.deepcopy(original).to(dtype)), ORIGINAL, dtype, tolerance)


@pytest.mark.slow
def test_every_tensor_came_from_the_file(original, tensors):
    report = original.weights_report
    assert (report.missing, report.unexpected) == ((), ())
    assert report.matched == len(original.state_dict())


@pytest.mark.parametrize("arch", ARCHS)
def test_parameters_are_the_published_ones(arch):
    with torch.device("meta"):
        classifier = create_backbone("RepMLPNet", arch, num_classes=1000).eval()
    count = [sum(p.numel() for p in net.parameters()) for net in (classifier, fuse_blocks(classifier))]
    assert count == COUNTS[arch]


# Tiles ----------------------------------------------------------------------------------------------------------------
def tile_by_tile(block, x):
    """Apply a block as it is defined: every tile of every picture and every group of channels on its own."""
    (h, w), s = block.tile, block.sharesets
    n, c, height, width = x.shape
    rows, columns = -(-height // h), -(-width // w)
    padded = x.new_zeros(n, c, rows * h, columns * w)
    padded[:, :, :height, :width] = x
    out = torch.empty_like(padded)
    for picture in range(n):
        for first in range(0, c, s):
            for top in range(0, rows * h, h):
                for left in range(0, columns * w, w):
                    at = picture, slice(first, first + s), slice(top, top + h), slice(left, left + w)
                    out[at] = block.local(padded[at][None])[0]
    return out[:, :, :height, :width] * block.gp(x)


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("batch", [1, 3])
def test_a_map_of_many_tiles_is_each_tile_on_its_own(size, batch):
    block = randomize_(RepMLPBlock(12, 5, 4, sharesets=3)).double().eval()
    x = torch.randn(batch, 12, *size, dtype=torch.float64)
    with torch.no_grad():
        want = tile_by_tile(block, x)
        assert relative_error(block(x), want) <= 1e-12
        assert relative_error(fuse_blocks(block)(x), want) <= 1e-12


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("batch", [2, 16])
def test_a_picture_does_not_see_the_others(size, batch):
    block = randomize_(RepMLPBlock(8, 5, 4, sharesets=4)).eval()
    x = torch.randn(batch, 8, *size)
    other = torch.cat([x[:1], torch.randn(batch - 1, 8, *size)])
    with torch.no_grad():
        assert relative_error(block(other)[:1], block(x)[:1]) <= 1e-6


def test_a_tile_does_not_see_its_neighbour():
    local = nn.Sequential(RepMLPBlock(4, 4, 4, sharesets=2))[0].eval()
    local.gp = nn.Identity()
    local.gp.forward = lambda x: 1.0
    x = torch.randn(1, 4, 8, 8)
    changed = x.clone()
    changed[..., :4, :4] += 1
    with torch.no_grad():
        difference = (local(changed) - local(x)).abs()
    assert difference[..., :4, :4].min() > 0 or difference[..., :4, :4].max() > 1e-3
    assert not difference[..., 4:, :].any()
    assert not difference[..., :, 4:].any()


# The layer that swallows convolutions ---------------------------------------------------------------------------------
@pytest.mark.parametrize("k", [1, 3, 5, 7])
@pytest.mark.parametrize("size", [(4, 5), (1, 3), (2, 2), (7, 7)], ids=str)
@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_is_a_fully_connected_layer(k, size, groups):
    conv = nn.Conv2d(4, 6, k, padding=k // 2, groups=groups, bias=False).double()
    fc = TileFC(4, 6, *size, groups=groups).double()
    x = torch.randn(3, 4, *size, dtype=torch.float64)
    with torch.no_grad():
        fc.weight.copy_(conv_as_fc(conv.weight, *size).view_as(fc.weight))
        assert relative_error(fc(x), conv(x)) <= 1e-14


@pytest.mark.parametrize("norm_pixels", [False, True])
@pytest.mark.parametrize(("c1", "c2", "groups"), [(4, 4, 4), (4, 4, 1), (4, 8, 2), (6, 2, 2)], ids=str)
def test_the_linear_part_fuses_into_one_layer(c1, c2, groups, norm_pixels):
    part = randomize_(RepTileFC(c1, c2, 3, 5, groups, (1, 3, 5), norm_pixels)).double().eval()
    before = copy.deepcopy(part.state_dict())
    fused = part.fuse()
    x = torch.randn(7, c1, 3, 5, dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(fused(x), part(x)) <= 1e-13
    assert type(fused) is TileFC
    assert all(torch.equal(before[k], v) for k, v in part.state_dict().items())


@pytest.mark.parametrize("norm_pixels", [False, True])
@pytest.mark.parametrize(("c1", "c2", "groups"), [(4, 4, 4), (4, 8, 2), (6, 2, 1)], ids=str)
def test_gradients_through_the_equivalent_layer_are_those_through_the_branches(c1, c2, groups, norm_pixels):
    part = randomize_(RepTileFC(c1, c2, 3, 5, groups, (1, 3), norm_pixels)).double().eval()
    x, target = torch.randn(7, c1, 3, 5).double(), torch.randn(7, c2, 3, 5).double()
    (part(x) * target).sum().backward()
    want = {name: p.grad.clone() for name, p in part.named_parameters()}
    part.zero_grad()
    weight, bias = part.get_equivalent_fc3()
    y = nn.functional.conv2d(x.reshape(7, -1, 1, 1), weight, bias, groups=groups)
    (y.view_as(target) * target).sum().backward()
    assert {"fc3.weight", "fc3_bn.bias", "repconv3.conv.weight", "repconv1.bn.weight"} <= want.keys()
    for name, parameter in part.named_parameters():
        assert relative_error(parameter.grad, want[name]) <= 1e-12, name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_is_kept(dtype):
    fused = randomize_(RepTileFC(2, 2, 3, 3, 2, (1, 3))).to(dtype).fuse()
    assert {p.dtype for p in fused.parameters()} == {dtype}
    assert all(p.requires_grad for p in fused.parameters())


# The network ----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def small():
    """The smallest network, with tiles that no map is made of."""
    return randomize_(create_backbone("RepMLPNet", "T224", **SMALL)).double().eval()


@pytest.fixture(scope="module")
def forms(small):
    """The deploy form, and both forms in float32."""
    deploy = switch_to_deploy(small)
    return deploy, copy.deepcopy(small).float(), copy.deepcopy(deploy).float()


@pytest.mark.parametrize("size", [(64, 64), (97, 65), (160, 96), (32, 33)], ids=str)
def test_the_fused_network_is_the_network(small, forms, size):
    deploy, single, single_deploy = forms
    assert worst_error(deploy, small, pictures(*size)) <= 1e-9
    x = pictures(*size)
    with torch.no_grad():  # activations grow here: what rounding does to the network itself is the measure
        exact, rounded, fused = small(x), single(x.float()), single_deploy(x.float())
    for want, own, got in zip(exact, rounded, fused, strict=True):
        assert relative_error(got.double(), want) <= max(1e-5, 3 * relative_error(own.double(), want))


def test_what_stays_is_listed(small):
    report = switch_to_deploy(small).report
    units = sum(ARCHS["T224"].depths)
    assert report.fused == {"RepTileFC": units, "Conv+BN": 4 + 2 * units, "BN+Conv": units}
    assert len(report.left) == units
    assert all("prebn1: its input is not the output of one convolution alone" in line for line in report.left)
    assert all("its output is not what one convolution alone reads" in line for line in report.left)


def test_fusing_twice_changes_nothing(small):
    once = switch_to_deploy(small)
    twice = switch_to_deploy(once)
    assert twice.report == once.report
    assert str(twice) == str(once)
    assert all(torch.equal(a, b) for a, b in zip(once.state_dict().values(), twice.state_dict().values(), strict=True))


@pytest.mark.slow
def test_the_network_survives_saving_copies_and_half_precision(small, tmp_path):
    x = pictures(64, 96)
    torch.save(small.state_dict(), tmp_path / "a.pth")
    loaded = create_backbone("RepMLPNet", "T224", **SMALL, weights=tmp_path / "a.pth").double().eval()
    for copied in (loaded, copy.deepcopy(small), copy.deepcopy(small).half().double()):
        deploy = switch_to_deploy(copied)
        assert worst_error(deploy, copied, x) <= 1e-9


def test_any_batch_trains(small):
    backbone = copy.deepcopy(small).float().train()
    for batch, size in ((1, (64, 64)), (2, (96, 65))):
        maps = backbone(torch.rand(batch, 3, *size))
        sum(m.mean() for m in maps).backward()
    assert all(p.grad is not None for p in backbone.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("strides", [(4,), (8, 16), (32, 8)], ids=str)
def test_only_the_stages_that_are_read_are_built(small, strides):
    part = create_backbone("RepMLPNet", "T224", **SMALL, out_strides=strides).double().eval()
    part.load_state_dict({k: v for k, v in small.state_dict().items() if k in part.state_dict()})
    x = pictures(64, 96)
    with torch.no_grad():
        maps = dict(zip(small.strides, small(x), strict=True))
        assert all(torch.equal(got, maps[s]) for s, got in zip(part.strides, part(x), strict=True))


@pytest.mark.parametrize("value", [(1, 2, 3), 7, "7", (0, 1, 1, 1), (1.5, 1, 1, 1), (True, 1, 1, 1), (10**6, 1, 1, 1)])
@pytest.mark.parametrize("side", ["hs", "ws"])
def test_wrong_tiles_are_explained(side, value):
    with pytest.raises(UserError, match=f"RepMLPNet's {side} are 4 whole numbers from 1 to 256") as caught:
        create_backbone("RepMLPNet", "T224", **{side: value})
    assert "\n" not in str(caught.value)


# Export ---------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def exported(small, tmp_path_factory):
    """A block of two stages, in training and deploy form, as ONNX with free sizes."""
    backbone = copy.deepcopy(small).float()
    backbone.stages, backbone.embeds = backbone.stages[:2], backbone.embeds[:1]
    folder, paths = tmp_path_factory.mktemp("onnx"), {}
    for form, net in (("train", backbone), ("deploy", switch_to_deploy(backbone))):
        paths[form] = folder / f"{form}.onnx"
        axes = {"x": {0: "batch", 2: "height", 3: "width"}}
        example = torch.rand(1, 3, 64, 64)
        torch.onnx.export(
            net, example, paths[form], input_names=["x"], dynamic_axes=axes, opset_version=17, dynamo=False
        )
    return backbone, paths


@pytest.mark.slow
@pytest.mark.parametrize("form", ["train", "deploy"])
@pytest.mark.parametrize("shape", [(1, 3, 64, 64), (2, 3, 97, 65), (3, 3, 40, 120), (1, 3, 32, 32)], ids=str)
def test_onnx_agrees_at_any_size(exported, form, shape):
    backbone, paths = exported
    x = torch.rand(*shape)
    session = onnxruntime.InferenceSession(paths[form], providers=["CPUExecutionProvider"])
    with torch.no_grad():
        want = backbone(x)
    for got, reference in zip(session.run(None, {"x": x.numpy()}), want, strict=True):
        assert relative_error(torch.from_numpy(got), reference) <= 1e-5


def test_onnx_has_no_tensor_of_more_than_five_axes(exported):
    model = onnx.shape_inference.infer_shapes(onnx.load(exported[1]["deploy"]))
    ranks = [len(v.type.tensor_type.shape.dim) for v in model.graph.value_info]
    permutations = [len(a.ints) for n in model.graph.node if n.op_type == "Transpose" for a in n.attribute]
    assert max(ranks) <= 5
    assert max(permutations) == 5


@pytest.mark.slow
def test_a_traced_network_agrees_at_other_sizes(small):
    backbone = copy.deepcopy(small).float()
    traced = torch.jit.trace(backbone, torch.rand(1, 3, 64, 64), strict=False, check_trace=False)
    x = torch.rand(2, 3, 97, 65)
    with torch.no_grad():
        for got, want in zip(traced(x), backbone(x), strict=True):
            assert relative_error(got, want) <= 1e-5


# Published files ------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def deploy_tensors(original):
    """What the original's deploy file holds: what fuses is named as its authors name it."""
    fused = fuse_blocks(original).state_dict()
    return {k.replace(".repmlp_block.local.", ".repmlp_block.fc3."): v for k, v in fused.items()}


def to_mm(name):
    for ours, theirs in (
        ("conv_embedding.conv.", "patch_embed.projection."),
        ("conv_embedding.bn.", "patch_embed.norm."),
        ("embeds.", "downsample_layers."),
        (".gp.fc1.", ".gp.conv1.conv."),
        (".gp.fc2.", ".gp.conv2.conv."),
        (".prebn", ".norm"),
        ("head_norm.", "final_norm."),
    ):
        name = name.replace(ours, theirs)
    return name


@pytest.mark.slow
@pytest.mark.parametrize("form", ["train", "deploy"])
@pytest.mark.parametrize("publisher", ["authors", "mmpretrain"])
def test_every_publishers_file_is_read(original, tensors, deploy_tensors, form, publisher, tmp_path):
    content = tensors if form == "train" else deploy_tensors
    if publisher == "mmpretrain":
        content = {"state_dict": {f"backbone.{to_mm(k)}": v for k, v in content.items()}}
    torch.save(content, tmp_path / "a.pth")
    got = create_backbone("RepMLPNet", "T224", weights=tmp_path / "a.pth", out_strides=(4, 8)).eval()
    assert got.weights_report.missing == ()
    assert got.weights_report.deploy == (form == "deploy")
    x = pictures(64, 96, dtype=torch.float32)
    with torch.no_grad():
        for level, reference in zip(got(x), original(x)[:2], strict=True):
            assert relative_error(level, reference) <= 1e-5


@pytest.mark.slow
def test_weights_for_other_tiles_are_resampled_and_said_to_be(published, tensors):
    got = create_backbone("RepMLPNet", "T224", hs=(40, 20, 10, 5), weights=published)
    assert "12 fully connected layers resampled for other tiles (56x56 to 40x40, " in str(got.weights_report)
    name = "stages.0.0.repmlp_block.repconv3.conv.weight"
    assert torch.equal(got.stages[0][0].repmlp_block.local.repconv3.conv.weight, tensors[name])
    assert got.weights_report.missing == ()


@pytest.mark.slow
def test_deploy_weights_for_other_tiles_are_refused(deploy_tensors, tmp_path):
    torch.save(deploy_tensors, tmp_path / "deploy.pth")
    with pytest.raises(WeightsError, match="only the training form can be resampled"):
        create_backbone("RepMLPNet", "T224", hs=(40, 20, 10, 5), weights=tmp_path / "deploy.pth")


def test_a_resampled_layer_does_what_it_did():
    """A smooth kernel on a smooth picture, before and after: the same picture, seen at another resolution."""
    h = torch.linspace(0, 1, 14, dtype=torch.float64)
    kernel = torch.exp(-8 * ((h[:, None] - h) ** 2))
    weight = torch.einsum("ac,bd->abcd", kernel, kernel).reshape(1 * 196, 196, 1, 1) / 196
    assert torch.equal(resample_fc(weight, (14, 14), (14, 14)), weight)
    fine = torch.sin(3 * h)[:, None] * torch.cos(2 * h)
    resized = resample_fc(weight, (14, 14), (20, 10)).view(200, 200)
    picture = nn.functional.interpolate(fine[None, None], (20, 10), mode="bilinear", antialias=True)[0, 0]
    got = (resized @ picture.flatten()).view(1, 1, 20, 10)
    want = nn.functional.interpolate(
        (weight.view(196, 196) @ fine.flatten()).view(1, 1, 14, 14), (20, 10), mode="bilinear", antialias=True
    )
    assert relative_error(got, want) <= 0.05


def test_weights_of_another_architecture_are_refused(published):
    with pytest.raises(WeightsError, match="is it of another architecture"):
        create_backbone("RepMLPNet", "B224", weights=published)
