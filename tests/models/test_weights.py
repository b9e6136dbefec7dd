"""Published weights: one loader for every publisher's names and forms, which says what it did or why it refuses."""

import re

import pytest
import torch
from torch import nn

from models import BACKBONES, DetectionModel, create_backbone, switch_to_deploy
from models.backbones.base import Classifier
from models.backbones.weights import SOURCES, Adapted, Dialect, WeightsReport, choose_dialect, copy_tensors
from models.errors import UserError, WeightsError
from tests.helpers import pictures, randomize_, relative_error, tiny_backbone, worst_error
from utils.train.freezing import declared_frozen

SMALL = {"out_strides": (4,)}  # a part of the network, so that files for it are small


@pytest.fixture(scope="module")
def riformer():
    return randomize_(create_backbone("RIFormer", "s12", **SMALL)).eval()


def deploy_form(backbone):
    """Return a RIFormer's tensors in their published deploy form: γ' = γ (s - 1), β' = β (s - 1) + t."""
    tensors = {k: v.double() for k, v in backbone.state_dict().items()}
    for name in [k for k in tensors if k.endswith("norm1.weight")]:
        block = name.removesuffix("norm1.weight")
        factor = tensors.pop(f"{block}token_mixer.affine.weight").flatten() - 1
        shift = tensors.pop(f"{block}token_mixer.affine.bias")
        tensors[f"{block}norm_reparam.weight"] = tensors.pop(f"{block}norm1.weight") * factor
        tensors[f"{block}norm_reparam.bias"] = tensors.pop(f"{block}norm1.bias") * factor + shift
    return tensors


def poolformer_names(tensors):
    """Return tensors under timm's names for a PoolFormer, whose token mixer has no parameters."""
    renamed = {}
    for name, tensor in tensors.items():
        parts = name.split(".")
        if "token_mixer" in name or name.startswith("norm0"):
            continue
        if parts[0] == "patch_embed":
            renamed[f"stem.conv.{parts[-1]}"] = tensor
            continue
        rest = ".".join(parts[3:])
        rest = f"layer_scale{rest[-1]}.scale" if rest.startswith("layer_scale") else rest
        renamed[f"stages.{int(parts[1]) // 2}.blocks.{parts[2]}.{rest}"] = tensor
    return renamed


# Forms ----------------------------------------------------------------------------------------------------------------
def test_a_deploy_file_gives_a_fused_backbone_of_the_same_function(riformer, tmp_path):
    torch.save({"state_dict": {f"backbone.{k}": v for k, v in deploy_form(riformer).items()}}, tmp_path / "a.pth")
    got = create_backbone("RIFormer", "s12", weights=tmp_path / "a.pth", **SMALL).eval()
    report = got.weights_report
    assert (report.deploy, report.missing, report.unexpected) == (True, (), ())
    assert "its branches or their norms, is lost" in str(report)
    assert got.report.fused["RIFormerBlock"] == 2
    assert worst_error(got, riformer, pictures(dtype=torch.float32)) <= 1e-5
    assert worst_error(switch_to_deploy(got), riformer, pictures(dtype=torch.float32)) <= 1e-5


def test_poolformer_weights_start_a_riformer_without_token_mixer(riformer, tmp_path):
    torch.save(poolformer_names(riformer.state_dict()), tmp_path / "poolformer.pth")
    got = create_backbone("RIFormer", "s12", weights=tmp_path / "poolformer.pth", **SMALL).eval()
    report = got.weights_report
    assert set(report.missing) == {"norm0.weight", "norm0.bias"}
    assert not report.unexpected
    assert "token mixers start with no effect" in str(report)
    block, original = got.network[0][1], riformer.network[0][1]
    x = torch.randn(2, 64, 6, 5)
    assert not block.token_mixer(block.norm1(x)).any()
    assert torch.equal(block.mlp(x), original.mlp(x))


def test_timm_fetches_weights_only_when_they_are_named_so(riformer, monkeypatch):
    asked = []
    tensors = poolformer_names(riformer.state_dict())
    monkeypatch.setitem(SOURCES, "timm/", lambda name: asked.append(name) or tensors)
    create_backbone("RIFormer", "s12", **SMALL)
    assert not asked
    got = create_backbone("RIFormer", "s12", weights="timm/poolformer_s12.sail_in1k", **SMALL)
    assert asked == ["poolformer_s12.sail_in1k"]
    assert "from timm/poolformer_s12.sail_in1k" in str(got.weights_report)


# Classifiers ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "arch", "options"),
    [("RIFormer", "s12", {"layers": [1] * 4, "embed_dims": [8, 8, 16, 16]}), ("timm", "mobileone_s0", {})],
)
def test_a_head_for_other_classes_starts_anew_and_says_so(name, arch, options, tmp_path, log):
    source = create_backbone(name, arch, num_classes=3, **options)
    torch.save(source.state_dict(), tmp_path / "three.pth")
    got = create_backbone(name, arch, num_classes=7, weights=tmp_path / "three.pth", **options)
    assert [name.removeprefix("body.") for name in got.weights_report.missing] == ["head.fc.weight", "head.fc.bias"]
    assert got.weights_report.unexpected == got.weights_report.missing
    (line,) = (line.replace("body.", "") for line in log if "three.pth" in line)
    assert re.search(
        r"2 of \d+ tensors start anew, for instance head.fc.weight \(7, \d+\): the file has \(3, \d+\)", line
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e39])
def test_weights_that_are_not_finite_are_refused(value, tmp_path):
    tensors = create_backbone("RIFormer", "s12", **SMALL).double().state_dict()
    name = next(name for name in tensors if name.endswith("fc2.weight"))
    tensors[name][0] = value
    torch.save(tensors, tmp_path / "nan.pth")
    with pytest.raises(WeightsError, match=f"nan.pth holds weights that are not finite, for instance {name}"):
        create_backbone("RIFormer", "s12", weights=tmp_path / "nan.pth", **SMALL)


@pytest.mark.slow
def test_a_classifier_loads_its_head_too(tmp_path):
    source = randomize_(create_backbone("RIFormer", "s12", num_classes=5)).eval()
    assert isinstance(source, Classifier)
    tensors = {k: v for k, v in source.state_dict().items() if ".norm0." not in k}
    torch.save({"state_dict": tensors}, tmp_path / "a.pth")
    got = create_backbone("RIFormer", "s12", num_classes=5, weights=tmp_path / "a.pth").eval()
    x = pictures(64, 96, dtype=torch.float32)
    assert relative_error(got(x), source(x)) <= 1e-6
    assert relative_error(switch_to_deploy(got)(x), source(x)) <= 1e-5
    assert not [name for name in got.weights_report.missing if name.startswith("head.")]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, kind in BACKBONES.items() if kind.archs])
def test_every_family_has_its_published_head(name):
    with torch.device("meta"):
        classifier = create_backbone(name, num_classes=7).eval()
    assert classifier(torch.zeros(2, 3, 224, 224, device="meta")).shape == (2, 7)


@pytest.mark.parametrize("num_classes", [0, -1, 1.5, True, "10"])
def test_num_classes_is_a_count(num_classes):
    with pytest.raises(UserError, match="num_classes is a whole number from 1"):
        create_backbone("RIFormer", num_classes=num_classes)


# Refusals -------------------------------------------------------------------------------------------------------------
def test_weights_of_another_family_are_named(riformer, tmp_path, monkeypatch):
    class Other(BACKBONES["RIFormer"]):
        dialects = (Dialect("official", r"^their_stem\."),)

    monkeypatch.setitem(BACKBONES._entries, "Other", Other)
    torch.save({"their_stem.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"other\.pth holds the weights of a Other, not of a RIFormer"):
        create_backbone("RIFormer", "s12", weights=tmp_path / "other.pth", **SMALL)


def test_partial_weights_load_only_when_allowed(riformer, tmp_path):
    tensors = dict(list(riformer.state_dict().items())[:10])
    torch.save(tensors, tmp_path / "part.pth")
    with pytest.raises(WeightsError, match="allow_partial loads whatever fits"):
        create_backbone("RIFormer", "s12", weights=tmp_path / "part.pth", **SMALL)
    got = create_backbone("RIFormer", "s12", weights=tmp_path / "part.pth", allow_partial=True, **SMALL)
    assert got.weights_report.matched == 10
    assert all(torch.equal(got.state_dict()[k], v) for k, v in tensors.items())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "(EOFError)"),
        (b"PK\3\4" + bytes(200), "(RuntimeError: PytorchStreamReader failed reading zip archive"),
        (b"<html>", "(UnpicklingError)"),  # without torch's advice to run what is in it
        (b"\5" + bytes(7) + b"{\x1b[1m", "(SafetensorError: Error while deserializing header"),
    ],
)
def test_a_damaged_file_is_refused_with_the_cause(content, said, tmp_path):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(WeightsError, match="empty, damaged or another kind of file") as caught:
        create_backbone("RIFormer", "s12", weights=tmp_path / "a.pt", **SMALL)
    assert said in str(caught.value)


def test_nothing_in_common_is_refused_even_when_partial_is_allowed(tmp_path):
    torch.save({"x": torch.zeros(3)}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="holds 0 of the"):
        create_backbone("RIFormer", "s12", weights=tmp_path / "x.pth", allow_partial=True, **SMALL)


@pytest.mark.parametrize("weights", [1, True, ["a"]])
def test_weights_are_a_path(weights):
    with pytest.raises(UserError, match="weights must be the path of a file"):
        create_backbone("RIFormer", weights=weights)


FORMS = {
    "sparse": lambda t: t.to_sparse(),
    "without data": lambda t: t.to("meta"),
    "complex": lambda t: t.to(torch.complex64),
    "quantized": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_tensors_of_another_form_are_refused_in_a_sentence(form, riformer, tmp_path):
    torch.save({k: form(v) for k, v in riformer.state_dict().items()}, tmp_path / "a.pth")
    with pytest.raises(
        WeightsError, match=r"a\.pth (holds .* in a form that no network here has|is not a weights)"
    ) as e:
        create_backbone("RIFormer", "s12", weights=tmp_path / "a.pth", **SMALL)
    assert "\n" not in str(e.value)


def test_whole_numbers_are_no_weights(riformer, tmp_path):
    """Rounded to these, nothing would be left of a network."""
    torch.save({k: v.to(torch.int8) for k, v in riformer.state_dict().items()}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"patch_embed.* \(64, 3, 7, 7\): the file has \(64, 3, 7, 7\) of int8"):
        create_backbone("RIFormer", "s12", weights=tmp_path / "a.pth", **SMALL)


# Dialects -------------------------------------------------------------------------------------------------------------
def test_no_two_dialects_of_a_family_are_alike():
    for kind in BACKBONES.values():
        assert len({dialect.name for dialect in kind.dialects}) == len(kind.dialects)
        assert all(dialect.marker for dialect in kind.dialects)


def test_a_dialect_is_heard_in_names():
    dialects = Dialect("a", r"\.rbr_"), Dialect("b", r"conv_kxk", renames=((r"^stem\.", "stage0."),))
    assert choose_dialect(["x.rbr_dense"], dialects) is dialects[0]
    assert choose_dialect(["x"], dialects) is None
    assert dialects[1].translate({"stem.conv_kxk.w": torch.zeros(1)}).keys() == {"stage0.conv_kxk.w"}


def test_counters_of_batches_may_be_missing():
    bn = nn.BatchNorm2d(3)
    tensors = {k: v for k, v in bn.state_dict().items() if k != "num_batches_tracked"}
    assert copy_tensors(bn, Adapted(tensors), "f").missing == ()


def test_a_report_quotes_a_few_names():
    text = str(WeightsReport("f.pth", 90, tuple("abcdefghij"), ("z",)))
    assert text == "90 of 100 tensors from f.pth; 10 missing (a, b, c, ...); 1 unexpected (z)"


# Freezing -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("stages", "frozen"), [(-1, []), (0, []), (1, ["model.0.patch_embed", "model.0.network.0"])])
def test_frozen_stages_are_not_trained(stages, frozen):
    model = DetectionModel(tiny_backbone("RIFormer", "s12", {"frozen_stages": stages}))
    assert declared_frozen(model) == frozen


@pytest.mark.parametrize("stages", [-2, 5, 1.5, True, "2"])
def test_frozen_stages_are_counted(stages):
    with pytest.raises(UserError, match="frozen_stages must be a whole number from -1 to 4"):
        create_backbone("RIFormer", frozen_stages=stages)
