"""Widened networks: they compute what the narrow ones did, and fuse to exactly what those fuse to."""

import copy
import itertools

import pytest
import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from models import create_backbone, create_model, switch_to_deploy
from models.blocks.branches import STYLES, BranchedConv
from models.blocks.widen import widen
from models.errors import ConfigError
from models.spec import load_spec
from models.summary import count_parameters
from tests.helpers import SHIPPED, pictures, pictures_for, randomize_, relative_error, save, tensors, tiny, worst_error
from utils.checkpoint import load_checkpoint
from utils.deploy.fresh import calibrate_batch_norms

SAME = 1e-9  # of a whole network in float64
EXACT = 1e-12
TIMM = """
resnet18 resnet26t resnet50 resnext50_32x4d seresnet50 resnetv2_18 resnest14d res2net50_26w_4s ecaresnet26t skresnet18
regnetx_002 regnety_002 regnetz_005 gernet_s densenet121 dla34 hrnet_w18_small selecsls42b cspresnet50
ese_vovnet19b_dw hgnetv2_b0 mobilenetv2_100 mobilenetv3_small_100 mobilenetv4_conv_small efficientnet_b0
tf_efficientnet_b0 mnasnet_100 spnasnet_100 ghostnet_100 lcnet_050 tinynet_e fbnetc_100 hardcorenas_a rexnet_100
convnext_atto convnextv2_atto edgenext_xx_small mobilevit_xxs fastvit_t8 starnet_s1 mambaout_femto focalnet_tiny_srf
poolformer_s12 efficientformer_l1 efficientvit_b0
""".split()


def shapes(module):
    return {name: tensor.shape for name, tensor in module.state_dict().items()}


def branched(module):
    return [name for name, m in module.named_modules() if type(m) is BranchedConv]


@torch.no_grad()
def work_of(module, x):
    """Return the floating-point operations that a module really does for a picture."""
    with FlopCounterMode(display=False) as counter:
        module(x)
    return counter.get_total_flops()


def predictions(module):
    """Return what gives the outputs that fusing keeps: where one branch of a head only trains, predictions alone."""
    return (lambda x: module(x)[0]) if getattr(module, "end2end", False) else module


def assert_fuses_to(plain, wide, x, same=SAME):
    """Check that a widened network fuses exactly, to what the narrow one fused to: shapes, modules and report.

    Returns:
        What it fuses to.
    """
    deploy = switch_to_deploy(wide, x)
    assert not branched(deploy)
    assert shapes(deploy) == shapes(plain)
    assert count_parameters(deploy) == count_parameters(plain)
    assert str(deploy) == str(plain)
    assert deploy.report.left == plain.report.left
    assert deploy.report.fused["BranchedConv"] == len(branched(wide)) > 0
    assert worst_error(predictions(deploy), predictions(wide), x) <= same
    return deploy


WIDE = ("stem", "bias")  # of the following
DETECT = [[[-1], 1, "Detect", ["nc"]]]


class Net(nn.Module):
    """A little of everything that a rule is about."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(8, eps=1e-3, momentum=0.03)
        self.bias = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=2)
        self.bare = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.point = nn.Conv2d(8, 8, 1)
        self.strip = nn.Conv2d(8, 8, (1, 3), padding=(0, 1))
        self.aside = nn.Conv2d(8, 8, 3)

    def forward(self, x):
        return self.strip(self.point(self.bare(self.bias(self.bn(self.stem(x)).relu())).relu()))


@pytest.mark.parametrize("style", STYLES)
def test_only_what_the_rule_says_is_widened(style):
    torch.manual_seed(0)
    narrow = randomize_(Net()).double().eval()
    x = pictures(33, 40)
    wide = copy.deepcopy(narrow)
    assert widen(wide, style, x) == 2
    assert branched(wide) == [*WIDE]
    assert isinstance(wide.bn, nn.Identity)
    norms = [m for m in wide.stem.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(m.eps, m.momentum, m.running_mean.dtype) for m in norms} == {(1e-3, 0.03, torch.float64)}
    assert worst_error(wide, narrow, x) <= EXACT
    assert_fuses_to(switch_to_deploy(narrow, x), randomize_(wide), x, EXACT)


@pytest.mark.parametrize("style", STYLES)
def test_training_starts_as_that_of_the_narrow_network(style):
    """Outputs in training mode are those of the narrow one, and every branch learns."""
    narrow = Net().double()
    wide = copy.deepcopy(narrow)
    widen(wide, style, pictures())
    assert all(m.training for m in wide.modules())
    assert relative_error(wide.train()(pictures()), narrow.train()(pictures())) <= EXACT
    optimizer = torch.optim.SGD(wide.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        wide(pictures()).square().mean().backward()
        optimizer.step()
    learning = [p for name, p in wide.named_parameters() if name.startswith(("stem", "bias"))]
    assert all(bool(p.grad.abs().sum() > 0) for p in learning)


@pytest.mark.parametrize("style", STYLES)
def test_branches_beside_new_weights_count_from_the_first_step_on(style):
    """As in the papers: a factor of 1, and every weight of a branch learns at once."""
    wide = Net().double()
    widen(wide, style, pictures(), trained={wide.bias})
    factors = {name: {branch.bn.weight.unique().item() for branch in getattr(wide, name).branches} for name in WIDE}
    assert factors == {"stem": {1.0}, "bias": {0.0}}
    wide.train()(pictures()).square().mean().backward()
    new = [p for name, p in wide.named_parameters() if name.startswith("stem")]
    assert all(bool(p.grad.abs().sum() > 0) for p in new)


@pytest.mark.parametrize(
    ("options", "factor"),
    [({}, 1.0), ({"weights": None}, 1.0), ({"weights": "a.pth"}, 0.0)],
    ids=["new", "no weights", "weights"],
)
def test_rows_with_pretrained_weights_compute_what_they_did(options, factor, tmp_path):
    """Those of the backbone; the neck is new in any case."""
    narrow = create_backbone("timm", "resnet18")
    torch.save(narrow.state_dict(), tmp_path / "a.pth")
    options = {key: value and str(tmp_path / value) for key, value in options.items()}
    rows = {"backbone": [[-1, 1, "timm", ["resnet18", options]]], "head": [["P5", 1, "Conv", [8, 3]], *DETECT]}
    model = create_model({"nc": 2, **rows, "overparameterize": {"style": "acb"}})
    factors = [
        {branch.bn.weight.unique().item() for m in row.modules() if type(m) is BranchedConv for branch in m.branches}
        for row in model.model
    ]
    assert factors[:2] == [{factor}, {1.0}]


def test_a_network_is_widened_once():
    wide = Net()
    widen(wide, "dbb", pictures(dtype=torch.float32))
    before = str(wide)
    with pytest.raises(ConfigError, match="no convolution can be given branches"):
        widen(wide, "repvgg", pictures(dtype=torch.float32))
    assert str(wide) == before


def test_an_unknown_style_is_refused():
    with pytest.raises(ConfigError, match=r"'dbbs' \(did you mean 'dbb'"):
        widen(Net(), "dbbs", pictures())


@pytest.mark.parametrize(
    ("norm", "count"),
    [(nn.BatchNorm2d(8), 1), (nn.BatchNorm2d(8, track_running_stats=False), 0), (nn.GroupNorm(2, 8), 0)],
    ids=["BatchNorm", "of the batch", "GroupNorm"],
)
def test_a_norm_that_cannot_be_folded_leaves_no_place_for_a_shift(norm, count):
    net = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), norm, nn.Conv2d(8, 8, 3)).double()
    assert widen(net, "repvgg", pictures()) == 1 + count


def test_hooked_and_parametrized_convolutions_stay():
    convs = [nn.Conv2d(3, 3, 3) for _ in range(3)]
    convs[0].register_forward_hook(lambda module, inputs, output: output.relu())
    nn.utils.parametrizations.weight_norm(convs[1])
    net = nn.Sequential(*convs).double()
    assert widen(net, "acb", pictures()) == 1
    assert branched(net) == ["2"]


# Models ---------------------------------------------------------------------------------------------------------------
BRANCHED_ALL_OVER = ["repvgg-cls.yaml", "timm-cls.yaml"]  # in which no convolution is left without branches
WIDENED = [name for name in SHIPPED if name not in BRANCHED_ALL_OVER]


# each style on the smallest YAML, and each YAML with one style, in turn
OF_YAMLS = [pytest.param("yolov5n.yaml", style) for style in STYLES]
OF_YAMLS += [
    pytest.param(name, style, marks=pytest.mark.slow)
    for name, style in zip(WIDENED, itertools.cycle(STYLES))
    if name != "yolov5n.yaml"
]


@pytest.mark.parametrize(("name", "style"), OF_YAMLS)
def test_every_yaml_fuses_to_the_narrow_network(name, style):
    narrow = create_model(name, nc=3)
    cfg = narrow.spec.with_branches(style)
    wide = randomize_(create_model(cfg)).double()
    assert wide.spec == cfg
    calibrate_batch_norms(wide, pictures_for(wide, 4, 4))
    plain = switch_to_deploy(narrow.double())
    deploy = assert_fuses_to(plain, wide, pictures_for(wide, 3, 2))
    works = [work_of(m, pictures_for(wide, 2, 2)[:1]) for m in (deploy, plain, wide)]
    assert works[0] == works[1] < works[2]


@pytest.mark.parametrize("name", BRANCHED_ALL_OVER)
def test_a_yaml_whose_convolutions_have_branches_all_over_is_refused(name):
    with pytest.raises(ConfigError, match=f"{name}: no convolution can be given branches of the style acb"):
        create_model(load_spec(name).with_branches("acb"))


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "style"), zip(TIMM, itertools.cycle(STYLES)))
def test_every_timm_backbone_fuses_to_the_narrow_one(arch, style):
    narrow = randomize_(create_backbone("timm", arch)).eval()
    plain = switch_to_deploy(narrow)
    widen(narrow, style, narrow.example_input())
    wide = randomize_(narrow).double()
    x = pictures(*(wide.size or (64, 96)))
    calibrate_batch_norms(wide, x)
    assert_fuses_to(plain, wide, x)


def test_the_names_are_timms():
    assert set(TIMM) <= set(timm.list_models())
    assert len(TIMM) >= 40


@pytest.mark.parametrize("style", STYLES)
def test_the_key_travels_in_a_checkpoint(style, tmp_path):
    model = randomize_(create_model(tiny(overparameterize={"style": style}))).eval()
    again = load_checkpoint(save(model, tmp_path / "a.pt"))
    assert again.spec.overparameterize == {"style": style}
    assert branched(again) == branched(model)
    x = pictures(dtype=torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(tensors(again(x)), tensors(model(x)), strict=True))
    fused = load_checkpoint(save(model.fuse(), tmp_path / "b.pt"))
    assert shapes(fused) == shapes(create_model(tiny()).fuse())
    assert worst_error(fused, model, x) <= 1e-4


@pytest.mark.parametrize("value", ["dbb", {}, {"style": 3}, {"style": "dbb", "k": 1}, [1], {"kind": "dbb"}], ids=str)
def test_another_form_of_the_key_is_refused(value):
    with pytest.raises(ConfigError, match=r"overparameterize must be a mapping such as \{style: dbb\}"):
        create_model(tiny(overparameterize=value))


def test_an_unknown_style_names_the_yaml():
    with pytest.raises(ConfigError, match=r"model YAML: unknown style of branches 'DBB'.*did you mean 'dbb'"):
        create_model(tiny(overparameterize={"style": "DBB"}))


def test_too_many_parameters_are_refused_before_they_are_made(monkeypatch):
    monkeypatch.setattr("models.yolo.MAX_PARAMETERS", 1000)
    with pytest.raises(ConfigError, match=r"branches of the style dbb have .* parameters, expected at most 1,000"):
        create_model(tiny(overparameterize={"style": "dbb"}))
