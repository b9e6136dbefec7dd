"""Backbones in deploy form as files: their names, what is read from them again, and what is never replaced."""

import re
from functools import partial

import pytest
import safetensors.torch
import torch

from models import create_backbone
from models.backbones.weights import read_tensors
from models.errors import UserError, WeightsError
from tests.helpers import randomize_, relative_error, tensors
from utils import cli, convert
from utils.checkpoint.published import write_published

NARROW = {"num_blocks": (1, 2, 1, 1), "width_multiplier": (0.25, 0.25, 0.25, 0.25)}
FAMILIES = {  # how the smallest network of each is built, and names that its deploy form has as published
    "RepVGG": (
        partial(create_backbone, "RepVGG", "D2se", **NARROW),
        ["stage0.rbr_reparam.bias", "stage2.1.se.up.bias"],
    ),
    "RIFormer": (
        partial(create_backbone, "RIFormer", "s12"),
        [f"backbone.network.6.1.{x}" for x in ("norm_reparam.weight", "layer_scale_1", "norm2.bias", "mlp.fc1.bias")],
    ),
    "RepMLPNet": (
        partial(create_backbone, "RepMLPNet", "T224", hs=(5, 4, 3, 2)),
        ["conv_embedding.bn.weight", "stages.3.1.repmlp_block.fc3.bias", "stages.0.0.ffn_block.ffn_fc1.conv.weight"],
    ),
    "RepMLPResNet": (
        partial(create_backbone, "RepMLPResNet", "light-224", groups=32),
        ["stage2.1.light_repmlp.fc3.bias", "stage2.1.light_repmlp.fc1_fc2.fc1.weight", "stage1.0.conv1.conv.bias"],
    ),
    "timm": (
        partial(create_backbone, "timm", "repvgg_a0"),
        ["stem.reparam_conv.bias", "stages.0.1.reparam_conv.weight"],
    ),
}
HEADS = {"RepVGG": "linear", "RIFormer": "head.fc", "RepMLPNet": "head", "RepMLPResNet": "linear", "timm": "head.fc"}
SLOW = ("RIFormer", "RepMLPNet", "RepMLPResNet", "timm")
swept = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in FAMILIES]
)


@swept
def test_a_classifier_is_written_as_its_authors_publish_it_and_read_again(name, tmp_path):
    build, names = FAMILIES[name]
    network = randomize_(build(num_classes=7)).eval()
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    said = write_published(network, tmp_path / "a.safetensors", lambda file: build(num_classes=7, weights=file))
    assert "deploy form" in said
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
    written = safetensors.torch.load_file(tmp_path / "a.safetensors")
    assert {*names, f"{HEADS[name]}.weight"} <= written.keys()
    assert not [key for key in written if re.search(r"\.(rbr_dense|token_mixer|fc3_bn|conv_kxk)\.", key)]
    assert all(torch.equal(before[key], tensor) for key, tensor in network.state_dict().items())
    got = build(num_classes=7, weights=tmp_path / "a.safetensors").eval()
    assert (got.weights_report.matched, got.weights_report.missing) == (len(written), ())
    assert got.weights_report.unexpected == ()
    x = torch.rand(2, *network.example_input().shape[1:])
    with torch.no_grad():
        assert relative_error(got(x), network(x)) <= 1e-4
    backbone = build(weights=tmp_path / "a.safetensors").eval()  # as a row of a detector does
    assert not backbone.weights_report.missing and backbone.weights_report.deploy
    assert len(tensors(backbone(x))) == len(backbone.strides)


@swept
def test_a_backbone_without_a_head_is_written_too(name, tmp_path):
    build, _ = FAMILIES[name]
    write_published(randomize_(build()).eval(), tmp_path / "a.pth", lambda file: build(weights=file))
    report = build(weights=tmp_path / "a.pth").weights_report
    assert (report.missing, report.unexpected, report.deploy) == ((), (), True)


def test_a_network_in_deploy_form_is_written_as_one_in_training_form(tmp_path):
    build, _ = FAMILIES["RepVGG"]
    network = randomize_(build()).eval()
    write_published(network, tmp_path / "a.pth", lambda file: build(weights=file))
    write_published(build(weights=tmp_path / "a.pth"), tmp_path / "b.pth", lambda file: build(weights=file))
    first, second = (read_tensors(tmp_path / f"{name}.pth") for name in "ab")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.slow
def test_forms_that_are_published_otherwise_are_fused_further_or_refused(tmp_path):
    build, _ = FAMILIES["RepMLPResNet"]
    blocks = build(deploy="blocks")
    write_published(blocks, tmp_path / "a.pth", lambda file: build(weights=file))
    assert "stage1.0.conv1.conv.bias" in read_tensors(tmp_path / "a.pth")
    build, _ = FAMILIES["RepMLPNet"]
    with pytest.raises(UserError, match="all BatchNorms of this RepMLPNet are folded, and published files"):
        write_published(build(deploy="all"), tmp_path / "b.pth", lambda file: build(weights=file))


def test_a_file_that_is_read_otherwise_gets_no_name(tmp_path):
    build, _ = FAMILIES["RepVGG"]
    with pytest.raises(WeightsError, match="other tensors would be read from it again"):
        write_published(build(), tmp_path / "a.pth", lambda _: build())
    assert not [*tmp_path.iterdir()]


# The command ----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """A classifier of RepVGG's authors in training form."""
    network = randomize_(create_backbone("RepVGG", "A0", num_classes=5)).eval()
    names = {key: key.removeprefix("backbone.").replace(".conv.rbr_", ".rbr_") for key in network.state_dict()}
    named = {names[key].replace("head.fc.", "linear."): tensor for key, tensor in network.state_dict().items()}
    file = tmp_path_factory.mktemp("official") / "RepVGG-A0-train.pth"
    torch.save(named, file)
    return network, file


def command(*words):
    return cli.run_script(convert.main, convert.make_parser(), [str(word) for word in words])


def test_weights_are_converted_beside_themselves(official, tmp_path, caplog):
    network, file = official
    there = tmp_path / file.name
    there.write_bytes(file.read_bytes())
    assert convert.run(there, arch="RepVGG/A0") == tmp_path / "RepVGG-A0-train-deploy.pth"
    assert "46 tensors (the authors of RepVGG, deploy form)" in caplog.text
    got = create_backbone("RepVGG", "A0", num_classes=5, weights=tmp_path / "RepVGG-A0-train-deploy.pth").eval()
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert relative_error(got(x), network(x)) <= 1e-5


def test_safetensors_stay_safetensors(official, tmp_path):
    _, file = official
    safetensors.torch.save_file(torch.load(file), tmp_path / "a.safetensors")
    written = convert.run(tmp_path / "a.safetensors", arch="RepVGG/A0")
    assert written == tmp_path / "a-deploy.safetensors"
    assert "linear.weight" in safetensors.torch.load_file(written)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "SOURCE"], "is the file that is read: name another --output"),
        (["--output", "SOURCE", "--exist-ok"], "is the file that is read: name another --output"),
        (["--output", "there.pth"], "exists: name another file with --output"),
        (["--output", "a.onnx"], "--output takes a file that ends in .pth, .pt, .safetensors, not"),
        (["--output", "SOURCE/a.pth"], "is a folder or lies in a file"),
        (["--arch", "RepVGG/A1"], "holds"),
        (["--arch", "RepVGGG/A1"], "there is no backbone or timm model called 'RepVGGG/A1' (did you mean"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_replaces_nothing(official, words, message, tmp_path, monkeypatch, capsys):
    _, file = official
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.pth").write_text("mine")
    before = file.read_bytes()
    words = [word.replace("SOURCE", str(file)) for word in words]
    arch = [] if "--arch" in words else ["--arch", "RepVGG/A0"]
    assert command(file, *arch, *words) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert file.read_bytes() == before and (tmp_path / "there.pth").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["there.pth"]


def test_another_file_is_replaced_when_that_is_allowed(official, tmp_path):
    _, file = official
    (tmp_path / "there.pth").write_text("old")
    assert command(file, "--arch", "RepVGG/A0", "--output", tmp_path / "there.pth", "--exist-ok") == 0
    assert "linear.weight" in torch.load(tmp_path / "there.pth")


def test_what_fuses_wrongly_is_not_written(monkeypatch, tmp_path):
    build, _ = FAMILIES["RepVGG"]
    monkeypatch.setattr("utils.checkpoint.published.distance_to_fused", lambda _: 1e-3)
    with pytest.raises(WeightsError, match=r"is not written: the fused form is 1e-03 off in float64, relative"):
        write_published(build(), tmp_path / "a.pth", lambda file: build(weights=file))
    with pytest.raises(UserError, match="--output takes a file that ends in"):
        convert.run(tmp_path / "a.pth", arch="RepVGG/A0", output=tmp_path / "a.txt")
