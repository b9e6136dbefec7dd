"""Sets that are drawn at first use: the same on every run and on any number of threads, all of it or nothing."""

import dataclasses
import json
import threading
import time

import pytest

from models.errors import UserError
from tests.data.digests import digest
from utils.data import drawn, scenes, shapes
from utils.data.drawn import ensure_drawn, is_complete
from utils.writing import lock_folder

TINY = [
    shapes.Recipe(train=4, val=1, test=1, film_frames=2),
    scenes.Recipe(train=4, val=1, most_objects=3, most_clutter=2),
]
each_set = pytest.mark.parametrize("recipe", TINY, ids=lambda recipe: recipe.name)
FILM = shapes.FILM


@each_set
def test_two_makings_on_other_numbers_of_threads_give_the_same_files(recipe, tmp_path, monkeypatch):
    made = []
    for threads in (1, 3):
        monkeypatch.setattr(drawn, "cpu_cores", lambda threads=threads: threads)
        made.append(ensure_drawn(tmp_path / str(threads), recipe))
    one, other = (sorted(path.relative_to(root) for root in [folder] for path in root.rglob("*")) for folder in made)
    assert one == other
    for pattern in ("*.txt", "*.jpg", "*.json"):
        assert digest(made[0], pattern) == digest(made[1], pattern)


@each_set
def test_another_seed_draws_other_pictures(recipe, tmp_path):
    few = dataclasses.replace(recipe, train=1)
    first, other = (
        ensure_drawn(tmp_path / str(seed), dataclasses.replace(few, seed=recipe.seed + seed)) for seed in range(2)
    )
    assert digest(first, "*.txt") != digest(other, "*.txt")


@each_set
def test_second_call_draws_nothing(recipe, tmp_path, monkeypatch):
    root = ensure_drawn(tmp_path / "set", recipe)
    monkeypatch.setattr(drawn, "draw", lambda *_: pytest.fail("drawn again"))
    assert ensure_drawn(root, recipe) == root


@pytest.mark.parametrize(
    ("recipe", "spoil"),
    [(TINY[0], "version"), (TINY[0], "picture"), (TINY[0], FILM), (TINY[1], "version"), (TINY[1], "picture")],
)
def test_another_recipe_or_a_lost_file_draws_it_again(recipe, spoil, tmp_path):
    root = ensure_drawn(tmp_path / "set", recipe)
    if spoil == "version":
        manifest = json.loads((root / recipe.manifest).read_text())
        (root / recipe.manifest).write_text(json.dumps(manifest | {"version": 0}))
    else:
        (root / {"picture": "images/train/0003.jpg"}.get(spoil, spoil)).unlink()
    assert not is_complete(root, recipe)
    assert is_complete(ensure_drawn(root, recipe), recipe)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
@each_set
def test_interrupted_drawing_leaves_nothing(recipe, error, tmp_path, monkeypatch):
    write = type(recipe).write_picture

    def fail(self, root, split, number):
        write(self, root, split, number)
        if number == 2:
            raise error

    monkeypatch.setattr(type(recipe), "write_picture", fail)
    with pytest.raises((KeyboardInterrupt, UserError)):
        ensure_drawn(tmp_path / "set", recipe)
    assert list(tmp_path.iterdir()) == []


@each_set
def test_of_several_processes_one_draws_and_the_others_wait(recipe, tmp_path, monkeypatch):
    drawings, failures = [], []
    draw = drawn.draw
    monkeypatch.setattr(drawn, "draw", lambda *args: drawings.append(args) or draw(*args))

    def make():
        try:
            ensure_drawn(tmp_path / "set", recipe)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=make) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(drawings) == 1
    assert is_complete(tmp_path / "set", recipe)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_set_is_drawn_where_the_file_system_knows_no_locks(tmp_path, monkeypatch):
    (tmp_path / ".scenes-of-another").mkdir()

    def no_locks(_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(drawn, "hold_folder", no_locks)
    assert is_complete(ensure_drawn(tmp_path / "scenes", TINY[1]), TINY[1])
    assert (tmp_path / ".scenes-of-another").is_dir()  # who knows whether that process still runs


@each_set
def test_somebody_elses_folder_is_left_alone(recipe, tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="move it away"):
        ensure_drawn(tmp_path / "set", recipe)
    assert (tmp_path / "set" / "mine.txt").read_text() == "precious"


@each_set
def test_what_killed_processes_left_is_cleared_away(recipe, tmp_path):
    left, other = tmp_path / f".{recipe.name}-killed", tmp_path / ".other-set"
    for folder in (left, other):
        (folder / "new").mkdir(parents=True)
    ensure_drawn(tmp_path / recipe.name, recipe)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other-set", recipe.name]


def test_whoever_waits_says_so(tmp_path, log):
    lock = lock_folder(tmp_path)
    threading.Timer(0.2, drawn.os.close, [lock]).start()
    started = time.monotonic()
    ensure_drawn(tmp_path / "scenes", TINY[1])
    assert time.monotonic() - started >= 0.2
    assert f"another process works on {tmp_path}: waiting until it ends" in "".join(log)


@each_set
def test_read_only_data_folder_sends_the_set_to_the_cache(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    assert drawn.drawn_folder(tmp_path / "data", recipe) == tmp_path / "data" / recipe.name
    monkeypatch.setattr(drawn.os, "access", lambda *_: False)
    assert drawn.drawn_folder(tmp_path / "data", recipe) == tmp_path / "cache" / "repyolo" / recipe.name
