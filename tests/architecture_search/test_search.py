"""The search for a network within a latency: its family, its budget, and that a stop changes nothing."""

import csv
import dataclasses
import itertools
import json
import os
import shutil

import cv2
import numpy as np
import pytest
import yaml
from matplotlib.figure import Figure
from torch import nn

import compare
import export
import train
from models import create_model, switch_to_deploy
from models.errors import UserError
from tests.helpers import relative_error
from tests.runs import make_data, stopped
from utils.architecture_search import __main__ as script
from utils.architecture_search import report, search, timing, work
from utils.architecture_search.candidates import LEAST, Draw, Trained, choose_candidates, draws, fitting
from utils.architecture_search.family import (
    GENES,
    STAGE_WIDTHS,
    OneOf,
    Whole,
    drawn,
    model_yaml,
    mutated,
    read_shape,
    restricted,
    scaled,
    smallest,
)
from utils.architecture_search.search import Search
from utils.architecture_search.timing import Conditions, Forecast, Stopwatch, table_of_this_machine
from utils.comparison import work as comparison_work
from utils.comparison.report import frontier
from utils.deploy.fresh import fresh_model
from utils.operators.archive import FLOAT, Setting
from utils.operators.predict import parts_of
from utils.operators.table import Cost, Table, save_tables

BUDGET = 40.0  # milliseconds, of networks that `milliseconds` times
SMALL = "width2=16-32 width3=16-48 width4=32-48 width5=32-64 depth2=0-1 depth3=0-2 depth4=0-2 depth5=0-1 neck=16-32"
SMALL_GENES = restricted([*SMALL.split(), "repeats=1-2"])
PLAIN = (nn.Conv2d, nn.ReLU, nn.SiLU, nn.MaxPool2d, nn.Upsample, nn.Identity)  # what is computed after fusing


def random_shapes(count, genes=GENES, seed=0):
    rng = np.random.default_rng(seed)
    return [drawn(genes, rng) for _ in range(count)]


# The family -----------------------------------------------------------------------------------------------------------
def assert_within(shape, genes=GENES):
    assert all(gene.holds(getattr(shape, name)) for name, gene in genes.items()), shape
    widths = [getattr(shape, name) for name in STAGE_WIDTHS]
    assert widths == sorted(widths)


def test_networks_stay_within_bounds_whatever_is_done_to_them():
    rng = np.random.default_rng(0)
    for shape in random_shapes(200):
        assert_within(shape)
        others = [mutated(shape, GENES, rng), scaled(shape, 0.1, GENES), scaled(shape, 1.3, GENES)]
        for other in others:
            assert_within(other)
        assert read_shape(json.loads(json.dumps(vars(shape)))) == shape
    seen = {name: {getattr(shape, name) for shape in random_shapes(500)} for name in GENES}
    for name, gene in GENES.items():
        values = gene.values if isinstance(gene, OneOf) else (gene.low, gene.high)
        assert seen[name] >= set(values) or name in STAGE_WIDTHS, name


def test_a_mutation_changes_a_few_genes():
    rng = np.random.default_rng(0)
    changes = [
        sum(a != b for a, b in zip(vars(shape).values(), vars(mutated(shape, GENES, rng)).values(), strict=True))
        for shape in random_shapes(300)
    ]
    assert changes.count(0) < 10  # those whose width was put back, as no stage is narrower than a finer one
    assert 2 < np.mean(changes) < 5


@pytest.mark.parametrize("gene", [Whole(0, 3), Whole(16, 64, 16), OneOf(("a", "b", 4))])
def test_a_gene_moves_to_another_value_from_anywhere(gene):
    rng = np.random.default_rng(0)
    values = gene.values if isinstance(gene, OneOf) else range(gene.low, gene.high + 1, gene.step)
    for value in values:
        moved = {gene.mutated(value, rng) for _ in range(50)}
        assert moved
        assert value not in moved
        assert moved <= set(values)
    assert not gene.holds(str(values[0]) + "x")
    assert not gene.holds(True)


def covering_shapes():
    """Return a few small networks that together have every value of every gene that is one of several."""
    choices = {name: gene.values for name, gene in SMALL_GENES.items() if isinstance(gene, OneOf)}
    most = max(map(len, choices.values()))
    shapes = random_shapes(most, SMALL_GENES)
    return [
        dataclasses.replace(shape, **{name: values[i % len(values)] for name, values in choices.items()})
        for i, shape in enumerate(shapes)
    ]


@pytest.mark.parametrize("shape", covering_shapes())
def test_a_network_builds_and_fuses_to_plain_operators(shape):
    model = fresh_model(model_yaml(shape, nc=3))
    assert model.stride.tolist() == [2**level for level in shape.levels]
    assert getattr(model.model[-1], "reg_max", shape.bins) == shape.bins
    deploy = switch_to_deploy(model)
    leaves = [module for module in deploy.modules() if not list(module.children())]
    kinds = {type(leaf) for leaf in leaves if type(leaf).__module__.startswith("torch.")}
    assert kinds <= set(PLAIN), kinds
    sides = {leaf.kernel_size[0] for leaf in leaves if isinstance(leaf, nn.Conv2d)}
    assert sides == ({1, 3, 4} if shape.stem == 4 else {1, 3})
    image = model.example_input()
    assert relative_error(deploy(image)[0], model(image)[0]) < 1e-3
    assert create_model(yaml.safe_load(search.as_yaml(model_yaml(shape, 3, 4)))).spec.ch == 4


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("actt=relu", "there is no gene 'actt'.*did you mean 'act'"),
        ("act=gelu", "act can be relu, silu, not 'gelu'"),
        ("width2=10-20", "width2 can be 16-128 in steps of 16, not '10-20'"),
        ("depth2=", "depth2 can be 0-4, not ''"),
        ("depth2=3-1", "depth2 can be 0-4"),
    ],
)
def test_genes_that_there_are_not_are_told(word, said):
    with pytest.raises(UserError, match=said):
        restricted([word])


def test_the_family_is_narrowed_down():
    genes = restricted(["act=relu", "head=plain,anchors", "width2=32-64", "depth5=2"])
    for shape in random_shapes(50, genes):
        assert_within(shape, genes)
        assert (shape.act, shape.depth5) == ("relu", 2)
        assert shape.head != "depthwise"


# Budgets --------------------------------------------------------------------------------------------------------------
def milliseconds(shapes):
    """Return what networks might take: more for wide and deep ones."""
    return [sum(w * w * (1 + d) for w, d in stages(shape)) / 4000 + shape.neck / 40 for shape in shapes]


def stages(shape):
    levels = range(2, shape.coarsest + 1)
    return [(getattr(shape, f"width{level}"), getattr(shape, f"depth{level}")) for level in levels]


def chosen(seed, budget=BUDGET, parents=(), count=20):
    rng = np.random.default_rng(seed)
    return choose_candidates(fitting(draws(GENES, rng, parents, 500), milliseconds, budget, GENES, 4), count, ())


def test_candidates_keep_the_budget_and_follow_from_the_seed():
    found = chosen(0)
    assert len({str(one.shape) for one in found}) == len(found) == 20
    assert found == chosen(0) != chosen(1)
    for one in found:
        assert [one.milliseconds] == milliseconds([one.shape])
        assert LEAST * BUDGET <= one.milliseconds <= BUDGET
    assert [one.name for one in found[:2]] == ["c001", "c002"]
    children = chosen(0, parents=[Trained(found[0], 0.9), Trained(found[1], 0.1)], count=5)
    assert [one.parent for one in children] == ["c001"] * 5
    assert all(LEAST * BUDGET <= one.milliseconds <= BUDGET for one in children)
    assert chosen(0, budget=1e9) == []


def test_the_clock_is_asked_for_several_networks_at_once():
    asked = []

    def clock(shapes):
        asked.append(len(shapes))
        return [1.0] * len(shapes)

    assert len(list(fitting(map(Draw, random_shapes(10)), clock, 1.0, GENES, 4))) == 10
    assert asked == [4, 4, 2]


def test_a_network_is_timed_once(tmp_path, monkeypatch):
    conditions = Conditions("onnx", 64, threads=1, rounds=2, classes=2, channels=3)
    first, second = scaled(smallest(GENES), 2, GENES), smallest(GENES)
    times = Stopwatch(conditions, tmp_path / "latency.json")([first, second])
    assert min(times) > 0
    again = Stopwatch(conditions, tmp_path / "latency.json")
    monkeypatch.setattr(again, "_measure", None)
    assert again([second, first]) == times[::-1]
    assert [path.name for path in tmp_path.iterdir()] == ["latency.json"]
    (tmp_path / "latency.json").write_text('{"a": -1}')
    with pytest.raises(UserError, match=r"latency.json is damaged: remove it"):
        Stopwatch(conditions, tmp_path / "latency.json")


def test_latencies_are_predicted_from_a_table(tmp_path, monkeypatch, log):
    """That of one operator, which stands for all others."""
    shape = scaled(smallest(GENES), 2, GENES)
    conditions = Conditions("onnx", 64, threads=1, rounds=2, classes=2, channels=3)
    operator = parts_of(create_model(conditions.content(shape)), (64, 64), [FLOAT])[FLOAT].operators[0].operator
    table = Table(Setting("onnx", int8=False, threads=1), "machine", "version", {operator.digest: Cost(operator, 0.1)})
    save_tables(tmp_path / "table.json", {table.setting: table})
    small, wide = Forecast(conditions, table)([shape, scaled(shape, 3, GENES)])
    assert wide > 1.5 * small > 0.2
    monkeypatch.setattr(timing, "default_path", lambda: tmp_path / "table.json")
    assert table_of_this_machine("onnx", 1) == str(tmp_path / "table.json")
    assert table_of_this_machine("onnx", 2) == table_of_this_machine("fused", 1) == ""
    found = search_in(tmp_path, table=str(tmp_path / "table.json"))
    assert script.clocks(found)[1]([]) == []
    assert any("is predicted from" in line for line in log)
    with pytest.raises(UserError, match="for ONNX Runtime, float, 2 threads"):
        script.run(budget_ms=5, table=tmp_path / "table.json", threads=2)
    with pytest.raises(UserError, match="not for --form fused"):
        script.run(budget_ms=5, table=tmp_path / "table.json", form="fused")


# Searches as files ----------------------------------------------------------------------------------------------------
OPTIONS = {"budget_ms": BUDGET, "genes": [], "candidates": 4, "epochs": 3, "generations": 2, "halvings": 2, "seed": 0}
OPTIONS |= {
    "form": "onnx",
    "threads": 1,
    "rounds": 2,
    "imgsz": 64,
    "latency_imgsz": 64,
    "batch_size": 2,
    "hyp": "",
    "table": "",
}


def search_in(folder, **options):
    folder.mkdir(parents=True, exist_ok=True)
    return Search(folder, {**OPTIONS, "data": "my-data.yaml", **options}, classes=2, channels=3)


def accuracy(candidate, epochs):
    """Return what a network might reach: deep ones learn slowly, and one of them cannot be trained."""
    return 0.1 + 0.002 * candidate.shape.depth4 * epochs if candidate.name != "c002" else None


def fake_comparisons(monkeypatch):
    """Have comparisons end at once."""

    def compare_at_once(search, rung, candidates, means, lock):
        step = search.steps()[rung.number - 1]
        found = {one.name: accuracy(one, step.epochs) for one in candidates}
        entries = [
            {"name": name, "accuracy": value and {"value": value, "margin": 0.1}, "problem": "" if value else "broke"}
            for name, value in found.items()
        ]
        rung.comparison.mkdir(exist_ok=True)
        search_module_write(rung.comparison / "compare.json", json.dumps({"entries": entries}))

    search_module_write = search.write_text
    monkeypatch.setattr(work, "compare", compare_at_once)
    monkeypatch.setattr(work, "say_how_long", lambda *_: None)


def test_the_rungs_halve_what_is_left_and_double_the_epochs(tmp_path):
    steps = [(step.kind, step.count, step.epochs) for step in search_in(tmp_path, candidates=16, halvings=9).steps()]
    assert steps == [
        ("random", 16, 3),
        ("children", 8, 3),
        ("best", 12, 6),
        ("best", 6, 12),
        ("best", 3, 24),
        ("best", 2, 48),
    ]
    assert len(search_in(tmp_path, candidates=2, generations=1).steps()) == 1


def test_a_search_finds_the_best_and_leaves_files(tmp_path, monkeypatch, log):
    fake_comparisons(monkeypatch)
    found = search_in(tmp_path)
    work.search_on(found, None, milliseconds)
    trained = found.trained()
    assert [len(rung) for rung in trained] == [3, 2, 3, 2]
    pool = sorted(trained[0] + trained[1], key=lambda one: (-one.fitness, one.candidate.milliseconds))
    assert {one.candidate.name for one in trained[2]} == {one.candidate.name for one in pool[:3]}
    winner = report.winner_of(trained)
    assert winner.fitness == max(one.fitness for one in trained[3])
    text = (tmp_path / "winner.yaml").read_text()
    assert text.startswith(f"# Found by python -m utils.architecture_search --budget-ms 40: {winner.candidate.name}")
    assert create_model(yaml.safe_load(text)).nc == 2
    with (tmp_path / "search.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["rung"] for row in rows] == [*"1111", *"22", *"333", *"44"]
    assert [row["network"] for row in rows if row["problem"] == "broke"] == ["c002"]
    assert {float(row["ms"]) <= BUDGET for row in rows} == {True}
    assert rows[-1]["act"] in ("relu", "silu")
    assert cv2.imread(str(tmp_path / "search.png")).shape[1] > 800
    assert any("Train it at full length:  python train.py --cfg" in line for line in log)


def test_the_picture_has_the_frontier_of_the_last_rung(tmp_path, monkeypatch):
    fake_comparisons(monkeypatch)
    found, drawn = search_in(tmp_path), []
    work.search_on(found, None, milliseconds)
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    *_, last = found.trained()
    report.draw(found, found.trained(), tmp_path / "search.png")
    dashed = [line for line in drawn[0].axes[0].lines if line.get_linestyle() == "--"]
    assert [list(zip(*line.get_data(), strict=True)) for line in dashed] == [frontier(map(report.place, last))]
    assert report.place(report.winner_of([last])) in frontier(map(report.place, last))


def end_of(folder):
    """Return what a search has left that is not a picture, and no time of a file."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix != ".png")
    return {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}


def test_a_stop_at_any_write_changes_nothing(tmp_path, monkeypatch):
    fake_comparisons(monkeypatch)
    monkeypatch.setattr(report, "draw", lambda *_: None)
    work.search_on(search_in(tmp_path / "whole"), None, milliseconds)
    whole = end_of(tmp_path / "whole")
    written, left = search.write_text, [0]

    def write(path, text):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        written(path, text)

    for module in (search, report):
        monkeypatch.setattr(module, "write_text", write)
    stops = 0
    for number in itertools.count(1):
        folder, left[0] = tmp_path / f"stopped{number}", number
        try:
            work.search_on(search_in(folder), None, milliseconds)
        except KeyboardInterrupt:
            stops += 1
            work.search_on(search_in(folder), None, milliseconds)
        assert end_of(folder) == whole, number
        if left[0] > 0:
            break
        shutil.rmtree(folder)
    assert stops == 3 * len(search_in(tmp_path).steps())


def test_a_budget_that_no_network_keeps_is_told(tmp_path):
    least = milliseconds([smallest(GENES)])[0]
    with pytest.raises(UserError, match=f"the smallest network of the family takes {least:.1f} ms here"):
        search_in(tmp_path, budget_ms=least / 2).check_budget(milliseconds)
    with pytest.raises(UserError, match=r"0 networks of the family take 75 to 100 % of 1e\+09 ms here"):
        search_in(tmp_path, budget_ms=1e9).choose(1, milliseconds)


def one_candidate(**changes):
    one = {"name": "c001", "shape": vars(smallest(GENES)), "milliseconds": 3.0, "parent": ""}
    return json.dumps({"candidates": [{**one, **changes}]})


def test_a_rung_is_read_as_it_was_written(tmp_path):
    (tmp_path / "rung-1.json").write_text(one_candidate())
    assert [one.shape for one in search_in(tmp_path).rung(1).candidates()] == [smallest(GENES)]


@pytest.mark.parametrize(
    "content",
    [
        *("", "[]", '{"candidates": [{}]}'),
        one_candidate(name="../../c001"),
        one_candidate(name=7),
        one_candidate(milliseconds=None),
        one_candidate(shape={"act": "relu"}),
        one_candidate(shape={**vars(smallest(GENES)), "width2": 17}),
    ],
)
def test_a_damaged_rung_is_told(tmp_path, content):
    (tmp_path / "rung-1.json").write_text(content)
    with pytest.raises(UserError, match=r"rung-1.json is damaged: start the search anew"):
        search_in(tmp_path).rung(1).candidates()


# As users run it ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "name the milliseconds that a network may take, for instance --budget-ms 15"),
        ({"budget_ms": 5, "genes": ["x=1"]}, "there is no gene 'x'"),
        ({"budget_ms": 5, "form": "onnx-unfused"}, "invalid choice"),
        ({"resume": "."}, "is not the folder of a search: its search.json"),
    ],
)
def test_wrong_options_are_told(options, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said):
        script.run(**options)
    assert not list(tmp_path.iterdir())


class Done:
    """A script that has come to its end, as `start_script` returns one."""

    returncode = 0

    def poll(self):
        return self.returncode

    wait = terminate = poll


def start_here(words, log, lock, *args, **options):
    """Run a script in this process; one that is stopped leaves its lock, as its end would."""
    module = {"compare.py": compare, "train.py": train, "export.py": export}[words[0]]
    try:
        module.main(module.make_parser().parse_args(words[1:]))
    except KeyboardInterrupt:
        if module is train:
            os.close(lock)
        raise
    return Done()


@pytest.mark.slow
def test_a_search_that_is_stopped_while_it_trains_goes_on(tmp_path, monkeypatch):
    """Of two networks for two epochs; the first training is stopped behind its first epoch."""
    data = make_data(tmp_path / "ds", train=4)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path / "config"))  # without what this machine's operators cost
    for module in (work, comparison_work):
        monkeypatch.setattr(module, "start_script", start_here)
        monkeypatch.setattr(module, "POLL", 0)
    sizes = {"imgsz": 32, "batch_size": 2, "epochs": 2, "candidates": 2, "generations": 1, "rounds": 3}
    own = {"data": data, "genes": [*SMALL.split(), "coarsest=4"], "device": ["cpu"], **sizes}
    monkeypatch.setattr(
        Stopwatch, "_measure", lambda self, shapes, _: {name: milliseconds([one])[0] for name, one in shapes.items()}
    )
    with stopped(monkeypatch, "on_model_save", 0):
        script.run(**own, budget_ms=2)
    folder = tmp_path / "runs/search/exp"
    timed, rung = ((folder / name).read_bytes() for name in ("latency.json", "rung-1.json"))
    assert not (folder / "search.csv").exists()
    with pytest.raises(UserError, match="--epochs cannot be changed in a search that goes on"):
        script.run(resume=folder, epochs=3)
    resumed = []
    start = comparison_work.start
    monkeypatch.setattr(comparison_work, "start", lambda words, *args: resumed.append(words) or start(words, *args))
    assert script.run(resume=folder, device=["cpu"]) == folder
    assert resumed[0][:2] == ["train.py", "--resume"]
    assert timed == (folder / "latency.json").read_bytes()
    assert rung == (folder / "rung-1.json").read_bytes()
    found = json.loads((folder / "rung-1/compare.json").read_text())["entries"]
    assert [entry["name"] for entry in found] == ["c001", "c002"]
    assert not any(entry["problem"] for entry in found)
    assert all(one["milliseconds"] <= 2 for one in json.loads(rung)["candidates"])
    assert train.prepare(train.make_parser().from_keywords(cfg=folder / "winner.yaml", data=data)) is not None
