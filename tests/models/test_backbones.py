"""What every backbone promises, checked by being registered; timm's names; a backbone of one's own."""

import copy

import pytest
import torch
from torch import nn

from models import BACKBONES, Backbone, DetectionModel, create_backbone, list_backbones, switch_to_deploy
from models.backbones import check_backbone
from models.backbones.base import level_name, select_strides
from models.errors import ConfigError, UserError
from tests.helpers import pictures, randomize_, tiny_backbone, worst_error
from utils.deploy.fresh import calibrate_batch_norms


@pytest.fixture
def own_words(monkeypatch):
    """Let a test register words that are gone after it."""
    monkeypatch.setattr(BACKBONES, "_entries", dict(BACKBONES._entries))


class Steps(Backbone):
    """Two strided convolutions: maps at strides 8 and 16."""

    archs = ("narrow", "wide")

    def __init__(self, arch="narrow", in_channels=3, out_strides=None, extra=0):
        super().__init__()
        width = {"narrow": 8, "wide": 16}[arch] + extra
        self.in_channels = in_channels
        self.strides = self.built = select_strides(out_strides, (8, 16), "Steps")
        self.channels = tuple(width * stride // 8 for stride in self.strides)
        self.first = nn.Sequential(nn.Conv2d(in_channels, width, 8, 8, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.second = nn.Conv2d(width, 2 * width, 2, 2)

    def forward(self, x):
        first = self.first(x)
        return [{8: lambda: first, 16: lambda: self.second(first)}[stride]() for stride in self.built]


# The contract ---------------------------------------------------------------------------------------------------------
ALL = [(name, arch) for name, archs in list_backbones().items() for arch in archs]


@pytest.mark.parametrize(("name", "arch"), ALL)
def test_every_architecture_gives_what_it_declares(name, arch):
    """The larger ones without data: shapes need none."""
    first = arch == BACKBONES[name].archs[0]
    with torch.device("cpu" if first else "meta"):
        backbone = create_backbone(name, arch)
    check_backbone(backbone)


@pytest.mark.parametrize(("name", "kind"), BACKBONES.items(), ids=list(BACKBONES))
def test_every_kind_is_a_backbone(name, kind):
    assert issubclass(kind, Backbone)
    assert kind.__doc__
    assert list_backbones()[name] == kind.archs


# Fusing all that is registered ----------------------------------------------------------------------------------------
def without_weights(name, arch):
    """Return an architecture in its published widths, of chains of equal blocks three each, without values in it."""
    with torch.device("meta"):
        backbone = create_backbone(name, arch)
    for chain in [m for m in backbone.modules() if isinstance(m, nn.Sequential)]:
        del chain[3:]
    backbone.to_empty(device="cpu")
    for norm in (m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d)):
        norm.reset_running_stats()
    return backbone


@pytest.mark.slow
@pytest.mark.parametrize(("name", "arch"), ALL)
def test_every_architecture_fuses(name, arch, tmp_path):
    """In both precisions, at a size that nothing divides, after a file in half precision, once for all."""
    backbone = randomize_(without_weights(name, arch))
    calibrate_batch_norms(
        backbone, pictures(97, 65, dtype=torch.float32)
    )  # so that deep networks neither grow nor fade
    x, single = pictures(97, 65), pictures(97, 65, dtype=torch.float32)
    torch.save(copy.deepcopy(backbone).half().state_dict(), tmp_path / "a.pth")
    loaded = without_weights(name, arch).eval()
    loaded.load_state_dict(torch.load(tmp_path / "a.pth", weights_only=True))
    (tmp_path / "a.pth").unlink()
    assert worst_error(switch_to_deploy(loaded), loaded, single) <= 1e-5
    backbone.double()
    once = switch_to_deploy(backbone)
    assert once.report.fused
    assert worst_error(once, backbone, x) <= 1e-9
    twice = switch_to_deploy(once)
    assert (str(twice), twice.report) == (str(once), once.report)
    assert all(torch.equal(a, b) for a, b in zip(once.state_dict().values(), twice.state_dict().values(), strict=True))


# check_backbone -------------------------------------------------------------------------------------------------------
class Liar(Steps):
    def __init__(self, returns=None, **declared):
        super().__init__()
        self.returns = returns
        for name, value in declared.items():
            setattr(self, name, value)

    def forward(self, x):
        maps = super().forward(x)
        return self.returns(maps) if self.returns else maps


def test_an_honest_backbone_passes():
    check_backbone(Liar())


@pytest.mark.parametrize(
    ("liar", "expected"),
    [
        (lambda: Liar(channels=(8, 17)), "declares maps of shapes"),
        (lambda: Liar(strides=(8, 32)), "declares maps of shapes"),
        (lambda: Liar(returns=tuple), "must return a list of feature maps, but returned a tuple"),
        (lambda: Liar(returns=lambda maps: maps[0]), "must return a list of feature maps, but returned a Tensor"),
        (lambda: Liar(returns=lambda maps: maps[::-1]), "declares maps of shapes"),
        (lambda: Liar(returns=lambda maps: maps[:1]), "declares maps of shapes"),
        (lambda: Liar(returns=lambda maps: [*maps, None]), "must return a list of feature maps"),
        (lambda: Liar(channels=(8,)), "Liar"),
        (lambda: Liar(strides=(16, 8), channels=(16, 8), returns=lambda maps: maps[::-1]), "Liar"),
    ],
)
def test_a_backbone_that_declares_otherwise_is_caught(liar, expected):
    with pytest.raises(UserError, match=expected):
        check_backbone(liar())


def test_checking_moves_no_statistics_and_no_mode():
    backbone = Steps().train()
    backbone.second.eval()
    check_backbone(backbone)
    assert backbone.first[1].num_batches_tracked == 0
    assert (backbone.training, backbone.first.training, backbone.second.training) == (True, True, False)


def test_a_failing_check_leaves_the_mode():
    backbone = Liar(returns=lambda maps: 1 / 0).train()
    with pytest.raises(ZeroDivisionError):
        check_backbone(backbone)
    assert backbone.training


# A backbone of one's own ----------------------------------------------------------------------------------------------
def test_ones_own_backbone_is_a_word(own_words):
    BACKBONES.register("Steps")(Steps)
    head = [["P3", 1, "Conv", [16]], [[5, "P4"], 1, "Detect", ["nc"]]]
    model = DetectionModel(tiny_backbone("Steps", "wide", {"extra": 4}, head=head))
    assert (model.model[0].channels, model.stride.tolist()) == ((20, 40), [8, 16])
    model = randomize_(model).double().eval()
    deploy = switch_to_deploy(model)
    assert worst_error(deploy, model, pictures()) <= 1e-9
    assert not [m for m in deploy.modules() if isinstance(m, nn.BatchNorm2d)]


def test_ones_own_backbone_is_listed(own_words):
    BACKBONES.register("Steps")(Steps)
    assert list_backbones()["Steps"] == ("narrow", "wide")
    assert create_backbone("Steps").channels == (8, 16)


def test_ones_own_missing_level_names_the_reader(own_words):
    BACKBONES.register("Steps")(Steps)
    with pytest.raises(ConfigError, match=r"row 1 .*: Steps has no map at P5 \(stride 32\), it gives P3 .*P4"):
        DetectionModel(tiny_backbone("Steps"))


@pytest.mark.parametrize("error", [TypeError, AttributeError, KeyError, IndexError])
def test_a_bug_in_ones_own_backbone_keeps_its_traceback(own_words, error):
    """Not everything is the user's YAML: hiding where a class fails helps nobody."""

    @BACKBONES.register("Broken")
    class Broken(Steps):
        def __init__(self, *args, **kwargs):
            raise error("unexpected keyword argument deep inside")

    with pytest.raises(error) as caught:
        create_backbone("Broken")
    assert not isinstance(caught.value, UserError)


# create_backbone ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("RIformer",), "unknown backbone 'RIformer' (did you mean 'RIFormer'?)"),
        (("ResNet",), "unknown backbone 'ResNet'"),
        (("RIFormer", "s21"), "RIFormer has no architecture 's21'"),
        (("RIFormer", "S12"), "did you mean 's12'"),
        (("RIFormer", 12), "RIFormer has no architecture 12"),
        (("RIFormer", ["s12"]), "RIFormer has no architecture ['s12']"),
        (("timm",), "timm needs an architecture"),
        (("timm", "resnet81"), "timm has no model 'resnet81' (did you mean 'resnet18'?)"),
        (("timm", ""), "timm has no model ''"),
        (("timm", 18), "timm has no model"),
        (("timm", "hf-hub:someone/something"), "timm has no model 'hf-hub:someone/something'"),
        (("timm", "local-dir:/tmp"), "timm has no model 'local-dir:/tmp'"),
        (("timm", "resnet18.no_such_tag"), "resnet18.no_such_tag"),
    ],
    ids=str,
)
def test_wrong_names_are_explained(arguments, expected):
    with pytest.raises(UserError) as caught:
        create_backbone(*arguments)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("name", ["RIFormer", "timm"])
@pytest.mark.parametrize(
    "options",
    [
        {"no_such_option": 1},
        {"in_channels": 0},
        {"in_channels": -3},
        {"out_strides": (2, 3)},
        {"out_strides": (64,)},
    ],
    ids=str,
)
def test_wrong_options_are_explained(name, options):
    with pytest.raises(UserError) as caught:
        create_backbone(name, {"RIFormer": "s12", "timm": "resnet18"}[name], **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("stride", "name"), [(2, "P1 (stride 2)"), (8, "P3 (stride 8)"), (64, "P6 (stride 64)")])
def test_levels_have_the_names_that_people_use(stride, name):
    assert level_name(stride) == name
