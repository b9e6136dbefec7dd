"""First weights from another model go to the rows that play the same part."""

import copy

import pytest
import torch

from models import create_model
from models.backbones.weights import MIN_MATCHED
from models.blocks.branches import STYLES, BranchedConv
from models.errors import WeightsError
from models.spec import load_spec
from tests.helpers import pictures, randomize_, tiny, worst_error
from utils.train.trainer import new_model
from utils.train.transfer import MIN_TRANSFERRED, align, transfer


def build(cfg, seed=1, **options):
    model = randomize_(create_model(cfg, **options), seed)
    model.pt_path = "first.pt"
    for buffer in (b for name, b in model.named_buffers() if name.endswith("num_batches_tracked")):
        buffer.fill_(seed)
    return model


def pan(backbone, *, nc=2, first, skips, detect=("nc",), width=0.25):
    """Return a model YAML whose neck has the levels P3 to P5, behind rows or a list backbone that ends in `first`."""
    at = first + 1
    head = [
        [-1, 1, "Conv", [256, 1, 1]],
        [-1, 1, "nn.Upsample", [None, 2, "nearest"]],
        [[-1, skips[1]], 1, "Concat", [1]],
        [-1, 1, "C3", [256, False]],
        [-1, 1, "Conv", [128, 1, 1]],
        [-1, 1, "nn.Upsample", [None, 2, "nearest"]],
        [[-1, skips[0]], 1, "Concat", [1]],
        [-1, 1, "C3", [128, False]],
        [-1, 1, "Conv", [128, 3, 2]],
        [[-1, at + 4], 1, "Concat", [1]],
        [-1, 1, "C3", [256, False]],
        [-1, 1, "Conv", [256, 3, 2]],
        [[-1, at], 1, "Concat", [1]],
        [-1, 1, "C3", [512, False]],
        [[at + 7, at + 10, at + 13], 1, "Detect", list(detect)],
    ]
    return {"nc": nc, "width_multiple": width, "backbone": backbone, "head": head}


ROWS = [[-1, 1, "Conv", [32, 3, 2]], [-1, 1, "Conv", [64, 3, 2]], [-1, 1, "Conv", [128, 3, 2]]]
ROWS += [[-1, 1, "Conv", [256, 3, 2]], [-1, 1, "Conv", [512, 3, 2]], [-1, 1, "SPPF", [512, 5]]]
PLAIN = pan(ROWS, first=5, skips=(2, 3))  # rows 0 to 5, neck and head 6 to 20
LISTED = pan(
    [[-1, 1, "RIFormer", ["s12"]], [-1, 1, "SPPF", [512, 5]]], first=5, skips=("P3", "P4")
)  # rows 0, 1; 2 to 16
OTHER_LISTED = pan([[-1, 1, "timm", ["mobilenetv3_small_050"]], [-1, 1, "SPPF", [512, 5]]], first=5, skips=("P3", "P4"))


@pytest.fixture(scope="module")
def models():
    """Models whose weights all differ; tests change copies."""
    return {"plain": build(PLAIN), "listed": build(LISTED), "other": build(OTHER_LISTED)}


def row(model, i):
    return model.model[i].state_dict()


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "listed", "other"])
def test_the_same_architecture_receives_everything(name, models):
    source = models[name]
    target = build(source.spec, seed=2)
    report = transfer(source, target)
    assert same(source.state_dict(), target.state_dict())
    assert report.copied == report.total
    assert not report.unused
    assert all(row.row == row.source for row in report.rows)
    assert "start new" not in str(report)


def test_neck_and_head_go_behind_another_backbone(models):
    source, target = models["plain"], copy.deepcopy(models["listed"])
    before = copy.deepcopy(target.state_dict())
    report = transfer(source, target)
    assert align(source, target) == {1: 5, **{i: i + 4 for i in range(2, 17)}}
    for i in (2, 6, 10, 12, 13, 15, 16):  # rows whose inputs are of the neck alone
        assert same(row(target, i), row(source, i + 4)), i
    kept = [name for name in before if name.startswith("model.0.")]
    assert all(torch.equal(before[name], target.state_dict()[name]) for name in kept)
    joined = report.rows[5]  # the C3 that reads the backbone's P4
    assert joined.new == ("cv1.conv.weight", "cv2.conv.weight")
    assert set(report.unused) == {0, 1, 2, 3, 4}


def test_the_table_names_rows_and_counts(models):
    report = transfer(models["plain"], copy.deepcopy(models["listed"]))
    lines = str(report).splitlines()
    assert lines[0].startswith(f"Transferred {report.copied} of {report.total} tensors from first.pt")
    cells = [line.split() for line in lines[2:]]
    assert cells[-2][:4] == ["20", "Detect", "20", "Detect"]
    assert cells[0][:4] == ["4", "RIFormer", "-", "0"]
    assert sum(int(line[4]) for line in cells[1:-1]) == report.copied
    assert lines[-1] == "not used: 25 tensors of 0 Conv, 1 Conv, 2 Conv, 3 Conv, 4 Conv"
    assert all(line == line.rstrip() for line in lines)


def test_list_backbones_of_one_family_share_what_fits(models):
    target = build({**LISTED, "backbone": [[-1, 1, "RIFormer", ["s24"]], LISTED["backbone"][1]]}, seed=2)
    report = transfer(models["listed"], target)
    assert report.rows[0].source == 0
    assert report.rows[0].copied
    assert report.rows[0].new, "s24 has more blocks"


def test_list_backbones_of_two_families_share_nothing(models):
    report = transfer(models["listed"], copy.deepcopy(models["other"]))
    assert report.rows[0].source is None
    assert not report.rows[0].copied
    assert len(report.rows[-1].copied) > 0


def test_a_network_of_more_levels_receives_less_than_files_of_its_own_architecture_hold():
    source = create_model("yolov5n")
    source.pt_path = "first.pt"
    target = create_model("yolov5n6")
    rows, split = transfer(source, target).rows, target.spec.backbone_rows
    for part, share in ((rows[:split], 0.64), (rows[split:], 0.52)):
        copied, new = sum(len(r.copied) for r in part), sum(len(r.new) for r in part)
        assert copied / (copied + new) == pytest.approx(share, abs=0.005)
        assert MIN_TRANSFERRED < share < MIN_MATCHED


def test_another_number_of_classes_leaves_their_scores_new(models):
    target = build({**PLAIN, "nc": 7}, seed=2)
    own = copy.deepcopy(target.state_dict())
    report = transfer(models["plain"], target)
    head = report.rows[-1]
    assert all(name.startswith("cv3.") for name in head.new)
    assert {"cv3.0.2.weight", "cv3.0.2.bias"} <= set(head.new)
    assert all(torch.equal(target.state_dict()[f"model.20.{name}"], own[f"model.20.{name}"]) for name in head.new)
    assert sum(len(row.new) for row in report.rows) == len(head.new)
    assert "2 classes there, 7 here: their scores start new" in str(report)


def test_levels_of_a_head_are_matched_by_stride(models):
    two_levels = copy.deepcopy(PLAIN)
    two_levels["head"][-1] = [[16, 19], 1, "Detect", ["nc"]]
    source, target = models["plain"], build(two_levels, seed=2)
    transfer(source, target)
    for theirs, ours in ((1, 0), (2, 1)):  # P4 and P5; shapes depend on the finest level, bins of boxes do not
        for name in ("cv2.{}.2.bias", "cv3.{}.2.bias"):
            last = (f"model.20.{name.format(place)}" for place in (theirs, ours))
            assert torch.equal(source.state_dict()[next(last)], target.state_dict()[next(last)])


def test_rows_that_only_one_has_are_passed_over(models):
    deeper = copy.deepcopy(PLAIN)
    deeper["head"].insert(14, [-1, 1, "Conv", [512, 3, 1]])
    deeper["head"][-1][0][-1] = 20
    source, target = models["plain"], build(deeper, seed=2)
    assert align(source, target) == {i: i for i in range(20)} | {21: 20}
    report = transfer(source, target)
    assert [row.row for row in report.rows if row.new] == [20]


def test_rows_of_another_level_are_no_counterparts(models):
    further = copy.deepcopy(PLAIN)
    further["head"][14:14] = [[-1, 1, "Conv", [512, 3, 2]], [-1, 1, "C3", [512, False]]]
    further["head"][-1][0].append(21)
    source, target = models["plain"], build(further, seed=2)
    assert align(source, target) == {i: i for i in range(20)} | {22: 20}


def test_anchors_come_along_with_those_of_the_same_yaml(models):
    cfg = tiny(anchors=[[10, 13, 16, 30], [60, 90, 110, 70]])
    cfg["head"] = [*cfg["head"][:-1], [[5, 3], 1, "Detect", ["nc", "anchors"]]]
    source, same_yaml = build(cfg), build(cfg, seed=2)
    source.model[-1].anchor_sizes += 1
    assert transfer(source, same_yaml).copied
    assert torch.equal(same_yaml.model[-1].anchor_sizes, source.model[-1].anchor_sizes)
    other = build({**cfg, "anchors": [[20, 26, 32, 60], [120, 180, 220, 140]]}, seed=2)
    report = transfer(source, other)
    assert other.model[-1].anchor_sizes.flatten()[0] == 20
    assert report.rows[-1].new == ("anchor_sizes",)


@pytest.mark.parametrize("changes", [{"width_multiple": 0.5}, {"head": PLAIN["head"], "width_multiple": 1.0}], ids=str)
def test_a_network_of_other_widths_is_refused_and_left_alone(changes, models):
    target = build({**PLAIN, **changes}, seed=2)
    before = copy.deepcopy(target.state_dict())
    with pytest.raises(WeightsError, match=r"only \d+ of \d+ tensors of model YAML are in first\.pt"):
        transfer(models["plain"], target)
    assert same(before, target.state_dict())


# Branches -------------------------------------------------------------------------------------------------------------
def trained_anew(cfg, start):
    """Return the first model of a training of `cfg` from the weights of `start`."""
    options = {"single_cls": False, "qat": False, "seed": 0, "freeze": None, "custom_l2": False, "rep_optimizer": False}
    return new_model(load_spec(cfg), start, {"nc": 2, "channels": 3, "names": start.names}, options).eval()


def wide(style):
    return {**PLAIN, "overparameterize": {"style": style}}


@pytest.mark.parametrize("style", STYLES)
def test_branches_are_added_to_the_weights_of_a_narrow_network(style, models):
    narrow = models["plain"].double().eval()
    model = trained_anew(wide(style), narrow)
    assert model.spec.overparameterize == {"style": style}
    assert any(isinstance(m, BranchedConv) for m in model.modules())
    assert worst_error(model.double(), narrow, pictures()) <= 1e-12


def test_branches_come_along_with_their_weights():
    start = build(wide("acb")).eval()
    model = trained_anew(wide("acb"), start)
    assert all(map(torch.equal, start.state_dict().values(), model.state_dict().values()))


@pytest.mark.parametrize(("cfg", "said"), [(PLAIN, "to have none"), (wide("dbb"), "to have those of dbb")])
def test_branches_of_another_style_are_refused(cfg, said):
    with pytest.raises(WeightsError, match=f"branches of acb, the model is {said}: give --overparameterize acb"):
        trained_anew(cfg, build(wide("acb")))
