"""--evolve: what it changes, and that a search goes on after a kill as if there had been none."""

import csv
import dataclasses
import itertools
import time

import cv2
import numpy as np
import pytest
import yaml

import train
from models.errors import UserError
from models.loss import AnchorGains
from tests.helpers import TINY_DETECT, TINY_HEAD, tiny, write
from tests.runs import make_data, make_folders
from utils.distributed.scripts import start_script
from utils.evolution import report, work
from utils.evolution.mutation import SIGMA, SPACES, Bounds, Tried, choose_parent, moved, mutate, next_values
from utils.evolution.report import best_of
from utils.evolution.search import is_search, load_search, with_values
from utils.paths import ROOT
from utils.train.recipe import OPTION_OF
from utils.train.run import HYPS, NOT_FINITE, hyper_parameters

BOUNDS = {"lr0": Bounds(1e-5, 0.1), "mixup": Bounds(0.0, 1.0), "degrees": Bounds(0.0, 45.0)}
START = {"lr0": 0.001, "mixup": 0.0, "degrees": 0.0}


# Mutation -------------------------------------------------------------------------------------------------------------
def test_values_stay_within_their_bounds_and_those_of_0_can_become_others():
    rng = np.random.default_rng(0)
    seen = [START]
    for _ in range(500):
        seen.append(mutate(seen[-1], BOUNDS, rng))
    for name, bounds in BOUNDS.items():
        values = [one[name] for one in seen]
        assert bounds.low == pytest.approx(min(values))
        assert bounds.high == pytest.approx(max(values))
        changed = sum(a != b for a, b in itertools.pairwise(values))
        assert 200 < changed < 450


def test_a_rate_changes_by_a_factor_and_a_strength_by_a_part():
    assert moved(0.001, BOUNDS["lr0"], 0.25) == pytest.approx(0.01)
    assert moved(0.001, BOUNDS["lr0"], -0.25) == pytest.approx(0.0001)
    assert moved(0.1, BOUNDS["mixup"], SIGMA) == pytest.approx(0.1 + SIGMA)
    assert moved(0.123456789, Bounds(0.0, 1.0), 0.0) == 0.12346


def test_better_sets_are_parents_more_often_and_the_worst_never():
    tried = [Tried({"a": float(i)}, fitness) for i, fitness in enumerate([0.1, 0.5, 0.4, 0.2, 0.3, 0.05])]
    rng = np.random.default_rng(0)
    drawn = np.bincount([int(choose_parent(tried, rng).values["a"]) for _ in range(1000)], minlength=6)
    assert drawn[1] > drawn[2] > drawn[4] > drawn[3] > 0
    assert drawn[0] < 10  # the worst of five
    assert drawn[5] == 0


def test_the_next_values_follow_from_the_seed_and_are_new():
    tried = [Tried(START, 0.1)]
    assert next_values(tried, BOUNDS, 0) == next_values(tried, BOUNDS, 0) != next_values(tried, BOUNDS, 1)
    coarse = {"a": Bounds(0.0, 1e-300)}  # of which most changes lead to an end
    first = Tried({"a": 0.0}, 0.1)
    assert next_values([first], coarse, 0) != first.values


# Recipes --------------------------------------------------------------------------------------------------------------
def search_of(tmp_path, monkeypatch, cfg, **options):
    monkeypatch.chdir(tmp_path)
    cfg = cfg if isinstance(cfg, str) else write(tmp_path, cfg, "net.yaml")
    return train.new_search(train.make_parser().from_keywords(cfg=cfg, imgsz=64, evolve=2, **options))


ANCHORS = [[10, 13, 16, 30], [30, 61, 62, 45]]


@pytest.mark.parametrize(
    ("hyp", "kind", "nested", "options"),
    [
        (None, "anchors", False, {}),
        (None, "anchor_free", True, {}),
        ({"lr0": 0.5, "box": 7.0}, "anchor_free", False, {}),
        ({"lr0": 0.5, "box": 7.0}, "anchors", False, {}),
        (None, "anchors", False, {"optimizer": "SGD"}),
        ({"lr0": 0.002, "optimizer": "auto"}, "anchor_free", False, {}),
    ],
)
def test_the_first_generation_trains_with_the_recipe(hyp, kind, nested, options, tmp_path, monkeypatch):
    """And its recipe gives the options that the command line gives."""
    data = make_data(tmp_path / "ds")
    row = ["nc", ANCHORS] if kind == "anchors" else ["nc"]
    network = tiny(head=[*TINY_HEAD, [*TINY_DETECT[:3], row]])
    options |= {"hyp": write(tmp_path, hyp, "own.yaml")} if hyp else {}
    search = search_of(tmp_path, monkeypatch, network, data=data, **options)
    assert search.kind == kind
    assert ("anchor_free" in search.recipe and "box" in search.recipe["anchor_free"]) is (nested or kind == "anchors")
    search.write_recipe(tmp_path / "hyp.yaml", search.values(0))
    own = {"data": data, "cfg": "net.yaml", **options}
    parsers = (train.make_parser().from_keywords(**one) for one in (own, {**own, "hyp": tmp_path / "hyp.yaml"}))
    wanted, got = (train.prepare(args).options for args in parsers)
    gains = [AnchorGains(**options.pop("anchor_gains")) for options in (wanted, got)]
    assert gains[0] == gains[1]
    assert {name: got.get(name) for name in wanted} == wanted
    assert search.bounds["lr0"].high == max(0.1, got["lr0"])
    assert "copy_paste" not in search.bounds


@pytest.mark.parametrize("end", ["low", "high"])
@pytest.mark.parametrize("kind", SPACES)
def test_the_ends_of_all_bounds_can_be_trained_with(kind, end, tmp_path):
    task = "classify" if kind == "classify" else "detect"
    recipe = yaml.safe_load((ROOT / "data/hyps" / HYPS[task][0]).read_text())
    values = {name: getattr(bounds, end) for name, bounds in SPACES[kind].items()}
    path = tmp_path / "hyp.yaml"
    path.write_text(yaml.safe_dump(with_values(recipe, kind, values)))
    chosen = train.choose_recipe(train.make_parser().from_keywords(hyp=path), task)
    flat = {**chosen, **(chosen["anchor_gains"] if kind == "anchors" else {})}
    assert {name: flat[OPTION_OF.get(name, name)] for name in values} == values


def test_a_classifier_has_other_hyper_parameters_and_flags_stay(tmp_path, monkeypatch):
    data = make_folders(tmp_path / "colours", 2, 1)
    search = search_of(tmp_path, monkeypatch, "repvgg-cls.yaml", data=data, label_smoothing=0.2, batch_size=2)
    assert search.kind == "classify"
    assert "cutmix" in search.bounds
    assert "mosaic" not in search.bounds
    assert "label_smoothing" not in search.bounds
    assert [word for word in search.words if "smoothing" in word] == ["--label-smoothing=0.2"]
    assert not [word for word in search.words if "evolve" in word]


def test_all_values_are_known_to_recipes():
    known = hyper_parameters()
    assert all(name in known for space in SPACES.values() for name in space)


# Searches as files ----------------------------------------------------------------------------------------------------
def fake_trainings(monkeypatch, fitness):
    """Have trainings end at once, with a fitness that follows from their values, and draw one picture only."""

    def train_one(search, generation, consents, lock, bar):
        values = search.values(generation.number)
        (generation.run / "weights").mkdir(parents=True)
        search.write_recipe(generation.recipe, values)
        generation.end(values=values, fitness=fitness(values), metrics={"m": 1.0})

    def draw(search, results, path, original=report.draw):
        if not path.exists():
            original(search, results, path)

    monkeypatch.setattr(work, "train_one", train_one)
    monkeypatch.setattr(report, "draw", draw)


def test_a_search_finds_what_is_better_and_leaves_it(tmp_path, monkeypatch, log):
    data = make_data(tmp_path / "ds")
    fake_trainings(monkeypatch, lambda values: 1 / (1 + abs(values["mixup"] - 0.7)))
    monkeypatch.chdir(tmp_path)
    write(tmp_path, tiny(), "net.yaml")
    own = {"cfg": "net.yaml", "data": data, "imgsz": 64, "epochs": 1}
    folder = train.run(**own, evolve=25)
    results = load_search(folder).results()
    best = best_of(results)
    assert abs(results[best]["values"]["mixup"] - 0.7) < 0.2 < abs(results[0]["values"]["mixup"] - 0.7)
    recipe = yaml.safe_load((folder / "hyp_evolved.yaml").read_text())
    assert recipe["mixup"] == results[best]["values"]["mixup"]
    train.choose_recipe(train.make_parser().from_keywords(hyp=folder / "hyp_evolved.yaml"))
    with (folder / "evolve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["mixup"]) for row in rows] == [result["values"]["mixup"] for result in results]
    assert cv2.imread(str(folder / "evolve.png")).shape[1] > 800
    assert [path.parent.parent.name for path in folder.glob("generations/*/train/weights")] == [f"{best:04d}"]
    assert any(f"the best mAP50-95 is {results[best]['fitness']:.4f} of generation {best}" in line for line in log)


@pytest.mark.slow
def test_a_search_in_two_parts_and_in_another_place_is_the_same(tmp_path, monkeypatch):
    data = make_data(tmp_path / "ds")
    fake_trainings(monkeypatch, lambda values: values["mosaic"])
    monkeypatch.chdir(tmp_path)
    write(tmp_path, tiny(), "net.yaml")
    own = {"cfg": "net.yaml", "data": data, "imgsz": 64, "epochs": 1}
    whole = load_search(train.run(**own, evolve=6)).results()
    moved_to = train.run(**own, evolve=3).rename(tmp_path / "elsewhere")
    assert is_search(moved_to)
    assert train.run(resume=moved_to, evolve=6) == moved_to
    assert load_search(moved_to).results() == whole
    with pytest.raises(UserError, match="--imgsz cannot be changed in a search that goes on"):
        train.run(resume=moved_to, imgsz=64)


@pytest.mark.parametrize("flags", [{"exist_ok": True}, {"report": True}])
def test_what_does_not_go_with_a_search(flags):
    with pytest.raises(UserError, match="does not go with --evolve"):
        train.run(cfg="yolov5n.yaml", evolve=True, **flags)


def test_what_a_file_may_not_have_done_is_not_taken_from_it(tmp_path, monkeypatch):
    search = search_of(tmp_path, monkeypatch, tiny(), data=make_data(tmp_path / "ds"), megapixels=200)
    assert not [word for word in search.words if "megapixels" in word]
    for words in (["--plugins", "x.py"], ["--download"], ["--resume", "x"]):
        dataclasses.replace(search, words=[*search.words, *words]).save()
        with pytest.raises(UserError, match="is damaged: its trainings cannot have the option"):
            train.run(resume=search.folder)


def test_what_is_no_search_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="there is no search in runs/evolve"):
        train.run(resume=True, evolve=True)
    with pytest.raises(UserError, match="is not the folder of a search"):
        train.run(resume=tmp_path, evolve=True)
    (tmp_path / "evolve.json").write_text('{"bounds": {"a": 3}}')
    with pytest.raises(UserError, match="is damaged"):
        train.run(resume=tmp_path)


# As users run it ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("said", "number", "stops"), [(NOT_FINITE, 0, True), ("no space", 1, True), (NOT_FINITE, 1, False)]
)
def test_only_values_that_cannot_be_trained_with_count_as_failures(said, number, stops, tmp_path, monkeypatch):
    search = search_of(tmp_path, monkeypatch, tiny(), data=make_data(tmp_path / "ds"))
    generation = search.generation(number)
    generation.folder.mkdir(parents=True)
    generation.log.write_text(f"epoch 1\nERROR: {said} in epoch 1\n")
    if stops:
        with pytest.raises(UserError, match=rf"could not be trained: {said}.*--resume {search.folder}"):
            work.note_failure(search, generation, {}, 2)
        assert generation.result() is None
    else:
        work.note_failure(search, generation, {}, 2)
        assert generation.result() == {"values": {}, "fitness": 0.0, "metrics": {}, "problem": f"{said} in epoch 1"}


@pytest.mark.slow
def test_a_training_that_is_killed_is_resumed(tmp_path, monkeypatch):
    """Of two generations of one epoch; the process of the second one is killed when it has saved."""
    data = make_data(tmp_path / "ds", train=4)
    monkeypatch.chdir(tmp_path)
    write(tmp_path, tiny(), "net.yaml")
    started = []

    def start(words, *args, **options):
        process = start_script(words, *args, **options)
        started.append(words)
        if len(started) == 1:
            last = tmp_path / "runs/evolve/exp/generations/0001/train/weights/last.pt"
            while not last.is_file() and process.poll() is None:
                time.sleep(0.01)
            process.kill()
        return process

    monkeypatch.setattr(work, "start_script", start)
    own = {"cfg": "net.yaml", "data": data, "epochs": 1, "imgsz": 32, "batch_size": 2}
    search = train.new_search(train.make_parser().from_keywords(**own, evolve=2))
    search.generation(0).folder.mkdir(parents=True)
    search.generation(0).end(values=search.values(0), fitness=0.0, metrics={})
    with pytest.raises(UserError, match=r"generation 1 could not be trained: .* ended by SIGKILL .*--resume"):
        train.run(resume=search.folder)
    folder = tmp_path / "runs/evolve/exp"
    train.run(resume=folder)
    first, second = load_search(folder).results()
    assert [words[1] for words in started] == ["--batch-size=2", "--resume"]
    assert second["values"] == load_search(folder).values(1) != first["values"]
    trained = yaml.safe_load((folder / "generations/0001/train/args.yaml").read_text())
    assert trained["lr0"] == second["values"]["lr0"]
    assert second["fitness"] == second["metrics"]["metrics/mAP50-95(B)"]
