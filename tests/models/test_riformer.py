"""RIFormer against the original implementation's features, its published files, and its folded form."""

import copy
import itertools
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from models import create_backbone, switch_to_deploy
from models.backbones.base import load_weights
from models.backbones.riformer import ARCHS, RIFormer
from models.backbones.weights import read_tensors
from models.blocks.reparam import fuse_blocks
from models.blocks.riformer import DropPath, RIFormerBlock, write_out_group_norm
from models.errors import UserError, WeightsError
from tests.helpers import assert_golden, golden, golden_tensor, pictures, randomize_, relative_error

GOLDEN = golden("riformer-s12")
PUBLISHED = {"s12": 11.410, "s24": 20.890, "s36": 30.371, "m36": 55.431, "m48": 72.741}  # million, with four norms


# The original ---------------------------------------------------------------------------------------------------------
def golden_tensors():
    return {name: golden_tensor(name, shape) for name, shape in GOLDEN["keys"].items()}


def nested(tensors, nest=GOLDEN["nest"]):
    """Wrap tensors as published files do: `state_dict/backbone.` is a prefix inside an entry."""
    *entries, prefix = nest.split("/")
    content = {prefix + name: tensor for name, tensor in tensors.items()}
    for entry in reversed(entries):
        content = {"meta": {"epoch": 600}, entry: content}
    return content


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A file in the published layout, with a classifier that a detector has no use for."""
    path = tmp_path_factory.mktemp("weights") / "riformer-s12.pth"
    content = nested(golden_tensors())
    content["state_dict"] |= {"head.fc.weight": torch.zeros(1000, 512), "head.fc.bias": torch.zeros(1000)}
    torch.save(content, path)
    return path


@pytest.fixture(scope="module")
def original(published):
    """The golden network in float64, built through `weights:`."""
    return create_backbone("RIFormer", "s12", weights=published).double().eval()


@pytest.mark.parametrize("form", [lambda m: m, fuse_blocks, switch_to_deploy], ids=["train", "blocks", "deploy"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)], ids=str)
def test_features_are_the_originals(form, dtype, tolerance, original):
    assert_golden(form(copy.deepcopy(original).to(dtype)), GOLDEN, dtype, tolerance)


def test_every_tensor_came_from_the_file(original):
    report = original.weights_report
    assert (report.matched, report.missing, report.unexpected) == (160, (), ())
    assert "160 of 160 tensors from riformer-s12.pth" in str(report)


def test_names_are_the_published_ones():
    own = create_backbone("RIFormer", "s12").state_dict()
    assert {name: list(tensor.shape) for name, tensor in own.items()} == GOLDEN["keys"]


# Sizes ----------------------------------------------------------------------------------------------------------------
def expected_parameters(arch, in_channels=3):
    """Count by hand: stem, convolutions between stages, blocks, one norm of weight and bias per level."""
    depths, dims, *_ = ARCHS[arch]
    stem = in_channels * dims[0] * 49 + dims[0]
    between = sum(a * b * 9 + b for a, b in itertools.pairwise(dims))
    blocks = sum(depth * (8 * dim * dim + 4 * dim + dim + 8 * dim) for depth, dim in zip(depths, dims, strict=True))
    return stem + between + blocks + 2 * sum(dims)


@pytest.mark.parametrize("arch", [pytest.param(a, marks=[] if a == "s12" else pytest.mark.slow) for a in ARCHS])
def test_parameters_are_the_published_number(arch):
    count = sum(p.numel() for p in create_backbone("RIFormer", arch).parameters())
    assert count == expected_parameters(arch)
    assert count / 1e6 == pytest.approx(PUBLISHED[arch], abs=0.0006)


@pytest.mark.parametrize("arch", ARCHS)
def test_every_architecture_can_be_built_without_data(arch):
    with torch.device("meta"):
        backbone = create_backbone("RIFormer", arch)
    assert sum(p.numel() for p in backbone.parameters()) == expected_parameters(arch)


@pytest.mark.parametrize("in_channels", [1, 4])
def test_pictures_may_have_other_channels(in_channels):
    backbone = create_backbone("RIFormer", "s12", in_channels=in_channels, out_strides=(4,)).eval()
    assert backbone(torch.rand(1, in_channels, 32, 32))[0].shape == (1, 64, 8, 8)


def test_initialisation_is_the_papers():
    backbone = create_backbone("RIFormer", "s12", out_strides=(4,))
    block = backbone.network[0][0]
    assert (block.layer_scale_1 == 1e-5).all()
    assert block.mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not block.mlp.fc1.bias.any()
    assert block.norm1.eps == 1e-5


# Levels ---------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("strides", [(4,), (8,), (32,), (4, 16), (8, 16, 32), (16, 8)], ids=str)
def test_chosen_levels_are_the_same_maps_and_build_less(strides, original, published):
    part = create_backbone("RIFormer", "s12", weights=published, out_strides=strides).double().eval()
    x = pictures(64, 64)
    with torch.no_grad():
        whole = dict(zip(original.strides, original(x), strict=True))
        assert part.strides == tuple(sorted(strides))
        for stride, got in zip(part.strides, part(x), strict=True):
            assert relative_error(got, whole[stride]) <= 1e-12
    assert sum(p.numel() for p in part.parameters()) < sum(p.numel() for p in original.parameters())


def test_every_parameter_takes_part():
    """Parameters without gradient stop distributed training."""
    backbone = create_backbone("RIFormer", "s12", out_strides=(8,))
    sum(m.square().sum() for m in backbone(pictures(32, 32, dtype=torch.float32))).backward()
    assert not [name for name, p in backbone.named_parameters() if p.grad is None]


def test_a_missing_level_is_named():
    with pytest.raises(UserError, match=r"no map at P1 \(stride 2\), it gives P2 \(stride 4\), P3"):
        create_backbone("RIFormer", "s12", out_strides=(2, 8))


# Drop path ------------------------------------------------------------------------------------------------------------
def test_drop_path_is_for_training_alone():
    torch.manual_seed(0)
    block, x = randomize_(RIFormerBlock(4, drop_path=0.5)), torch.rand(8, 4, 3, 3)
    sure = RIFormerBlock(4)
    sure.load_state_dict(block.state_dict())
    assert torch.equal(block.eval()(x), sure(x))
    assert not torch.equal(block.train()(x), sure(x))


def test_drop_path_keeps_the_mean_and_drops_whole_pictures():
    torch.manual_seed(0)
    dropped = DropPath(0.25)(torch.ones(4000, 2, 3, 3))
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (dropped == dropped[:, :1, :1, :1]).all()
    assert dropped.mean().item() == pytest.approx(1, abs=0.05)


def test_drop_path_rises_to_the_last_block():
    backbone = create_backbone("RIFormer", "s12", drop_path=0.1)
    rates = [m.rate for m in backbone.modules() if isinstance(m, DropPath)]
    assert rates == pytest.approx(np.linspace(0, 0.1, 12).tolist(), abs=1e-7)


@pytest.mark.parametrize("rate", [1.0, -0.1, 2, "much", None], ids=repr)
def test_an_impossible_rate_is_refused(rate):
    with pytest.raises(UserError, match="drop_path"):
        create_backbone("RIFormer", "s12", drop_path=rate)


# The folded block -----------------------------------------------------------------------------------------------------
def test_eps_of_both_norms_is_kept():
    block = randomize_(RIFormerBlock(6)).double().eval()
    block.norm1.eps, block.norm2.eps = 0.5, 2.0
    x = torch.randn(2, 6, 5, 7).double()
    assert relative_error(block.fuse()(x), block(x)) <= 1e-12


def test_fusing_leaves_the_block_alone():
    block, x = randomize_(RIFormerBlock(6)), torch.randn(2, 6, 5, 7)
    before = copy.deepcopy(block.state_dict())
    fused = block.fuse()
    with torch.no_grad():
        for parameter in fused.parameters():
            parameter.zero_()
    assert all(torch.equal(before[name], tensor) for name, tensor in block.state_dict().items())
    assert block(x).isfinite().all()


def test_gradients_through_the_equivalent_norm_are_those_through_the_token_mixer():
    block = randomize_(RIFormerBlock(6)).double().eval()
    x, target = torch.randn(2, 6, 5, 7).double(), torch.randn(2, 6, 5, 7).double()
    parts = (*block.norm1.parameters(), *block.token_mixer.parameters())
    mixed = block.token_mixer(block.norm1(x))
    want = torch.autograd.grad((mixed * target).sum(), parts)
    scale, bias = block.get_equivalent_scale_bias()
    got = nn.functional.group_norm(x, 1, scale, bias, block.norm1.eps)
    assert relative_error(got, mixed) <= 1e-12
    for gradient, wanted in zip(torch.autograd.grad((got * target).sum(), parts), want, strict=True):
        assert relative_error(gradient, wanted) <= 1e-12
    assert block.float().get_equivalent_scale_bias()[0].dtype == torch.float32


def test_little_is_left_of_a_folded_block():
    block = RIFormerBlock(64)
    names = {name for name, _ in block.fuse().named_parameters()}
    assert not [name for name in names if "layer_scale" in name or "token_mixer" in name or "norm2" in name]
    left = sum(p.numel() for p in block.fuse().parameters())
    assert left == sum(p.numel() for p in block.parameters()) - 6 * 64  # affine map, two scales, norm2's affine


@pytest.mark.parametrize("offset", [0.0, 10.0, 1000.0])
@pytest.mark.parametrize("scale", [1e-2, 1.0, 100.0])
def test_the_folded_block_is_as_exact_as_the_block_in_float32(offset, scale):
    """Statistics that are derived, not measured, lose digits where means are large beside deviations."""
    exact = randomize_(RIFormerBlock(32)).double().eval()
    x = torch.randn(2, 32, 16, 12, generator=torch.Generator().manual_seed(0)).double()
    x = scale * x + offset * torch.linspace(-1, 1, 32)[:, None, None]
    with torch.no_grad():
        want, branch = exact(x), (exact(x) - x).abs().max()
        block, folded = copy.deepcopy(exact).float(), exact.fuse().float()
        errors = [((m(x.float()).double() - want).abs().max() / branch).item() for m in (block, folded)]
    assert errors[1] <= max(20 * errors[0], 1e-5)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0, 1000.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_picture_of_one_colour_stays_finite(value, dtype):
    block = randomize_(RIFormerBlock(8)).eval().to(dtype)
    x = torch.full((2, 8, 6, 6), value, dtype=dtype)
    with torch.no_grad():
        want, got = block(x), block.fuse()(x)
    assert want.isfinite().all()
    assert relative_error(got.float(), want.float()) <= {torch.float32: 1e-4}.get(dtype, 0.1)


def test_a_folded_norm_that_flattens_its_input_stays_finite():
    """The first half of the block may cancel a map entirely; its variance must not come out below zero."""
    block = randomize_(RIFormerBlock(8)).eval()
    with torch.no_grad():
        block.layer_scale_1.fill_(1)
        block.norm1.weight.fill_(1)
        block.norm1.bias.zero_()
        block.token_mixer.affine.bias.zero_()
        x = torch.randn(2, 8, 1, 1) * 1000
        x = (x - x.mean((1, 2, 3), keepdim=True)).expand(2, 8, 6, 6)
        rstd = x.var((1, 2, 3), correction=0).rsqrt().mean()
        block.token_mixer.affine.weight.fill_(1 - 1 / rstd)  # so that 1 + weight * rstd is nearly 0
        assert block(x).isfinite().all()
        assert block.fuse()(x).isfinite().all()


def test_group_norms_compute_what_is_written_out():
    for module in (RIFormerBlock(32), nn.GroupNorm(1, 32, eps=1e-3)):
        exact = randomize_(module).double().eval()
        x = torch.randn(2, 32, 16, 12, generator=torch.Generator().manual_seed(0)).double() + 3
        with torch.no_grad():
            written_out = write_out_group_norm(exact) or exact.fuse()
            whole = written_out.with_group_norms()
            assert relative_error(whole(x), exact(x)) <= 1e-12
        norms = [m for m in whole.modules() if isinstance(m, nn.GroupNorm)]
        assert norms and not [m for m in written_out.modules() if isinstance(m, nn.GroupNorm)]


def test_half_precision_agrees_with_single():
    block = randomize_(RIFormerBlock(32)).eval()
    x = torch.randn(2, 32, 16, 16)
    with torch.no_grad():
        assert relative_error(block.fuse().half()(x.half()).float(), block(x)) <= 1e-2


def test_backbone_survives_copies_and_half_precision():
    backbone = randomize_(create_backbone("RIFormer", "s12", out_strides=(4, 8))).eval()
    x = pictures(32, 32, dtype=torch.float32)
    with torch.no_grad():
        want = backbone(x)
        for got in (copy.deepcopy(backbone)(x), pickle.loads(pickle.dumps(backbone))(x)):
            assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))
        for got, reference in zip(backbone.half().float()(x), want, strict=True):
            assert relative_error(got, reference) <= 1e-2


def test_building_runs_nothing_and_moves_no_statistics(monkeypatch):
    monkeypatch.setattr(nn.Module, "__call__", lambda *args, **kwargs: pytest.fail("a forward pass while building"))
    RIFormer("s12")


# Files ----------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def small():
    """A part of the network, so that files for it are small."""
    return create_backbone("RIFormer", "s12", out_strides=(4,))


def small_tensors(small):
    return {name: torch.full_like(tensor, 0.5) for name, tensor in small.state_dict().items()}


NESTS = ["", "state_dict/", "model/", "state_dict/backbone.", "state_dict_ema/backbone.", "ema/module."]
NESTS += ["model/module.", "state_dict/module.backbone.", "state_dict/model.backbone.", "model/state_dict/backbone."]


@pytest.mark.parametrize("nest", NESTS)
def test_wrappings_of_other_tools_are_taken_off(nest, small, tmp_path):
    torch.save(nested(small_tensors(small), nest), tmp_path / "a.pth")
    target = copy.deepcopy(small)
    report = load_weights(target, tmp_path / "a.pth").weights_report
    assert not report.missing
    assert all((tensor == 0.5).all() for tensor in target.state_dict().values())


def test_half_precision_files_are_taken(small, tmp_path):
    torch.save({name: tensor.half() for name, tensor in small_tensors(small).items()}, tmp_path / "a.pth")
    target = copy.deepcopy(small)
    load_weights(target, tmp_path / "a.pth")
    assert {tensor.dtype for tensor in target.state_dict().values()} == {torch.float32}


def test_output_norms_may_be_missing(small, tmp_path):
    tensors = {name: t for name, t in small_tensors(small).items() if not name.startswith("norm0.")}
    torch.save(nested(tensors), tmp_path / "a.pth")
    report = create_backbone("RIFormer", "s12", out_strides=(4,), weights=tmp_path / "a.pth").weights_report
    assert set(report.missing) == {"norm0.weight", "norm0.bias"}


def test_files_of_another_architecture_are_refused(published):
    with pytest.raises(WeightsError, match=r"s12.pth holds \d+ of the \d+ tensors .* another architecture"):
        create_backbone("RIFormer", "s24", out_strides=(4, 8), weights=published)
    with pytest.raises(WeightsError, match=r"s12.pth holds \d+ of the \d+ tensors .* another architecture"):
        create_backbone("RIFormer", "m36", out_strides=(4,), weights=published)


def test_nothing_is_loaded_in_part(small, tmp_path):
    """A refused file leaves no trace."""
    tensors = small_tensors(small)
    torch.save(dict(list(tensors.items())[: len(tensors) // 2]), tmp_path / "half.pth")
    target = copy.deepcopy(small)
    with pytest.raises(WeightsError):
        load_weights(target, tmp_path / "half.pth")
    assert all(
        torch.equal(a, b) for a, b in zip(small.state_dict().values(), target.state_dict().values(), strict=True)
    )


class Bomb:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


OTHER_FILES = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("not found\n" * 100),
    "web page": lambda path: path.write_text("<!DOCTYPE html><html><body>404</body></html>"),
    "zeros": lambda path: path.write_bytes(bytes(2000)),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:3000]),
    "pickle": lambda path: path.write_bytes(pickle.dumps({0: 1})),
    "module": lambda path: torch.save({"state_dict": nn.Linear(1, 1)}, path),
    "numbered tensors": lambda path: torch.save({0: torch.zeros(1), 1: torch.zeros(1)}, path),
    "list": lambda path: torch.save([torch.zeros(1)], path),
    "no tensors": lambda path: torch.save({"state_dict": {}}, path),
    "torchscript": lambda path: torch.jit.trace(nn.Linear(1, 1), torch.zeros(1, 1)).save(str(path)),
    "folder": lambda path: (path.unlink(), path.mkdir()),
    "missing": lambda path: path.unlink(),
}


def refusal(path):
    with pytest.raises(WeightsError) as caught:
        read_tensors(path)
    text = str(caught.value)
    assert str(path) in text
    assert not {"\n", "\x1b"} & set(text)
    assert "False" not in text, "advice to switch weights_only off"
    return text


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("spoil", OTHER_FILES.values(), ids=OTHER_FILES)
def test_another_kind_of_file_is_refused_in_a_sentence(spoil, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.zeros(1000)}, path)
    spoil(path)
    text = refusal(path)
    assert ("holds more than tensors" in text) == (spoil is OTHER_FILES["module"])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_code_is_not_run(zipped, tmp_path):
    path, marker = tmp_path / "weights.pth", tmp_path / "marker"
    content = {"a": torch.zeros(1), "b": Bomb(marker)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert "holds more than tensors" in refusal(path)
    assert not marker.exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("zipped", [True, False])
def test_flipped_bits_are_refused_or_harmless(zipped, tmp_path):
    path, rng = tmp_path / "weights.pth", np.random.default_rng(0)
    torch.save({"a": torch.zeros(4), "b.c": torch.ones(3, 3)}, path, _use_new_zipfile_serialization=zipped)
    raw = path.read_bytes()
    for spot in rng.integers(0, len(raw), 300):
        flipped = bytearray(raw)
        flipped[spot] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        try:
            read_tensors(path)
        except WeightsError as e:
            assert str(path) in str(e)
