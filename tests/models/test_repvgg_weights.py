"""Weights of RepVGG: every publisher's names, parts of a file, and those of another architecture."""

from dataclasses import replace

import pytest
import timm
import torch
from timm.models.byobnet import ByobNet, model_cfgs
from timm.utils.model import reparameterize_model

from models import create_backbone
from models.blocks.reparam import fuse_blocks
from models.blocks.repconv import RepConv
from models.errors import WeightsError
from tests.helpers import pictures, randomize_, relative_error, worst_error
from tests.models.repvgg import NARROW, ORIGINAL, SINGLE, narrow

OFFICIAL = [(".conv.rbr_", ".rbr_"), ("head.fc.", "linear.")]
TIMM = [(".conv.rbr_dense.", ".conv_kxk."), (".conv.rbr_1x1.", ".conv_1x1."), (".conv.rbr_identity.", ".identity.")]
TIMM += [(".se.down.", ".attn.fc1."), (".se.up.", ".attn.fc2."), ("stage0.", "stem.")]
MM = [(".conv.rbr_dense.bn.", ".branch_3x3.norm."), (".conv.rbr_1x1.bn.", ".branch_1x1.norm.")]
MM += [
    (".conv.rbr_dense.", ".branch_3x3."),
    (".conv.rbr_1x1.", ".branch_1x1."),
    (".conv.rbr_identity.", ".branch_norm."),
]
MM += [(".se.down.", ".se_layer.conv1.conv."), (".se.up.", ".se_layer.conv2.conv."), ("stage0.", "stem.")]
MM_STAGES = [(f"stage{i}.", f"stage_{i}.") for i in (1, 2, 3, 4)]
PUBLISHERS = {  # our names to theirs
    "official": (OFFICIAL, ".rbr_reparam."),
    "timm": (TIMM + [(f"stage{i}.", f"stages.{i - 1}.") for i in (1, 2, 3, 4)], ".reparam_conv."),
    "timm features": (TIMM + [(f"stage{i}.", f"stages_{i - 1}.") for i in (1, 2, 3, 4)], ".reparam_conv."),
    "mmpretrain": (MM + MM_STAGES, ".branch_reparam."),
}


def as_published(network, publisher, deploy):
    """Return a classifier's tensors under the names of a publisher."""
    renames, fused = PUBLISHERS[publisher]
    form = fuse_blocks(network) if deploy else network
    renames = [("backbone.", ""), *([(".conv.", fused)] if deploy else []), *renames]
    tensors = {name: tensor.clone() for name, tensor in form.state_dict().items()}
    for ours, theirs in renames:
        tensors = {name.replace(ours, theirs): tensor for name, tensor in tensors.items()}
    return tensors


@pytest.mark.slow
@pytest.mark.parametrize("publisher", PUBLISHERS)
@pytest.mark.parametrize("deploy", [False, True], ids=["training", "deploy"])
@pytest.mark.parametrize("arch", ["A0", "B1g4", "D2se"])
def test_every_publishers_names_are_read(publisher, deploy, arch, tmp_path):
    options = {**NARROW, "num_blocks": (1, 2, 11, 1)}  # numbers of one and of two digits
    want = randomize_(create_backbone("RepVGG", arch, num_classes=7, **options)).eval()
    content = as_published(want, publisher, deploy)
    content = {"meta": {}, "state_dict": {f"backbone.{k}" if k[:4] == "stag" else k: v for k, v in content.items()}}
    torch.save(content if publisher == "mmpretrain" else content["state_dict"], tmp_path / "a.pth")
    x = pictures(64, 64, dtype=torch.float32)
    for classes in (None, 7):
        got = create_backbone("RepVGG", arch, weights=tmp_path / "a.pth", num_classes=classes, **options).eval()
        report = got.weights_report
        assert (report.missing, report.unexpected, report.deploy) == ((), (), deploy)
        assert publisher.split()[0] in report.dialect.replace("the authors of RepVGG", "official")
        assert bool([m for m in got.modules() if isinstance(m, RepConv)]) is not deploy
        error = relative_error(got(x), want(x)) if classes else worst_error(got, want.backbone, x)
        assert error <= (SINGLE if deploy else 0)


@pytest.mark.parametrize(("form", "names"), [("training", 351), ("deploy", 46)])
def test_official_names_are_those_of_the_golden_file(form, names):
    with torch.device("meta"):
        network = create_backbone("RepVGG", "A0", num_classes=1000)
    tensors = as_published(network, "official", form == "deploy")
    assert len(tensors) == names
    if form == "training":
        assert {name: list(tensor.shape) for name, tensor in tensors.items()} == ORIGINAL["keys"]
    else:
        assert {"stage0.rbr_reparam.weight", "stage4.0.rbr_reparam.bias", "linear.weight"} <= tensors.keys()


@pytest.mark.slow
@pytest.mark.parametrize("form", ["training", "deploy", "features"])
def test_timms_own_network_gives_the_same_maps(form, tmp_path):
    theirs = randomize_(timm.create_model("repvgg_a0", features_only=form == "features")).eval()
    x = pictures(64, 96, dtype=torch.float32)
    with torch.no_grad():
        want = theirs(x)
        torch.save((reparameterize_model(theirs) if form == "deploy" else theirs).state_dict(), tmp_path / "a.pth")
        classes = None if form == "features" else 1000
        network = create_backbone("RepVGG", "A0", weights=tmp_path / "a.pth", num_classes=classes).eval()
        got = network(x)
    assert not network.weights_report.missing
    pairs = zip(got, want, strict=True) if form == "features" else [(got, want)]
    assert all(relative_error(g, w) <= SINGLE for g, w in pairs)


def test_timms_squeeze_excite_network_gives_the_same_logits(tmp_path):
    cfg = model_cfgs["repvgg_d2se"]  # a block a stage: after all 47 with random values nothing of a picture is left
    shallow = replace(cfg, blocks=tuple(replace(block, d=1) for block in cfg.blocks))
    theirs = randomize_(ByobNet(shallow)).eval()
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    options = {"num_blocks": (1, 1, 1, 1), "num_classes": 1000}
    network = create_backbone("RepVGG", "D2se", weights=tmp_path / "a.pth", **options).eval()
    assert not network.weights_report.missing
    x = pictures(64, 96, dtype=torch.float32)
    x[1] *= 0.1  # or their means, of which logits are made, would be the same
    assert worst_error(network, theirs, x) <= SINGLE


def test_counters_of_batches_may_be_missing(published, original, tmp_path):
    tensors = torch.load(published, weights_only=True)
    torch.save({k: v for k, v in tensors.items() if not k.endswith("num_batches_tracked")}, tmp_path / "old.pth")
    backbone = create_backbone("RepVGG", "A0", weights=tmp_path / "old.pth").double().eval()
    assert not backbone.weights_report.missing
    assert worst_error(backbone, original, pictures(64, 64)) == 0


def test_a_slim_last_stage_takes_the_rest_of_the_published_weights(published, original):
    options = {"width_multiplier": (0.75, 0.75, 0.75, 1)}
    slim = create_backbone("RepVGG", "A0", weights=published, **options).double().eval()
    assert slim.channels == (48, 48, 96, 192, 512)
    assert {name.split(".")[0] for name in slim.weights_report.missing} == {"stage4"}
    x = pictures(64, 64)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(slim(x)[:4], original(x)[:4], strict=True))


def test_fewer_levels_take_their_part_of_the_published_weights(published, original):
    part = create_backbone("RepVGG", "A0", weights=published, out_strides=(8, 16)).double().eval()
    assert not part.weights_report.missing
    with torch.no_grad():
        assert torch.equal(part(pictures(64, 64))[1], original(pictures(64, 64))[3])


def test_fewer_blocks_take_their_part_when_they_are_asked_for(published):
    part = create_backbone("RepVGG", "A0", weights=published, num_blocks=(2, 4, 6, 1))
    assert not part.weights_report.missing
    assert len(part.weights_report.unexpected) == 8 * 17


OTHERS = [  # what the file holds, what it is loaded into
    ("A0", "A1", r"holds \d+ of the \d+ tensors .* another architecture"),
    ("A0", "B0", "not of this RepVGG B0: stage 1 has 4 blocks, theirs 2"),
    ("B0", "A1", "not of this RepVGG A1: stage 1 has 2 blocks, theirs 4"),
    ("B1", "B1g2", r"stage1.1.conv are \(128, 64, 3, 3\), theirs \(128, 128, 3, 3\), of other groups"),
    ("B1g4", "B1", r"stage1.1.conv are \(128, 128, 3, 3\), theirs \(128, 32, 3, 3\), of other groups"),
    ("B2", "D2se", "stage 1 has 8 blocks, theirs 4"),
    ("D2se", "B2", "stage 1 has 4 blocks, theirs 8"),
]


@pytest.mark.parametrize(("file", "arch", "message"), OTHERS, ids=[f"{a} into {b}" for a, b, _ in OTHERS])
@pytest.mark.parametrize("deploy", [False, True], ids=["training", "deploy"])
def test_weights_of_another_architecture_are_refused(file, arch, message, deploy, tmp_path):
    part = {"out_strides": (4,)}
    torch.save(as_published(create_backbone("RepVGG", file, **part), "official", deploy), tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=message) as caught:
        create_backbone("RepVGG", arch, weights=tmp_path / "a.pth", **part)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("came", "has"), [("repvgg", "qarep"), ("qarep", "repvgg")])
def test_branches_of_the_other_style_are_refused_and_its_deploy_form_is_taken(came, has, tmp_path):
    network = narrow(style=came)
    torch.save(as_published(network, "official", deploy=False), tmp_path / "train.pth")
    with pytest.raises(WeightsError, match=f"style is {has}, theirs {came} .a file in deploy form fits both"):
        create_backbone("RepVGG", "A0", style=has, weights=tmp_path / "train.pth", **NARROW)
    torch.save(as_published(network, "official", deploy=True), tmp_path / "deploy.pth")
    got = create_backbone("RepVGG", "A0", style=has, weights=tmp_path / "deploy.pth", **NARROW).eval()
    assert worst_error(got, network, pictures(64, 64, dtype=torch.float32)) <= SINGLE
