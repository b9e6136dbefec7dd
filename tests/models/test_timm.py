"""timm's models as backbones: whatever their strides, sizes and layouts, P3 to P5 come out where they belong."""

import copy
import io
import json

import onnxruntime
import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from models import DetectionModel, create_backbone, downloads, switch_to_deploy
from models.backbones import check_backbone
from models.backbones.pyramid import Pyramid, fit_to_grid, nearest_stride
from models.backbones.traceable import Traceable, adaptive_avg_pool2d
from models.errors import ConfigError, UserError
from tests.helpers import pictures, randomize_, tiny, tiny_backbone, worst_error
from utils import cli, survey_timm

TIMM = ["resnet18", "mobilenetv4_conv_small", "hgnetv2_b0", "ghostnet_050"]
P3_TO_P5 = (8, 16, 32)
TALK = ("torch.jit.TracerWarning", "UserWarning", "DeprecationWarning", "FutureWarning")  # of tracing and exporting
pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in TALK]
OWN_FUSING = [  # a model of each file whose blocks timm itself fuses, slow ones left to the slow test
    *("repvgg_a0", "repvit_m0_9", "fastvit_t8", "levit_128s"),
]
FILES = [  # models with something to fuse, one of each of some files
    *("mobileone_s0", "nextvit_small", "ghostnetv3_050", "lcnetv2_base", "repghostnet_050", "tiny_vit_5m_224"),
    *("efficientvit_m0", "shvit_s1", "efficientformerv2_s0", "swiftformer_xs"),
    *("dla46_c", "hrnet_w18_small", "mobilevit_xxs", "regnetx_002", "coatnet_nano_rw_224"),
]
EXPORTED = ["test_vit", "test_resnet", "test_convnext", "test_mambaout", "test_efficientnet"]
EXPORTED_SLOWLY = ["vit_tiny_patch16_224", "eva02_tiny_patch14_224", "swin_tiny_patch4_window7_224", "inception_v3"]


def build(name, **options):
    """Return P3 to P5 of timm's `name` in eval mode, at its own size where it takes one only."""
    backbone = create_backbone("timm", name, out_strides=P3_TO_P5, **options)
    if backbone.size and "img_size" in backbone.options and not options:
        backbone = create_backbone("timm", name, out_strides=P3_TO_P5, img_size=224)
    return backbone.eval()


def shapes(backbone, height, width):
    """Return the shapes of the maps of a picture without data, (C, H, W) each."""
    x = torch.zeros(1, backbone.in_channels, height, width, device=next(backbone.parameters()).device)
    with torch.no_grad():
        return [tuple(m.shape[1:]) for m in backbone(x)]


def declared(backbone, height, width):
    return [(c, height // s, width // s) for c, s in zip(backbone.channels, backbone.strides, strict=True)]


def run_onnx(model, x):
    file = io.BytesIO()
    torch.onnx.export(model, (x,), file, input_names=["x"], dynamo=False, opset_version=17)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    return [torch.from_numpy(output) for output in session.run(None, {"x": x.numpy()})]


def export_error(name, height, width):
    """Return how far the exported, fused model is from the model, relative."""
    backbone = randomize_(build(name)).eval()
    x = pictures(height, width, dtype=torch.float32)
    with torch.no_grad():
        got, want = run_onnx(switch_to_deploy(backbone), x), backbone(x)
    return max(((g - w).abs().max() / w.abs().max()).item() for g, w in zip(got, want, strict=True))


# What timm gives ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("arch", TIMM)
def test_timm_backbones_give_what_they_declare(arch):
    check_backbone(create_backbone("timm", arch), size=(64, 96))


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["swin_tiny_patch4_window7_224", "test_mambaout"])
def test_timm_maps_with_channels_last_are_turned(arch):
    backbone = create_backbone("timm", arch)
    check_backbone(backbone, size=(64, 96))
    deploy = switch_to_deploy(randomize_(backbone).eval())
    assert all(m.is_contiguous() for m in deploy(pictures(64, 64, dtype=torch.float32)))


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["dla34", "csatv2"])
def test_strides_that_timm_declares_wrongly_are_put_right(arch):
    """Half of the true stride would put every box at twice its place."""
    backbone = create_backbone("timm", arch)
    assert shapes(backbone.eval(), 256, 128) == declared(backbone, 256, 128)


@pytest.mark.parametrize("in_channels", [1, 4])
def test_timm_stems_take_other_channels(in_channels):
    backbone = create_backbone("timm", "resnet18", in_channels=in_channels, out_strides=(8,))
    assert backbone.example_input().shape[:2] == (1, in_channels)
    check_backbone(backbone, size=(32, 32))


@pytest.mark.slow
@pytest.mark.parametrize("strides", [(8,), (16, 8), (4, 32)], ids=str)
def test_timm_levels_are_chosen_by_stride(strides):
    whole, part = (randomize_(create_backbone("timm", "resnet18", out_strides=s)).eval() for s in (None, strides))
    part.load_state_dict(whole.state_dict(), strict=False)
    assert part.strides == tuple(sorted(strides))
    x = pictures(64, 64, dtype=torch.float32)
    with torch.no_grad():
        maps = dict(zip(whole.strides, whole(x), strict=True))
        assert all(torch.equal(got, maps[s]) for s, got in zip(part.strides, part(x), strict=True))


def test_timm_names_may_carry_a_tag():
    assert create_backbone("timm", "resnet18.a1_in1k").channels == (64, 64, 128, 256, 512)


def test_timm_is_not_asked_to_download(monkeypatch):
    asked = []
    create = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda *args, **kw: asked.append(kw.get("pretrained")) or create(*args, **kw)
    )
    create_backbone("timm", "resnet18", out_strides=(8,))
    assert not any(asked)


@pytest.mark.parametrize(
    "row",
    [
        ["timm", ["resnet18", {"pretrained": True}]],
        ["resnet18", [True]],
        ["RIFormer", ["s12", {"weights": "timm/poolformer_s12"}]],
        ["timm", ["resnet18", {"pretrained": True, "pretrained_cfg": {"url": "http://127.0.0.1:9/x.pth"}}]],
    ],
    ids=str,
)
def test_a_yaml_downloads_only_what_the_command_line_allows(row, monkeypatch):
    asked = []
    monkeypatch.setattr(timm.models._builder, "load_pretrained", lambda *_, **options: asked.append(options))
    monkeypatch.setitem(downloads.CONSENT, "given", False)
    cfg = tiny(backbone=[[-1, 1, *row]], head=[[["P3", "P4", "P5"], 1, "Detect", ["nc"]]])
    with pytest.raises(ConfigError, match="downloaded only when you allow it: --download"):
        DetectionModel(cfg)
    assert not asked


@pytest.mark.parametrize("option", ["pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"])
def test_a_yaml_chooses_no_address_and_no_folder(option, monkeypatch):
    monkeypatch.setitem(downloads.CONSENT, "given", True)
    with pytest.raises(ConfigError, match=f"timm's {option} is not an option"):
        create_backbone("timm", "resnet18", pretrained=True, **{option: {"url": "http://127.0.0.1:9/x.pth"}})


@pytest.mark.parametrize(("arch", "options"), [("resnet18", {}), ("test_vit", {"img_size": 640})])
def test_random_numbers_are_drawn_for_weights_alone(arch, options):
    """Reading off first what timm gives must not change what a seed gives."""
    torch.manual_seed(0)
    ours = create_backbone("timm", arch).body
    torch.manual_seed(0)
    theirs = timm.create_model(arch, features_only=True, out_indices=ours.feature_info.out_indices, **options)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_levels_that_nobody_reads_are_not_built():
    part = create_backbone("timm", "resnet18", out_strides=(8,))
    assert not [name for name, _ in part.named_modules() if "layer3" in name or "layer4" in name]


# Plain transformers and other nets without a pyramid ------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("arch", ["test_vit", "test_vit3", "vit_tiny_patch16_224"])
def test_a_plain_transformer_serves_at_any_size(arch):
    backbone = create_backbone("timm", arch)
    assert backbone.strides == P3_TO_P5
    assert backbone.size is None
    for size in ((64, 96), (160, 64)):
        assert shapes(backbone.eval(), *size) == declared(backbone, *size)
    assert any("P3 (stride 8), P4 (stride 16), P5 (stride 32)" in note for note in backbone.notes)


def test_a_transformer_is_a_detector_of_its_own():
    model = DetectionModel(tiny_backbone("timm", "test_vit"))
    model = randomize_(model).double().eval()
    deploy = switch_to_deploy(model)
    assert worst_error(deploy, model, pictures(64, 96)) <= 1e-9
    assert deploy.report.left == []


@pytest.mark.slow
def test_patches_of_14_pixels_are_brought_to_the_grid_by_a_smaller_picture():
    with torch.device("meta"):
        backbone = build("vit_small_patch14_dinov2")
    assert (backbone.scale, backbone.size) == (14 / 16, None)
    assert [shapes(backbone, *size) for size in ((640, 640), (480, 672))] == [
        declared(backbone, *size) for size in ((640, 640), (480, 672))
    ]
    assert any("0.875" in note for note in backbone.notes)


def test_only_missing_levels_are_made_where_there_is_a_pyramid():
    with torch.device("meta"):
        backbone = build("levit_128s", img_size=256)
    assert (backbone.body_strides, backbone.pyramid.made) == ([16, 32], (8,))
    assert shapes(backbone, 256, 256) == declared(backbone, 256, 256)


def test_an_adapter_trains():
    backbone = create_backbone("timm", "test_vit", out_strides=(8, 32)).train()
    sum(m.mean() for m in backbone(pictures(64, 64, dtype=torch.float32))).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in backbone.parameters())


def test_dim_is_the_width_of_the_made_maps():
    assert create_backbone("timm", "test_vit", dim=24).channels == (24, 24, 24)
    assert create_backbone("timm", "resnet18", out_strides=P3_TO_P5, dim=24).channels == (128, 256, 512)


@pytest.mark.parametrize(
    ("has", "strides", "made", "channels"),
    [
        ({16: 48}, (4, 8, 16, 32), (4, 8, 16, 32), (48, 48, 48, 48)),
        ({16: 512}, (8,), (8,), (256,)),
        ({4: 8, 8: 16, 16: 32}, P3_TO_P5, (32,), (16, 32, 32)),
        ({16: 32, 32: 64, 64: 128}, P3_TO_P5, (8,), (32, 32, 64)),
        ({8: 16, 16: 32, 32: 64}, P3_TO_P5, (), (16, 32, 64)),
    ],
    ids=str,
)
def test_a_pyramid_makes_what_is_missing(has, strides, made, channels):
    pyramid = randomize_(Pyramid(has, strides, plain=len(has) == 1)).double().eval()
    maps = [torch.rand(2, c, 128 // s, 192 // s, dtype=torch.float64) for s, c in has.items()]
    got = pyramid(maps)
    assert (pyramid.made, pyramid.channels) == (made, channels)
    assert [tuple(m.shape[1:]) for m in got] == [
        (c, 128 // s, 192 // s) for c, s in zip(channels, strides, strict=True)
    ]
    if made:
        deploy = switch_to_deploy(pyramid, maps)
        assert not [m for m in deploy.modules() if isinstance(m, nn.BatchNorm2d)]
        assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-9) for a, b in zip(deploy(maps), got, strict=True))


@pytest.mark.parametrize(("stride", "nearest"), [(8, 8), (16, 8), (2, 4), (64, 32), (32, 32)])
def test_the_nearest_stride_is_counted_in_doublings(stride, nearest):
    assert nearest_stride(stride, (4, 8, 32)) == nearest


# Pictures of one size -------------------------------------------------------------------------------------------------
def test_a_model_of_one_size_is_built_for_640_or_what_is_asked_for():
    with torch.device("meta"):
        assert create_backbone("timm", "test_vit_relpos").size == (640, 640)
        backbone = create_backbone("timm", "test_vit_relpos", img_size=[64, 96])
    assert shapes(backbone, 64, 96) == declared(backbone, 64, 96)
    assert backbone.example_input().shape == (1, 3, 64, 96)
    with pytest.raises(UserError, match=r"takes no picture of 96x96, it is built for 64x96 alone.*\{img_size: 96\}"):
        shapes(backbone, 96, 96)


def test_a_model_that_no_option_enlarges_serves_at_its_own_size():
    with torch.device("meta"):
        backbone = create_backbone("timm", "efficientformer_l1")
    assert backbone.size == (224, 224)
    with pytest.raises(UserError, match=r"takes no picture of 640x640, it is built for 224x224 alone$"):
        shapes(backbone, 640, 640)


def test_sides_that_are_no_multiples_are_explained():
    with pytest.raises(UserError, match="takes no picture of 100x64, give it sides that are multiples of 32"):
        shapes(create_backbone("timm", "test_vit"), 100, 64)


# Maps that lack their rim ---------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_nets_without_padding_give_whole_grids():
    with torch.device("meta"):
        backbone = build("inception_v3")
    assert shapes(backbone, 480, 672) == declared(backbone, 480, 672)
    assert any("brought to the grid" in note for note in backbone.notes)


def test_maps_stretched_over_the_picture_are_put_back():
    with torch.device("meta"):
        backbone = build("mobilevitv2_050")
    assert shapes(backbone, 480, 672) == declared(backbone, 480, 672)


def test_sides_that_inner_windows_refuse_are_explained():
    with (
        torch.device("meta"),
        pytest.raises(UserError, match="inner windows ask for other sides, for instance 256x256"),
    ):
        shapes(build("halonet26t"), 640, 640)


def test_a_map_is_padded_around_its_middle():
    padded = fit_to_grid(torch.ones(1, 1, 2, 1), torch.zeros(1, 3, 40, 24), 8)
    assert padded[0, 0].tolist() == [[0, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert fit_to_grid(torch.ones(1, 1, 4, 4), torch.zeros(1, 3, 24, 24), 8).shape == (1, 1, 3, 3)


# Fusing ---------------------------------------------------------------------------------------------------------------
def fused_error(name):
    backbone = randomize_(build(name)).double()
    deploy = switch_to_deploy(backbone)
    assert deploy.report.fused
    assert {p.dtype for p in deploy.parameters()} == {torch.float64}
    return worst_error(deploy, backbone, pictures(*(backbone.size or (160, 128))))


@pytest.mark.slow
@pytest.mark.parametrize("name", OWN_FUSING)
def test_fused_is_unfused(name):
    assert fused_error(name) <= 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_fused_is_unfused_in_more_files(name):
    assert fused_error(name) <= 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["test_vit", "repvit_m0_9"])
def test_dtypes_and_copies_are_kept(name, dtype):
    backbone = copy.deepcopy(randomize_(build(name))).to(dtype)
    deploy = switch_to_deploy(backbone)
    with torch.no_grad():
        maps = deploy(pictures(64, 64, dtype=dtype))
    assert {m.dtype for m in (*maps, *deploy.parameters())} == {dtype}


# Exporting ------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("name", EXPORTED)
def test_onnx_agrees_at_another_size(name):
    assert export_error(name, 96, 160) <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPORTED_SLOWLY)
def test_onnx_of_large_models_agrees_at_another_size(name):
    side = 256 if name == "inception_v3" else 96
    assert export_error(name, side, side + 64) <= 1e-4


@pytest.mark.slow
def test_a_trace_agrees_and_leaves_the_model_as_it_was():
    backbone = randomize_(build("eva02_tiny_patch14_224"))
    x, other = pictures(64, 96, dtype=torch.float32), pictures(96, 64, dtype=torch.float32)
    with torch.no_grad():
        before = backbone(other)
        traced = torch.jit.trace(backbone, x, check_trace=False)
        assert worst_error(traced, backbone, x) <= 1e-5
        assert all(torch.equal(a, b) for a, b in zip(backbone(other), before, strict=True))


WRITTEN = {
    "bilinear": lambda x: F.interpolate(x, size=(5, 9), mode="bilinear", antialias=True),
    "bicubic": lambda x: F.interpolate(x, size=(20, 3), mode="bicubic", antialias=True),
    "plain resize": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "pool": lambda x: F.adaptive_avg_pool2d(x, (3, 5)),
    "pool to one": nn.AdaptiveAvgPool2d(1),
    "fold": lambda x: F.fold(F.unfold(x, 3, padding=1, stride=2), x.shape[2:], 3, padding=1, stride=2),
    "fold, no overlap": lambda x: F.fold(F.unfold(x, (2, 1), stride=(2, 1)), x.shape[2:], (2, 1), stride=(2, 1)),
    "RMSNorm": lambda x: F.rms_norm(x, (8, 9), torch.arange(72).view(8, 9) / 9) + F.rms_norm(x, (9,), eps=0.1),
    "roll": lambda x: x.roll((-11, 3), (2, 3)) + torch.roll(x, shifts=(-11, 3), dims=(2, 3)),
    "windows": lambda x: x.unfold(2, 4, 2).unfold(3, 3, 3),
}


@pytest.mark.parametrize("function", WRITTEN.values(), ids=WRITTEN)
def test_what_is_written_out_for_a_trace_is_the_same(function):
    x = torch.rand(2, 3, 8, 9, dtype=torch.float64)
    with Traceable():
        got = function(x)
    assert got.shape == function(x).shape
    assert torch.allclose(got, function(x), atol=1e-12)


def test_a_pool_of_equal_cells_is_left_alone():
    assert adaptive_avg_pool2d(torch.rand(1, 1, 6, 8), (3, 4)) is None


# How new ones start ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("arch", ["mobileone_s0", "repvgg_a0"])
def test_new_branches_leave_something_of_the_picture(arch):
    """Behind 18 blocks of MobileOne and 13 of RepVGG that start as timm's do, the correlation is below 0.01."""
    torch.manual_seed(0)
    blocks = [m for m in create_backbone("timm", arch).modules() if getattr(m, "identity", None) is not None]
    width = max({block.identity.num_features for block in blocks[:-1]})
    x = torch.randn(8, width, 6, 6).relu()
    y = nn.Sequential(*(block for block in blocks if block.identity.num_features == width))(x)
    assert torch.corrcoef(torch.stack([x.flatten(), y.flatten()]))[0, 1] > 0.5


def test_weights_of_a_file_are_as_they_were(tmp_path):
    published = randomize_(timm.create_model("mobileone_s0", num_classes=3))
    torch.save(published.state_dict(), tmp_path / "s0.pth")
    ours = create_backbone("timm", "mobileone_s0", num_classes=3, weights=tmp_path / "s0.pth")
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), published.parameters(), strict=True))
    torch.save(ours.state_dict(), tmp_path / "ours.pth")  # under our names, `body.` before timm's
    backbone = create_backbone("timm", "mobileone_s0", weights=tmp_path / "ours.pth")
    assert (len(backbone.weights_report.missing), len(backbone.weights_report.unexpected)) == (0, 0)


# Classifiers ----------------------------------------------------------------------------------------------------------
def test_a_classifier_is_timms_own():
    torch.manual_seed(0)
    ours = create_backbone("timm", "test_resnet", num_classes=7).eval()
    torch.manual_seed(0)
    theirs = timm.create_model("test_resnet", num_classes=7).eval()
    x = pictures(64, 64, dtype=torch.float32)
    assert torch.equal(ours(x), theirs(x))
    assert worst_error(switch_to_deploy(ours).double(), ours.double(), x.double()) <= 1e-6


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
def test_a_file_of_timms_names_fits_the_maps_and_the_classifier(name, tmp_path):
    options = {"img_size": 160} if name == "test_vit" else {}
    theirs = timm.create_model(name, num_classes=10, **options)
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    file = {"weights": tmp_path / "timm.pth", "allow_partial": True, **options}
    ours = create_backbone("timm", name, out_strides=P3_TO_P5, **file)
    stem = next(weight for weight in ours.body.parameters() if weight.ndim == 4)
    assert any(torch.equal(stem, weight) for weight in theirs.parameters() if weight.shape == stem.shape)
    logits = create_backbone("timm", name, num_classes=10, **file).eval()
    x = pictures(160, 160, dtype=torch.float32)
    assert torch.equal(logits(x), theirs.eval()(x))


# What the user gets wrong ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arch", "options", "expected"),
    [
        ("resnet18", {"img_size": 64}, "unexpected keyword argument 'img_size'"),
        ("test_vit_relpos", {"no_such": 1}, "unexpected keyword argument 'no_such'"),
        ("test_vit", {"img_size": 100}, "timm's img_size is a multiple of 32 pixels, or [height, width] of such"),
        ("test_vit", {"img_size": [64]}, "got [64]"),
        ("test_vit", {"dim": 0}, "timm's dim is the number of channels that an adapter makes, got 0"),
        ("test_vit", {"in_chans": 4}, "timm's in_chans follows from the rest of the YAML"),
        ("test_vit", {"out_strides": (2,)}, "has no map at P1 (stride 2), it gives P2"),
        ("resnet18", {"out_strides": (64,)}, "has no map at P6"),
    ],
    ids=str,
)
def test_wrong_options_are_explained(arch, options, expected):
    with pytest.raises(UserError) as caught:
        create_backbone("timm", arch, **options)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_level_is_a_config_error():
    with pytest.raises(ConfigError):
        create_backbone("timm", "test_vit", out_strides=(2,))


# The survey -----------------------------------------------------------------------------------------------------------
def run_survey(*words):
    """Run the command as the command line does and return the exit code."""
    return cli.run_script(survey_timm.main, survey_timm.make_parser(), list(words))


def test_the_survey_writes_what_it_finds(tmp_path, caplog):
    output = tmp_path / "found.json"
    assert survey_timm.run(filter="test_resne*", deep=True, output=output) == 0
    found = json.loads(output.read_text())
    assert [(m["name"], m["square"], m["rectangle"], m["left"]) for m in found["models"]] == [
        ("test_resnet", True, True, [])
    ]
    assert max(found["proofs"][0]["onnx"], found["proofs"][0]["fused"]) < 1e-3


def test_the_survey_says_why_a_model_does_not_serve():
    finding = survey_timm.examine_model("efficientformer_l1")
    assert not finding.square
    assert "takes no picture of 640x640" in finding.reason
    assert "why a model does not serve" in survey_timm.findings_table([finding])


def test_a_survey_that_could_not_be_written_is_not_begun(tmp_path, capsys):
    for output in (tmp_path, tmp_path / "no-such-folder/found.json"):
        assert run_survey("--filter", "test_vit", "--output", str(output)) == 2
        assert "--output takes a file in a folder that exists" in capsys.readouterr().err


def test_a_survey_of_nothing_says_so(capsys):
    assert run_survey("--filter", "no_such_*") == 2
    assert "timm has no model like 'no_such_*'" in capsys.readouterr().err
