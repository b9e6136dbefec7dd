"""benchmark.py and what is under it: the clock, memory, forms as data, and everything that is told of them."""

import csv
import html.parser
import json
import pickle
import re
import resource
import time
from dataclasses import asdict
from functools import partial

import pytest
import torch

import benchmark
from models import DetectionModel, create_backbone, create_model
from models.blocks.riformer import RIFormerBlock
from models.errors import UserError
from models.spec import load_spec
from tests.helpers import randomize_, relative_error, tiny, tiny_backbone, write
from tests.helpers import save as save_weights
from tests.runs import make_folders
from utils import cli
from utils.benchmark import forms
from utils.benchmark.memory import peak_memory, weights_size
from utils.benchmark.report import AXES, COLUMNS, COMPARED, BenchmarkRow, benchmark_table, page, remarks, save
from utils.checkpoint import pack_model, save_checkpoint
from utils.deploy.run import load_runner
from utils.deploy.write import ExportError
from utils.latency import Latency, measure, torch_threads

FORMS = ["eager", "fused", "torchscript", "onnx", "onnx-unfused"]
TITLES = {key: form.title for key, form in forms.FORMS.items()}


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


# Memory ---------------------------------------------------------------------------------------------------------------
def test_weights_in_memory_are_parameters_and_buffers():
    assert weights_size(torch.nn.Linear(10, 5)) == 4 * (10 * 5 + 5)
    assert weights_size(torch.nn.BatchNorm1d(3)) == 4 * 4 * 3 + 8  # and the number of batches


@pytest.mark.slow
def test_peak_memory_is_that_of_the_network(tmp_path):
    sizes = {}
    for name, wide in (("small", 10), ("large", 4000)):  # 64 MB
        torch.jit.script(torch.nn.Linear(wide, wide)).save(tmp_path / f"{name}.torchscript")
        load = partial(load_runner, tmp_path / f"{name}.torchscript", 1)
        sizes[name] = peak_memory(load, (1, wide), 1)
    assert 0 <= sizes["small"] < 40e6
    assert 55e6 < sizes["large"] - sizes["small"] < 200e6


@pytest.mark.slow
def test_a_process_that_fails_has_no_peak(tmp_path, capfd):
    assert peak_memory(partial(load_runner, tmp_path / "none.torchscript", 1), (1, 3, 32, 32), 1) is None
    capfd.readouterr()  # its traceback


# The script -----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """Two small models measured, and the folder of the results."""
    folder = tmp_path_factory.mktemp("benchmark")
    cfgs = [write(folder, tiny(width_multiple=width), f"w{width}.yaml") for width in (0.5, 1.0)]
    options = {"imgsz": [64, 96], "rounds": 2, "threads": 1, "forms": FORMS, "no_memory": True}
    return benchmark.run(cfg=cfgs, project=folder, **options), folder / "exp", cfgs


@pytest.mark.slow
def test_a_row_for_each_form_of_each_model(result):
    rows, _, _ = result
    assert [(row.model, row.form) for row in rows] == [(m, form) for m in ("w0.5.yaml", "w1.0.yaml") for form in FORMS]
    assert all(0 < row.minimum_ms <= row.median_ms for row in rows)
    assert not any(row.note for row in rows)


@pytest.mark.slow
def test_sizes_before_and_after_fusing(result):
    rows, _, cfgs = result
    model = DetectionModel(cfgs[1])
    for row in rows[len(FORMS) :]:
        module = model if row.form in ("eager", "onnx-unfused") else model.fuse()
        assert row.params == sum(p.numel() for p in module.parameters())
        assert row.weights_mb == pytest.approx(weights_size(module) / 1e6, abs=1e-3)
        assert (row.file_mb is None) == (row.form in ("eager", "fused"))
    assert rows[5].gflops == rows[6].gflops > rows[0].gflops > 0


def test_ratios(result):
    rows, _, _ = result
    assert [row.ratio_to_first for row in rows[:5]] == [1] * 5
    assert rows[5].ratio_to_unfused == rows[0].ratio_to_unfused == 1
    assert rows[8].ratio_to_first == pytest.approx(rows[8].minimum_ms / rows[3].minimum_ms, rel=0.01)
    assert rows[8].ratio_to_unfused == pytest.approx(rows[8].minimum_ms / rows[5].minimum_ms, rel=0.01)


def test_results_are_written_and_nothing_else(result):
    rows, folder, _ = result
    assert sorted(path.name for path in folder.iterdir()) == [f"benchmark.{kind}" for kind in ("csv", "html", "json")]
    written = json.loads((folder / "benchmark.json").read_text())
    assert (written["imgsz"], written["threads"], written["rounds"]) == ([64, 96], 1, 2)
    assert set(written["versions"]) >= {"torch", "ultralytics", "onnx", "onnxruntime"}
    assert written["rows"] == [asdict(row) for row in rows]
    with (folder / "benchmark.csv").open(newline="") as file:
        assert [row["form"] for row in csv.DictReader(file)] == [row.form for row in rows]


def test_what_cannot_be_had_says_why_and_ends_nothing(tmp_path, monkeypatch, caplog):
    def make(key, network, size, folder, pictures):
        if key == "onnx":
            raise ExportError("ONNX cannot be written for this model:\n  an operator is missing")
        return forms.make(key, network, size, folder, pictures)

    monkeypatch.setattr(benchmark, "make", make)
    cfg = write(tmp_path, tiny(), "small.yaml")
    options = {"imgsz": 64, "rounds": 1, "threads": 1, "forms": ["fused", "onnx"], "no_memory": True}
    rows = benchmark.run(cfg=cfg, project=tmp_path, **options)
    assert rows[0].minimum_ms
    assert rows[1] == BenchmarkRow(
        "small.yaml", "onnx", note="ONNX cannot be written for this model: an operator is missing"
    )
    assert "an operator is missing" in caplog.text
    assert "an operator is missing" in (tmp_path / "exp/benchmark.html").read_text()


def test_models_of_one_size_take_no_other(monkeypatch):
    model = DetectionModel(tiny())
    assert benchmark.fit_size(model, [60]) == (64, 64)
    monkeypatch.setattr(DetectionModel, "only_size", (96, 64))
    assert benchmark.fit_size(model, [96, 64]) == (96, 64)
    with pytest.raises(UserError, match="takes pictures of 96x64 pixels only, which --imgsz 96 64 gives"):
        benchmark.fit_size(model, [64])


def test_formats_that_do_not_run_here_are_left_out_with_a_line(tmp_path, caplog):
    cfg = write(tmp_path, tiny())
    options = {"imgsz": 64, "rounds": 1, "threads": 1, "no_memory": True, "project": tmp_path}
    rows = benchmark.run(cfg=cfg, forms=["engine", "fused"], **options)
    assert [row.form for row in rows] == ["fused"]
    assert "TensorRT is left out: TensorRT runs on the GPU" in caplog.text
    with pytest.raises(UserError, match="none of these --forms can be run here"):
        benchmark.run(cfg=cfg, forms=["engine"], **options)


def test_every_format_is_a_form():
    assert {form.format for form in forms.FORMS.values()} == {"", *forms.FORMATS}
    assert set(forms.DEFAULT_FORMS) <= forms.FORMS.keys()
    assert {key for pair in COMPARED for key in pair} <= forms.FORMS.keys()


def test_weights_that_know_other_classes_than_the_data_set(tmp_path):
    weights = tmp_path / "best.pt"
    model = DetectionModel(tiny())
    save_checkpoint({**pack_model(model), "ema": model.state_dict()}, weights)
    with pytest.raises(UserError, match=r"best\.pt knows 2 classes and 3 channels, shapes\.yaml has 4 and 3: --data"):
        benchmark.run(weights=weights, data="shapes.yaml", forms="eager", project=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_top1_of_classifiers(tmp_path):
    cfgs = [tiny(nc=3, head=[[-1, 1, "Classify", ["nc"]]]), tiny(nc=3)]
    weights = [save_weights(create_model(cfg), tmp_path / f"{cfg['head'][-1][2]}/weights/best.pt") for cfg in cfgs]
    options = {"data": make_folders(tmp_path / "colours", train=1, val=2), "imgsz": 32, "rounds": 1, "no_memory": True}
    options |= {"project": tmp_path / "runs", "forms": ["eager", "onnx"]}
    rows = benchmark.run(weights=weights[0], **options)
    assert all(0 <= row.top1 <= row.top5 == 100 and row.map is None for row in rows)
    with pytest.raises(UserError, match="--data measures boxes or classes, --weights are for both"):
        benchmark.run(weights=weights, **options)


def test_names_of_models(tmp_path):
    parse = benchmark.make_parser().from_keywords
    for run in ("exp", "exp2"):
        (tmp_path / run / "weights").mkdir(parents=True)
        (tmp_path / run / "weights/best.pt").touch()
    weights = [tmp_path / run / "weights/best.pt" for run in ("exp", "exp2", "exp")]
    found = benchmark.find_sources(parse(cfg="yolov5n", zoo=["yolov5n.yaml", "repvgg-*"], weights=weights))
    names = list(found)
    assert names[0] == "yolov5n.yaml"
    assert {"repvgg-yolo.yaml", "repvgg-slim-yolo.yaml"} <= set(names)
    assert names[-2:] == ["exp/best.pt", "exp2/best.pt"]
    other = write(tmp_path, tiny(), "yolov5n.yaml")
    assert str(other) in benchmark.find_sources(parse(cfg=["yolov5n.yaml", other]))
    assert list(benchmark.find_sources(parse())) == list(benchmark.SHIPPED)


def test_names_of_networks_of_other_libraries(tmp_path):
    peers = ["ultralytics:yolo26n", "timm:resnet18.a1_in1k", "ultralytics:yolo26n", "timm:a/b", "timm:a-b"]
    found = benchmark.find_sources(benchmark.make_parser().from_keywords(cfg=["repyolo-n", *peers]))
    assert list(found) == ["repyolo-n.yaml", "ultralytics-yolo26n", "timm-resnet18.a1_in1k", "timm:a/b", "timm:a-b"]
    assert [source.name for source in found.values()][1:3] == ["ultralytics-yolo26n.yaml", "timm-resnet18.a1_in1k.yaml"]


@pytest.mark.slow
def test_networks_of_other_libraries_are_measured_as_ours_are(tmp_path):
    options = {"imgsz": 64, "rounds": 1, "threads": 1, "forms": ["eager", "onnx"], "project": tmp_path}
    options |= {"no_memory": True}
    rows = benchmark.run(cfg=["timm:test_resnet", "ultralytics:yolo26n"], **options)
    names = ["timm-test_resnet", "ultralytics-yolo26n"]
    assert [(row.model, row.form) for row in rows] == [(name, form) for name in names for form in ("eager", "onnx")]
    assert all(row.minimum_ms and not row.note for row in rows)
    assert [row["model"] for row in json.loads((tmp_path / "exp/benchmark.json").read_text())["rows"]][::2] == names
    alone = benchmark.run(cfg="timm:test_resnet", **options, backbone=True)
    assert 0 < alone[0].params < rows[0].params


def test_a_network_of_another_library_is_loaded_in_another_process():
    load = forms.loader(load_spec("timm:test_resnet"), "eager", True, forms.Made(torch.nn.Identity()), 1)
    assert pickle.loads(pickle.dumps(load))().channels == (48, 192, 96)


def test_groups_hold_whole_models_and_fit_in_memory():
    entries = [
        benchmark.Entry(BenchmarkRow(m, "eager", peak_mb=mb), None, None) for m, mb in (("a", 3), ("a", 3), ("b", 5))
    ]
    assert [[e.row.model for e in group] for group in benchmark.split(entries, 11)] == [["a", "a", "b"]]
    assert [[e.row.model for e in group] for group in benchmark.split(entries, 10)] == [["a", "a"], ["b"]]
    assert [len(group) for group in benchmark.split(entries, 1)] == [2, 1]


@pytest.mark.slow
def test_backbones_without_neck_and_head(tmp_path):
    cfg = write(tmp_path, tiny_backbone("RepVGG", "A0"), "repvgg.yaml")
    options = {"imgsz": 64, "rounds": 1, "threads": 1, "backbone": True, "no_memory": True, "project": tmp_path}
    keys = ["eager", "fused", "torchscript", "onnx", "openvino"]
    rows = benchmark.run(cfg=cfg, forms=[*keys, "mnn"], **options)
    alone = create_backbone("RepVGG", arch="A0")
    assert [row.form for row in rows if row.minimum_ms] == keys
    assert rows[0].params == sum(p.numel() for p in alone.parameters())
    assert "backbones alone are written as torchscript, onnx, openvino" in {row.note for row in rows}
    with pytest.raises(UserError, match="has no list backbone"):
        benchmark.run(cfg=write(tmp_path, tiny()), **options)


# What is told of it ---------------------------------------------------------------------------------------------------
ODD = "</script><b>&'\"@data@.yaml"
ABOUT = {
    **{"imgsz": [64], "threads": 1, "rounds": 2, "backbone": False, "data": "", "date": "2026-11-25"},
    "machine": {"processor": "a <fast> one", "cores": 2, "system": "Linux"},
    "versions": {"torch": "2"},
}
SOME = [
    BenchmarkRow(ODD, "eager", 10_000_000, 8.0, 21.0, 20.0, 1.0, 1.0, file_mb=None),
    BenchmarkRow(ODD, "onnx", 9_000_000, 7.0, 11.0, 10.0, 0.5, 1.0, file_mb=36.0),
    BenchmarkRow("other.yaml", "onnx", note="it <cannot>"),
]


class Reader(html.parser.HTMLParser):
    """Reads a page: its rows of cells, the addresses in it, and that every element is closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.rows, self.addresses, self.data = [], [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if name in ("src", "href", "action")]
        if tag not in ("meta", "link", "input"):
            self.open.append((tag, dict(attrs).get("id")))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, text):
        if ("script", "data") in self.open:
            self.data += text
        elif any(tag in ("td", "th") for tag, _ in self.open):
            self.rows[-1][-1] += text


def test_table_has_no_empty_columns():
    lines = benchmark_table(SOME, TITLES, "about it").splitlines()
    assert lines[0] == "about it"
    assert lines[1].split()[-2:] == ["file", "MB"]
    assert "mAP" not in lines[1]
    assert lines[3].split()[-2:] == ["7.00", "36.0"]
    assert lines[4].endswith("it <cannot>")


def test_remarks_compare_what_was_measured():
    assert remarks(SOME, TITLES) == (
        f"{ODD}: ONNX Runtime is 2.00 times as fast as PyTorch, unfused (1.91 by the medians)\n"
    )


def test_the_page_says_all_and_loads_nothing():
    text = page(SOME, TITLES, ABOUT)
    read = Reader(text)
    assert read.addresses == ["data:,"]
    assert not re.findall(r"(?<!\.w3\.org/)https?://(?!www\.w3\.org/2000/svg)", text)
    assert "default-src 'none'" in text
    assert len(read.rows) == 1 + len(SOME)
    assert read.rows[1][:4] == [ODD, "PyTorch, unfused", "20.0", "21.0"]
    assert read.rows[3] == ["other.yaml", "ONNX Runtime", "it <cannot>"]
    data = json.loads(read.data)
    assert [row["model"] for row in data["rows"]] == [ODD, ODD, "other.yaml"]
    assert [row["work"] for row in data["rows"]] == [7.0, 7.0, None]
    assert [axis["key"] for axis in data["axes"]] == ["work", "size", "file_mb"]
    assert [form["key"] for form in data["forms"]] == ["eager", "onnx"]


def test_columns_and_axes_are_entries_of_the_rows():
    entries = {*asdict(SOME[0]), "work", "size"}
    assert {column.key for column in COLUMNS} | {axis.key for axis in AXES} <= entries


def test_without_any_measurement_there_is_still_a_page(tmp_path):
    save(tmp_path, SOME[2:], TITLES, ABOUT)
    assert Reader((tmp_path / "benchmark.html").read_text()).rows[1][-1] == "it <cannot>"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--cfg", "rifomer-yolo.yaml"], "did you mean 'riformer-yolo.yaml'?"),
        (["--cfg", "yolov5n", "ultralytics:yolo99"], "ultralytics has no such model as 'yolo99'"),
        (["--cfg", "ultralytics-trainer:yolo26n"], "(did you mean 'ultralytics:'?)"),
        (["--cfg", "timm:resnet18x", "--forms", "eager"], "timm has no model 'resnet18x' (did you mean 'resnet18'?)"),
        (["--cfg", "ultralytics:yolo26n", "--backbone"], "ultralytics-yolo26n.yaml has no list backbone"),
        (["--rounds", "0"], "expected a whole number of at least 1"),
        (["--imgsz", "1", "2", "3"], "--imgsz takes one side or height and width"),
        (["--forms", "fussed"], "there is no form 'fussed' (did you mean 'fused'?)"),
        (["--zoo", "ripvgg*"], "no file in models/configs fits 'ripvgg*'"),
        (["--weights", "README.md"], "--weights takes checkpoints of train.py (*.pt)"),
        (["--data", "shapes.yaml"], "--data measures the accuracy of trained networks"),
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
    words += ["--no-memory", "--forms", "torchscript"]
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
@pytest.mark.slow
def test_the_published_form_is_the_same_function():
    model = randomize_(DetectionModel(tiny_backbone("RIFormer", "s12"))).double().eval()
    published = forms.as_published(model)
    assert not any(isinstance(m, RIFormerBlock) for m in published.modules())
    assert any(isinstance(m, RIFormerBlock) for m in model.modules())
    assert len([m for m in published.modules() if isinstance(m, forms.PublishedNorm)]) == 2 * 12 + 3
    x = torch.rand(1, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(published(x)[0], model(x)[0]) < 1e-9


@pytest.mark.slow
def test_riformer_is_measured_with_the_published_fusing_too(tmp_path, caplog):
    keys = ["onnx", "onnx-unfused", "onnx-published"]
    options = {"imgsz": 64, "rounds": 2, "project": tmp_path, "forms": keys}
    rows = benchmark.run(cfg=["yolov5n.yaml", "riformer-yolo.yaml"], **options)
    assert [row.form for row in rows] == [*keys[:2], *keys]
    assert rows[-1].ratio_to_first is None
    assert rows[-2].params > rows[-1].params > rows[-3].params  # unfused, as published, deep
    assert "ONNX Runtime is" in caplog.text
    assert "as fast as ONNX, as published" in caplog.text
    for row in rows:
        assert row.peak_mb > 0.5 * row.weights_mb
    json.loads((tmp_path / "exp/benchmark.json").read_text(), parse_constant=pytest.fail)
