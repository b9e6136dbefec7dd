"""Classifiers as they are published, in files that take RGB in [0, 1]: those of timm, and those of our families."""

import numpy as np
import onnxruntime
import pytest
import timm
import torch

import export as script
from models import create_backbone, create_model, switch_to_deploy
from models.errors import ConfigError, UserError
from tests.exporting import command, report_in
from tests.helpers import randomize_, relative_error

SMALL = {
    "repvgg_a0": (64, 96),
    "deit_tiny_patch16_224": (224, 224),
    "test_efficientnet": (64, 64),
    "inception_v3": (299, 299),
}


def row(*args, nc=5):
    return {"nc": nc, "head": [["picture", 1, "Classifier", list(args)]]}


@pytest.mark.parametrize("name", [n if n != "inception_v3" else pytest.param(n, marks=pytest.mark.slow) for n in SMALL])
def test_a_model_is_timms_own(name, tmp_path):
    """With timm's weights, the normalization that timm names, and fused."""
    published = randomize_(timm.create_model(name, num_classes=5)).eval()
    torch.save(published.state_dict(), tmp_path / "weights.pth")
    model = create_model(row("timm", name, str(tmp_path / "weights.pth"))).double().eval()
    published = published.double()
    mean, std = (torch.tensor(published.pretrained_cfg[key]).view(3, 1, 1).double() for key in ("mean", "std"))
    x = torch.rand(2, 3, *SMALL[name], dtype=torch.float64)
    with torch.no_grad():
        logits = published((x - mean) / std)
        probabilities, own = model(x)
        fused = switch_to_deploy(model)(x)
    assert relative_error(own, logits) < 1e-6
    assert relative_error(probabilities, logits.softmax(1)) < 1e-6
    assert relative_error(fused[1], own) < 1e-9
    assert model.only_size == ((224, 224) if "deit" in name else None)


def test_a_model_of_a_family_of_ours_is_the_published_classifier():
    model = randomize_(create_model(row("RepVGG", "A0"))).double().eval()
    backbone = create_backbone("RepVGG", "A0", num_classes=5).double().eval()
    backbone.load_state_dict(model.model[0].network.state_dict())
    x = torch.rand(2, 3, 64, 96, dtype=torch.float64)
    mean, std = (
        torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    )
    with torch.no_grad():
        assert relative_error(model(x)[1], backbone((x - mean) / std)) < 1e-6
    assert not switch_to_deploy(model).report.left


def test_export_writes_a_file_of_timm_fused_and_proven(tmp_path):
    published = randomize_(timm.create_model("repvgg_a0", num_classes=7)).eval()
    torch.save(published.state_dict(), tmp_path / "mine.pth")
    words = ["--timm", "repvgg_a0", "--weights", tmp_path / "mine.pth", "--include", "onnx", "--imgsz", 64]
    assert command(*words) == 0
    report = report_in(tmp_path, "mine")
    assert report["fused"]["left"] == []
    assert report["params"]["deploy"] < report["params"]["train"]
    session = onnxruntime.InferenceSession(str(tmp_path / "mine.onnx"))
    x = torch.rand(1, 3, 64, 64)
    mean, std = (torch.tensor(published.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        want = published((x - mean) / std).softmax(1)
    (got,) = session.run(None, {"images": x.numpy()})
    assert got.shape == (1, 7)
    assert np.allclose(got, want, atol=1e-4)


def test_export_without_weights_is_of_timms_size(tmp_path):
    assert command("--timm", "test_vit", "--output", tmp_path, "--include", "torchscript") == 0
    assert report_in(tmp_path, "test_vit")["imgsz"] == [160, 160]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("timm", "mobilone_s0"), "mobileone_s0"),
        (("RepVGG", "A9"), "RepVGG has no architecture 'A9'"),
        (("Nothing",), "Nothing"),
        (("timm", "repvgg_a0", "timm/repvgg_a0.rvgg_in1k"), "--download"),
    ],
    ids=str,
)
def test_a_wrong_row_is_one_sentence(args, said):
    with pytest.raises(ConfigError, match=said):
        create_model(row(*args))


def test_timm_and_cfg_are_two_things(tmp_path):
    with pytest.raises(UserError, match="not both"):
        script.run(timm="repvgg_a0", cfg="repvgg-cls.yaml", output=tmp_path)
