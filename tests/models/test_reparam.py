"""Fusing: the same function in float64, less structure, and nothing folded that must not be."""

import copy
import sys

import pytest
import timm
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrizations

from models import Reparameterizable, create_backbone, create_model, switch_to_deploy
from models.backbones.riformer import ARCHS
from models.blocks.reparam import fuse_blocks, fuse_bn_conv, fuse_conv_bn
from tests.helpers import SWEPT, pictures, pictures_for, randomize_, relative_error, tell_apart_, worst_error
from utils.deploy.fresh import calibrate_batch_norms

EXACT = 1e-12  # of one layer in float64
SAME = 1e-9  # of a whole network in float64
TIMM = ["repvgg_a0", "mobileone_s0", "repvit_m0_9", "fastvit_t8", "efficientvit_m0", "resnet18"]
TIMM += ["mobilenetv4_conv_small"]


def bn_like(conv, kind=None, **options):
    channels = conv.out_features if isinstance(conv, nn.Linear) else conv.out_channels
    kind = kind or {3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}.get(conv.weight.ndim, nn.BatchNorm1d)
    return kind(channels, **options)


def random_input(conv, dtype=torch.float64):
    if isinstance(conv, nn.Linear):
        return torch.randn(5, conv.in_features, dtype=dtype)
    return torch.randn(2, conv.in_channels, *(11, 7, 9)[: conv.weight.ndim - 2], dtype=dtype)


def batch_norms(module):
    return [name for name, m in module.named_modules() if isinstance(m, _BatchNorm)]


# fuse_conv_bn ---------------------------------------------------------------------------------------------------------
CONVOLUTIONS = {
    "plain": lambda: nn.Conv2d(6, 8, 3),
    "bias": lambda: nn.Conv2d(6, 8, 3, bias=True),
    "no bias": lambda: nn.Conv2d(6, 8, 3, bias=False),
    "groups": lambda: nn.Conv2d(6, 8, 3, groups=2),
    "depthwise": lambda: nn.Conv2d(6, 12, 3, groups=6, bias=False),
    "stride": lambda: nn.Conv2d(6, 8, 3, stride=2, padding=1),
    "dilation": lambda: nn.Conv2d(6, 8, 3, dilation=2),
    "reflect": lambda: nn.Conv2d(6, 8, 3, padding=1, padding_mode="reflect"),
    "replicate": lambda: nn.Conv2d(6, 8, 3, padding=2, padding_mode="replicate"),
    "circular": lambda: nn.Conv2d(6, 8, 3, padding=1, padding_mode="circular"),
    "same": lambda: nn.Conv2d(6, 8, (3, 2), padding="same"),
    "1d": lambda: nn.Conv1d(6, 8, 3, groups=2),
    "3d": lambda: nn.Conv3d(2, 4, (1, 3, 2), groups=2),
    "transposed": lambda: nn.ConvTranspose2d(6, 8, 3, stride=2, output_padding=1),
    "transposed, no bias": lambda: nn.ConvTranspose2d(6, 8, 2, bias=False),
    "transposed, groups": lambda: nn.ConvTranspose2d(6, 9, 3, groups=3, stride=2),
    "transposed, dilation": lambda: nn.ConvTranspose2d(6, 8, 3, dilation=2, groups=2),
    "transposed, 1d": lambda: nn.ConvTranspose1d(6, 8, 3, groups=2),
    "linear": lambda: nn.Linear(6, 8),
    "linear, no bias": lambda: nn.Linear(6, 8, bias=False),
}


@pytest.mark.parametrize("make", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "no affine"])
def test_fused_convolution_is_the_pair(make, affine):
    conv = make()
    pair = randomize_(nn.Sequential(conv, bn_like(conv, affine=affine))).double().eval()
    x = random_input(conv)
    assert relative_error(fuse_conv_bn(*pair)(x), pair(x)) <= EXACT


def test_eps_is_read_from_the_batch_norm():
    conv, narrow, wide = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, eps=1e-5), nn.BatchNorm2d(4, eps=0.5)
    x = random_input(conv)
    for bn in (narrow, wide):
        pair = nn.Sequential(conv, bn).double().eval()
        assert relative_error(fuse_conv_bn(conv, bn)(x), pair(x)) <= EXACT
    assert not torch.equal(fuse_conv_bn(conv, narrow).weight, fuse_conv_bn(conv, wide).weight)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_statistics_that_were_gathered_in_training_are_folded(momentum):
    pair = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=momentum)).double()
    for _ in range(3):
        pair(3 + 2 * torch.randn(4, 3, 8, 8, dtype=torch.float64))
    x = random_input(pair[0])
    pair.eval()
    assert relative_error(fuse_conv_bn(*pair)(x), pair(x)) <= EXACT


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("trains", [True, False], ids=["trains", "frozen"])
def test_dtype_and_requires_grad_are_kept(dtype, trains):
    pair = randomize_(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))).requires_grad_(trains).to(dtype)
    fused = fuse_conv_bn(*pair)
    assert (fused.weight.dtype, fused.bias.dtype) == (dtype, dtype)
    assert fused.weight.requires_grad == fused.bias.requires_grad == trains


def test_low_precision_weights_are_rounded_once():
    pair = randomize_(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).half()
    exact = fuse_conv_bn(*copy.deepcopy(pair).double())
    assert torch.equal(fuse_conv_bn(*pair).weight, exact.weight.half())


def test_meta_device_is_kept():
    assert fuse_conv_bn(nn.Conv2d(3, 4, 3, device="meta"), nn.BatchNorm2d(4, device="meta")).weight.is_meta


def test_inputs_of_fuse_conv_bn_are_left_alone():
    pair = randomize_(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    before = copy.deepcopy(pair.state_dict())
    fused = fuse_conv_bn(*pair)
    with torch.no_grad():
        fused.weight.zero_()
        fused.bias.zero_()
    assert all(torch.equal(before[name], tensor) for name, tensor in pair.state_dict().items())


def test_batch_norm_without_running_statistics_is_refused():
    with pytest.raises(ValueError, match="running statistics"):
        fuse_conv_bn(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))


def test_other_channel_count_is_refused():
    with pytest.raises(ValueError, match=r"4 channels .* takes 5"):
        fuse_conv_bn(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(5))


# fuse_bn_conv ---------------------------------------------------------------------------------------------------------
READERS = {
    "1x1": lambda: nn.Conv2d(6, 8, 1),
    "no bias": lambda: nn.Conv2d(6, 8, 3, bias=False),
    "groups": lambda: nn.Conv2d(6, 8, (3, 2), groups=2, stride=2),
    "depthwise": lambda: nn.Conv2d(6, 12, 3, groups=6, dilation=2),
    "valid": lambda: nn.Conv2d(6, 8, 3, padding="valid"),
    "reflect": lambda: nn.Conv2d(6, 8, 3, padding=1, padding_mode="reflect"),
    "circular": lambda: nn.Conv2d(6, 8, 3, padding=1, padding_mode="circular", groups=2),
    "1d": lambda: nn.Conv1d(6, 8, 3, groups=2),
    "3d": lambda: nn.Conv3d(2, 4, (1, 3, 2), groups=2),
    "linear": lambda: nn.Linear(6, 8),
    "linear, no bias": lambda: nn.Linear(6, 8, bias=False),
}


def bn_before(conv, **options):
    channels = conv.in_features if isinstance(conv, nn.Linear) else conv.in_channels
    kind = {3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}.get(conv.weight.ndim, nn.BatchNorm1d)
    return kind(channels, **options)


@pytest.mark.parametrize("make", READERS.values(), ids=READERS)
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "no affine"])
def test_a_convolution_takes_the_batch_norm_before_it(make, affine):
    conv = make()
    pair = randomize_(nn.Sequential(bn_before(conv, affine=affine), conv)).double().eval()
    x = random_input(conv)
    assert relative_error(fuse_bn_conv(*pair)(x), pair(x)) <= EXACT


@pytest.mark.parametrize("name", ["1x1", "groups", "reflect", "linear"])
def test_a_batch_norm_goes_into_the_convolution_that_alone_reads_it(name):
    conv = READERS[name]()
    net = randomize_(nn.Sequential(bn_before(conv), conv)).double().eval()
    x = random_input(conv)
    deploy = switch_to_deploy(net, x)
    assert not batch_norms(deploy)
    assert deploy.report.fused == {"BN+Conv": 1}
    assert relative_error(deploy(x), net(x)) <= EXACT


def test_zero_padding_keeps_the_batch_norm_before_it():
    """The border is zero after the norm: inside the convolution it would be shifted."""
    net = randomize_(nn.Sequential(nn.BatchNorm2d(6), nn.Conv2d(6, 8, 3, padding=1))).double().eval()
    with pytest.raises(ValueError, match="pads with zeros"):
        fuse_bn_conv(*net)
    x = random_input(net[1])
    deploy = switch_to_deploy(net, x)
    assert "pads with zeros" in deploy.report.left[0]
    assert torch.equal(deploy(x), net(x))


def test_zero_padding_without_a_shift_is_no_obstacle():
    net = nn.Sequential(nn.BatchNorm2d(6), nn.Conv2d(6, 8, 3, padding=1)).double().eval()
    net[0].running_var.uniform_(0.5, 2)
    x = random_input(net[1])
    assert not batch_norms(switch_to_deploy(net, x))
    assert relative_error(fuse_bn_conv(*net)(x), net(x)) <= EXACT


class TwoReaders(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.first, self.second = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)

    def forward(self, x):
        x = self.norm(x)
        return self.first(x) + self.second(x)


def test_a_batch_norm_with_two_readers_stays():
    net = randomize_(TwoReaders()).double().eval()
    deploy = switch_to_deploy(net, pictures())
    assert batch_norms(deploy) == ["norm"]
    assert relative_error(deploy(pictures()), net(pictures())) <= EXACT


def test_a_transposed_reader_or_other_channels_are_refused():
    with pytest.raises(ValueError, match="transposed"):
        fuse_bn_conv(nn.BatchNorm2d(6), nn.ConvTranspose2d(6, 8, 2))
    with pytest.raises(ValueError, match="gives 5 channels and the convolution takes 6"):
        fuse_bn_conv(nn.BatchNorm2d(5), nn.Conv2d(6, 8, 1))


def test_blocks_alone_can_be_fused():
    """The form in which deploy weights are published: BatchNorms outside of blocks stay."""
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), create_backbone("RIFormer").network[0][0])
    fused = fuse_blocks(net)
    assert batch_norms(fused) == ["1"]
    assert fused.report.fused == {"RIFormerBlock": 1}
    assert isinstance(net[2], Reparameterizable)


# switch_to_deploy: what it keeps --------------------------------------------------------------------------------------
def small_net():
    blocks = [nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)]
    return randomize_(nn.Sequential(*blocks)).double()


def test_original_is_untouched():
    net = small_net().train()
    before = copy.deepcopy(net.state_dict())
    switch_to_deploy(net, pictures())
    assert all(module.training for module in net.modules())
    assert batch_norms(net)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_copy_shares_nothing_with_the_original():
    net = small_net()
    theirs = {tensor.data_ptr() for tensor in net.state_dict().values()}
    assert not theirs & {tensor.data_ptr() for tensor in switch_to_deploy(net, pictures()).state_dict().values()}


def test_copy_is_in_eval_mode():
    assert not any(module.training for module in switch_to_deploy(small_net().train(), pictures()).modules())


def test_training_statistics_do_not_move():
    net = small_net().train()
    before = net[1].running_mean.clone()
    switch_to_deploy(net, pictures())
    assert torch.equal(net[1].running_mean, before)


@pytest.fixture(scope="module", params=SWEPT)
def pair(request):
    """Return (model, deploy) of each shipped YAML in turn, float64 in eval mode with random weights.

    Statistics are those of random pictures: with random ones deep networks forget what they are shown.
    """
    model = randomize_(create_model(request.param, nc=3)).double()
    calibrate_batch_norms(model, pictures_for(model, 4, 4))
    if model.task == "classify":
        tell_apart_(model, pictures_for(model, 2, 4))
    return model, switch_to_deploy(model)


@pytest.mark.slow
def test_fusing_twice_changes_nothing(pair):
    _, once = pair
    twice = switch_to_deploy(once)
    assert str(twice) == str(once)
    assert twice.report == once.report
    assert all(torch.equal(a, b) for a, b in zip(once.state_dict().values(), twice.state_dict().values(), strict=True))


def test_example_input_is_asked_for():
    with pytest.raises(TypeError, match="example input for a Sequential"):
        switch_to_deploy(small_net())


def test_deployed_copy_can_be_trained():
    net = switch_to_deploy(small_net(), pictures())
    net(pictures()).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_reparameterizable_root_is_replaced():
    class Twice(Reparameterizable):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return 2 * self.conv(x)

        def fuse(self):
            fused = copy.deepcopy(self.conv)
            fused.weight.data *= 2
            fused.bias.data *= 2
            return fused

    block = Twice().double()
    fused = switch_to_deploy(block, pictures())
    assert type(fused) is nn.Conv2d
    assert fused.report.fused == {"Twice": 1}
    assert worst_error(fused, block, pictures()) <= EXACT


# switch_to_deploy: what it folds, and what it must not ----------------------------------------------------------------
class Net(nn.Module):
    """A convolution `a`, a BatchNorm `b`, a second convolution `c`, or other `parts`; `wire(net, x)` is the forward."""

    def __init__(self, wire, **parts):
        super().__init__()
        defaults = {"a": nn.Conv2d(3, 3, 3, padding=1), "b": nn.BatchNorm2d(3), "c": nn.Conv2d(3, 3, 1)}
        for name, part in {**defaults, **parts}.items():
            setattr(self, name, part)
        self.wire = wire

    def forward(self, x):
        return self.wire(self, x)


class Standardized(nn.Conv2d):
    """A convolution that computes its weights, in `forward`."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight / self.weight.std((1, 2, 3), keepdim=True), self.bias)


class StandardizedInside(nn.Conv2d):
    """A convolution that computes its weights, in `_conv_forward`."""

    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight / weight.std((1, 2, 3), keepdim=True), bias)


class DoubledBatchNorm(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


def aliased(*names):
    """Return a net that runs a convolution and a BatchNorm which have, first, other names as well."""
    parts = {"a": nn.Conv2d(3, 8, 3), "b": nn.BatchNorm2d(8)}
    known = {name: parts[name] if name in names else None for name in parts}
    return Net(lambda net, x: net.run(x), **known, run=nn.Sequential(*parts.values()))


def halved_output(net, x):
    y = net.a(x)
    y.mul_(0.5)
    return net.b(y)


def write_through_a_view(net, x):
    y = net.a(x)
    y[:, 0] = 0
    return net.b(y)


def two_readers(net, x):
    y = net.a(x)
    return net.b(y) + y


def conv_twice(net, x):
    return net.b(net.a(net.a(x)))


def dropped_output(net, x):
    net.a(x)
    return net.b(x + 1)


def also_returned(net, x):
    y = net.a(x)
    return [y, net.b(y)]


def weight_used_again(net, x):
    return net.b(net.a(x)) + nn.functional.conv2d(x, net.a.weight, padding=1)


def hooked():
    conv = nn.Conv2d(3, 3, 1)
    conv.register_forward_hook(lambda module, inputs, output: output.relu())
    return conv


NOT_FOLDED = {
    "batch norm first": lambda: Net(lambda n, x: n.a(n.b(x))),
    "functional between": lambda: Net(lambda n, x: n.b(torch.relu(n.a(x)))),
    "in place between": lambda: Net(halved_output),
    "view between": lambda: Net(lambda n, x: n.b(n.a(x).flip(1))),
    "write through a view": lambda: Net(write_through_a_view),
    "two readers": lambda: Net(two_readers),
    "convolution used twice": lambda: Net(conv_twice),
    "batch norm used twice": lambda: Net(lambda n, x: n.b(n.a(x)) + n.b(n.c(x))),
    "sum of two convolutions": lambda: Net(lambda n, x: n.b(n.a(x) + n.c(x))),
    "pre-norm shared by two": lambda: Net(lambda n, x: n.a(n.b(x)) + n.c(n.b(x))),
    "computed weights": lambda: Net(lambda n, x: n.b(n.a(x)), a=Standardized(3, 3, 3)),
    "computed weights inside": lambda: Net(lambda n, x: n.b(n.a(x)), a=StandardizedInside(3, 3, 3)),
    "weight norm": lambda: Net(lambda n, x: n.b(n.a(x)), a=parametrizations.weight_norm(nn.Conv2d(3, 3, 3))),
    "batch statistics": lambda: Net(lambda n, x: n.b(n.a(x)), b=nn.BatchNorm2d(3, track_running_stats=False)),
    "own batch norm": lambda: Net(lambda n, x: n.b(n.a(x)), b=DoubledBatchNorm(3)),
    "output dropped": lambda: Net(dropped_output),
    "output also returned": lambda: Net(also_returned),
    "output kept aside": lambda: Net(lambda n, x: (n.b(y := n.a(x)), y)),
    "weight used again": lambda: Net(weight_used_again),
    "hook on the convolution": lambda: Net(lambda n, x: n.b(n.a(x)), a=hooked()),
    "rows of a sequence": lambda: Net(lambda n, x: n.b(n.a(x[:, 0, :8, :8])), a=nn.Linear(8, 8), b=nn.BatchNorm1d(8)),
}


@pytest.mark.parametrize("make", NOT_FOLDED.values(), ids=NOT_FOLDED)
def test_what_cannot_be_folded_is_left_with_a_reason(make):
    net = randomize_(make()).double().eval()
    deploy = switch_to_deploy(net, pictures())
    assert worst_error(deploy, net, pictures()) <= EXACT
    assert batch_norms(deploy) == ["b"]
    assert [entry.partition(": ")[0] for entry in deploy.report.left] == ["b"]
    assert len(deploy.report.left[0]) > 20


def nested():
    return nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 3)), nn.BatchNorm2d(8))


FOLDED = {
    "pair": lambda: Net(lambda n, x: n.b(n.a(x))),
    "by keyword": lambda: Net(lambda n, x: n.b(input=n.a(x))),
    "attributes in odd order": lambda: Net(lambda n, x: n.a(n.b(n.c(x)))),
    "two pairs": lambda: Net(lambda n, x: n.d(n.c(n.b(n.a(x)))), d=nn.BatchNorm2d(3)),
    "nested": lambda: Net(lambda n, x: n.a(x), a=nested(), b=None),
    "linear": lambda: Net(lambda n, x: n.b(n.a(x[:, :, 0, 0])), a=nn.Linear(3, 8), b=nn.BatchNorm1d(8)),
    "synchronized": lambda: Net(lambda n, x: n.b(n.a(x)), b=nn.SyncBatchNorm(3)),
    "transposed": lambda: Net(lambda n, x: n.b(n.a(x)), a=nn.ConvTranspose2d(3, 4, 2, 2), b=nn.BatchNorm2d(4)),
    "two names for the convolution": lambda: aliased("a"),
    "two names for the batch norm": lambda: aliased("b"),
    "two names for both": lambda: aliased("a", "b"),
}


@pytest.mark.parametrize("make", FOLDED.values(), ids=FOLDED)
def test_what_can_be_folded_is(make):
    net = randomize_(make()).double().eval()
    deploy = switch_to_deploy(net, pictures())
    assert worst_error(deploy, net, pictures()) <= EXACT
    assert not batch_norms(deploy)
    assert not deploy.report.left
    assert set(deploy.report.fused) == {"Conv+BN"}


def test_a_library_registers_how_it_fuses_once_it_is_imported(monkeypatch):
    calls = []
    monkeypatch.setattr("models.blocks.reparam._LIBRARIES", {"slow_library": lambda: calls.append(1)})
    net = small_net().eval()
    switch_to_deploy(net, pictures())
    assert not calls
    monkeypatch.setitem(sys.modules, "slow_library", object())
    for _ in range(2):
        switch_to_deploy(net, pictures())
    assert calls == [1]


@pytest.mark.parametrize("act", [nn.ReLU, None])
def test_activation_inside_a_timm_batch_norm_stays(act):
    norm = timm.layers.BatchNormAct2d(8, act_layer=act or nn.Identity, apply_act=act is not None)
    net = randomize_(nn.Sequential(nn.Conv2d(3, 8, 3), norm)).double().eval()
    deploy = switch_to_deploy(net, pictures())
    assert not batch_norms(deploy)
    assert worst_error(deploy, net, pictures()) <= EXACT
    assert (deploy(pictures()).min() >= 0) == (act is nn.ReLU)


def test_the_example_may_be_of_another_size():
    net = small_net().eval()
    assert worst_error(switch_to_deploy(net, pictures(31, 17)), net, pictures(64, 96)) <= EXACT


# Whole networks -------------------------------------------------------------------------------------------------------
def assert_no_branches(deploy):
    left = [entry.partition(": ")[0] for entry in deploy.report.left]
    assert batch_norms(deploy) == left
    assert not [name for name, m in deploy.named_modules() if isinstance(m, Reparameterizable)]


def output_of(model):
    """Return a function that gives predictions and raw maps; where one branch only trains, predictions alone."""
    return (lambda x: model(x)[0]) if model.end2end else model


@pytest.mark.parametrize("size", [(3, 2), (2, 5)], ids=str)
def test_fused_model_is_the_model(size, pair):
    model, deploy = pair
    assert worst_error(output_of(deploy), output_of(model), pictures_for(model, *size)) <= SAME


def test_fused_model_has_no_branches_and_no_batch_norm(pair):
    _, deploy = pair
    assert_no_branches(deploy)
    left = {line.partition(":")[0] for line in deploy.report.left}
    assert left == set(batch_norms(deploy))
    assert all(name.endswith("prebn1") for name in left), "RepMLPNet's alone cannot be folded"


def test_a_wrong_weight_would_show(pair):
    model, deploy = pair
    wrong = copy.deepcopy(deploy)
    conv = next(m for m in wrong.modules() if isinstance(m, nn.Conv2d))
    with torch.no_grad():
        conv.weight *= 1 + 1e-3
    assert worst_error(output_of(wrong), output_of(model), pictures_for(model)) > 1e3 * SAME


def backbone_pair(name, arch, **options):
    backbone = randomize_(create_backbone(name, arch, **options)).double().eval()
    return backbone, switch_to_deploy(backbone)


def test_fused_riformer_is_the_riformer():
    backbone, deploy = backbone_pair("RIFormer", "s12")
    assert deploy.report.fused == {"RIFormerBlock": sum(ARCHS["s12"].depths), "GroupNorm": 4}
    assert_no_branches(deploy)
    assert worst_error(deploy, backbone, pictures()) <= SAME


@pytest.mark.slow
@pytest.mark.parametrize("arch", TIMM)
def test_fused_timm_backbone_is_the_backbone(arch):
    backbone, deploy = backbone_pair("timm", arch)
    assert_no_branches(deploy)
    assert not deploy.report.left
    assert worst_error(deploy, backbone, pictures(128, 64)) <= SAME


def test_a_level_that_is_a_convolutions_output_stays_that_level():
    """GhostNets give out their stem before its BatchNorm: folding it would change the level."""
    backbone, deploy = backbone_pair("timm", "ghostnet_050", out_strides=(2, 4))
    assert worst_error(deploy, backbone, pictures(64, 96)) <= SAME


def test_sizes_that_no_stride_divides():
    backbone, deploy = backbone_pair("RIFormer", "s12", out_strides=(4, 8))
    for size in ((97, 61), (33, 130)):
        assert worst_error(deploy, backbone, pictures(*size)) <= SAME


def test_a_network_keeps_its_dtype():
    backbone = randomize_(create_backbone("timm", "mobileone_s0", out_strides=(2, 4))).bfloat16().eval()
    deploy = switch_to_deploy(backbone)
    assert {p.dtype for p in deploy.parameters()} == {torch.bfloat16}
    assert deploy(pictures(32, 32, dtype=torch.bfloat16))[0].dtype == torch.bfloat16
