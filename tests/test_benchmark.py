"""benchmark.py and the clock under it: everything in turns, every form there, the published form the same function."""

import csv
import json
import re
import resource
import time

import pytest
import torch
from helpers import randomize_, relative_error, tiny, tiny_backbone, write

import benchmark
from models import DetectionModel
from models.blocks.riformer import RIFormerBlock
from models.errors import UserError
from utils import cli
from utils.latency import Latency, measure, torch_threads

FORMS = [benchmark.UNFUSED, benchmark.FUSED, benchmark.TORCHSCRIPT, benchmark.ONNX, benchmark.ONNX_UNFUSED]


# The clock ------------------------------------------------------------------------------------------------------------
def test_all_run_in_turns_and_none_is_always_first():
    calls, rounds = [], []
    runs = {name: lambda name=name: calls.append(name) for name in "abc"}
    measured = measure(runs, 4, after_round=lambda: rounds.append(len(calls)))
    assert "".join(calls) == "abc" + "abc" + "bca" + "cab" + "abc"  # to warm up, then the rounds
    assert rounds == [6, 9, 12, 15]
    assert list(measured) == ["a", "b", "c"]
    assert {len(latency.times) for latency in measured.values()} == {4}


def test_times_are_milliseconds():
    latency = measure({"sleep": lambda: time.sleep(0.02)}, 3)["sleep"]
    assert 20 <= latency.minimum <= latency.median < 2000


def test_median_and_minimum():
    assert (Latency((3.0, 1.0, 9.0)).median, Latency((3.0, 1.0, 9.0)).minimum) == (3.0, 1.0)


def test_no_gradients_are_kept():
    weight = torch.ones(1, requires_grad=True)
    results = []
    measure({"run": lambda: results.append(weight * 2)}, 1)
    assert not any(result.requires_grad for result in results)


def test_threads_are_put_back_after_an_error():
    before = torch.get_num_threads()
    with pytest.raises(KeyError), torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise KeyError
    assert torch.get_num_threads() == before


# The script -----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """Two small models measured, and the folder of the results."""
    folder = tmp_path_factory.mktemp("benchmark")
    cfgs = [write(folder, tiny(width_multiple=width), f"w{width}.yaml") for width in (0.5, 1.0)]
    return benchmark.run(cfg=cfgs, imgsz=[64, 96], rounds=2, threads=1, project=folder), folder / "exp", cfgs


def test_a_row_for_each_form_of_each_model(result):
    rows, _, _ = result
    assert [(row.model, row.form) for row in rows] == [(m, form) for m in ("w0.5.yaml", "w1.0.yaml") for form in FORMS]
    assert all(0 < row.minimum_ms <= row.median_ms for row in rows)


def test_sizes_before_and_after_fusing(result):
    rows, _, cfgs = result
    model = DetectionModel(cfgs[1])
    unfused = {benchmark.UNFUSED, benchmark.ONNX_UNFUSED}
    for row in rows[len(FORMS) :]:
        module = model if row.form in unfused else model.fuse()
        assert row.params == sum(p.numel() for p in module.parameters())
    assert rows[5].gflops == rows[6].gflops > rows[0].gflops > 0


def test_ratios(result):
    rows, _, _ = result
    assert [row.ratio_to_first for row in rows[:5]] == [1] * 5
    assert rows[5].ratio_to_unfused == rows[0].ratio_to_unfused == 1
    assert rows[8].ratio_to_first == pytest.approx(rows[8].minimum_ms / rows[3].minimum_ms, rel=0.01)
    assert rows[8].ratio_to_unfused == pytest.approx(rows[8].minimum_ms / rows[5].minimum_ms, rel=0.01)


def test_results_are_written_and_nothing_else(result):
    rows, folder, _ = result
    assert sorted(path.name for path in folder.iterdir()) == ["benchmark.csv", "benchmark.json"]
    written = json.loads((folder / "benchmark.json").read_text())
    assert (written["imgsz"], written["threads"], written["rounds"]) == ([64, 96], 1, 2)
    assert set(written["versions"]) == {"torch", "ultralytics", "onnx", "onnxruntime"}
    assert [row["median_ms"] for row in written["rows"]] == [row.median_ms for row in rows]
    with (folder / "benchmark.csv").open(newline="") as file:
        assert [row["form"] for row in csv.DictReader(file)] == [row.form for row in rows]


def test_table(result):
    rows, _, _ = result
    lines = benchmark.table(rows, 1, 2).splitlines()
    assert lines[0].startswith("1 CPU thread(s), 2 rounds")
    assert len(lines) == 2 + len(rows)
    remarks = benchmark.remarks(rows).splitlines()
    assert [line.split(":")[0] for line in remarks] == [
        f"{model}, {runtime}" for model in ("w0.5.yaml", "w1.0.yaml") for runtime in ("PyTorch", "ONNX Runtime")
    ]
    assert f"{rows[0].minimum_ms / rows[1].minimum_ms:.2f} times as fast fused (" in remarks[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--cfg", "rifomer-yolo.yaml"], "did you mean 'riformer-yolo.yaml'?"),
        (["--rounds", "0"], "expected a whole number of at least 1"),
        (["--imgsz", "1", "2", "3"], "--imgsz takes one side or height and width"),
    ],
)
def test_wrong_options_are_one_sentence(words, message, tmp_path, capsys):
    words = [*words, "--project", str(tmp_path / "runs")]
    assert cli.run_script(benchmark.main, benchmark.make_parser(), words) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1


def test_from_python():
    with pytest.raises(UserError, match="there is no option 'cfgs'"):
        benchmark.run(cfgs="yolov5n.yaml")


def test_a_full_disk_is_one_sentence(tmp_path, capsys):
    cfg = write(tmp_path, tiny(width_multiple=4.0))
    words = ["--cfg", str(cfg), "--imgsz", "64", "--rounds", "1", "--project", str(tmp_path / "runs")]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # as a full disk, an error of the write itself
    try:
        code = cli.run_script(benchmark.main, benchmark.make_parser(), words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 2
    assert re.fullmatch(r"ERROR: cannot write \S+: .+\n", capsys.readouterr().err.splitlines(keepends=True)[-1])
    assert not list((tmp_path / "runs/exp").iterdir())


# The published form ---------------------------------------------------------------------------------------------------
def test_the_published_form_is_the_same_function():
    model = randomize_(DetectionModel(tiny_backbone("RIFormer", "s12"))).double().eval()
    published = benchmark.publish(model)
    assert not any(isinstance(m, RIFormerBlock) for m in published.modules())
    assert any(isinstance(m, RIFormerBlock) for m in model.modules())
    assert len([m for m in published.modules() if isinstance(m, benchmark.PublishedNorm)]) == 2 * 12 + 3
    x = torch.rand(1, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(published(x)[0], model(x)[0]) < 1e-9


@pytest.mark.slow
def test_riformer_is_measured_with_the_published_fusing_too(tmp_path, caplog):
    rows = benchmark.run(cfg=["yolov5n.yaml", "riformer-yolo.yaml"], imgsz=64, rounds=2, project=tmp_path)
    assert [row.form for row in rows] == [*FORMS, *FORMS, benchmark.PUBLISHED]
    assert rows[-1].ratio_to_first is None
    assert rows[-2].params > rows[-1].params > rows[-3].params  # unfused, as published, deep
    assert "times as fast fused deeper than published" in caplog.text
    json.loads((tmp_path / "exp/benchmark.json").read_text(), parse_constant=pytest.fail)
