"""What can be said of several trainings: against ultralytics' measure, and by how often intervals hold the truth."""

import numpy as np
import pytest
from ultralytics.utils.metrics import ap_per_class

from utils.comparison.detections import Detections
from utils.comparison.statistics import Sample, average_precisions, margin, mean_ap

PICTURES = 40


def make(seed=0, quality=0.5, pictures=PICTURES, classes=3) -> Detections:
    """Return detections of which about such a part is right, the more often the higher the score."""
    random = np.random.default_rng(seed)
    true = np.sort(random.integers(0, pictures, 4 * pictures))
    count = 10 * pictures
    conf = random.random(count)
    right = random.random(count)[:, None] < quality * conf[:, None] * np.linspace(1, 0.2, 10)
    found = np.sort(random.integers(0, pictures, count))
    kinds = random.integers(0, classes, len(true))
    return Detections(
        right, conf, random.integers(0, classes, count), found, kinds, true, [f"{i}.jpg" for i in range(pictures)]
    )


def expected(found: Detections):
    """Return class → AP50-95 by ultralytics."""
    *_, ap, classes, _, _, _, _, _ = ap_per_class(found.tp, found.conf, found.cls, found.true_cls)
    return dict(zip(classes.tolist(), ap.mean(1).tolist(), strict=True))


def select(found: Detections, pictures) -> Detections:
    """Return what is in some of the pictures, each as often as it is named."""
    mine = np.concatenate([np.flatnonzero(found.picture == i) for i in pictures])
    true = np.concatenate([np.flatnonzero(found.true_picture == i) for i in pictures])
    return Detections(
        *(found.tp[mine], found.conf[mine], found.cls[mine], found.picture[mine]),
        *(found.true_cls[true], found.true_picture[true], found.names),
    )


@pytest.mark.parametrize("seed", range(3))
def test_ap_is_ultralytics(seed):
    found = make(seed)
    assert average_precisions(found.sorted()) == pytest.approx(expected(found), abs=1e-12)


def test_a_class_that_nothing_finds_counts_as_zero_and_one_that_is_not_there_does_not_count():
    found = make()
    found.cls[found.cls == 1] = 7
    found.true_cls[found.true_cls == 2] = 0
    aps = average_precisions(found.sorted())
    assert aps == pytest.approx(expected(found))
    assert aps.keys() == {0, 1}
    assert aps[1] == 0


def test_pictures_without_weight_are_not_there():
    found = make()
    weights = np.arange(PICTURES) % 2.0
    kept = select(found, np.flatnonzero(weights))
    assert average_precisions(found.sorted(), weights) == pytest.approx(expected(kept), abs=1e-12)


def test_a_picture_that_is_drawn_twice_counts_twice():
    found = make()
    drawn = np.random.default_rng(1).integers(0, PICTURES, PICTURES)
    weights = np.bincount(drawn, minlength=PICTURES).astype(float)
    assert average_precisions(found.sorted(), weights) == pytest.approx(expected(select(found, drawn)), abs=5e-3)


def test_what_is_saved_is_read_again(tmp_path):
    found = make()
    found.save(tmp_path / "found.npz")
    again = Detections.load(tmp_path / "found.npz")
    assert again.names == found.names
    assert all(np.array_equal(a, b) for a, b in zip(vars(again).values(), vars(found).values(), strict=True))


def test_ultralytics_lists_become_arrays():
    stats = {
        "tp": [np.ones((2, 10), bool), np.zeros((0, 10), bool), np.zeros((1, 10), bool)],
        "conf": [np.array([0.9, 0.5]), np.zeros(0), np.array([0.3])],
        "pred_cls": [np.array([0.0, 1.0]), np.zeros(0), np.array([1.0])],
        "target_cls": [np.array([0.0]), np.array([1.0, 1.0]), np.zeros(0)],
    }
    found = Detections.collect(stats, ["a", "b", "c"])
    assert found.picture.tolist() == [0, 0, 2]
    assert found.true_picture.tolist() == [0, 1, 1]
    assert found.f1(0.4).tolist() == [2 * 2 / 3, 0, 1], "c has nothing to find, and nothing is found above 0.4"


def test_intervals_hold_the_truth_in_95_of_100_cases():
    random = np.random.default_rng(0)
    held = []
    for _ in range(2000):
        by_seed, by_pictures = random.normal(0, 0.02, (2, 3)), random.normal(0, 0.01)
        difference = by_seed[0].mean() - by_seed[1].mean() + by_pictures
        held.append(abs(difference) <= margin(0.01, *by_seed))
    assert 0.94 <= np.mean(held) <= 0.99


def test_with_one_seed_the_pictures_alone_count():
    assert margin(0.01, np.array([0.5]), np.array([0.4])) == pytest.approx(0.0196, abs=1e-4)
    assert margin(0.01, np.array([0.5, 0.5]), np.array([0.4, 0.4])) == pytest.approx(0.0196, abs=1e-4)


def test_the_best_is_told_from_a_worse_one_and_not_from_its_equal():
    found = {
        "good": [make(s, 0.9) for s in range(3)],
        "same": [make(s, 0.9) for s in range(3, 6)],
        "bad": [make(9, 0.2)] * 3,
    }
    sample = Sample(found)
    assert set(sample.equals()) == {"good", "same"}
    assert sample.equals()[0] == sample.best()
    assert sample.difference("good", "bad").value == pytest.approx(mean(found["good"]) - mean(found["bad"]))
    assert not sample.difference("good", "bad").is_zero


def test_pictures_that_are_hard_for_all_make_no_difference_uncertain():
    found = {"a": [make(0)], "b": [make(0)]}
    sample = Sample(found)
    assert sample.accuracy("a").margin > 0.01
    assert sample.difference("a", "b").margin == 0


# Several data sets ----------------------------------------------------------------------------------------------------
def samples():
    """Return samples of two data sets with other pictures, in which `a` is better than `b`, on one of them by far."""
    found = [
        {"a": [make(s, 0.9) for s in range(3)], "b": [make(s, 0.3) for s in range(3, 6)]},
        {"a": [make(s, 0.7, pictures=30) for s in range(6, 9)], "b": [make(s, 0.6, pictures=30) for s in range(9, 12)]},
    ]
    return [Sample(one, seed=i) for i, one in enumerate(found)]


def test_the_mean_over_data_sets_is_that_of_accuracies_and_of_differences():
    parts = samples()
    mean = Sample.over(parts)
    assert (mean.data_sets, mean.best()) == (2, "a")
    for measure in (lambda s: s.accuracy("a"), lambda s: s.difference("a", "b")):
        values = [measure(one).value for one in parts]
        assert measure(mean).value == pytest.approx(np.mean(values))
        assert measure(mean).margin < max(measure(one).margin for one in parts)


def test_one_data_set_is_its_own_mean():
    one = samples()[0]
    mean = Sample.over([one])
    assert mean.difference("a", "b") == one.difference("a", "b")
    assert mean.accuracy("b") == one.accuracy("b")


def test_a_network_that_is_not_known_on_all_data_sets_has_no_mean():
    first, second = samples()
    del second.scores["a"]
    assert list(Sample.over([first, second]).scores) == ["b"]
    del second.scores["b"]
    assert Sample.over([first, second]) is None


def test_intervals_over_data_sets_hold_the_truth_in_95_of_100_cases():
    random = np.random.default_rng(0)
    held = []
    for _ in range(2000):
        spread = (0.03, 0.01, 0.02)  # other seeds scatter differently on each of three data sets
        seeds = [random.normal(0, width, (2, 3)) for width in spread]
        by_pictures = random.normal(0, 0.01, 3).mean()
        difference = np.mean([a.mean() - b.mean() for a, b in seeds]) + by_pictures
        held.append(abs(difference) <= margin(0.01 / 3**0.5, *(row for pair in seeds for row in pair), share=1 / 3))
    assert 0.94 <= np.mean(held) <= 0.99


def mean(several):
    return np.mean([mean_ap(found.sorted()) for found in several])
