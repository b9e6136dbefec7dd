"""Accuracy of classification weights on a folder of pictures, and whether both forms agree."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from models import create_backbone, switch_to_deploy
from models.blocks.reparam import fuse_blocks
from models.blocks.riformer import RIFormerBlock, fuse_norm_affine
from tests.helpers import randomize_
from utils import check_weights, cli

ROOT = Path(__file__).parents[1]
CLASSES = ("ant", "bee", "cat")
ARCH = "RIFormer/s12"


@pytest.fixture(scope="module", autouse=True)
def _drawn_for_nothing():
    """Leave out to draw the weights of a network at first: all are read from files, or made random anyway."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(nn.init, "trunc_normal_", lambda tensor, *_, **__: tensor)
        yield


@pytest.fixture(scope="module")
def network():
    """A classifier of three classes with telling weights."""
    return randomize_(create_backbone("RIFormer", "s12", num_classes=len(CLASSES))).eval()


@pytest.fixture(scope="module")
def files(network, tmp_path_factory):
    """Its weights as its authors publish them, in training and in deploy form."""
    folder = tmp_path_factory.mktemp("weights")
    torch.save({"state_dict": published(network)}, folder / "train.pth")
    deploy = copy.deepcopy(network)
    for block in [module for module in deploy.modules() if isinstance(module, RIFormerBlock)]:
        block.norm_reparam = fuse_norm_affine(block.norm1, block.token_mixer.affine)
        del block.norm1, block.token_mixer
    torch.save({"state_dict": published(deploy)}, folder / "deploy.pth")
    return folder


def published(network):
    return {name.removeprefix("backbone."): tensor for name, tensor in network.state_dict().items()}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two pictures for each of three classes."""
    folder = tmp_path_factory.mktemp("imagenet")
    rng = np.random.default_rng(0)
    for name in CLASSES:
        (folder / name).mkdir()
        for i, size in enumerate([(40, 60), (70, 50)]):
            noise = rng.integers(0, 255, (*size, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / name / f"{i}.{'JPEG' if i else 'png'}")
    (folder / CLASSES[0] / "notes.txt").write_text("no picture")
    return folder


def options(files, folder, **changes):
    return {"arch": ARCH, "weights": files / "train.pth", "data": folder, "imgsz": 64, "workers": 0, **changes}


def command(files, folder, **changes):
    flags = {k.replace("_", "-"): v for k, v in options(files, folder, **changes).items() if v is not None}
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    return cli.run_script(check_weights.main, check_weights.make_parser(), words)


@torch.no_grad()
def expected(network, data):
    """Return how many of the pictures have the right best class, counted by hand."""
    right = 0
    for label, name in enumerate(CLASSES):
        for path in sorted((data / name).glob("*.[pJ]*")):
            image = Image.open(path).convert("RGB")
            scale = round(64 / 0.875) / min(image.size)
            image = image.resize([int(side * scale) for side in image.size], Image.Resampling.BILINEAR)
            left, top = (round((side - 64) / 2) for side in image.size)
            x = np.asarray(image.crop((left, top, left + 64, top + 64)), dtype=np.float32) / 255
            x = (x - np.array(check_weights.MEAN, dtype=np.float32)) / np.array(check_weights.STD, dtype=np.float32)
            logits = network(torch.from_numpy(x).permute(2, 0, 1)[None])
            right += int(logits.argmax()) == label
    return right


# What comes out -------------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize(("file", "mode"), [("train", "train"), ("train", "deploy"), ("deploy", "deploy")])
def test_accuracy_is_that_of_the_pictures(files, data, network, file, mode):
    result = check_weights.run(**options(files, data, weights=files / f"{file}.pth", mode=mode, batch_size=4))
    assert (result.pictures, result.classes, list(result.scores)) == (6, 3, [mode])
    assert result.scores[mode].top1 == expected(network, data)
    assert result.scores[mode].top5 == 6
    assert result.difference is None and result.ok


def test_both_forms_agree(files, data):
    result = check_weights.run(**options(files, data, mode="check"))
    assert result.scores["train"].top1 == result.scores["deploy"].top1
    assert 0 < result.difference.relative < result.difference.tolerance < 1e-3
    assert 0 < result.difference.rounding < 1e-5
    assert result.difference.other_top1 == 0


def test_classifiers_of_timm_are_checked_too(files, data, tmp_path):
    theirs = randomize_(create_backbone("timm", "test_resnet", num_classes=len(CLASSES))).body
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    result = check_weights.run(**options(files, data, arch="test_resnet", weights=tmp_path / "timm.pth", mode="check"))
    assert result.ok and result.difference.relative > 0


@pytest.mark.parametrize(("file", "mode"), [("train", "check"), ("deploy", "deploy")])
def test_the_deploy_form_is_saved_and_read_by_its_mode(files, data, file, mode, tmp_path, caplog):
    saved = tmp_path / "new/a.safetensors"
    first = check_weights.run(**options(files, data, weights=files / f"{file}.pth", mode=mode, save=saved))
    assert "138 tensors (mmpretrain, deploy form)" in caplog.text
    again = check_weights.run(**options(files, data, weights=saved, mode="deploy"))
    assert again.scores["deploy"].top1 == first.scores["deploy"].top1
    assert "0 missing; 0 unexpected; deploy form" in again.weights


def test_our_own_fused_tensors_are_read_in_their_mode(files, data, network, tmp_path):
    torch.save(switch_to_deploy(network).state_dict(), tmp_path / "own.pth")
    result = check_weights.run(**options(files, data, weights=tmp_path / "own.pth", mode="deploy"))
    assert result.scores["deploy"].top1 == expected(network, data)
    assert "90 of 90 tensors from own.pth; 0 missing; 0 unexpected" in result.weights


def test_what_fails_the_check_is_not_saved(files, data, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("utils.prove.logits.ROUNDINGS", 0)
    assert command(files, data, mode="check", save=tmp_path / "a.pth") == 1
    assert "a.pth is not written, since the check has failed" in caplog.text
    assert not [*tmp_path.iterdir()]


def test_forms_that_disagree_are_1(files, data, monkeypatch, caplog):
    def spoil(network):
        deploy = fuse_blocks(network)
        nn.init.zeros_(deploy.head.fc.weight)
        return deploy

    monkeypatch.setattr(check_weights, "switch_to_deploy", spoil)
    assert command(files, data, mode="check") == 1
    assert "DISAGREE" in caplog.text


def test_what_float32_does_not_explain_disagrees_however_small(files, data, monkeypatch, caplog):
    def spoil(network):
        deploy = fuse_blocks(network)
        with torch.no_grad():
            deploy.head.fc.weight *= 1 + 5e-5
        return deploy

    monkeypatch.setattr(check_weights, "switch_to_deploy", spoil)
    assert command(files, data, mode="check") == 1
    assert "the forms DISAGREE, as 6 are further from float64 than rounding explains" in caplog.text


def test_logits_that_are_not_finite_are_1(files, data, tmp_path, caplog):
    tensors = torch.load(files / "train.pth", weights_only=True)["state_dict"]
    largest = torch.finfo(torch.float32).max
    torch.save(
        {
            **tensors,
            "head.fc.bias": torch.full((len(CLASSES),), largest),
            "head.fc.weight": largest * torch.sign(tensors["head.fc.weight"]),
        },
        tmp_path / "inf.pth",
    )
    assert command(files, data, weights=tmp_path / "inf.pth") == 1
    assert "train: the logits of 6 pictures are NOT FINITE" in caplog.text


def test_values_that_are_not_finite_disagree():
    difference = check_weights.LogitDifference()
    logits = torch.tensor([[1.0, 2.0]])
    difference.add(logits, torch.tensor([[1.0, float("nan")]]), lambda numbers: logits[numbers].double())
    assert not difference.ok
    assert (
        check_weights.Result("a", "w", "check", 64, 1.0, 2, difference=difference).as_dict()["difference"]["relative"]
        is None
    )


def test_scores_count_the_best_and_the_best_five():
    score = check_weights.Score()
    score.add(torch.arange(8.0).repeat(3, 1), torch.tensor([7, 3, 2]), 0.5)
    assert (score.top1, score.top5, score.seconds) == (1, 2, 0.5)


def test_the_folder_may_have_the_pictures_in_val(files, data, tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "val").symlink_to(data, target_is_directory=True)
    assert check_weights.run(**options(files, tmp_path)).pictures == 6


def test_unreadable_pictures_are_named_and_make_it_1(files, data, tmp_path, caplog):
    folder = tmp_path / "data"
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        (folder / name / "good.png").write_bytes((data / name / "0.png").read_bytes())
    (folder / "ant" / "empty.png").touch()
    (folder / "bee" / "cut.png").write_bytes((data / "bee" / "0.png").read_bytes()[:2000])
    (folder / "cat" / "text.jpg").write_text("<html>")
    assert command(files, folder, output=tmp_path / "r.json", batch_size=1) == 1
    assert "3 of 6 pictures could not be read" in caplog.text
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["pictures"] == 3 and not found["ok"]
    assert {Path(name).name for name in found["unreadable"]} == {"empty.png", "cut.png", "text.jpg"}


@pytest.mark.slow
def test_the_output_holds_the_result(files, data, tmp_path):
    assert command(files, data, mode="check", output=tmp_path / "r.json") == 0
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["scores"].keys() == {"train", "deploy"}
    assert found["scores"]["train"].keys() == {"top1", "top5", "images_per_second"}
    assert found["difference"].keys() == {"relative", "other_top1", "rounding", "beyond", "measured", "tolerance"}
    assert found["ok"] is True


@pytest.mark.parametrize(("arch", "side"), [("RepMLPNet/T256", 256), ("RIFormer/s12", 224), ("x/bottleneck-224", 224)])
def test_the_size_is_the_one_in_the_name(network, arch, side):
    assert check_weights.published_side(network, arch) == side


# What is wrong --------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def bad(files, tmp_path_factory):
    """Files that are no weights of this network, by name."""
    folder = tmp_path_factory.mktemp("bad")
    content = (files / "train.pth").read_bytes()
    (folder / "cut.pth").write_bytes(content[: len(content) // 2])
    (folder / "page.pth").write_text("<!DOCTYPE html><html>404</html>")
    torch.save({"model": nn.Linear(1, 1)}, folder / "code.pth")
    tensors = torch.load(files / "train.pth", weights_only=True)["state_dict"]
    torch.save({k: v for k, v in tensors.items() if not k.startswith("head.")}, folder / "headless.pth")
    torch.save({f"stage0.rbr_dense.{i}.weight": torch.zeros(1) for i in range(9)}, folder / "other.pth")
    return folder


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("missing.pth", "there is no weights file"),
        ("cut.pth", "is not a weights file: it is empty, damaged or another kind of file"),
        ("page.pth", "is not a weights file: it is empty, damaged or another kind of file"),
        ("code.pth", "holds more than tensors: pickled code"),
        ("headless.pth", "holds no classification head of 1000 classes: head.fc.weight is missing"),
        ("other.pth", "holds the weights of a RepVGG, not of a RIFormer"),
    ],
)
def test_weights_that_do_not_fit_are_one_sentence(files, data, bad, file, message, capsys):
    assert command(files, data, weights=bad / file) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": None}, "--weights is needed"),
        ({"arch": None}, "--arch is needed"),
        ({"data": None}, "--data is needed"),
        ({"arch": "RIFormr/s12"}, "called 'RIFormr/s12' (did you mean 'RIFormer/s12'?)"),
        ({"arch": "RIFormer/s13"}, "RIFormer has no architecture 's13'"),
        ({"arch": "RIFormer/m36"}, "is it of another architecture?"),
        ({"data": "no-such-folder"}, "there is no folder no-such-folder"),
        ({"num_classes": 5}, "has 3 folders of classes, but the network has 5 classes"),
        ({"num_classes": 2 * 10**9}, "the network has 2000000000 classes"),
        ({"imgsz": 20000}, "expected a whole number of pixels from 1 to 8192, not '20000'"),
        ({"crop_pct": 1e-3}, "would scale pictures to more than 8192 pixels a side"),
        ({"crop_pct": 2}, "expected a number from 0 to 1, not '2'"),
        ({"mode": "both"}, "invalid choice: 'both'"),
        ({"output": "no-such-folder/r.json"}, "--output takes a file in a folder that exists"),
        ({"save": "a.pth"}, "--save writes the deploy form: --mode check compares it with the training form before"),
        ({"save": "a.onnx", "mode": "check"}, "--save takes a file that ends in .pth, .pt, .safetensors, not a.onnx"),
        ({"save": ROOT / ".", "mode": "check"}, "--save takes a file that ends in"),
        ({"imgsz": 1}, "RIFormer/s12 takes no pictures of 1x1"),
    ],
    ids=str,
)
def test_what_is_wrong_is_one_sentence(files, data, changes, message, capsys):
    assert command(files, data, **changes) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["train", "check"])
def test_deploy_form_has_no_training_form(files, data, mode, capsys):
    assert command(files, data, weights=files / "deploy.pth", mode=mode) == 2
    assert f"has the deploy form, which --mode {mode} cannot start from" in capsys.readouterr().err


def test_folders_must_be_as_many_as_classes(files, data, tmp_path, capsys):
    (tmp_path / "one").mkdir()
    assert command(files, tmp_path) == 2
    assert "the 1 folders in" in capsys.readouterr().err
    (tmp_path / "one" / "a.png").write_bytes((data / "ant" / "0.png").read_bytes())
    assert command(files, tmp_path) == 2
    assert "has 1 folders of classes, but the network has 3 classes" in capsys.readouterr().err


def test_a_folder_without_folders_or_readable_pictures(files, tmp_path, capsys):
    assert command(files, tmp_path) == 2
    assert "holds no folders, expected one per class" in capsys.readouterr().err
    for name in CLASSES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").touch()
    assert command(files, tmp_path) == 2
    assert "none of the 3 pictures can be read" in capsys.readouterr().err


@pytest.mark.slow
def test_it_runs_as_a_module(files, data):
    words = options(files, data, mode="check", workers=1)
    done = subprocess.run(
        [sys.executable, "-m", "utils.check_weights", *(str(w) for k, v in words.items() for w in (f"--{k}", v))],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "the forms agree" in done.stdout
