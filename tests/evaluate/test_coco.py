"""Average precision by COCO's rules is that of a plain loop over them, and of COCO's own code where there is some."""

import numpy as np
import pytest

from utils.evaluate import coco
from utils.evaluate.coco import AREAS, IOUS, PictureBoxes, count_sizes, mean_average_precisions


def pictures(seed, count=12, classes=3):
    """Return pictures with objects of all sizes, some found well, some badly, some twice, and false alarms."""
    rng = np.random.default_rng(seed)

    def boxes(n):
        corner, side = rng.uniform(0, 300, (n, 2)), np.exp(rng.uniform(1, 5.5, (n, 2)))
        return np.concatenate([corner, corner + side], 1)

    made = []
    for _ in range(count):
        true = boxes(int(rng.integers(0, 9)))
        again = np.repeat(true, 3, 0)
        noise = rng.normal(0, 0.12, again.shape) * np.tile(again[:, 2:] - again[:, :2], 2)
        found = np.concatenate([again + noise, boxes(int(rng.integers(0, 6)))])
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
        true_cls = rng.integers(0, classes, len(true))
        cls = np.concatenate([np.repeat(true_cls, 3), rng.integers(0, classes, len(found) - len(again))])
        made.append(PictureBoxes(found, rng.permutation(len(found)) / 1000 + rng.random(), cls, true, true_cls))
    return made


def overlap(a, b):
    sides = [min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1)]
    common = max(sides[0], 0) * max(sides[1], 0)
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


def slowly(some, each, low, high, threshold):
    """Return the AP of one class, one area and one IoU, by the rules as they are said."""

    def is_out(box):
        return not low <= (box[2] - box[0]) * (box[3] - box[1]) <= high

    ranked, objects = [], 0
    for one in some:
        true = sorted((box for box, c in zip(one.true, one.true_cls, strict=True) if c == each), key=is_out)
        objects += sum(not is_out(box) for box in true)
        found = [(s, box) for s, box, c in zip(one.conf, one.found, one.cls, strict=True) if c == each]
        free = list(range(len(true)))
        for score, box in sorted(found, key=lambda pair: -pair[0])[:100]:
            best = None
            for i in free:
                if best is not None and not is_out(true[best]) and is_out(true[i]):
                    break
                if overlap(box, true[i]) >= (threshold if best is None else overlap(box, true[best])):
                    best = i
            if best is not None:
                free.remove(best)
            if not is_out(box if best is None else true[best]):
                ranked.append((score, best is not None))
    if not objects:
        return None
    ranked.sort(key=lambda pair: -pair[0])
    right = np.cumsum([hit for _, hit in ranked])
    recall, precision = right / objects, right / np.arange(1, len(ranked) + 1)
    reached = [precision[recall >= point] for point in np.linspace(0, 1, 101)]
    return np.mean([values.max() if len(values) else 0 for values in reached])


@pytest.mark.parametrize("seed", range(3))
def test_it_is_what_the_rules_say(seed):
    some = pictures(seed)
    found = mean_average_precisions(some)
    assert found.keys() == AREAS.keys()
    for name, (low, high) in AREAS.items():
        values = [slowly(some, each, low, high, threshold) for each in range(3) for threshold in IOUS]
        assert found[name] == pytest.approx(np.mean([value for value in values if value is not None]), abs=1e-9)


def test_it_is_what_cocos_own_code_says():
    package = coco.find_package()
    if package is None:
        pytest.skip("neither faster-coco-eval nor pycocotools is installed")
    some = pictures(7, count=40)
    measured = coco.measure_with(package, some, classes=3)
    found = mean_average_precisions(some)
    assert [measured[key] for key in ("AP", "APs", "APm", "APl")] == pytest.approx(list(found.values()), abs=1e-6)


def test_sizes_are_counted_and_one_without_objects_is_left_out():
    true = np.array([[0, 0, 32, 32], [0, 0, 33, 32], [0, 0, 96, 97.0]])
    one = PictureBoxes(true, np.array([0.9, 0.8, 0.7]), np.zeros(3, int), true, np.zeros(3, int))
    assert count_sizes([one]) == {"all": 3, "small": 1, "medium": 2, "large": 1}  # 32x32 is both
    assert mean_average_precisions([one]) == pytest.approx({"all": 1, "small": 1, "medium": 1, "large": 1})
    empty = PictureBoxes(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int), true[:1], np.zeros(1, int))
    assert mean_average_precisions([empty]) == {"all": 0, "small": 0, "medium": 0}
    assert mean_average_precisions([]) == {}
