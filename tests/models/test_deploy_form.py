"""Backbones in deploy form: our own files of it, as an option of a row, in a checkpoint, and trained on."""

import logging

import pytest
import safetensors.torch
import torch

from models import BACKBONES, DetectionModel, create_backbone
from models.backbones.base import FORMS
from models.errors import UserError, WeightsError
from models.spec import load_spec
from tests.helpers import pictures, randomize_, relative_error, save, tensors, tiny_backbone, worst_error, write
from utils.checkpoint import load_checkpoint
from utils.checkpoint.file import check_tensors
from utils.train.run import is_own_model
from utils.train.trainer import new_model

TILES = {"hs": [5, 4, 3, 2]}
SMALL = {  # the smallest network of each family
    "RepVGG": ("A0", {"num_blocks": [1, 1, 1, 1], "width_multiplier": [0.25, 0.25, 0.25, 0.25]}),
    "RIFormer": ("s12", {}),
    "RepMLPNet": ("T224", TILES),
    "RepMLPResNet": ("light-224", {"img_size": 112, "groups": 32}),
    "timm": ("repvgg_a0", {}),
}
LARGE = ("RIFormer", "RepMLPNet", "RepMLPResNet")
FAMILIES = [pytest.param(name, marks=[pytest.mark.slow] if name in LARGE else []) for name in SMALL]
WRITERS = {"pth": torch.save, "safetensors": safetensors.torch.save_file}


def test_every_family_is_tested():
    assert set(SMALL) == set(BACKBONES)


def small(name, **changes):
    arch, options = SMALL[name]
    return create_backbone(name, arch, **options, **changes)


def row(name, **changes):
    arch, options = SMALL[name]
    return tiny_backbone(name, arch, {**options, **changes})


# Files ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("classes", "suffix"), [(None, "pth"), (7, "safetensors")])
@pytest.mark.parametrize("name", FAMILIES)
def test_what_was_fused_and_saved_is_loaded(name, classes, form, suffix, tmp_path):
    network = randomize_(small(name, num_classes=classes)).eval()
    fused = FORMS[form](network)
    WRITERS[suffix](fused.state_dict(), tmp_path / f"a.{suffix}")
    got = small(name, num_classes=classes, weights=tmp_path / f"a.{suffix}").eval()
    report = got.weights_report
    assert (report.matched, report.missing, report.unexpected) == (len(fused.state_dict()), (), ())
    assert report.deploy and "deploy form" in report.dialect
    assert got.state_dict().keys() == fused.state_dict().keys()
    x = torch.rand(2, *network.example_input().shape[1:])
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(tensors(got(x)), tensors(fused(x)), strict=True))


@pytest.mark.parametrize("suffix", WRITERS)
def test_the_training_form_stays_one(suffix, tmp_path):
    network = randomize_(small("RepVGG"))
    WRITERS[suffix](network.state_dict(), tmp_path / f"a.{suffix}")
    got = small("RepVGG", weights=tmp_path / f"a.{suffix}")
    assert (got.form, got.weights_report.deploy) == ("train", False)
    assert all(torch.equal(a, b) for a, b in zip(got.state_dict().values(), network.state_dict().values(), strict=True))


@pytest.mark.slow
def test_own_deploy_weights_for_other_tiles_are_refused(tmp_path):
    torch.save(FORMS["all"](small("RepMLPNet")).state_dict(), tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="only the training form can be resampled"):
        create_backbone("RepMLPNet", "T224", hs=[6, 4, 3, 2], weights=tmp_path / "a.pth")


def cut(content):
    return content[: len(content) // 2]


def with_longer_header(content):
    return (int.from_bytes(content[:8], "little") + 8).to_bytes(8, "little") + content[8:]


@pytest.mark.parametrize("spoil", [cut, with_longer_header])
def test_a_damaged_file_of_safetensors_is_one_sentence(spoil, tmp_path):
    file = tmp_path / "a.safetensors"
    safetensors.torch.save_file(small("RepVGG").state_dict(), file)
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(WeightsError, match=r"a\.safetensors is not a weights file") as caught:
        small("RepVGG", weights=file)
    assert "\n" not in str(caught.value)


# Rows -----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_row_takes_a_deploy_file_and_a_checkpoint_keeps_its_form(name, form, tmp_path):
    backbone = randomize_(small(name, out_strides=(8, 16, 32))).eval()
    torch.save(FORMS[form](backbone).state_dict(), tmp_path / "a.pth")
    model = DetectionModel(row(name, weights=str(tmp_path / "a.pth"))).eval()
    assert model.spec.rows[0].args[-1]["deploy"] == model.model[0].form
    assert not model.model[0].weights_report.missing
    (tmp_path / "a.pth").unlink()
    loaded = load_checkpoint(save(model, tmp_path / "best.pt"))
    x = pictures(64, 96, dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(loaded(x)[0], model(x)[0])
        assert relative_error(loaded.fuse()(x)[0], model(x)[0]) <= 1e-4
    loaded.train()
    sum(t.square().mean() for t in tensors(loaded(x))).backward()
    assert all(p.grad is not None for p in loaded.model[0].parameters())
    check_tensors(loaded.state_dict(), DetectionModel(loaded.spec), "ema")


@pytest.mark.parametrize("deploy", [True, "all"])
def test_training_weights_are_put_into_deploy_form_where_a_row_asks_so(deploy, tmp_path):
    network = randomize_(small("timm")).eval()
    torch.save(network.state_dict(), tmp_path / "a.pth")
    got = small("timm", weights=tmp_path / "a.pth", deploy=deploy)
    assert got.form == ("blocks" if deploy is True else deploy)
    assert got.weights_report.matched == len(network.state_dict())
    assert len(got.state_dict()) < len(network.state_dict())
    assert worst_error(got, network, pictures(64, 96, dtype=torch.float32)) <= 1e-5


def test_deploy_form_without_weights_has_its_parameters_from_the_start():
    model = DetectionModel(row("RepVGG", deploy=True))
    assert (model.model[0].form, model.spec.rows[0].args[-1]["deploy"]) == ("blocks", "blocks")
    assert not [name for name, _ in model.model[0].named_parameters() if "rbr" in name]
    assert DetectionModel(row("RepVGG", deploy=False)).spec.rows[0].args[-1]["deploy"] is False


@pytest.mark.parametrize("value", ["train", "x", 1, None, []])
def test_other_values_are_explained(value):
    with pytest.raises(UserError, match="RepVGG's deploy is true, false or one of blocks, all, got"):
        small("RepVGG", deploy=value)


# Training -------------------------------------------------------------------------------------------------------------
def test_a_converted_network_is_trained_on_and_what_is_lost_is_said(tmp_path, caplog):
    torch.save(FORMS["blocks"](small("RepVGG")).state_dict(), tmp_path / "a.pth")
    cfg = write(tmp_path, row("RepVGG", weights=str(tmp_path / "a.pth")), "mine.yaml")
    options = {"seed": 0, "single_cls": False, "qat": False, "freeze": None, "custom_l2": False, "rep_optimizer": False}
    with caplog.at_level(logging.WARNING):
        model = new_model(load_spec(cfg), None, {"channels": 3, "nc": 2, "names": {0: "cat", 1: "dog"}}, options)
    assert "RepVGG is in deploy form, in which it is fine-tuned without its branches" in caplog.text
    assert is_own_model(str(cfg), model.spec, str(cfg))
    assert not is_own_model(str(write(tmp_path, row("RepVGG", style="qarep"), "other.yaml")), model.spec, str(cfg))
