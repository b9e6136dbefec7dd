"""Which decisions of NMS rounding cannot turn: against NMS itself on candidates that were moved."""

import dataclasses

import pytest
import torch
from ultralytics.utils.ops import xywh2xyxy

from utils.deploy.ends import Nms
from utils.prove.compare import Tolerance, compare, detections, measure_nms
from utils.prove.decisions import (
    CORNER,
    Decisions,
    Slack,
    _suppressions,
    decide,
    overlap_range,
    rounding_of_classes,
)

SLACK = Slack(0.05, 1e-3)


def crowd(seed, count=120, nc=3, objects=12):
    """Candidates (4 + nc, count) around a few objects, many with like scores and like classes."""
    g = torch.Generator().manual_seed(seed)
    centre = torch.rand(2, objects, generator=g) * 200
    which = torch.randint(objects, (count,), generator=g)
    box = torch.cat([centre[:, which] + torch.randn(2, count, generator=g) * 6, torch.full((2, count), 40.0)])
    box[2:] += torch.randn(2, count, generator=g) * 5
    scores = (torch.rand(nc, count, generator=g) * 40).round() / 40 + torch.randn(nc, count, generator=g) * 5e-4
    return torch.cat([box, scores.clamp(0.001, 0.999)])


def moved(candidates, seed, slack=SLACK):
    """The candidates with every number moved by at most `slack`."""
    noise = torch.rand(candidates.shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    noise[..., :4, :] *= slack.box_px
    noise[..., 4:, :] *= slack.score
    return candidates + noise


def survivors(candidates, nms, nc=3):
    """Return which candidates NMS gives, (N,) booleans."""
    options = {"iou_thres": nms.iou_thres, "agnostic": nms.agnostic_nms, "max_det": nms.max_det}
    (rows,) = detections(candidates[None].clone(), nc, end2end=False, conf=nms.conf_thres, **options)
    boxes, best = xywh2xyxy(candidates[:4].T), candidates[4:].amax(0)
    same = (rows[:, None, :4] - boxes).abs().amax(-1) + (rows[:, None, 4] - best).abs()
    return torch.zeros(candidates.shape[1], dtype=torch.bool).index_fill_(0, same.argmin(1), True)


@pytest.mark.parametrize("nms", [Nms(), Nms(0.5, 0.3), Nms(0.1, 0.6, agnostic_nms=True), Nms(0.1, max_det=9)], ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_what_is_certain_is_so_however_numbers_are_moved(seed, nms):
    candidates = crowd(seed)
    certain = decide(candidates, 3, nms, SLACK)
    assert not (certain.kept & certain.dropped).any()
    for again in range(20):
        kept = survivors(moved(candidates, again), nms)
        assert kept[certain.kept].all()
        assert not kept[certain.dropped].any()


@pytest.mark.parametrize("seed", range(4))
def test_without_slack_nothing_but_ties_is_undecidable(seed):
    candidates = crowd(seed)
    kept = survivors(candidates, Nms())
    certain = decide(candidates, 3, Nms(), Slack(0, 0))
    assert certain.kept.equal(kept)
    assert certain.dropped.equal(~kept)


def row_of(*boxes):
    """Candidates (5, N) of one class, of which each is (x, score): boxes of 40 pixels, side by side."""
    return torch.tensor([[x, 50.0, 40, 40, score] for x, score in boxes]).T


def decided(*boxes, **changes):
    found = decide(row_of(*boxes), 1, dataclasses.replace(Nms(), **changes), SLACK)
    assert isinstance(found, Decisions)
    return ["kept" if k else "dropped" if d else "open" for k, d in zip(found.kept, found.dropped, strict=True)]


def test_each_kind_of_tie():
    assert decided((0, 0.9), (100, 0.8)) == ["kept", "kept"]
    assert decided((0, 0.9), (5, 0.8)) == ["kept", "dropped"]
    assert decided((0, 0.9), (5, 0.9005)) == ["open", "open"]  # of like scores, either
    assert decided((0, 0.2505), (100, 0.2)) == ["open", "dropped"]  # at the threshold
    third = 40 * (1 - 2 * 0.45 / 1.45)  # pixels apart of two boxes with the overlap 0.45
    assert decided((0, 0.9), (third, 0.8)) == ["kept", "open"]
    assert decided((0, 0.9), (third, 0.8), (third + 8, 0.7)) == ["kept", "open", "open"]  # and what follows from it
    assert decided((0, 0.9), (third, 0.8), (5, 0.7)) == ["kept", "open", "dropped"]
    assert decided((0, 0.9), (100, 0.8), (200, 0.7), max_det=2) == ["kept", "kept", "open"]


def test_candidates_beyond_those_that_are_judged_stay_open(monkeypatch):
    monkeypatch.setattr("utils.prove.decisions.JUDGED", 2)
    assert decided((0, 0.9), (100, 0.8), (200, 0.7), (300, 0.1)) == ["kept", "kept", "open", "dropped"]


def test_without_candidates_nothing_is_kept():
    none = decide(crowd(0)[:, :0], 3, Nms(), SLACK), decide(crowd(0), 3, Nms(conf_thres=1.5), SLACK)
    assert [(len(each.kept), int(each.kept.sum()), int((~each.dropped).sum())) for each in none] == [
        (0, 0, 0),
        (120, 0, 0),
    ]


def test_the_range_of_overlaps_holds_all_that_are_possible():
    boxes = xywh2xyxy(crowd(0)[:4].T)
    error = torch.full((len(boxes),), 0.3)
    low, high = overlap_range(boxes[:, None], boxes, error[:, None], error)
    for seed in range(10):
        noise = torch.rand(boxes.shape, generator=torch.Generator().manual_seed(seed)) * 0.6 - 0.3
        near, exact = boxes + noise, torch.zeros(())
        now, _ = overlap_range(near[:, None], near, exact, exact)
        assert (low <= now + 1e-6).all()
        assert (now <= high + 1e-6).all()


@pytest.mark.parametrize("nms", [Nms(), Nms(agnostic_nms=True)], ids=str)
@pytest.mark.parametrize("block", [1, 7, 500])
def test_pairs_that_are_found_in_blocks_are_all_there_are(block, nms, monkeypatch):
    monkeypatch.setattr("utils.prove.decisions.BLOCK", block)
    candidates = crowd(3)[:, crowd(3)[4:].amax(0).argsort(descending=True)]
    best, boxes = candidates[4:].amax(0), xywh2xyxy(candidates[:4].T)
    classes = candidates[4:] >= best - 2 * SLACK.score
    may, does = _suppressions(candidates[:4].T, best, classes, nms, SLACK)
    label, single = classes.int().argmax(0), classes.sum(0) == 1
    error = CORNER * SLACK.box_px + rounding_of_classes(label) * (not nms.agnostic_nms)
    low, high = overlap_range(boxes[:, None], boxes, error[:, None], error)
    low, high = (each.masked_fill(torch.eye(len(best), dtype=torch.bool), 0) for each in (low, high))
    lead = best[:, None] - best
    alike = nms.agnostic_nms or (classes[:, :, None] & classes[:, None]).any(0)
    same = nms.agnostic_nms or (label[:, None] == label) & single[:, None] & single
    due = (high > nms.iou_thres) & (lead >= -2 * SLACK.score) & alike
    assert torch.stack(may).T.tolist() == due.nonzero().tolist()
    due = (low > nms.iou_thres) & (lead > 2 * SLACK.score) & same
    assert torch.stack(does).T.tolist() == due.nonzero().tolist()
    assert not single.all()
    assert 0 < len(does.by) < len(may.by)


# In the proof ---------------------------------------------------------------------------------------------------------
SMALL = Slack(1e-3, 5e-5)


@pytest.mark.parametrize("seed", range(6))
def test_rounding_never_makes_two_networks_differ(seed):
    candidates = crowd(seed, 400)
    found = compare((candidates[None],), (moved(candidates, seed, SMALL)[None],), 3, False)
    assert found.within(Tolerance())
    assert found.reference > 10


@pytest.mark.parametrize("change", ["lost", "too many", "class", "score", "box", "threshold", "overlap"])
def test_a_wrong_decision_of_a_file_with_nms_is_seen(change):
    nms, tolerance = Nms(max_det=50), Tolerance()
    candidates = crowd(1, 60)[None]
    wrong = {"threshold": Nms(0.6, max_det=50), "overlap": Nms(iou_thres=0.2, max_det=50)}.get(change, nms)
    got = given(moved(candidates, 7, SMALL), wrong)
    if change == "lost":
        got[0, 0] = 0
    elif change == "too many":
        kept = survivors(candidates[0], nms)
        (gone,) = (decide(candidates[0], 3, nms, SMALL).dropped & ~kept & (candidates[0, 4:].amax(0) > 0.3)).nonzero()[
            0
        ]
        got[0, -1, :4] = xywh2xyxy(candidates[0, :4, gone])
        got[0, -1, 4], got[0, -1, 5] = candidates[0, 4:, gone].max(0)
    elif change in ("class", "score", "box"):
        got[0, 0, {"class": 5, "score": 4, "box": 0}[change]] += {"class": 1, "score": 1e-2, "box": 0.1}[change]
    assert not measure_nms((candidates,), (got,), 3, nms, tolerance)[0].within(tolerance)


@pytest.mark.parametrize("seed", range(6))
def test_rounding_in_a_file_with_nms_is_accepted(seed):
    nms = Nms(max_det=50)
    candidates = crowd(seed, 60)[None]
    got = given(moved(candidates, seed, SMALL), nms)
    found, _ = measure_nms((candidates,), (got,), 3, nms, Tolerance(), SMALL)
    assert found.within(Tolerance())


@pytest.mark.parametrize("nc", [601, 1203])
def test_classes_with_like_scores_are_either(nc):
    candidates = torch.cat([crowd(2, 60)[:4], torch.full((nc, 60), 0.5)])[None]
    candidates[:, 4:] += torch.linspace(0, 0.4, 60)
    nms = Nms(max_det=50)
    got = given(moved(candidates, 3, SMALL), nms, nc)
    assert not got[..., 5].equal(given(candidates, nms, nc)[..., 5])
    assert measure_nms((candidates,), (got,), nc, nms, Tolerance(), SMALL)[0].within(Tolerance())


def given(candidates, nms, nc=3):
    """Return what a file with NMS gives for candidates (1, 4 + nc, N): (1, max_det, 6)."""
    options = {"iou_thres": nms.iou_thres, "max_det": nms.max_det}
    (rows,) = detections(candidates.clone(), nc, end2end=False, conf=nms.conf_thres, **options)
    return torch.cat([rows, rows.new_zeros(nms.max_det - len(rows), 6)])[None]
