"""The options by which a YAML reaches the constructors of our backbones: what they build, and one sentence if wrong."""

import copy

import pytest
import torch
from torch import nn

from models import DetectionModel, create_backbone, switch_to_deploy
from models.blocks.recompute import run_blocks
from models.blocks.repconv import RepConv, SqueezeExcite
from models.errors import ConfigError, UserError
from tests.helpers import pictures, randomize_, relative_error, tiny_backbone

SMALL = {  # options that make each family narrow
    "RIFormer": {"layers": [1, 2, 1, 1], "embed_dims": [8, 12, 16, 20]},
    "RepVGG": {"num_blocks": [1, 2, 1, 1], "width_multiplier": [0.25, 0.125, 0.125, 0.0625]},
    "RepMLPNet": {
        "num_blocks": [1, 2, 1, 1],
        "channels": [8, 8, 16, 16],
        "sharesets_nums": [1, 2, 4, 4],
        "hs": [8, 4, 2, 1],
    },
    "RepMLPResNet": {"arch": "light-224", "img_size": 112},
}
OPTIONS = {  # further ones of each
    "RIFormer": [
        {"mlp_ratios": [2, 3.5, 1, 0.5], "layer_scale_init_value": 0.1},
        {"drop_rate": 0.5, "drop_path_rate": 0.2, "frozen_stages": -1},
    ],
    "RepVGG": [
        {"use_se": True, "use_checkpoint": True},
        {"override_groups_map": {2: 4, 3: 2, 5: 8}, "style": "qarep"},
    ],
    "RepMLPNet": [
        {"reparam_conv_k": [1, 3, 5], "globalperceptron_reduce": 2, "use_checkpoint": True},
        {"reparam_conv_k": [], "patch_size": 8},
        {"patch_size": [2, 2]},
    ],
    "RepMLPResNet": [{"groups": 8, "kernels": [3], "reduction": 4}],
}
CASES = [
    pytest.param(family, more, marks=[pytest.mark.slow] * (family == "RepMLPResNet"))  # which has one width
    for family, many in OPTIONS.items()
    for more in ({}, *many)
]


def model_of(family, **more):
    head = [[["P3", "P4"], 1, "Detect", ["nc"]]]
    return DetectionModel(tiny_backbone(family, {**SMALL[family], **more}, head=head))


@pytest.mark.parametrize(("family", "more"), CASES, ids=str)
def test_a_yaml_reaches_the_constructor_and_the_network_fuses(family, more):
    model = randomize_(model_of(family, **more)).double().eval()
    deploy, x = switch_to_deploy(model), pictures(64, 128)
    with torch.no_grad():
        want = model.model[0](x)
        assert all(relative_error(*pair) < 1e-9 for pair in zip(deploy.model[0](x), want, strict=True))
    backbone = model.model[0]
    shapes = zip(backbone.channels, backbone.strides, strict=True)
    assert [tuple(m.shape[1:]) for m in want] == [(c, 64 // s, 128 // s) for c, s in shapes]
    assert backbone.strides == (8, 16)
    assert not any(isinstance(m, nn.Dropout) for m in deploy.modules())


def backbone_of(family, **more):
    options = {**SMALL[family], **more}
    return create_backbone(family, options.pop("arch", None), **options)


def test_riformers_options_are_where_they_belong():
    net = backbone_of("RIFormer", mlp_ratios=[2, 3.5, 1, 0.5], layer_scale_init_value=0.1, drop_rate=0.25)
    assert [len(net.network[i]) for i in (0, 2, 4, 6)] == [1, 2, 1, 1]
    assert [net.network[i][0].mlp.fc1.out_channels for i in (0, 2, 4, 6)] == [16, 42, 16, 10]
    assert net.network[0][0].layer_scale_2.tolist() == pytest.approx([0.1] * 8)
    assert {m.p for m in net.modules() if isinstance(m, nn.Dropout)} == {0.25}
    rates = [m.rate for m in backbone_of("RIFormer", drop_path_rate=0.2).modules() if hasattr(m, "rate")]
    assert rates == [m.rate for m in backbone_of("RIFormer", drop_path=0.2).modules() if hasattr(m, "rate")]
    assert rates[-1] == pytest.approx(0.2)


def test_dropout_is_for_training_alone():
    net, x = backbone_of("RIFormer", drop_rate=0.5, layer_scale_init_value=1.0), torch.rand(2, 3, 64, 64)
    assert not torch.equal(net.train()(x)[-1], net(x)[-1])
    assert torch.equal(net.eval()(x)[-1], net(x)[-1])


def test_repvggs_options_are_where_they_belong():
    net = backbone_of("RepVGG", use_se=True, override_groups_map={"2": 4, 3: 2})
    convs = [m for m in net.modules() if isinstance(m, RepConv)]
    assert [conv.rbr_dense.conv.groups for conv in convs] == [1, 1, 4, 2, 1, 1]
    assert sum(isinstance(m, SqueezeExcite) for m in net.modules()) == len(convs)
    assert not any(isinstance(m, SqueezeExcite) for m in create_backbone("RepVGG", "D2se", use_se=False).modules())


def test_repmlpnets_options_are_where_they_belong():
    net = backbone_of("RepMLPNet", reparam_conv_k=[1, 5], globalperceptron_reduce=8, patch_size=8)
    assert net.strides == (8, 16, 32, 64)
    block = net.stages[1][0].repmlp_block
    assert (block.local.kernels, block.sharesets, block.gp.fc1.out_channels) == ((1, 5), 2, 1)


def test_repmlp_resnets_options_are_where_they_belong():
    net = create_backbone("RepMLPResNet", "light-224", img_size=224, groups=8, kernels=[1, 7], reduction=2)
    mlp = net.stage2[1].light_repmlp
    assert (mlp.local.kernels, mlp.local.fc3.groups) == ((1, 7), 8)
    assert mlp.perceptron.fc2.in_features == 64 * 16 // 2


@pytest.mark.parametrize(
    ("family", "options"), [("RepVGG", {}), ("RepVGG", {"use_se": True}), ("RepMLPNet", {})], ids=str
)
def test_what_is_computed_again_learns_the_same(family, options):
    kept = backbone_of(family, **options).double().train()
    again = backbone_of(family, **options, use_checkpoint=True).double().train()
    again.load_state_dict(kept.state_dict())
    x = pictures(64, 64)
    for net in (kept, again):
        sum(m.square().mean() for m in net(x)).backward()
    assert all(map(torch.equal, kept.state_dict().values(), again.state_dict().values())), "statistics moved twice"
    gradients = zip(kept.parameters(), again.parameters(), strict=True)
    assert all(relative_error(b.grad, a.grad) < 1e-9 for a, b in gradients if a.grad.abs().max() > 1e-9)


def test_of_what_is_computed_again_only_inputs_are_kept():
    kept = []
    block = nn.Sequential(
        *(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()) for _ in range(3))
    )
    for recompute in (False, True):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
            run_blocks(block, torch.rand(2, 4, 16, 16, requires_grad=True), recompute)
        kept.append(None)
    split = kept.index(None)
    assert sum(kept[split + 1 : -1]) < sum(kept[:split]) / 2


def test_nothing_is_computed_again_without_a_gradient():
    net = copy.deepcopy(backbone_of("RepVGG", use_checkpoint=True)).train()
    with torch.no_grad():
        assert not net(torch.rand(2, 3, 64, 64))[-1].requires_grad


# What the published forks write ---------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "narrow.pth"
    torch.save(randomize_(backbone_of("RepVGG")).state_dict(), path)
    return str(path)


@pytest.mark.parametrize(
    ("word", "args"), [("RepVGG", ["A0"]), ("RepVGG", ["RepVGG-A0"]), ("RepVGG-A0", []), ("RepVGG", [])], ids=str
)
def test_a_text_behind_the_architecture_is_a_file_of_weights(word, args, file):
    model = DetectionModel(tiny_backbone(word, *args, file, SMALL["RepVGG"]))
    report = model.model[0].weights_report
    assert (model.model[0].arch, report.source, report.missing) == ("A0", "narrow.pth", ())
    stripped = model.spec.without_pretrained()
    assert "narrow" not in str(stripped.rows[0])
    assert DetectionModel(stripped).state_dict().keys() == model.state_dict().keys()


def test_weights_are_given_once(file):
    with pytest.raises(ConfigError, match="RepVGG is given weights twice"):
        DetectionModel(tiny_backbone("RepVGG", "A0", file, {"weights": file}))


@pytest.mark.parametrize(
    ("word", "arch", "names"),
    [
        ("RepMLPNet-T224", "T224", "RepMLPNet"),
        ("RIFormer-s12", "s12", "RIFormer"),
        ("RepMLPResNet-light-224", "light-224", "RepMLPResNet"),
    ],
)
def test_an_architecture_may_stand_behind_its_family(word, arch, names):
    short, long = (DetectionModel(tiny_backbone(*row)) for row in ((word,), (names, arch)))
    assert [p.shape for p in short.parameters()] == [p.shape for p in long.parameters()]
    own, full = (create_backbone(names, name).state_dict() for name in (word, arch))
    assert {k: v.shape for k, v in own.items()} == {k: v.shape for k, v in full.items()}


def test_an_unknown_architecture_behind_its_family_is_an_unknown_word():
    with pytest.raises(ConfigError, match=r"unknown module 'RepVGG-A9' \(did you mean 'RepVGG"):
        DetectionModel(tiny_backbone("RepVGG-A9"))


# Wrong values ---------------------------------------------------------------------------------------------------------
WRONG = [
    (
        "RIFormer",
        {"layers": [1, 2, 3]},
        "RIFormer's layers are 4 whole numbers from 1 to 100, one for each stage, such as",
    ),
    ("RIFormer", {"embed_dims": [64, 128, 320, 0]}, "RIFormer's embed_dims are 4 whole numbers from 1 to 8192"),
    ("RIFormer", {"mlp_ratios": 4}, "RIFormer's mlp_ratios are 4 numbers above 0 to 16"),
    ("RIFormer", {"embed_dims": [1, 1, 1, 1], "mlp_ratios": [0.5] * 4}, "0.5 times 1 channels, which is less than one"),
    ("RIFormer", {"layer_scale_init_value": 0}, "layer_scale_init_value must be a number above 0 to 1, got 0"),
    ("RIFormer", {"drop_rate": 1}, "RIFormer's drop_rate must be a number from 0 to below 1, got 1"),
    ("RIFormer", {"drop_path_rate": "a"}, "RIFormer's drop_path_rate must be a number from 0 to below 1, got 'a'"),
    ("RIFormer", {"drop_path": 0.1, "drop_path_rate": 0.1}, "drop_path and drop_path_rate are one option"),
    ("RIFormer", {"frozen_stages": -2}, "frozen_stages must be a whole number from -1 to 4, got -2"),
    ("RepVGG", {"use_se": 1}, "RepVGG's use_se must be true or false, got 1"),
    ("RepVGG", {"use_checkpoint": "yes"}, "RepVGG's use_checkpoint must be true or false, got 'yes'"),
    ("RepVGG", {"override_groups_map": [2]}, "names blocks and their groups, such as {2: 4, 4: 4}, got"),
    ("RepVGG", {"override_groups_map": {"a": 2}}, "names blocks by their number from 1, got 'a'"),
    ("RepVGG", {"override_groups_map": {0: 2}}, "names block 0, but there are 1 to 21"),
    ("RepVGG", {"override_groups_map": {22: 2}}, "names block 22, but there are 1 to 21"),
    ("RepVGG", {"override_groups_map": {2: 0}}, "override_groups_map of block 2 must be a whole number from 1"),
    ("RepVGG", {"override_groups_map": {2: 5}}, "gives block 2 5 groups, which do not divide its 48 channels"),
    ("RepMLPNet", {"num_blocks": [1, 1, 1, True]}, "RepMLPNet's num_blocks are 4 whole numbers from 1 to 100"),
    ("RepMLPNet", {"channels": "wide"}, "RepMLPNet's channels are 4 whole numbers from 1 to 8192"),
    ("RepMLPNet", {"sharesets_nums": [3, 4, 16, 128]}, "must divide its channels [64, 128, 256, 512], but 3 does not"),
    (
        "RepMLPNet",
        {"reparam_conv_k": [1, 2]},
        "reparam_conv_k is a list of different odd numbers from 1 to 31, such as [1, 3]",
    ),
    ("RepMLPNet", {"reparam_conv_k": [3, 3]}, "a list of different odd numbers"),
    (
        "RepMLPNet",
        {"globalperceptron_reduce": 65},
        "globalperceptron_reduce must be a whole number from 1 to 64, got 65",
    ),
    ("RepMLPNet", {"patch_size": [4, 8]}, "patch_size is one of 2, 4, 8, 16, got [4, 8]"),
    ("RepMLPNet", {"use_checkpoint": None}, "RepMLPNet's use_checkpoint must be true or false, got None"),
    ("RepMLPResNet", {"groups": 3}, "groups must divide its channels, 64 and multiples of it, got 3"),
    ("RepMLPResNet", {"kernels": 3}, "kernels is a list of different odd numbers from 1 to 13, such as [1, 3, 5]"),
    ("RepMLPResNet", {"reduction": 0}, "RepMLPResNet's reduction must be a whole number from 1 to 64, got 0"),
]


@pytest.mark.parametrize(("family", "options", "said"), WRONG, ids=str)
def test_a_wrong_value_is_explained(family, options, said):
    with pytest.raises(UserError) as caught:
        create_backbone(family, **options)
    assert said in str(caught.value)
    with pytest.raises(ConfigError, match="row 0 ") as caught:
        DetectionModel(tiny_backbone(family, options))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
