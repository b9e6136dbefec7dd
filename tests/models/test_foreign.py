"""Blocks of someone else: fused by a method of their own where that computes the same, listed where not."""

import copy

import pytest
import torch
from timm.models.byobnet import MobileOneBlock as TimmMobileOne
from torch import nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d

from models import Reparameterizable, create_model, switch_to_deploy
from models.blocks.reparam import fuse_conv_bn
from models.layers import LAYERS
from tests.helpers import pictures, randomize_, relative_error, worst_error

EXACT = 1e-9


def conv_bn(c1, c2, k, s=1, groups=1):
    layers = {"conv": nn.Conv2d(c1, c2, k, s, k // 2, groups=groups, bias=False), "bn": nn.BatchNorm2d(c2)}
    pair = nn.Sequential()
    for name, layer in layers.items():
        pair.add_module(name, layer)
    return pair


def kernel_bias(pair, k=3):
    fused = fuse_conv_bn(pair.conv, pair.bn)
    margin = (k - fused.kernel_size[0]) // 2
    return F.pad(fused.weight.data, [margin] * 4), fused.bias.data


class RepVGG(nn.Module):
    """As its authors write it: a flag `deploy`, `switch_to_deploy` in place, attributes that are deleted."""

    def __init__(self, c1=3, c2=8, s=1):
        super().__init__()
        self.rbr_dense, self.rbr_1x1 = conv_bn(c1, c2, 3, s), conv_bn(c1, c2, 1, s)
        self.rbr_identity = nn.BatchNorm2d(c1) if c1 == c2 and s == 1 else None

    def forward(self, x):
        if hasattr(self, "rbr_reparam"):
            return self.rbr_reparam(x).relu()
        y = self.rbr_dense(x) + self.rbr_1x1(x)
        return (y if self.rbr_identity is None else y + self.rbr_identity(x)).relu()

    def merged(self):
        branches = [kernel_bias(self.rbr_dense), kernel_bias(self.rbr_1x1)]
        if self.rbr_identity is not None:
            pair = conv_bn(self.rbr_identity.num_features, self.rbr_identity.num_features, 1)
            nn.init.dirac_(pair.conv.weight)
            pair.bn = self.rbr_identity
            branches.append(kernel_bias(pair))
        return [sum(parts) for parts in zip(*branches, strict=True)]

    def switch_to_deploy(self):
        if hasattr(self, "rbr_reparam"):
            return
        weight, bias = self.merged()
        dense = self.rbr_dense.conv
        self.rbr_reparam = nn.Conv2d(dense.in_channels, dense.out_channels, 3, dense.stride, 1)
        self.rbr_reparam.weight.data, self.rbr_reparam.bias.data = weight, bias
        for para in self.parameters():
            para.detach_()
        for name in ("rbr_dense", "rbr_1x1", "rbr_identity"):
            delattr(self, name)
        self.deploy = True


class MobileOne(RepVGG):
    """Has `reparameterize`, and a flag that `forward` asks."""

    switch_to_deploy = None
    inference_mode = False

    def forward(self, x):
        return self.reparam_conv(x).relu() if self.inference_mode else super().forward(x)

    def reparameterize(self):
        if self.inference_mode:
            return
        weight, bias = self.merged()
        self.reparam_conv = nn.Conv2d(weight.shape[1], weight.shape[0], 3, self.rbr_dense.conv.stride, 1)
        self.reparam_conv.weight.data, self.reparam_conv.bias.data = weight, bias
        del self.rbr_dense, self.rbr_1x1, self.rbr_identity
        self.inference_mode = True


class Pair(nn.Sequential):
    """RepViT's Conv2d_BN: `fuse` returns another module."""

    def __init__(self, c1=3, c2=8):
        super().__init__(nn.Conv2d(c1, c2, 3, padding=1, groups=1, bias=False), nn.BatchNorm2d(c2))

    @torch.no_grad()
    def fuse(self):
        conv, bn = self._modules.values()
        scale = bn.weight / (bn.running_var + bn.eps) ** 0.5
        fused = nn.Conv2d(conv.in_channels, conv.out_channels, 3, padding=1)
        fused.weight.data.copy_(conv.weight * scale[:, None, None, None])
        fused.bias.data.copy_(bn.bias - bn.running_mean * scale)
        return fused


class Residual(nn.Module):
    """RepViT's: its `fuse` asks the block inside, and gives up where that is none it knows."""

    def __init__(self, inside=None):
        super().__init__()
        self.m = inside or Pair(3, 3)

    def forward(self, x):
        return x + self.m(x)

    def fuse(self):
        if not isinstance(self.m, Pair):
            return self
        fused = self.m.fuse()
        fused.weight.data[range(3), range(3), 1, 1] += 1
        return fused


class LargeKernel(nn.Module):
    """RepLKNet's: `merge_kernel` fails when it is called again."""

    def __init__(self):
        super().__init__()
        self.lkb_origin, self.small_conv = conv_bn(3, 3, 7, groups=3), conv_bn(3, 3, 3, groups=3)

    def forward(self, x):
        if hasattr(self, "lkb_reparam"):
            return self.lkb_reparam(x)
        return self.lkb_origin(x) + self.small_conv(x)

    def merge_kernel(self):
        (weight, bias), (small, small_bias) = kernel_bias(self.lkb_origin, 7), kernel_bias(self.small_conv, 7)
        self.lkb_reparam = nn.Conv2d(3, 3, 7, padding=3, groups=3)
        self.lkb_reparam.weight.data, self.lkb_reparam.bias.data = weight + small, bias + small_bias
        del self.lkb_origin, self.small_conv


class TwoInputs(nn.Module):
    """Gives its block a list and a keyword."""

    def __init__(self):
        super().__init__()
        self.branch = Branch()

    def forward(self, x):
        return self.branch([x, x.flip(2)], factor=2.0)


class Branch(RepVGG):
    """Also has a `fuse` of another meaning, which takes arguments."""

    def forward(self, maps, factor=1.0):
        return factor * super().forward(maps[0]) + super().forward(maps[1])

    def fuse(self, first, second):
        return first + second


class Shared(nn.Module):
    """One block at two places, which run at two sizes."""

    def __init__(self):
        super().__init__()
        self.first = RepVGG(3, 3)
        self.again = self.first

    def forward(self, x):
        return self.first(x), self.again(x[:, :, ::2, ::3])


class Grown(Reparameterizable):
    """One of ours that holds one of theirs, which comes out when ours is fused."""

    def __init__(self):
        super().__init__()
        self.theirs, self.ours = RepVGG(), conv_bn(8, 8, 3)

    def forward(self, x):
        return self.ours(self.theirs(x))

    def fuse(self):
        return nn.Sequential(copy.deepcopy(self.theirs), fuse_conv_bn(self.ours.conv, self.ours.bn))


class Holder(nn.Module):
    """One of theirs that holds one of ours; its method says that it is fused, and leaves ours to others."""

    def __init__(self):
        super().__init__()
        self.theirs, self.ours = RepVGG(), Grown()

    def forward(self, x):
        return self.theirs(x), self.ours(x)

    def switch_to_deploy(self):
        self.theirs.switch_to_deploy()


class TimmSubclass(TimmMobileOne):
    """Derives from timm's block, whose `reparameterize` it inherits."""


def whole():
    class Network(nn.Sequential):
        def switch_to_deploy(self):
            for module in list(self.children()):
                module.switch_to_deploy()

    return Network(RepVGG(3, 8), RepVGG(8, 8), RepVGG(8, 6, 2))


FUSED = {
    "RepVGG": (lambda: nn.Sequential(RepVGG(3, 8, 2), RepVGG(8, 8)), {"RepVGG": 2}),
    "MobileOne": (lambda: nn.Sequential(MobileOne(), MobileOne(8, 8)), {"MobileOne": 2}),
    "RepViT": (lambda: nn.Sequential(Residual(), Pair()), {"Residual": 1, "Pair": 1}),
    "a root that another module replaces": (Pair, {"Pair": 1}),
    "gives up outside, fuses inside": (lambda: Residual(nn.Sequential(Pair(3, 3))), {"Pair": 1}),
    "RepLKNet": (lambda: nn.Sequential(LargeKernel()), {"LargeKernel": 1}),
    "lists, keywords, two methods": (TwoInputs, {"Branch": 1}),
    "shared": (Shared, {"RepVGG": 1}),
    "theirs in ours": (Grown, {"Grown": 1, "RepVGG": 1}),
    "ours in theirs": (Holder, {"Holder": 1, "Grown": 1, "RepVGG": 1}),
    "a whole network": (whole, {"Network": 1}),
    "derived from timm's": (lambda: nn.Sequential(TimmSubclass(3, 8, 3, num_conv_branches=2)), {"TimmSubclass": 1}),
}


@pytest.mark.parametrize(("make", "expected"), FUSED.values(), ids=FUSED)
def test_a_right_method_fuses(make, expected):
    net = randomize_(make()).double()
    net.train()
    before = copy.deepcopy(net.state_dict())
    deploy = switch_to_deploy(net, pictures())
    assert net.training
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert worst_error(deploy, net.eval(), pictures(64, 37)) <= EXACT
    assert {kind: deploy.report.fused[kind] for kind in expected} == expected
    assert not deploy.report.left
    assert not any(isinstance(m, nn.BatchNorm2d) for m in deploy.modules())
    assert not any(m.training for m in deploy.modules())
    again = switch_to_deploy(deploy, pictures())
    assert (again.report, str(again)) == (deploy.report, str(deploy))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtype_and_random_numbers_are_kept(dtype):
    net = randomize_(nn.Sequential(RepVGG(3, 8), Pair(8, 4))).to(dtype)
    state = torch.get_rng_state()
    deploy = switch_to_deploy(net, pictures(dtype=dtype))
    assert {p.dtype for p in deploy.parameters()} == {dtype}
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_default_dtype() == torch.float32
    exact = switch_to_deploy(copy.deepcopy(net).double(), pictures())
    assert relative_error(deploy[1].weight, exact[1].weight.to(dtype)) == 0, "rounded once"


class ForgetsMean(Pair):
    def fuse(self):
        fused = super().fuse()
        fused.bias.data.copy_(self[1].bias)
        return fused


class Raises(Pair):
    def fuse(self):
        raise KeyError("rbr_dense")


class Float32(Pair):
    def fuse(self):
        return super().fuse().float()


class RoundsTo32(Pair):
    def fuse(self):
        fused = super().fuse()
        fused.weight.data = fused.weight.data.float().double()
        return fused


class OtherDevice(Pair):
    def fuse(self):
        return super().fuse().to("meta")


class NeedsArguments(Pair):
    def fuse(self, eps):
        return super().fuse()


class Breaks(Pair):
    def fuse(self):
        del self[0]
        return self


class OtherShape(Pair):
    def fuse(self):
        return nn.Sequential(super().fuse(), nn.AvgPool2d(2))


class OtherNumber(Pair):
    def fuse(self):
        return nn.ModuleList([super().fuse()])


class OnlyLargePictures(Pair):
    """Its `fuse` forgets what happens to pictures of more than 32 pixels, which the example is."""

    def forward(self, x):
        return super().forward(x) * (2 if x.shape[-1] > 32 else 1)


WRONG = {
    ForgetsMean: "computes something else",
    Raises: "raises KeyError: 'rbr_dense'",
    Float32: "tensors of float32 on cpu",
    RoundsTo32: "computes something else",
    OtherDevice: "on meta",
    NeedsArguments: "takes eps and was not called",
    Breaks: "does not run",
    OtherShape: "other shapes",
    OtherNumber: "does not run",
    OnlyLargePictures: "computes something else",
}


@pytest.mark.parametrize(("kind", "reason"), WRONG.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_a_wrong_method_is_listed_with_what_to_do(kind, reason):
    net = randomize_(nn.Sequential(nn.Conv2d(3, 3, 1), kind())).double().eval()
    deploy = switch_to_deploy(net, pictures())
    assert kind.__name__ not in deploy.report.fused
    (entry,) = deploy.report.left
    assert entry.startswith("1: its fuse()" if "takes" in reason or "raises" in reason else "1: ")
    assert reason in entry
    assert entry.endswith("derive from Reparameterizable, whose fuse() returns the fused module")
    assert worst_error(deploy, net, pictures()) <= EXACT
    assert worst_error(deploy, net, pictures(16, 24)) <= EXACT
    assert deploy.report.fused == {"Conv+BN": 1}, "its pair is folded all the same"


class InFloat32Alone(Pair):
    """Its `forward` has a constant of a fixed type."""

    def forward(self, x):
        return nn.functional.conv2d(super().forward(x), torch.ones(8, 8, 1, 1, dtype=torch.float32))


def test_a_block_that_cannot_be_checked_is_told_apart_from_a_wrong_method():
    net = nn.Sequential(nn.Conv2d(3, 3, 1), InFloat32Alone()).eval()
    (entry,) = switch_to_deploy(net, pictures(dtype=torch.float32)).report.left
    assert entry.startswith("1: its fuse() cannot be checked: the block does not run in float64: RuntimeError: ")


class ReadsParts(nn.Module):
    """What stands around a block reads a part that its method takes away."""

    def __init__(self):
        super().__init__()
        self.inside = Pair()

    def forward(self, x):
        return self.inside(x) * self.inside[0].groups


def test_a_network_that_reads_the_parts_of_a_block_keeps_it():
    net = randomize_(nn.Sequential(ReadsParts(), RepVGG(8, 8))).double().eval()
    deploy = switch_to_deploy(net, pictures())
    assert worst_error(deploy, net, pictures()) <= EXACT
    assert not deploy.report.by_own_method
    assert deploy.report.left[0].startswith("the network: it does not run with 0.inside, 1 fused: TypeError")


def test_a_method_that_only_small_pictures_agree_with_is_judged_by_what_the_block_gets():
    net = randomize_(nn.Sequential(nn.MaxPool2d(4), OnlyLargePictures())).double().eval()
    assert switch_to_deploy(net, pictures(96, 64)).report.fused == {"OnlyLargePictures": 1}
    assert switch_to_deploy(net, pictures(96, 256)).report.left


def test_a_method_that_asks_for_fusing_comes_to_an_end():
    class Asks(nn.Sequential):
        def switch_to_deploy(self):
            return switch_to_deploy(self, torch.zeros(1, 3, 8, 8, dtype=torch.float64))

    net = randomize_(Asks(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).double().eval()
    deploy = switch_to_deploy(net, pictures())
    assert deploy.report.fused["Asks"] == 1
    assert worst_error(deploy, net, pictures()) <= EXACT


def test_one_that_does_not_run_is_listed():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = RepVGG(), RepVGG()

        def forward(self, x):
            return self.used(x)

    report = switch_to_deploy(Idle(), torch.rand(1, 3, 8, 8)).report
    assert report.fused == {"RepVGG": 1}
    assert sum("does not run on the example picture" in entry for entry in report.left) == 1 + 2  # block and its norms


def test_without_data_nothing_is_trusted():
    with torch.device("meta"):
        report = switch_to_deploy(nn.Sequential(Pair()), torch.empty(1, 3, 8, 8)).report
    assert report.fused == {"Conv+BN": 1}
    assert "no data" in report.left[0]


def test_in_a_model_of_a_yaml():
    @LAYERS.register("TheirRepVGG")
    def their_rep_vgg(site, c2: int):
        return site.layer(RepVGG(site.input.channels, c2), c2)

    try:
        rows = [[-1, 1, "Conv", [8, 3, 32]], [-1, 1, "TheirRepVGG", [8]]]
        model = create_model({"nc": 2, "backbone": rows, "head": [[[-1], 1, "Detect", ["nc"]]]})
        deploy = switch_to_deploy(randomize_(model).eval())
    finally:
        del LAYERS._entries["TheirRepVGG"]
    assert deploy.report.fused["RepVGG"] == 1
    assert not deploy.report.left


# Norms ----------------------------------------------------------------------------------------------------------------
class BySize(nn.Module):
    """A convolution that one BatchNorm reads in small pictures, another one in large ones."""

    def __init__(self):
        super().__init__()
        self.conv, self.small, self.large = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x):
        return (self.small if x.shape[-1] < 100 else self.large)(self.conv(x))


def test_a_batch_norm_of_another_picture_size_is_not_folded_wrongly():
    net = randomize_(nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), BySize())).double().eval()
    deploy = switch_to_deploy(net, pictures())
    assert deploy.report.fused == {"Conv+BN": 1}
    assert [entry.partition(":")[0] for entry in deploy.report.left] == ["2.small", "2.large"]
    for x in (pictures(), pictures(32, 128)):
        assert worst_error(deploy, net, x) <= EXACT


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_an_instance_norm_with_running_statistics_is_folded(affine, dim):
    conv, norm = getattr(nn, f"Conv{dim}d")(3, 6, 3, groups=3), getattr(nn, f"InstanceNorm{dim}d")
    net = nn.Sequential(conv, norm(6, affine=affine, track_running_stats=True)).double().eval()
    g = torch.Generator().manual_seed(0)
    for tensor in (t for t in net[1].state_dict().values() if t.is_floating_point()):
        tensor.copy_(torch.rand(6, generator=g, dtype=torch.float64) + 0.5)
    x = torch.randn(2, 3, *(7, 9, 5)[:dim], dtype=torch.float64, generator=g)
    deploy = switch_to_deploy(net, x)
    assert len(list(deploy.parameters())) == 2
    assert relative_error(deploy(x), net(x)) <= EXACT
    assert not deploy.report.left


def test_an_instance_norm_of_the_picture_stays():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4)).double().eval()
    deploy = switch_to_deploy(net, pictures())
    assert torch.equal(deploy(pictures()), net(pictures()))


class OwnFrozen(nn.Module):
    """As DETR writes it: a frozen BatchNorm of its own class."""

    def __init__(self):
        super().__init__()
        for name, value in {"weight": 1, "bias": 0, "running_mean": 0, "running_var": 1}.items():
            self.register_buffer(name, torch.full((4,), float(value)))

    def forward(self, x):
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        return x * scale.view(1, -1, 1, 1) + (self.bias - self.running_mean * scale).view(1, -1, 1, 1)


class DerivedFrozen(FrozenBatchNorm2d):
    pass


class DerivedInstance(nn.InstanceNorm2d):
    pass


@pytest.mark.parametrize(
    "norm",
    [OwnFrozen(), DerivedFrozen(4), DerivedInstance(4, track_running_stats=True)],
    ids=lambda n: type(n).__name__,
)
def test_a_norm_of_an_unknown_class_is_listed(norm):
    report = switch_to_deploy(nn.Sequential(nn.Conv2d(3, 4, 1), norm), torch.rand(1, 3, 8, 8)).report
    assert report.left == [f"1: a {type(norm).__name__} computes in a way of its own"]
