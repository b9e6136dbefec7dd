"""The built-in data set of scenes: labels fit what is drawn, all classes and sizes occur, none is hidden too much."""

from pathlib import Path

import pytest
import yaml

from tests.data.digests import digest
from utils.data import scenes
from utils.data.drawn import ensure_drawn
from utils.data.scenes import NAMES, NO_OBJECT, Recipe, Scene, Thing, compose, least_seen

# isort: split
import cv2
import numpy as np

SMALL = Recipe(train=20, val=2, background_every=10)
LABELS = "a0a969c661a4"  # of SMALL; when what is drawn changes on purpose, Recipe.version grows too


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small set, drawn once."""
    return ensure_drawn(tmp_path_factory.mktemp("data") / "scenes", SMALL)


def empty_scene(seed: int = 0, side: int = 320) -> Scene:
    """Return a black scene without anything."""
    return Scene(np.zeros((side, side, 3), np.float32), np.random.default_rng(seed))


def block(width: int, height: int, grey: int, kind: int = NO_OBJECT) -> Thing:
    """Return a rectangle of one colour."""
    return Thing(np.full((height, width), 255, np.uint8), np.full((height, width, 3), grey, np.float32), kind)


def rows_of(root: Path) -> dict[str, np.ndarray]:
    """Return the label rows of each picture, (objects, 5)."""
    return {
        path.relative_to(root / "labels").as_posix(): np.loadtxt(path, ndmin=2).reshape(-1, 5)
        for path in (root / "labels").rglob("*.txt")
        if path.stat().st_size
    }


def test_labels_are_the_known_ones(small):
    assert digest(small, "*.txt")[:12] == LABELS


def test_labels_lie_in_pictures_of_the_promised_size(small):
    for path in (small / "images").rglob("*.jpg"):
        assert cv2.imread(str(path)).shape == (SMALL.side, SMALL.side, 3)
    for rows in rows_of(small).values():
        centre, half = rows[:, 1:3], rows[:, 3:] / 2
        assert (centre - half).min() >= -1e-6
        assert (centre + half).max() <= 1 + 1e-6
        assert (half * 2 * SMALL.side).round(3).min() >= 1


def test_pictures_without_objects_are_those_that_the_recipe_says(small):
    empty = [path.stem for path in sorted((small / "labels/train").iterdir()) if not path.stat().st_size]
    assert empty == ["0009", "0019"]


def test_all_classes_and_sizes_occur(small):
    rows = np.concatenate(list(rows_of(small).values()))
    assert set(rows[:, 0].astype(int)) == set(range(len(NAMES)))
    scene = empty_scene()
    things = [scenes.random_object(scene) for _ in range(120)]
    sizes = [max(np.ptp(axis) + 1 for axis in np.nonzero(thing.covered >= 32)) for thing in things]
    assert 7 <= min(sizes) <= 9
    assert 180 < max(sizes) <= 202
    assert np.histogram(sizes, [7, 16, 32, 64, 128, 203])[0].min() > 12  # each octave


@pytest.mark.parametrize("seed", range(6))
def test_boxes_fit_the_pixels_that_are_seen(seed):
    maker, scene = empty_scene(), empty_scene(seed)
    scene.pixels = np.zeros((320, 320, 12), np.float32)  # each channel: how much is seen of one object
    kinds = []
    for _ in range(scene.pixels.shape[2]):
        thing = scenes.random_object(maker)
        channel = np.zeros((*thing.covered.shape, scene.pixels.shape[2]), np.float32)
        channel[..., len(kinds)] = 1
        if scene.place(Thing(thing.covered, channel, thing.kind)):
            kinds.append(thing.kind)
    assert len(kinds) > 5
    for i, (kind, box) in enumerate(scene.boxes()):
        rows, columns = np.nonzero(scene.pixels[..., i] > 0.4)
        seen = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        assert kind == kinds[i]
        assert np.abs(np.subtract(seen, box)).max() <= 1


def test_a_label_is_the_box_of_the_visible_part():
    scene = empty_scene()
    assert scene.put(block(40, 20, 200, kind=3), (100, 100, 140, 120))
    assert scene.put(block(20, 20, 90), (100, 100, 120, 120))  # half of it is hidden by what is no object
    assert scene.put(block(50, 60, 50, kind=7), (-10, 280, 40, 340))  # partly outside
    assert scene.boxes() == [(3, (120, 100, 140, 120)), (7, (0, 280, 40, 320))]


@pytest.mark.parametrize("kind", [NO_OBJECT, 5])
def test_nothing_hides_an_object_too_much(kind):
    scene = empty_scene()
    assert scene.put(block(20, 20, 200, kind=3), (100, 100, 120, 120))
    before = scene.pixels.copy()
    assert not scene.put(block(20, 20, 90, kind), (107, 100, 127, 120))  # 7 of 20 columns would be left
    assert np.array_equal(scene.pixels, before)
    assert len(scene.kinds) == 1
    assert scene.put(block(20, 20, 90, kind), (108, 100, 128, 120))


def test_small_objects_are_hidden_less_and_none_is_cut_off_too_much():
    scene = empty_scene()
    assert scene.put(block(6, 6, 200, kind=3), (100, 100, 106, 106))
    assert not scene.put(block(6, 6, 90), (105, 100, 111, 106))
    assert not scene.put(block(20, 20, 200, kind=4), (-13, 50, 7, 70))
    assert scene.put(block(20, 20, 200, kind=4), (-12, 50, 8, 70))
    assert not scene.put(block(20, 20, 200, kind=4), (-40, 50, -20, 70))


def test_all_objects_of_composed_scenes_are_seen_enough():
    for number in range(6):
        scene = compose(Recipe(), "val", number)
        for i, (whole, seen) in enumerate(zip(scene.whole, scene.seen, strict=True)):
            assert seen == (scene.owner == i).sum()
            assert least_seen(whole) <= seen <= whole


@pytest.mark.parametrize("name", scenes.TEXTURES)
def test_textures_have_two_tones_at_the_same_period(name):
    x = np.linspace(-4, 4, 400, dtype=np.float32)
    inside = scenes.TEXTURES[name](x, x[:, None])
    assert inside.shape[1] in (1, 400)
    assert 0.3 < (inside > 0).mean() < 0.55
    assert np.abs(np.diff(np.broadcast_to(inside, (400, 400)), axis=0)).max() < 0.04  # no jumps: smooth edges


def test_yaml_names_the_classes_that_are_drawn():
    described = yaml.safe_load((Path(__file__).parents[2] / "data" / "scenes.yaml").read_text())
    assert tuple(described["names"].values()) == NAMES
