"""Parameters, GFLOPs and the texts about a model, against numbers that are checked in.

After a change that is meant to change them, rewrite tests/complexity.json with

    python -m tests.models.test_summary --write
"""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from models import Backbone, DetectionModel, create_backbone, create_model, switch_to_deploy
from models.blocks.branches import STYLES, BranchedConv
from models.errors import UserError
from models.spec import load_spec
from models.summary import backbone_card, branches_text, count_gflops, count_parameters, head_card, model_table
from tests.helpers import SHIPPED, SWEPT, TINY_HEAD, tiny, tiny_backbone

COMPLEXITY = Path(__file__).parents[1] / "complexity.json"


def complexity(name):
    """Return the parameters and the GFLOPs at 640x640 of a shipped YAML, before and after fusing. No data is needed."""
    with torch.device("meta"):
        model = create_model(name)
        forms = {"train": model, "deploy": switch_to_deploy(model)}
    return {form: {"parameters": count_parameters(m), "gflops": round(count_gflops(m), 4)} for form, m in forms.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", SWEPT)
def test_complexity_is_what_it_was(name):
    assert complexity(name) == json.loads(COMPLEXITY.read_text())[name]


def test_complexity_is_known_for_every_yaml():
    assert sorted(json.loads(COMPLEXITY.read_text())) == SHIPPED


@pytest.mark.parametrize("name", SWEPT)
def test_fusing_adds_nothing(name):
    known = json.loads(COMPLEXITY.read_text())[name]
    assert known["deploy"]["parameters"] < known["train"]["parameters"]
    assert known["deploy"]["gflops"] <= known["train"]["gflops"]


# Counting -------------------------------------------------------------------------------------------------------------
class Fixed(Backbone):
    """Whatever `forward` is given."""

    def __init__(self, forward, *modules):
        super().__init__()
        self.in_channels, self.strides, self.channels = 3, (2,), (4,)
        self.parts = nn.ModuleList([nn.Conv2d(3, 4, 3, 2, 1, bias=False), *modules])
        self.function = forward

    def forward(self, x):
        return self.function(self, x)


def test_a_convolution_counts_two_per_multiply_add():
    net = Fixed(lambda net, x: [net.parts[0](x)])
    assert count_gflops(net, (32, 64)) == pytest.approx(2 * 16 * 32 * 4 * 3 * 9 / 1e9)


def test_operations_that_are_no_modules_count():
    def twice(net, x):
        y = net.parts[0](x)
        return [(y.flatten(2) @ y.flatten(2).transpose(1, 2)).unsqueeze(-1)]

    extra = 2 * 4 * 4 * 16 * 16
    assert count_gflops(Fixed(twice), (32, 32)) == pytest.approx((2 * 16 * 16 * 4 * 3 * 9 + extra) / 1e9)


def test_frozen_and_shared_parameters_count_once():
    conv = nn.Conv2d(3, 4, 1)
    conv.weight.requires_grad_(False)
    assert count_parameters(nn.Sequential(conv, conv)) == 3 * 4 + 4


def test_counting_leaves_the_model_alone():
    model = DetectionModel(tiny()).train()
    count_gflops(model)
    assert all(module.training for module in model.modules())
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    assert int(model.model[0].bn.num_batches_tracked) == 0


def test_gflops_grow_with_the_picture():
    model = DetectionModel(tiny())
    assert count_gflops(model, (64, 128)) == pytest.approx(2 * count_gflops(model, (64, 64)))


def test_riformer_costs_what_is_published():
    """1.813 G multiply-adds at 224, head aside, of which the affine maps cost almost nothing."""
    assert count_gflops(create_backbone("RIFormer", "s12"), (224, 224)) / 2 == pytest.approx(1.813, abs=0.005)


# Texts ----------------------------------------------------------------------------------------------------------------
def test_the_table_has_a_line_per_row():
    model = DetectionModel(tiny(yaml_file="tiny.yaml"))
    head, *rows, summary = model_table(model).splitlines()
    assert head.split() == ["slot", "from", "n", "params", "module", "arguments"]
    assert len(rows) == len(model.nodes)
    assert rows[5].split() == ["5", "[-1,", "2]", "1", "0", "Concat", "[1]"]
    assert [int(row.split()[0]) for row in rows] == list(range(7))
    params = [row.split()[-3 if " [" not in row else 3] for row in rows]
    assert params
    assert summary.startswith(f"tiny.yaml summary: {count_parameters(model):,} parameters, ")
    assert summary.endswith(f" {count_gflops(model):.1f} GFLOPs at 640x640")


def test_the_table_shows_levels_and_their_slots():
    rows = model_table(DetectionModel(tiny_backbone("RIFormer", "s12"))).splitlines()
    assert rows[1].split()[:4] == ["2-4", "-1", "1", f"{count_parameters(create_backbone('RIFormer')) - 2 * 64:,}"]
    assert rows[2].split()[:4] == ["5", "[P3,", "P4,", "P5]"]


def test_the_table_shows_widths_and_depths_as_built():
    """As YOLOv5's does: after width_multiple and depth_multiple."""
    cfg = tiny(
        backbone=[[-1, 1, "Conv", [16, 3, 2]], [-1, 1, "Conv", [32, 3, 2]], [-1, 6, "C3", [32]]], depth_multiple=0.5
    )
    row = model_table(DetectionModel(cfg)).splitlines()[3].split()
    assert (row[2], row[5]) == ("3", "[16]")


def test_the_card_answers_what_people_ask():
    model = DetectionModel(tiny_backbone("RIFormer", "s12"))
    card = dict(line.split(maxsplit=1) for line in backbone_card(model, (64, 64)).splitlines())
    assert card["levels"] == "P3 (stride 8) 128 channels, P4 (stride 16) 320 channels, P5 (stride 32) 512 channels"
    assert card["fuses"] == "3 GroupNorm, 12 RIFormerBlock"
    assert card["parameters"].startswith("11.41 M, fused 11.3")
    assert "64x64" in card["GFLOPs"]
    assert card["weights"] == "initialised, none loaded"
    assert "RIFormer" in card["backbone"]


@pytest.mark.slow
def test_the_card_of_a_timm_backbone_counts_what_fuses():
    model = DetectionModel(tiny_backbone("timm", "mobileone_s0"))
    assert "MobileOneBlock" in backbone_card(model, (64, 64))


@pytest.mark.slow
def test_the_card_says_where_weights_came_from(tmp_path):
    backbone = create_backbone("RIFormer", "s12", out_strides=(8, 16, 32))
    torch.save({"state_dict": backbone.state_dict()}, tmp_path / "a.pth")
    model = DetectionModel(tiny_backbone("RIFormer", "s12", {"weights": str(tmp_path / "a.pth")}))
    total = len(backbone.state_dict())
    assert f"{total} of {total} tensors from a.pth" in backbone_card(model, (64, 64))


@pytest.mark.slow
def test_a_model_of_one_size_is_counted_at_that():
    model = DetectionModel(tiny_backbone("timm", "test_vit_relpos", {"img_size": [64, 96]}))
    work = f"{count_gflops(model, (64, 96)):.1f} GFLOPs at 64x96"
    assert model_table(model).splitlines()[-1].endswith(work)
    assert " at 64x96, " in backbone_card(model)


def test_a_backbone_that_gives_other_maps_than_it_says_is_named_before_it_trains():
    """Boxes would be in the wrong places, or the rows behind it fail far from the reason."""
    model = DetectionModel(tiny_backbone("RIFormer", "s12"))
    model.model[0].strides = (4, 8, 16)
    with pytest.raises(UserError, match=r"RIFormer declares maps of shapes \[\(128, 160, 160\), .* but returned"):
        model_table(model)


def test_a_model_without_a_list_backbone_has_no_card():
    assert "has no list backbone" in backbone_card(DetectionModel(tiny()))


ANCHORS = [[10, 13, 16, 30], [30, 61, 62, 45]]
HEADS = [
    (["nc"], {}, "without anchors; class scores by depthwise and 1x1 convolutions, as of YOLO11 (legacy: false)"),
    (
        ["nc", {"legacy": True}],
        {},
        "without anchors; class scores by plain 3x3 convolutions, as of YOLOv8 (legacy: true)",
    ),
    (
        ["nc"],
        {"end2end": True},
        "without anchors and NMS; class scores by depthwise and 1x1 convolutions, as of YOLO11",
    ),
    (["nc", {"convs": 0}], {"end2end": True}, "without anchors and NMS; class scores by 1x1 convolutions alone"),
    (["nc", "anchors"], {"anchors": ANCHORS}, "with 2 anchors a level"),
]


@pytest.mark.parametrize(("args", "keys", "said"), HEADS, ids=str)
def test_the_card_says_which_head_it_is(args, keys, said):
    model = DetectionModel(tiny(head=[*TINY_HEAD, [[5, 3], 1, "Detect", args]], **keys))
    assert head_card(model).startswith(f"        head  Detect {said}")


# Branches -------------------------------------------------------------------------------------------------------------
def kept_for_backward(model):
    """Return how many values of maps one training step of a model keeps for its gradients."""
    kept = {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() / tensor.element_size()
        return tensor

    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        outputs = model.train()(torch.rand(2, 3, 64, 64))
    assert outputs is not None
    return sum(count for storage, count in kept.items() if storage not in own)


@pytest.mark.parametrize("style", STYLES)
def test_what_branches_cost_in_training_is_said_before_it(style):
    narrow, wide = create_model("yolov5n.yaml"), create_model(load_spec("yolov5n.yaml").with_branches(style))
    said = re.search(
        rf"{style}: (\d+) convolutions .* holds ([\d.]+) M parameters instead of ([\d.]+) M, "
        r"computes ([\d.]+) times as much, and keeps ([\d.]+) times",
        branches_text(wide),
    )
    count, params, before, work, values = map(float, said.groups())
    assert count == sum(isinstance(m, BranchedConv) for m in wide.modules())
    assert (params, before) == tuple(round(count_parameters(model) / 1e6, 2) for model in (wide, narrow))
    assert work == round(count_gflops(wide) / count_gflops(narrow), 1)
    assert values == pytest.approx(kept_for_backward(wide) / kept_for_backward(narrow), rel=0.4)


def test_nothing_is_said_of_branches_that_a_model_has_not():
    assert branches_text(create_model(tiny())) == ""


if __name__ == "__main__" and "--write" in sys.argv:
    COMPLEXITY.write_text(json.dumps({name: complexity(name) for name in SHIPPED}, indent=2) + "\n")
