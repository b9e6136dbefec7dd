"""The built-in data set of shapes: what its pictures, labels, cut-outs and film are. How it is drawn: test_drawn.py."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from tests.data.digests import digest
from utils.data import shapes
from utils.data.drawn import SPLITS, ensure_drawn, load_photos
from utils.data.shapes import NAMES, Recipe, Shape

# isort: split
import cv2
import numpy as np

SMALL = Recipe(train=24, val=6, test=3, film_frames=5)
LABELS = "6d2f8148ab5b"  # of SMALL; when what is drawn changes on purpose, Recipe.version grows too


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small set, made once."""
    return ensure_drawn(tmp_path_factory.mktemp("data") / "shapes", SMALL)


def test_labels_are_the_known_ones(small):
    assert digest(small, "*.txt")[:12] == LABELS


def test_a_picture_depends_on_its_number_and_the_seed():
    photos = load_photos()
    first, other = shapes.picture(photos, SMALL, "train", 0), shapes.picture(photos, SMALL, "train", 1)
    seeded = shapes.picture(photos, dataclasses.replace(SMALL, seed=SMALL.seed + 1), "train", 0)
    assert not np.array_equal(first[0], other[0])
    assert not np.array_equal(first[0], seeded[0])


def test_all_splits_are_there_with_backgrounds(small):
    for split in SPLITS:
        images = sorted(path.stem for path in (small / "images" / split).iterdir())
        assert images == sorted(path.stem for path in (small / "labels" / split).iterdir())
        assert len(images) == getattr(SMALL, split)
    rows = [path.read_text().splitlines() for path in sorted((small / "labels" / "train").iterdir())]
    assert [number for number, lines in enumerate(rows) if not lines] == [23]
    assert {int(line.split()[0]) for lines in rows for line in lines} == set(range(len(NAMES)))


def test_each_object_is_cut_out_into_the_folder_of_its_class(small):
    for split in SPLITS:
        rows = {path.stem: path.read_text().split("\n")[:-1] for path in (small / "labels" / split).iterdir()}
        expected = {(f"{stem}-{i}", int(row.split()[0])) for stem in rows for i, row in enumerate(rows[stem])}
        cut = {path: NAMES.index(path.parent.name) for path in (small / "cutouts" / split).rglob("*.jpg")}
        assert {(path.stem, kind) for path, kind in cut.items()} == expected
        for path in cut:
            stem, i = path.stem.split("-")
            points = np.array(rows[stem][int(i)].split()[1:], float).reshape(-1, 2) * SMALL.side
            height, width = cv2.imread(str(path)).shape[:2]
            (wide, high), margin = np.ptp(points, axis=0), 0.2 * np.ptp(points, axis=0).max() + 2
            assert wide <= width <= wide + margin
            assert high <= height <= high + margin


def test_pictures_have_the_promised_size_and_labels_stay_inside(small):
    for path in (small / "images").rglob("*.jpg"):
        assert cv2.imread(str(path)).shape == (SMALL.side, SMALL.side, 3)
    for path in (small / "labels").rglob("*.txt"):
        for line in path.read_text().splitlines():
            points = np.array(line.split()[1:], float).reshape(-1, 2)
            assert points.min() >= 0
            assert points.max() <= 1
            assert np.ptp(points, axis=0).min() > 0.1


@pytest.mark.parametrize("kind", range(len(NAMES)))
@pytest.mark.parametrize("outline", [None, shapes.WHITE])
@pytest.mark.parametrize("centre", [(80.3, 70.8), (20.0, 150.0)], ids=["inside", "over the edge"])
def test_contour_fits_the_drawn_pixels(kind, outline, centre):
    canvas = np.zeros((160, 160, 3), np.uint8)
    points = shapes.draw_shape(canvas, Shape(kind, *centre, 51.7, 0.2, (90, 200, 120), outline))
    ys, xs = np.nonzero(canvas.any(2))
    drawn = xs.min(), ys.min(), xs.max() + 1, ys.max() + 1
    assert np.abs(np.subtract(drawn, (*points.min(0), *points.max(0)))).max() < 1
    assert points.min() >= 0
    assert points.max() <= 160
    filled = cv2.fillPoly(np.zeros((160, 160), np.uint8), [np.rint(points - 0.5).astype(np.int32)], 1)
    assert np.logical_xor(filled, canvas.any(2)).sum() < 0.5 * cv2.arcLength(points.astype(np.float32), True)


def test_contour_of_a_star_over_a_corner_is_that_of_the_part_inside():
    canvas = np.zeros((160, 160, 3), np.uint8)
    points = shapes.draw_shape(canvas, Shape(3, 150.0, 12.0, 60.0, 0.7, (90, 200, 120)))
    assert cv2.contourArea(points.astype(np.float32)) == pytest.approx((canvas[..., 1] > 100).sum(), rel=0.02)


def test_a_shape_outside_of_the_picture_has_no_contour():
    canvas = np.zeros((160, 160, 3), np.uint8)
    assert shapes.draw_shape(canvas, Shape(0, -100, 80, 40, 0.0, (255, 255, 255))) is None
    assert not canvas.any()


def test_objects_hardly_overlap():
    for seed in range(20):
        cast = shapes.scene(np.random.default_rng(seed), 160, 160, 4)
        pairs = [(a, b) for i, a in enumerate(cast) for b in cast[:i]]
        assert all(shapes.covered_part(a, b) <= 0.1 for a, b in pairs)


def test_film_can_be_read(small):
    video = cv2.VideoCapture(str(small / shapes.FILM))
    frames = []
    while (frame := video.read())[0]:
        frames.append(frame[1])
    assert len(frames) == SMALL.film_frames
    assert frames[0].shape == (SMALL.film_side, SMALL.film_side, 3)
    assert np.abs(frames[0].astype(int) - frames[-1]).mean() > 1  # it moves


def test_yaml_names_the_classes_that_are_drawn():
    described = yaml.safe_load((Path(__file__).parents[2] / "data" / "shapes.yaml").read_text())
    assert tuple(described["names"].values()) == NAMES
