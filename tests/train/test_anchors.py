"""AutoAnchor: anchors that fit stay, those that do not are replaced by better ones, and no label ends a run."""

import random
from types import SimpleNamespace

import pytest

from utils.train import anchors as auto
from utils.train.anchors import anchor_fit, fit_anchors, kmeans_anchors, label_sizes, spread_anchors

# isort: split
import numpy as np
import torch

COCO = torch.tensor([[10, 13, 16, 30, 33, 23], [30, 61, 62, 45, 59, 119], [116, 90, 156, 198, 373, 326]]).float()
COCO = COCO.view(3, 3, 2)
STRIDES = torch.tensor([8.0, 16.0, 32.0])
PLANTED = torch.tensor([[8.0, 12], [30, 10], [25, 40], [80, 30], [60, 90], [300, 200]])  # by area


@pytest.fixture
def logged(monkeypatch):
    """The lines that are logged, as a list."""
    lines = []
    for level in ("info", "warning"):
        monkeypatch.setattr(auto.LOGGER, level, lines.append)
    return lines


def around(sizes, count=200, spread=0.03, seed=0):
    """Return `count` labels around each of the sizes (k, 2), mixed."""
    generator = torch.Generator().manual_seed(seed)
    wh = sizes.repeat(count, 1)
    return wh * (1 + spread * torch.randn(wh.shape, generator=generator))


def dataset(*pictures):
    """Return a data set of pictures (height, width, boxes (n, 2) as fractions)."""
    labels = []
    for height, width, wh in pictures:
        boxes = np.concatenate([np.full((len(wh), 2), 0.5), np.array(wh).reshape(-1, 2)], 1).astype(np.float32)
        labels.append({"shape": (height, width), "bboxes": boxes})
    return SimpleNamespace(labels=labels)


def labelled(wh, imgsz=640, per_picture=20):
    """Return a data set of square pictures with boxes of `wh` (n, 2) pixels at `imgsz`."""
    return dataset(*((imgsz, imgsz, part.numpy() / imgsz) for part in wh.split(per_picture)))


def test_fit_equals_a_plain_count():
    wh, anchors = around(PLANTED, 20, 0.5).abs() + 1, COCO.view(-1, 2)
    fitting = [
        [max(w / aw, aw / w, h / ah, ah / h) < 2.5 for aw, ah in anchors.tolist()] for w, h in wh.tolist()
    ]  # of each label
    recall, count = anchor_fit(wh, anchors, 2.5)
    assert recall == pytest.approx(sum(any(f) for f in fitting) / len(wh))
    assert count == pytest.approx(sum(map(sum, fitting)) / len(wh))
    assert 0 < recall < 1


def test_fit_counts_in_parts(monkeypatch):
    wh, anchors = around(PLANTED, 20, 0.5).abs() + 1, COCO.view(-1, 2)
    whole = anchor_fit(wh, anchors, 2.5)
    monkeypatch.setattr(auto, "MAX_LABELS", 7)
    assert anchor_fit(wh, anchors, 2.5) == whole


@pytest.mark.parametrize(("generations", "tolerance"), [(0, 0.01), (300, 0.05)])
def test_planted_clusters_are_found(generations, tolerance):
    found = kmeans_anchors(around(PLANTED), len(PLANTED), 640, generations=generations)
    torch.testing.assert_close(found, PLANTED, rtol=tolerance, atol=0)


def test_evolution_makes_anchors_fitter():
    wh = around(PLANTED, 50, 0.4).abs() + 2
    before, after = (auto.fitness(kmeans_anchors(wh, 4, 640, generations=g), wh, 4.0) for g in (0, 300))
    assert after > before + 0.01


def test_anchors_are_sorted_by_area():
    areas = kmeans_anchors(around(PLANTED, 50, 0.4).abs() + 2, 9, 640, generations=50).prod(1)
    assert torch.equal(areas, areas.sort()[0])


def test_the_seed_decides_and_nothing_else_is_touched(monkeypatch):
    monkeypatch.setattr(auto, "MAX_LABELS", 200)  # so that a sample is taken
    wh = around(PLANTED, 50, 0.4).abs() + 2
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    first = kmeans_anchors(wh, 9, 640, generations=50, seed=1)
    sizes = label_sizes(labelled(wh), 640, seed=1)
    assert states[0] == random.getstate()
    assert states[1] == np.random.get_state()[1].tolist()
    assert torch.equal(states[2], torch.get_rng_state())
    torch.rand(1)
    assert torch.equal(kmeans_anchors(wh, 9, 640, generations=50, seed=1), first)
    assert torch.equal(label_sizes(labelled(wh), 640, seed=1), sizes)
    assert not torch.equal(kmeans_anchors(wh, 9, 640, generations=50, seed=2), first)


def test_a_sample_of_many_labels_gives_much_the_same(monkeypatch):
    monkeypatch.setattr(auto, "MAX_LABELS", 300)
    found = kmeans_anchors(around(PLANTED), len(PLANTED), 640, generations=0)
    torch.testing.assert_close(found, PLANTED, rtol=0.05, atol=0)


# Labels of a data set -------------------------------------------------------------------------------------------------
def test_sizes_are_those_in_training():
    wh = [[0.5, 0.25], [0.1, 0.1]]
    sizes = label_sizes(dataset((200, 400, wh), (100, 100, []), (300, 150, wh[:1])), 640)
    exact = torch.tensor([[320.0, 80], [64, 32], [160, 160]])
    factors = sizes / exact
    assert sizes.shape == (3, 2)
    assert ((factors > 0.9) & (factors < 1.1)).all()
    torch.testing.assert_close(factors[0], factors[1])  # one picture, one size
    torch.testing.assert_close(factors[:, 0], factors[:, 1])
    assert (factors[0] - factors[2]).abs().min() > 1e-3


def test_anchors_that_fit_stay(logged):
    wh = around(COCO.view(-1, 2), 30)
    assert fit_anchors(COCO, STRIDES, labelled(wh), 640) is None
    recall, count = anchor_fit(label_sizes(labelled(wh), 640), COCO.view(-1, 2), 4.0)
    line = f"{count:.2f} anchors/target, {recall:.3f} Best Possible Recall (BPR). "
    assert logged == [f"{auto.PREFIX}{line}Current anchors are a good fit to dataset"]
    assert recall == 1


def test_anchors_that_do_not_fit_are_replaced(logged):
    wh = around(PLANTED / 6, 40) + 1
    better = fit_anchors(COCO, STRIDES, labelled(wh), 640, generations=100)
    assert better.shape == COCO.shape
    assert better.dtype == COCO.dtype
    sizes = label_sizes(labelled(wh), 640)
    assert anchor_fit(sizes, COCO.view(-1, 2), 4.0)[0] < 0.9
    assert anchor_fit(sizes, better.view(-1, 2), 4.0)[0] > 0.99
    assert "Anchors are a poor fit to dataset" in logged[0]
    assert str(better.flatten(1).round().int().tolist()) in logged[-1]


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 2, 0]])
def test_levels_are_in_the_order_of_the_strides(order):
    wh = around(PLANTED / 6, 40) + 1
    straight = fit_anchors(COCO, STRIDES, labelled(wh), 640, generations=20)
    areas = straight.prod(2).flatten()
    assert torch.equal(areas, areas.sort()[0])
    assert torch.equal(fit_anchors(COCO[order], STRIDES[order], labelled(wh), 640, generations=20), straight[order])


def test_anchors_that_stand_for_none_yet_are_replaced():
    placeholder = torch.arange(6).float().repeat(3, 1).view(3, 3, 2)  # what an int in the YAML makes
    better = fit_anchors(placeholder, STRIDES, labelled(around(PLANTED, 40)), 640, generations=20)
    assert anchor_fit(around(PLANTED), better.view(-1, 2), 4.0)[0] > 0.99


def test_new_anchors_that_are_no_better_are_not_taken(logged, monkeypatch):
    monkeypatch.setattr(auto, "kmeans_anchors", lambda *args: torch.full((9, 2), 0.1))
    assert fit_anchors(COCO, STRIDES, labelled(around(PLANTED / 6, 40) + 1), 640) is None
    assert "the former anchors stay" in logged[-1]


# Labels that make no anchors ------------------------------------------------------------------------------------------
def test_a_data_set_without_labels(logged):
    assert fit_anchors(COCO, STRIDES, dataset((100, 100, []), (50, 80, [])), 640) is None
    assert "there are no labels to fit anchors to" in logged[0]


EQUAL = torch.full((500, 2), 20.0)
POOR = {
    "none": torch.zeros(0, 2),
    "fewer than anchors": torch.tensor([[10.0, 20], [200, 90]]),
    "all equal": EQUAL,
    "without size": torch.zeros(50, 2),
    "a line": torch.tensor([[0.0, 50]]).repeat(50, 1),
    "tiny": torch.rand(500, 2, generator=torch.Generator().manual_seed(0)),
}


@pytest.mark.parametrize("wh", POOR.values(), ids=POOR)
def test_labels_that_make_no_anchors(wh, logged):
    anchors = kmeans_anchors(wh, 9, 640)
    assert torch.equal(anchors, spread_anchors(9, 640))
    assert "squares from small to large stand in for them" in logged[-1]
    for thr in (4.0, 1.01):
        better = fit_anchors(COCO, STRIDES, labelled(wh), 640, thr)
        assert better is None or better.isfinite().all()


def test_labels_of_one_size_get_anchors_that_fit():
    far = torch.full((3, 3, 2), 600.0)
    better = fit_anchors(far, STRIDES, labelled(EQUAL), 640, generations=20)
    assert anchor_fit(EQUAL, better.view(-1, 2), 4.0)[0] == 1


def test_small_labels_are_counted(logged):
    wh = torch.cat([around(PLANTED, 20), torch.tensor([[2.5, 40], [1, 1], [40, 2.9]])])
    anchors = kmeans_anchors(wh, 9, 640, generations=20)
    assert "3 of 123 labels are less than 3 pixels wide or high at 640 pixels" in logged[0]
    assert (anchors >= 2).all()


def test_dots_get_no_anchor():
    dots = 0.5 + torch.rand(1000, 2, generator=torch.Generator().manual_seed(0))
    found = kmeans_anchors(torch.cat([around(PLANTED), dots]), len(PLANTED), 640, generations=0)
    torch.testing.assert_close(found, PLANTED, rtol=0.05, atol=0)


def test_no_anchor_is_thinner_than_labels_are_made_for():
    lines = torch.stack([torch.full((100,), 0.5), torch.linspace(10, 100, 100)], 1)
    assert (kmeans_anchors(lines, 3, 640, generations=100) >= 2).all()


@pytest.mark.parametrize("n", [1, 9, 18])
def test_spread_anchors_leave_no_gap(n):
    sides = spread_anchors(n, 640)[:, 0]
    assert sides[0] == 10
    assert n == 1 or sides[-1] == pytest.approx(320)
    assert (sides[1:] / sides[:-1] < 1.6).all()
