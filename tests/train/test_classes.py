"""Rows of the classes that first weights and a run both know."""

import copy

import pytest
import torch

from models import create_model
from models.errors import UserError
from models.spec import load_spec
from tests.helpers import pictures, randomize_, write
from utils.train.classes import match_classes, read_class_map
from utils.train.trainer import new_model
from utils.train.transfer import transfer

ROWS = [[-1, 1, "Conv", [c, 3, 2]] for c in (8, 8, 16, 16)]
ANCHORS = [[10, 13, 16, 30], [30, 61, 62, 45]]
HEADS = {
    "anchors": {"anchors": ANCHORS, "head": [[[2, 3], 1, "Detect", ["nc", "anchors"]]]},
    "anchor-free": {"head": [[[2, 3], 1, "Detect", ["nc"]]]},
    "end to end": {"head": [[[2, 3], 1, "Detect", ["nc"]]], "end2end": True},
    "masks, anchors": {"anchors": ANCHORS, "head": [[[2, 3], 1, "Segment", ["nc", "anchors", 4, 8]]]},
    "masks": {"head": [[[2, 3], 1, "Segment", ["nc", 4, 8]]]},
    "classifier": {"head": [[-1, 1, "Classify", ["nc"]]]},
}
THEIRS = {0: "bus", 1: "truck", 2: "cat"}


def build(head, nc, seed=1):
    model = randomize_(create_model({"nc": nc, "backbone": ROWS, **HEADS[head]}), seed).double().eval()
    model.pt_path = "first.pt"
    return model


@pytest.mark.parametrize("head", HEADS)
def test_known_classes_score_as_they_did_and_others_as_the_mean(head):
    source, target = build(head, 3), build(head, 4, seed=2)
    own = {0: "Cat", 1: "dog", 2: "lorry", 3: "bus"}
    report = transfer(source, target, match_classes(THEIRS, own, {"lorry": "truck"}))
    assert report.copied == report.total
    assert "3 of 4 classes are known there and kept, others start from the mean" in str(report)
    x = pictures()
    with torch.no_grad():
        before, after = (scores(model, x) for model in (source, target))
    assert before.std() > 0
    expected = torch.stack([before[:, 2], before.mean(1), before[:, 1], before[:, 0]], 1)
    torch.testing.assert_close(after, expected, rtol=1e-9, atol=1e-9)


def scores(model, x):
    """Class scores before the sigmoid, with BatchNorms in eval mode."""
    last = model.model[-1]
    model.eval()
    last.training = True  # raw maps
    y = x
    for row in model.model[:-1]:
        y = row(y)
        if row is model.model[2]:
            finer = y
    out = last(y if hasattr(last, "linear") else [finer, y])
    if hasattr(last, "linear"):
        return out.unsqueeze(-1)
    if isinstance(out, dict) and "maps" in out:
        return torch.cat([m[..., 5 : 5 + model.nc].flatten(1, 3) for m in out["maps"]], 1).transpose(1, 2)
    return out.get("one2one", out)["scores"]


def test_the_order_of_alike_names_does_not_matter_and_boxes_are_kept():
    source, target = build("anchors", 2), build("anchors", 2, seed=2)
    transfer(source, target, match_classes({0: "a", 1: "b"}, {0: "b", 1: "a"}, {}))
    theirs, own = (m.model[-1].m[0].weight.view(2, 7, 16) for m in (source, target))
    assert torch.equal(own, theirs[:, [0, 1, 2, 3, 4, 6, 5]])


def test_a_run_matches_by_the_names_of_its_data():
    start = build("anchor-free", 3).float()
    start.names = THEIRS
    options = {"single_cls": False, "qat": False, "seed": 0, "freeze": None, "custom_l2": False, "rep_optimizer": False}
    data = {"nc": 2, "channels": 3, "names": {0: "dog", 1: "bus"}}
    model = new_model(load_spec({"nc": 3, "backbone": ROWS, **HEADS["anchor-free"]}), start, data, options)
    own, theirs = (m.model[-1].cv3[1][-1].weight for m in (model, start))
    assert torch.equal(own[1], theirs[0])
    torch.testing.assert_close(own[0], theirs.mean(0))


def test_alike_classes_need_no_word():
    source = build("anchors", 3)
    report = transfer(source, copy.deepcopy(source), match_classes(THEIRS, THEIRS, {}))
    assert report.partners is None
    assert "classes" not in str(report)


@pytest.mark.parametrize(
    ("class_map", "message"),
    [
        ({"lory": "truck"}, r"names 'lory', which is no class of the data set \(did you mean 'lorry'\?\)"),
        ({"lorry": "trucks"}, r"'trucks', which is no class of the first weights \(did you mean 'truck'\?\)"),
    ],
)
def test_unknown_names_are_refused(class_map, message):
    with pytest.raises(UserError, match=message):
        match_classes(THEIRS, {0: "lorry"}, class_map)


def test_a_class_map_is_read(tmp_path):
    assert read_class_map("") == {}
    assert read_class_map(str(write(tmp_path, "lorry: truck\n"))) == {"lorry": "truck"}
    with pytest.raises(UserError, match=r"expected 'own name: name in the first weights', not 'lorry': 3$"):
        read_class_map(str(write(tmp_path, "lorry: 3\n")))
