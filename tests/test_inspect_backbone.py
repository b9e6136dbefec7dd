"""The card of a backbone: levels, work, sizes, precision and latency; names; what is told when something is wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from models import BACKBONES, Backbone, create_backbone, switch_to_deploy
from models.backbones.base import select_strides
from models.backbones.names import all_names, match_names, split_name
from models.blocks.reparam import fuse_blocks
from models.errors import UserError
from models.summary import Card, card_rows, count_gflops, count_level, count_parameters, format_rows, on_meta
from tests.helpers import tiny, tiny_backbone, write
from utils import cli, inspect_backbone

ROOT = Path(__file__).parents[1]
KEYS = "name parameters gflops fuses left stays weights notes imgsz levels size half amp largest_value latency_ms"
KEYS = {*KEYS.split(), "rounds", "threads", "model"}


class Small(Backbone):
    """Two levels; `scale` multiplies what it gives, `takes` says which pictures it takes."""

    archs = ("plain", "wide")
    example_side = 16

    def __init__(self, arch, in_channels=3, out_strides=None, scale=1.0, takes=lambda height, width: True):
        super().__init__()
        width = 8 if arch == "plain" else 16
        self.in_channels, self.scale, self.takes = in_channels, scale, takes
        self.strides = select_strides(out_strides, (4, 8), "Small")
        self.channels = tuple({4: width, 8: 2 * width}[s] for s in self.strides)
        self.stem = nn.Sequential(nn.Conv2d(in_channels, width, 3, 4, 1, bias=False), nn.BatchNorm2d(width))
        self.body = nn.Conv2d(width, 2 * width, 3, 2, 1) if 8 in self.strides else None

    def forward(self, x):
        if not self.takes(*x.shape[2:]):
            raise ValueError("takes no such picture\nsecond line")
        first = self.stem(x) * self.scale
        maps = {4: first, 8: self.body(first) if self.body else None}
        return [maps[s] for s in self.strides]


@pytest.fixture
def small(monkeypatch):
    """Small, registered for one test."""
    monkeypatch.setattr(BACKBONES, "_entries", dict(BACKBONES._entries))
    return BACKBONES.register("Small")(Small)


def command(*argv):
    return cli.run_script(inspect_backbone.main, inspect_backbone.make_parser(), list(map(str, argv)))


def rule_of(takes):
    backbone = Small("plain", takes=takes)
    return inspect_backbone.measure_size_rule(on_meta(backbone), 8)


def test_a_backbone_that_gives_other_maps_than_it_says_is_refused(small, monkeypatch, capsys):
    monkeypatch.setattr(small, "forward", lambda self, x: [self.stem(x)] * len(self.strides))
    assert command("Small", "--no-latency") == 2
    error = capsys.readouterr().err
    assert "Small declares maps of shapes [(8, 160, 160), (16, 80, 80)] for a picture of (640, 640), but" in error


# Levels ---------------------------------------------------------------------------------------------------------------
FIRST = [*((name, kind.archs[0]) for name, kind in BACKBONES.items() if kind.archs), ("timm", "resnet18")]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "arch"), FIRST)
def test_the_work_of_the_levels_adds_up(name, arch):
    def build(strides=None):
        return create_backbone(name, arch, out_strides=strides)

    with torch.device("meta"):
        whole = build()
        deploy = switch_to_deploy(whole)
        size = inspect_backbone.choose_size(inspect_backbone.Subject(name, whole, build, None), whole, None)
    first, last = (count_level(build, strides, size) for strides in (whole.strides[:1], whole.strides))
    assert (first.stride, first.channels) == (whole.strides[0], whole.channels[0])
    assert (first.height, first.width) == (size[0] // first.stride, size[1] // first.stride)
    assert (last.stride, last.channels) == (whole.strides[-1], whole.channels[-1])
    assert 0 < first.gflops < last.gflops == pytest.approx(count_gflops(whole, size), rel=1e-12)
    assert 0 < first.gflops_fused < last.gflops_fused == pytest.approx(count_gflops(deploy, size), rel=1e-12)


def test_levels_cost_what_their_convolutions_do(small):
    found = inspect_backbone.run("Small", imgsz=[32, 64], no_latency=True)
    first, second = 2 * 8 * 16 * 8 * 3 * 9 / 1e9, 2 * 4 * 8 * 16 * 8 * 9 / 1e9
    assert [level.gflops for level in found.levels] == pytest.approx([first, first + second])
    assert [(level.height, level.width) for level in found.levels] == [(8, 16), (4, 8)]
    assert found.card.fuses == {"Conv+BN": 1}
    assert found.card.parameters == (count_parameters(Small("plain")), count_parameters(Small("plain")) - 16 + 8)


def test_rows_that_are_the_backbone_have_levels(tmp_path):
    found = inspect_backbone.run(str(write(tmp_path, tiny(), "tiny.yaml")), imgsz=64, no_latency=True)
    assert [(level.stride, level.channels) for level in found.levels] == [(2, 8), (4, 16)]
    assert found.levels[-1].gflops < found.card.gflops[0]
    assert found.model is None


# Sizes ----------------------------------------------------------------------------------------------------------------
def test_a_network_that_takes_anything_needs_its_stride_alone():
    assert rule_of(lambda h, w: True) == inspect_backbone.SizeRule(8, 1, False, None)


def test_a_network_that_takes_multiples_is_found_out():
    rule = rule_of(lambda h, w: h % 16 == 0 and w % 16 == 0)
    assert rule == inspect_backbone.SizeRule(16, 16, False, None, "takes no such picture")
    assert "multiples of 16" in inspect_backbone.size_text(rule)


def test_a_network_that_takes_squares_alone_is_found_out():
    rule = rule_of(lambda h, w: h == w)
    assert (rule.multiple, rule.runs, rule.square, rule.only) == (8, 1, True, None)


def test_a_network_of_one_size_is_found_out():
    rule = rule_of(lambda h, w: (h, w) == (16, 16))
    assert rule == inspect_backbone.SizeRule(None, None, False, (16, 16), "takes no such picture")
    assert "16x16 alone" in inspect_backbone.size_text(rule)


def test_the_only_size_is_the_default_and_another_is_refused(small, monkeypatch):
    monkeypatch.setattr(Small, "__init__", partial_init(takes=lambda h, w: (h, w) == (16, 16)))
    assert inspect_backbone.run("Small", no_latency=True).imgsz == (16, 16)
    with pytest.raises(UserError, match=r"^Small takes no picture of 32x32: takes no such picture$"):
        inspect_backbone.run("Small", imgsz=32)


def partial_init(**changes):
    init = Small.__init__
    return lambda self, *args, **options: init(self, *args, **{**options, **changes})


# Precision ------------------------------------------------------------------------------------------------------------
def test_16_bit_floats_are_close(small):
    found = inspect_backbone.run("Small", no_latency=True)
    assert all(p.safe and 0 < p.error < 0.05 for p in [*found.half.values(), *found.amp.values()])
    assert found.half["bfloat16"].error > found.half["float16"].error
    assert 0 < found.largest[0] < 100


def test_what_float16_cannot_hold_is_unsafe(small):
    found = inspect_backbone.run("Small", options=["scale=1.0e+6"], no_latency=True)
    assert not found.half["float16"].safe and found.half["float16"].note == "not finite"
    assert found.half["bfloat16"].safe
    assert found.largest[0] > inspect_backbone.HALF_MAX


def test_what_is_not_finite_in_float32_is_unsafe_and_json(small):
    found = inspect_backbone.run("Small", options=["scale=.inf"], no_latency=True)
    assert not any(p.safe for p in [*found.half.values(), *found.amp.values()])
    assert "Infinity" not in json.dumps(found.as_dict()) and "NaN" not in json.dumps(found.as_dict())


def test_what_does_not_run_says_so():
    def fail():
        raise RuntimeError("no kernel\nfor this")

    assert inspect_backbone.precision_against(fail, []).note == "does not run on this CPU: no kernel"


def test_inspecting_changes_no_random_numbers(small):
    torch.manual_seed(3)
    backbone = Small("plain")
    want = torch.rand(1)
    torch.manual_seed(3)
    backbone = Small("plain")
    inspect_backbone.measure_precision(backbone, inspect_backbone.SizeRule(8, 1, False, None))
    assert torch.equal(torch.rand(1), want)
    assert torch.equal(backbone.stem[1].running_mean, torch.zeros(8))


# The whole ------------------------------------------------------------------------------------------------------------
def test_latency_is_measured_in_turns(small):
    latency = inspect_backbone.run("Small", imgsz=32, rounds=2).latency
    assert {name: len(times.times) for name, times in latency.items()} == {"backbone unfused": 2, "backbone fused": 2}


def test_a_yaml_shows_its_backbone_and_its_totals(small, tmp_path):
    cfg = {**tiny_backbone("Small", "wide"), "head": [[["P2", "P3"], 1, "Detect", ["nc"]]]}
    found = inspect_backbone.run(str(write(tmp_path, cfg, "small.yaml")), imgsz=64, rounds=1)
    assert found.card.name == found.model.name == "small.yaml"
    assert [(level.stride, level.channels) for level in found.levels] == [(4, 16), (8, 32)]
    assert found.card.gflops[0] < found.model.gflops[0]
    assert set(found.latency) == {"backbone unfused", "backbone fused", "model unfused", "model fused"}
    text = inspect_backbone.inspection_text(found)
    assert text.count("times as fast") == 2
    assert "       model  small.yaml" in text


def test_a_yaml_may_be_named_by_another_library():
    found = inspect_backbone.run("timm:test_resnet", imgsz=[64], no_latency=True)
    assert found.model.name == "timm-test_resnet.yaml"
    assert [level.stride for level in found.levels] == [8, 16, 32]


def test_weights_are_said(small, tmp_path):
    torch.save(Small("plain").state_dict(), tmp_path / "small.pth")
    found = inspect_backbone.run("Small", weights=str(tmp_path / "small.pth"), no_latency=True)
    assert "from small.pth" in found.card.weights
    cfg = {**tiny_backbone("Small"), "head": [[["P2", "P3"], 1, "Detect", ["nc"]]]}
    found = inspect_backbone.run(
        str(write(tmp_path, cfg, "a.yaml")), weights=str(tmp_path / "small.pth"), no_latency=True
    )
    assert "from small.pth" in found.card.weights


def test_a_fused_file_has_the_fused_work(tmp_path):
    fused = fuse_blocks(create_backbone("RepVGG", "A0", out_strides=(2, 4)))
    named = {k.replace(".conv.", ".rbr_reparam."): v for k, v in fused.state_dict().items()}
    torch.save(named, tmp_path / "deploy.pth")
    cfg = {**tiny_backbone("RepVGG", "A0"), "head": [[["P1", "P2"], 1, "Detect", ["nc"]]]}
    found = inspect_backbone.run(
        str(write(tmp_path, cfg, "a.yaml")), imgsz=64, weights=str(tmp_path / "deploy.pth"), no_latency=True
    )
    assert "deploy form" in found.card.weights
    assert found.levels[-1].gflops == found.levels[-1].gflops_fused == found.card.gflops[0] == found.card.gflops[1]


def test_the_text_says_everything(small, caplog):
    assert command("Small", "--imgsz", 32, "--rounds", 1) == 0
    text = caplog.text
    for title in "backbone levels parameters GFLOPs fuses stays weights size half AMP range latency".split():
        assert f"  {title}  " in text, title
    assert "measured on random input" in text
    assert "P2 (stride 4)" in text


def test_a_card_tells_why_something_stays_and_what_to_know():
    left = ("a.bn: it is read twice", "b.bn: it is read twice", "c.bn: no convolution feeds it")
    card = Card("net", (2, 1), (2.0, 1.0), {}, left, {"BatchNorm2d": 3}, None, ("one size alone",))
    text = format_rows(card_rows(card, (32, 64)))
    assert "        left  2 BatchNorm, it is read twice (a.bn, ...)\n        left  1 BatchNorm, no convolution" in text
    assert "       stays  3 BatchNorm2d\n" in text
    assert "        note  one size alone" in text
    assert "GFLOPs  2.0 at 32x64, fused 1.0" in text


@pytest.mark.slow
def test_json_alone_goes_to_stdout(tmp_path):
    """Also where a warning is logged, a plugin prints, and a progress bar moves."""
    plugin = tmp_path / "chatty.py"
    source = Path(__file__).read_text().partition("class Small")[2].partition("\n\n\n")[0]
    head = (
        "from torch import nn\nfrom models import BACKBONES, Backbone\nfrom models.backbones.base import select_strides"
    )
    plugin.write_text(f'{head}\nprint("hello")\n@BACKBONES.register("Small")\nclass Small{source}\n')
    words = ["Small/wide", "--plugins", plugin, "--json", "--imgsz", 33, "--rounds", 1]
    done = subprocess.run(
        [sys.executable, "-m", "utils.inspect_backbone", *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.keys() == KEYS
    assert found["imgsz"] == [40, 40]
    assert [level["name"] for level in found["levels"]] == ["P2", "P3"]
    assert found["half"]["float16"].keys() == {"error", "note", "safe"}
    assert found["latency_ms"]["backbone fused"].keys() == {"median", "minimum"}
    assert "hello" in done.stderr and "rounded up" in done.stderr


# Names ----------------------------------------------------------------------------------------------------------------
def test_names_are_found_by_pattern():
    assert match_names("riformer/*") == [f"RIFormer/{arch}" for arch in BACKBONES["RIFormer"].archs]
    assert match_names("MOBILEONE_S?") == [f"timm/mobileone_s{i}" for i in range(5)]
    assert match_names("timm/mobileone_s0") == ["timm/mobileone_s0"]
    assert {"RIFormer/s12", "timm/resnet18"} <= set(match_names("*")) == set(all_names())


def test_names_that_no_pattern_finds():
    with pytest.raises(UserError, match=r"no backbone has a name like 'moblieone_s0\*' \(did you mean 'mobileone_s0'"):
        match_names("moblieone_s0*")


def test_the_list_has_a_count(capsys, caplog):
    assert command("--list", "mobileone*") == 0
    assert caplog.messages[-1].splitlines()[-1] == f"{len(match_names('mobileone*'))} backbones"
    assert command("--list", "mobileone*", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {"names": match_names("mobileone*"), "count": len(match_names("mobileone*"))}


def test_names_stand_in_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    assert inspect_backbone.columns(["a", "bb", "ccc", "dddd", "e"]) == "a     ccc   e\nbb    dddd"


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("RIFormer", ("RIFormer", None)),
        ("RIFormer/s24", ("RIFormer", "s24")),
        ("timm/resnet18", ("timm", "resnet18")),
        ("resnet18", ("timm", "resnet18")),
        ("resnet18.a1_in1k", ("timm", "resnet18.a1_in1k")),
    ],
)
def test_a_name_is_a_kind_and_an_architecture(name, meant):
    assert split_name(name) == meant


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name a backbone or a model YAML"),
        (["RIFormer", "--list"], "name a backbone or a model YAML"),
        (["RIFormr"], "called 'RIFormr' (did you mean 'RIFormer'?)"),
        (["riformer/s12"], "(did you mean 'RIFormer/s12'?)"),
        (["yolo5n"], "(did you mean 'yolov5n'?)"),
        (["RIFormer/s13"], "RIFormer has no architecture 's13'"),
        (["RIFormer/"], "RIFormer has no architecture ''"),
        (["timm"], "timm needs an architecture behind it"),
        (["ultralytics:yolo99n"], "ultralytics has no such model as 'yolo99n'"),
        (["missing.yaml"], "no model YAML 'missing.yaml'"),
        (["--list", "zzz*"], "no backbone has a name like 'zzz*'"),
        (["RIFormer", "--weights", "no.pth"], "there is no weights file no.pth"),
        (["yolov5n.yaml", "--weights", "no.pth"], "yolov5n.yaml has no list backbone, so that it takes no weights"),
        (["RIFormer", "--options", "drop_path"], "--options takes KEY=VALUE"),
        (["RIFormer", "--options", "drop_path=[1"], "--options takes KEY=VALUE"),
        (["RIFormer", "--options", "drop=1"], "RIFormer got an unexpected keyword argument 'drop'"),
        (["RIFormer", "--imgsz", "1", "2", "3"], "--imgsz takes one side or height and width"),
        (["RIFormer", "--imgsz", "0"], "expected a whole number of pixels from 1 to 8192"),
        (["RIFormer", "--plugins", "no.py"], "--plugins takes Python files"),
    ],
)
def test_what_is_wrong_is_one_sentence(words, message, capsys):
    assert command(*words) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
