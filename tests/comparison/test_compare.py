"""compare.py: what it says, that a kill loses nothing, and that one failure stops nothing."""

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from matplotlib.figure import Figure

import compare
from models.errors import UserError
from tests.comparison.kills import Done
from tests.comparisons import make_comparison, make_networks
from tests.helpers import tiny, write
from tests.networks import NAMES as DISC_NAMES
from tests.runs import make_data
from utils import cli, convert
from utils.checkpoint import load_checkpoint
from utils.checkpoint.foreign import read_model
from utils.checkpoint.unpickle import read_pickled
from utils.comparison import train_ultralytics, work
from utils.comparison.detections import Detections
from utils.comparison.entries import Entry
from utils.comparison.measure import finish, trained_minutes
from utils.comparison.plan import Job
from utils.comparison.report import Compared, cells, counted, draw, frontier, text_table, verdict
from utils.comparison.statistics import Estimate
from utils.comparison.work import start as start_step
from utils.data.shapes import NAMES, Recipe, ensure_shapes
from utils.distributed.scripts import why_ended
from utils.latency import Latency

ROOT = Path(__file__).parents[2]
BREAKS = """
from torch import nn

from models import BACKBONES, Backbone


@BACKBONES.register("Breaks")
class Breaks(Backbone):
    archs = ("small",)

    def __init__(self, arch="small", in_channels=3, out_strides=None):
        super().__init__()
        self.in_channels, self.strides, self.channels = in_channels, (4, 8), (16, 32)
        self.layers = nn.ModuleList([nn.Conv2d(in_channels, 16, 4, 4), nn.Conv2d(16, 32, 2, 2)])
        self.calls = 0

    def forward(self, x):
        self.calls += self.training
        if self.calls > 8:
            raise RuntimeError("it broke on purpose")
        first = self.layers[0](x)
        return [first, self.layers[1](first)]
"""


# Options, and the steps of a job --------------------------------------------------------------------------------------
def test_a_data_set_that_is_named_twice_is_told(data):
    twice = [str(data), str(data.parent / "images/.." / data.name)]
    with pytest.raises(UserError, match=r"--data names .* twice"):
        compare.new_plan(compare.make_parser().parse_args(["--cfg", "yolov5n", "--data", *twice]))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--threads", "1", "1"], "--threads names 1 twice"),
        (["--runtime", "onnx", "openvino", "onnx"], "--runtime names onnx twice"),
        (["--threads", "0"], "--threads"),
        (["--runtime", "onnx", "zip"], "--runtime"),
    ],
)
def test_wrong_numbers_of_values_are_told(words, said):
    with pytest.raises(UserError, match=said):
        compare.make_parser().parse_args(words)


def test_one_value_stays_one_and_several_are_a_list():
    parser = compare.make_parser()
    args = parser.parse_args(["--threads", "1", "2", "--runtime", "onnx"])
    assert (args.threads, args.runtime) == ([1, 2], "onnx")
    again = parser.from_keywords(threads=args.threads, runtime=args.runtime)
    assert (again.threads, again.runtime) == (args.threads, args.runtime)


@pytest.mark.slow
def test_a_module_runs_as_a_step(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "utils.py").write_text("raise SystemExit('the wrong utils')")
    job = Job(Entry("a", {}), 0, tmp_path / "a-0", "")
    lock = job.take()
    args = compare.make_parser().parse_args([])
    process = start_step(["-m", "utils.convert", str(tmp_path / "none.pt")], job, lock, args)
    assert process.wait(timeout=100) == 2
    assert "there is no weights file" in why_ended(job.log, 2)
    os.close(lock)


@pytest.mark.slow
def test_what_ultralytics_trains_becomes_a_checkpoint_of_ours(data, tmp_path):
    secret, place = tmp_path / "secret.txt", tmp_path / "runs/exp"
    secret.write_text("stays")
    (place / "weights").mkdir(parents=True)
    (place / "weights/last.pt").symlink_to(secret)
    settings = {"data": data, "epochs": 1, "imgsz": 64, "batch_size": 4, "device": "cpu", "exist_ok": True}
    folder = train_ultralytics.run(cfg="yolo11n", project=tmp_path / "runs", **settings)
    assert folder == place
    assert secret.read_text() == "stays"
    assert trained_minutes(folder / "results.csv") > 0
    trained = read_model(read_pickled(folder / "weights/best.pt"), "best.pt").tensors
    converted = load_checkpoint(convert.run(folder / "weights/best.pt"))
    assert (converted.nc, converted.names, converted.imgsz) == (len(NAMES), dict(enumerate(NAMES)), 64)
    assert all(
        torch.equal(converted.state_dict()[key], tensor.float()) for key, tensor in trained.items() if tensor.ndim
    )
    assert not any(path.suffix in (".cache", ".npy") for path in data.parent.rglob("*"))


# What is said ---------------------------------------------------------------------------------------------------------
class Fixed:
    """A sample with these accuracies, of which some may be equal to the best one."""

    def __init__(self, scores, equals):
        self.scores = {name: np.array([score]) for name, score in scores.items()}
        self.best, self.equals, self.ranked = lambda: next(iter(scores)), lambda: equals, lambda: list(scores)
        self.data_sets = 1
        self.accuracy = lambda name: Estimate(scores[name], 0.01)
        self.difference = lambda a, b: Estimate(scores[a] - scores[b], 0.02)


@pytest.mark.parametrize(
    ("equals", "said"),
    [
        (["a"], "a is the best on this data: mAP50-95 50.0 ± 1.0. The next is b, 1.0 ± 2.0 points behind."),
        (["a", "b"], "The data cannot tell b from a, .* Of these b is the fastest, 2.0 ms a picture."),
        (["a", "d"], "The data cannot tell d from a, .* They are as fast as each other, 8.9 ms a picture."),
    ],
)
def test_the_winner_is_named_or_that_there_is_none(equals, said):
    rows = [
        Compared(name, 3, by_threads={1: {"onnx": Latency((ms,))}})
        for name, ms in (("a", 9.0), ("b", 2.0), ("c", 1.0), ("d", 8.9))
    ]
    assert re.match(said, verdict(Fixed({"a": 0.5, "b": 0.49, "c": 0.1, "d": 0.48}, equals), rows))


def test_the_table_has_the_best_first_and_failures_last():
    rows = [
        Compared("broken", 3, problem="no memory"),
        Compared("b", 3, accuracy=Estimate(0.4, 0.01), by_threads={1: {"onnx": Latency((2.0,))}}),
        Compared("a", 3, accuracy=Estimate(0.5, 0.01), by_threads={1: {"onnx": Latency((9.0,))}}),
        Compared("c", 3, accuracy=Estimate(0.3, 0.01), by_threads={1: {"onnx": Latency((5.0,))}}),
    ]
    lines = cells(rows)
    assert [line[0] for line in lines] == ["", "a", "b", "c", "broken"]
    assert lines[-1][-1] == "no memory"
    assert len({len(line) for line in text_table(lines).splitlines()}) == 1


def test_the_frontier_has_what_nothing_beats_in_both():
    assert frontier([(5.0, 30.0), (9.0, 50.0), (2.0, 40.0), (2.0, 35.0)]) == [(2.0, 40.0), (9.0, 50.0)]
    assert frontier([]) == []


def test_long_names_of_entries_stay_inside_the_picture(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    names = ["short", "yolov5n" + "--freeze-backbone.stages.0-1" * 4, "m" * 200]
    draw([Compared(name, 3, accuracy=Estimate(0.5, 0.01)) for name in names], tmp_path / "a.png")
    (figure,) = drawn
    figure.draw_without_rendering()
    legend, axes = figure.legends[0].get_window_extent(), figure.axes[0].get_window_extent()
    assert figure.bbox.x0 <= legend.x0 and legend.x1 <= figure.bbox.x1
    assert figure.bbox.y0 <= legend.y0 and legend.y1 < axes.y0
    assert axes.height > 0.6 * figure.bbox.height


def test_several_runtimes_and_threads_have_their_columns_and_the_fastest_is_named():
    times = {"onnx": 4.0, "onnx-int8": 3.0, "openvino": 2.0, "openvino-int8": 3.5}
    first = {form: Latency((ms,)) for form, ms in times.items()}
    second = {form: Latency((ms / 2,)) for form, ms in times.items()}
    maps = dict.fromkeys(times, 0.5)
    row = Compared("a", 3, accuracy=Estimate(0.5, 0.01), maps=maps, by_threads={2: first, 1: second})
    assert row.milliseconds == 2.0
    head, line = cells([row])
    assert [name for name in head if name.endswith(("thread", "threads"))] == [
        f"{form} ms, {threads}" for threads in ("2 threads", "1 thread") for form in times
    ]
    assert dict(zip(head, line, strict=True))["fastest"] == "openvino onnx-int8"
    assert counted([row]) == "the fastest of onnx, openvino, threads: 2"
    content = row.as_dict()
    assert content["fastest"] == {"float": "openvino", "int8": "onnx-int8"}
    assert content["latency"] == content["latency_by_threads"]["2"]
    assert content["latency_by_threads"]["1"]["openvino"] == {"median_ms": 1.0, "minimum_ms": 1.0}
    assert "by_threads" not in content


# As users run it ------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    ensure_shapes(folder, Recipe(side=64, train=16, val=8, test=2, film_side=64, film_frames=2))
    splits = {split: f"images/{split}" for split in ("train", "val")}
    (folder / "data.yaml").write_text(yaml.safe_dump({"path": str(folder), **splits, "names": list(NAMES)}))
    return folder / "data.yaml"


def words(data, *entries):
    options = ["--data", data, "--imgsz", 64, "--batch-size", 4, "--seeds", 1, "--rounds", 2, "--device", "cpu"]
    return [*map(str, ["--cfg", *entries, *options])]


def script(*args):
    return [sys.executable, str(ROOT / "compare.py"), *map(str, args)]


def test_a_dry_run_writes_nothing(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, tiny(), "one.yaml")
    args = words(data, "one.yaml")
    assert compare.main(compare.make_parser().parse_args([*args, "--epochs", "2", "--dry-run"])) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["one.yaml"]


def test_a_budget_gives_the_faster_network_more_epochs(data, tmp_path, monkeypatch):
    seconds = iter([2.0, 6.0])
    monkeypatch.setattr(compare, "epoch_seconds", lambda *_: next(seconds))
    for name in ("fast", "slow"):
        write(tmp_path, tiny(), f"{name}.yaml")
    args = words(data, tmp_path / "fast.yaml", tmp_path / "slow.yaml")
    plan = compare.new_plan(compare.make_parser().parse_args([*args, "--budget-minutes", "1", "--dry-run"]))
    assert plan.epochs == {"fast": 30, "slow": 10}


@pytest.fixture
def steps_here(monkeypatch):
    """Have a comparison do its steps in this process and draw no curves, which takes longer than to train."""

    def start(words, job, lock, args):
        module = importlib.import_module(words[0].removesuffix(".py"))
        plain = ["--noplots"] if words[0] == "train.py" else []
        assert cli.run_script(module.main, module.make_parser(), [*words[1:], *plain]) == 0
        return Done()

    monkeypatch.setattr(work, "start", start)
    monkeypatch.setattr(work, "POLL", 0)


@pytest.mark.slow
def test_a_comparison_that_is_killed_ends_with_the_same_numbers(data, tmp_path, monkeypatch, steps_here):
    """As one that was never stopped, which has done all of its steps in one process."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path, tiny(nc=4), "one.yaml")
    (tmp_path / "breaks.py").write_text(BREAKS)
    rows = [[-1, 1, "Breaks", ["small"]]], [[["P2", "P3"], 1, "Detect", ["nc"]]]
    write(tmp_path, {"nc": 4, "backbone": rows[0], "head": rows[1]}, "broken.yaml")
    options = ["--epochs", "3", "--project", ".", "--name"]
    entry = "one.yaml --teacher ema --optimizer SGD"
    whole = [*words(data, entry), *options, "whole"]
    assert cli.run_script(compare.main, compare.make_parser(), whole) == 0
    timing = ["--runtime", "onnx", "torchscript", "--time-imgsz", "96"]
    both = words(data, entry, "broken.yaml", *timing)
    process = start(script(*both, *options, "killed", "--plugins", "breaks.py"), tmp_path)
    name = "one--optimizer-SGD--teacher-ema"
    wait_for(tmp_path / f"killed/jobs/{name}-0/train/weights/last.pt", process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    again = script("--resume", "killed", "--plugins", "breaks.py", "--device", "cpu", "--rounds", 2)
    again += ["--threads", "1", "2"]
    assert start(again, tmp_path).wait(timeout=200) == 0
    jobs = [tmp_path / folder / f"jobs/{name}-0" for folder in ("whole", "killed")]
    whole, killed = (load_checkpoint(job / "train/weights/best.pt").state_dict() for job in jobs)
    assert all(torch.equal(killed[key], value) for key, value in whole.items())
    whole, killed = (vars(Detections.load(job / "found.npz")) for job in jobs)
    assert all(np.array_equal(killed[key], value) for key, value in whole.items())
    found = json.loads((tmp_path / "killed/compare.json").read_text())
    assert [entry["name"] for entry in found["entries"]] == [name, "broken"]
    assert "train/cwd_loss" in (jobs[1] / "train/results.csv").read_text()
    assert "it broke on purpose" in found["entries"][1]["problem"]
    assert found["verdict"]
    one = found["entries"][0]
    assert [list(forms) for forms in one["latency_by_threads"].values()] == [["onnx", "torchscript"]] * 2
    assert one["maps"].keys() == one["latency"].keys()
    assert (jobs[1] / "timed/best.torchscript").is_file()
    assert json.loads((jobs[1] / "result.json").read_text())["input"] == [3, 96, 96]
    page = (tmp_path / "killed/compare.html").read_text()
    assert "it broke on purpose" in page
    assert 'src="http' not in page
    assert page.count("data:image/") == 1


def start(command, folder: Path):
    """Start a process in a group of its own, which says nothing here."""
    return subprocess.Popen(
        command, cwd=folder, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
    )


def wait_for(path: Path, process):
    """Wait until a file is there, while a process runs."""
    while not path.is_file():
        assert process.poll() is None
        time.sleep(0.02)


@pytest.mark.slow
def test_the_mean_over_data_sets_decides(tmp_path):
    files = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        files.append(make_data(tmp_path / name, names=list(DISC_NAMES.values())))
    boxes = tmp_path / "two/labels/val"
    for label in boxes.iterdir():
        label.write_text("1 0.64 0.5 0.75 0.75\n")  # where `b` sees it
    for label in (tmp_path / "one/labels/val").iterdir():
        label.write_text("1 0.5 0.5 0.75 0.75\n")
    plan = make_comparison(tmp_path / "exp", files, make_networks(tmp_path))
    for job in plan.jobs():
        finish(job)
    rows = compare.report(plan, compare.make_parser().parse_args(["--rounds", "1"]))
    found = json.loads((tmp_path / "exp/compare.json").read_text())
    assert list(found["data_sets"]) == found["data"] == ["one-data", "two-data"]
    each = [part["entries"] for part in found["data_sets"].values()]
    scores = [[entry["accuracy"]["value"] for entry in entries] for entries in each]
    assert scores[0][0] > scores[0][1] and scores[1][0] < scores[1][1]
    assert [row.accuracy.value for row in rows] == pytest.approx(np.mean(scores, axis=0))
    assert [entry["latency"]["onnx"] for entry in found["entries"]] == [one["latency"]["onnx"] for one in each[1]]
    assert [entry["minutes"] for entry in found["entries"]] == [1, 1]
    assert "2 data sets" in found["verdict"] or "cannot tell" in found["verdict"]
    page = (tmp_path / "exp/compare.html").read_text()
    assert page.count("disagree most") == 2 and "<h1>two-data</h1>" in page


@pytest.mark.slow
def test_a_stop_reaches_the_training(data, tmp_path):
    write(tmp_path, tiny(nc=4), "one.yaml")
    args = [*words(data, "one.yaml"), "--epochs", "200", "--project", ".", "--name", "exp"]
    process = start(script(*args), tmp_path)
    wait_for(tmp_path / "exp/jobs/one-0/train/weights/last.pt", process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    assert Job(Entry("one", {}), 0, tmp_path / "exp/jobs/one-0", "").take() is not None
