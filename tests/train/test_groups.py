"""Which tensors decay, and how fast each of them learns."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import train
from models import create_model
from models.backbones.repmlp_resnet import RepMLPResNet
from models.backbones.repvgg import RepVGG
from models.errors import UserError
from models.parts import backbone_blocks
from tests.helpers import tiny, tiny_backbone
from utils.train import family
from utils.train.groups import KINDS, WEIGHTS, groups_table, kind_of, make_optimizer, optimized
from utils.train.run import OPTIMIZERS
from utils.train.teaching.lesson import Lesson

RIFORMER = tiny_backbone("RIFormer", {"layers": [1, 1, 2, 1], "embed_dims": [8, 16, 24, 32]})
SLIM = {"num_blocks": [1, 2, 1, 1], "width_multiplier": [0.125, 0.125, 0.125, 0.0625]}
REPVGG = tiny_backbone("RepVGG", SLIM)
REPMLP = tiny_backbone("RepMLPResNet", "light-224")
VIT = tiny_backbone("timm", "test_vit", {"img_size": 64})


def of_kinds(cfg) -> dict[str, set[str]]:
    """Return the names of the tensors of a model by their kind."""
    model = create_model(cfg)
    names = {id(tensor): name for name, tensor in model.named_parameters()}
    found = {kind: set() for kind in KINDS}
    for entry in optimized(model):
        found[entry.kind].add(names.pop(id(entry.tensor)))
    assert not names, "each tensor is learnt once"
    return found


@pytest.mark.parametrize("cfg", [tiny(), RIFORMER, REPVGG, VIT], ids=["rows", "RIFormer", "RepVGG", "ViT"])
def test_only_matrices_and_kernels_decay(cfg):
    found = of_kinds(cfg)
    model = create_model(cfg)
    for name in found[WEIGHTS]:
        module = model.get_submodule(name.rpartition(".")[0])
        assert isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)), name
        assert name.endswith(".weight")
    assert not [name for name in found[WEIGHTS] if "layer_scale" in name or "affine" in name or "norm" in name]
    assert all(found.values()) or cfg in (tiny(), REPVGG), "these have no factors"


def test_factors_are_known_by_their_form_and_by_what_their_network_says():
    """A layer scale may lie in any direction; a kernel with one output is none."""
    scale = nn.Module()
    forms = {(8,): "factors", (8, 1, 1): "factors", (1, 8, 1, 1): "factors", (4, 8): "weights"}
    assert {form: kind_of(scale, "gamma", torch.ones(form)) for form in forms} == forms
    assert kind_of(nn.Conv2d(8, 1, 1), "weight", torch.ones(1, 8, 1, 1)) == "weights"
    assert kind_of(nn.Conv2d(8, 8, 1, groups=8), "weight", torch.ones(8, 1, 1, 1)) == "factors"
    assert kind_of(nn.LayerNorm((4, 4)), "weight", torch.ones(4, 4)) == "norms"
    assert kind_of(nn.MultiheadAttention(4, 1), "in_proj_bias", torch.ones(12)) == "biases"
    assert {name.rpartition(".")[2] for name in of_kinds(VIT)["factors"]} >= {"pos_embed"}


def rates(cfg, **options) -> dict[str, float]:
    """Return the factor of the learning rate of each tensor of a model."""
    model = create_model(cfg)
    names = {id(tensor): name for name, tensor in model.named_parameters()}
    return {names[id(entry.tensor)]: entry.rate for entry in optimized(model, **options)}


def test_a_slow_backbone_is_all_of_it_and_nothing_else():
    for cfg, first in ((tiny(), 3), (RIFORMER, 1)):
        slow = {name for name, rate in rates(cfg, lr_backbone=0.1).items() if rate == 0.1}
        assert slow == {name for name, _ in create_model(cfg).named_parameters() if int(name.split(".")[1]) < first}


DEPTHS = {  # tensor: how many blocks it is from the end of the backbone
    "rows": (tiny(), {"model.0.conv.weight": 3, "model.1.bn.weight": 2, "model.2.cv1.conv.weight": 1}),
    "RIFormer": (
        RIFORMER,
        {
            "model.0.patch_embed.proj.weight": 9,
            "model.0.network.0.0.mlp.fc1.weight": 8,
            "model.0.network.1.proj.weight": 7,
            "model.0.network.4.0.norm1.weight": 4,
            "model.0.network.4.1.layer_scale_1": 3,
            "model.0.network.5.proj.bias": 2,
            "model.0.network.6.0.mlp.fc2.weight": 1,
            "model.0.norm6.weight": 1,
        },
    ),
    "RepVGG": (
        REPVGG,
        {
            "model.0.stage0.conv.rbr_dense.conv.weight": 6,
            "model.0.stage2.0.conv.rbr_1x1.bn.weight": 4,
            "model.0.stage2.1.conv.rbr_identity.weight": 3,
            "model.0.stage4.0.conv.rbr_dense.conv.weight": 1,
        },
    ),
    "timm": (
        tiny_backbone("timm", "test_resnet"),
        {"model.0.body.conv1.0.weight": 5, "model.0.body.conv1.3.weight": 5, "model.0.body.layer4.0.bn1.weight": 1},
    ),
}


@pytest.mark.parametrize("name", DEPTHS)
def test_layers_learn_the_more_slowly_the_nearer_they_are_to_the_picture(name):
    cfg, depths = DEPTHS[name]
    found = rates(cfg, lr_backbone=0.5, layer_decay=0.8)
    assert {tensor: found[tensor] for tensor in depths} == pytest.approx({t: 0.5 * 0.8**d for t, d in depths.items()})
    head = f"model.{len(cfg['backbone'])}"
    assert {rate for tensor, rate in found.items() if int(tensor.split(".")[1]) >= int(head.split(".")[1])} == {1.0}


def test_stages_are_what_runs_at_one_stride():
    stages = {block.path: block.stage for block in backbone_blocks(create_model(RIFORMER))}
    assert stages["model.0.patch_embed"] == stages["model.0.network.0.0"] == 0
    assert [stages[f"model.0.network.{i}"] for i in (1, 3, 5)] == [1, 2, 3]
    assert [block.stage for block in backbone_blocks(create_model(tiny()))] == [0, 1, 1]
    assert {block.stage for block in backbone_blocks(create_model(REPVGG))} == {0, 1, 2, 3, 4}


def test_a_published_classifier_is_a_backbone_but_for_its_scores():
    cfg = {"nc": 3, "backbone": [], "head": [[-1, 1, "Classifier", ["timm", "test_resnet"]]]}
    found = rates(cfg, lr_backbone=0.1, layer_decay=0.5)
    assert found.pop("model.0.network.body.fc.weight") == found.pop("model.0.network.body.fc.bias") == 1
    assert max(found.values()) == pytest.approx(0.05)
    assert found["model.0.network.body.conv1.0.weight"] == min(found.values()) == pytest.approx(0.1 * 0.5**5)


def test_rates_of_a_backbone_that_is_not_there_are_refused():
    model = create_model(tiny(backbone=[], head=[*tiny()["backbone"], *tiny()["head"]]))
    with pytest.raises(UserError, match="has no backbone: leave out --lr-backbone and --layer-decay"):
        optimized(model, layer_decay=0.9)


# Optimizers -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_steps_by_the_rate_of_each_tensor(name):
    """As its gradients are all alike, the first step is as large as the learning rate says."""
    model = create_model(tiny())
    entries = optimized(model, lr_backbone=0.5, muon=name == "MuSGD")
    optimizer = make_optimizer(entries, name, 1e-3, 0.9, 0.0, fused=True)
    before = {id(p): p.detach().clone() for p in model.parameters()}
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    moved = {p.numel(): (before[id(p)] - p).abs().mean().item() for p in model.parameters() if p.ndim == 1}
    slow, fast = (model.get_parameter(f"model.{i}.bn.bias") for i in (0, 3))
    steps = [(before[id(p)] - p).abs().mean().item() for p in (slow, fast)]
    assert steps[0] == pytest.approx(0.5 * steps[1], rel=1e-3)
    assert moved


def test_musgd_orthogonalizes_matrices_and_learns_class_scores_faster():
    model = create_model(tiny())
    entries = optimized(model, muon=True)
    names = {id(tensor): name for name, tensor in model.named_parameters()}
    fast = {names[id(entry.tensor)] for entry in entries if entry.rate == 3}
    assert fast == {name for name in names.values() if name.startswith("model.6.cv3.")}
    assert {entry.muon for entry in entries if entry.kind == WEIGHTS} == {True}
    assert not any(entry.muon for entry in entries if entry.kind != WEIGHTS)
    optimizer = make_optimizer(entries, "MuSGD", 0.01, 0.9, 5e-4, fused=False)
    assert {(group["param_group"], group.get("use_muon")) for group in optimizer.param_groups} == {
        ("muon", True),
        ("bn", False),
        ("bias", False),
    }
    assert "class scores: weights" in groups_table(entries, "MuSGD", 0.01, 5e-4)


@pytest.mark.parametrize("name", ["SGD", "MuSGD"])
def test_what_a_teacher_adds_learns_as_the_neck_does(name):
    """Neither as a slow backbone nor as scores of classes."""
    entries = optimized(create_model(tiny()), lr_backbone=0.1, muon=name == "MuSGD")
    optimizer = make_optimizer(entries, name, 0.01, 0.9, 5e-4, fused=False)
    adapters = nn.Conv2d(4, 8, 1, bias=False)
    Lesson.join(SimpleNamespace(features=SimpleNamespace(adapters=adapters)), optimizer, 0.01)
    group = optimizer.param_groups[-1]
    assert (group["params"], group["lr"], group["weight_decay"]) == ([adapters.weight], 0.01, 5e-4)


def test_the_table_says_what_is_learnt_how():
    entries = optimized(create_model(RIFORMER), layer_decay=0.5)
    lines = groups_table(entries, "AdamW", 1e-3, 0.05).splitlines()
    assert lines[1].split() == ["backbone:", "weights", "14", "1.95e-06", "to", "0.0005", "0.05"]
    assert sum(int(line[24:32]) for line in lines[1:]) == len(entries)
    assert all(line.endswith(" 0") for line in lines if "weights" not in line and "tensors" not in line)


# The optimizer of a family --------------------------------------------------------------------------------------------
PLAIN = {"qat": False, "rep_optimizer": False}
FAMILIES = {
    "rows": (tiny(), "MuSGD"),
    "RIFormer": (RIFORMER, "AdamW"),
    "RepVGG": (REPVGG, "MuSGD"),
    "RepMLPResNet": (REPMLP, "SGD"),
    "ViT": (VIT, "AdamW"),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_without_a_name_the_optimizer_is_that_of_the_family(name):
    cfg, wanted = FAMILIES[name]
    chosen, reason = family.chosen_optimizer(create_model(cfg), {"optimizer": "auto", "lr0": 0.001, **PLAIN})
    assert chosen == {"optimizer": wanted, "lr0": 0.001 if wanted == "AdamW" else 0.01}
    assert reason
    assert (reason == RepMLPResNet.trained_by[1]) == (name == "RepMLPResNet")


@pytest.mark.parametrize(
    ("cfg", "options", "wanted"),
    [
        (REPVGG, {"optimizer": "Adam", "lr0": 0.1}, {}),
        (REPVGG, {}, {"optimizer": "SGD"}),
        (REPMLP, {"optimizer": "auto"}, {"optimizer": "SGD", "lr0": 0.01}),
        (REPMLP, {"optimizer": "auto", "lr0": 1e-4, "qat": True}, {"optimizer": "AdamW", "lr0": 1e-4}),
        (tiny(), {"optimizer": "auto", "rep_optimizer": True}, {"optimizer": "AdamW", "lr0": 0.001}),
        (REPMLP, {"optimizer": "auto", "rep_optimizer": True}, {"optimizer": "SGD", "lr0": 0.01}),
    ],
)
def test_a_name_of_the_command_line_or_the_recipe_wins_and_then_what_an_option_needs(cfg, options, wanted):
    chosen, _ = family.chosen_optimizer(create_model(cfg), {**PLAIN, **options})
    assert chosen == wanted


def test_a_backbone_that_names_no_optimizer_of_ours_is_refused(monkeypatch):
    monkeypatch.setattr(RepVGG, "trained_by", ("Lion", "as its authors"))
    with pytest.raises(UserError, match="RepVGG is trained_by 'Lion', which is none of SGD, Adam, AdamW"):
        family.family_optimizer(create_model(REPVGG))


def test_names_of_optimizers_are_taken_in_any_case():
    assert {train.make_parser().from_keywords(optimizer=name.lower()).optimizer for name in OPTIMIZERS} == {*OPTIMIZERS}
