"""The blocks of RepVGG: their fused form, the equivalent kernel, squeeze-excite, custom L2, and the word RepConv."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from models import DetectionModel, switch_to_deploy
from models.blocks.repconv import RepConv, RepVGGBlock, SqueezeExcite
from models.errors import ConfigError, UserError
from tests.helpers import pictures, randomize_, relative_error, tiny, worst_error
from tests.models.repvgg import EXACT, SAME, SINGLE, each_style, narrow

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
