"""utils/operators and what benchmark.py does with it: parts of graphs, small models, timing, tables, predictions."""

import json
import math
import statistics
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import parser

import benchmark
from models import DetectionModel
from models.blocks.reparam import switch_to_deploy
from models.errors import UserError
from models.summary import count_gflops
from tests.helpers import tiny, write
from utils.deploy.formats import FORMATS, needs
from utils.operators import __main__ as measuring
from utils.operators.archive import FLOAT, NCNN, Archive, Setting, write_archive
from utils.operators.check import Checked, check_table, within
from utils.operators.collect import OVERHEADS, WRITERS
from utils.operators.description import Operator, read_operator
from utils.operators.graph import Graph
from utils.operators.measure import Effort, measure_archive, missing
from utils.operators.predict import parts_of, predict, price
from utils.operators.table import Cost, Overheads, Table, load_table, load_tables, save_tables
from utils.operators.timing import OPENERS, runtime_version, time_of_nodes

ROOT = Path(__file__).parents[2]
SIZE = (64, 64)
CELLS = 16 * 16 + 8 * 8  # of the maps that the head of `tiny` reads
SETTING = Setting("onnx", int8=False, threads=1)
NO_NCNN = needs(FORMATS["ncnn"].writers)  # and why
skip_without_ncnn = pytest.mark.skipif(bool(NO_NCNN), reason=NO_NCNN)
EACH_KIND = [pytest.param(kind, marks=skip_without_ncnn if kind == NCNN else ()) for kind in WRITERS]
RESIDUAL = """
    <ir_version: 8, opset_import: ["": 17]>
    residual (float[1, 3, 32, 32] x) => (float[1, 8, 32, 32] y)
    <float[8, 3, 3, 3] w = {WEIGHT3}, float[8, 8, 1, 1] v = {WEIGHT8}>
    {
        [model0] a = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x, w)
        [model1] b = Conv<kernel_shape = [1, 1]>(a, v)
        s = Sigmoid(b)
        m = Mul(b, s)
        added = Add(m, a)
        y = Conv<kernel_shape = [1, 1]>(added, v)
    }
"""


@pytest.fixture(scope="module")
def network():
    return DetectionModel(tiny()).eval()


@pytest.fixture(scope="module")
def parts(network):
    return parts_of(network, SIZE, [kind for kind in WRITERS if kind != NCNN or not NO_NCNN])


def residual():
    """Return a graph of a convolution, and of another with SiLU to which the map of the first is added."""
    numbers = {"{WEIGHT3}": ", ".join(["0.1"] * 216), "{WEIGHT8}": ", ".join(["0.1"] * 64)}
    text = RESIDUAL
    for name, values in numbers.items():
        text = text.replace(name, f"{{{values}}}")
    return parser.parse_model(text)


def operator(work, family="Conv 3 /1 dense even map>map"):
    return Operator(json.dumps([family, work]), family, f"Conv {work}", work, work // 9, work // 9, 10)


def table(costs, setting=SETTING):
    made = Table(setting, "a processor", "1.0", overheads=Overheads(0.5, 0.0, 2.0))
    made.costs = {op.digest: Cost(op, ms) for op, ms in costs.items()}
    return made


# The parts of a graph -------------------------------------------------------------------------------------------------
def test_activations_and_sums_belong_to_the_convolution_before_them():
    placed = Graph(residual()).operators()
    assert [p.operator.text for p in placed] == [
        "Conv 3>8 3/1 32x32",
        "Conv 8>8 1/1 32x32 Sigmoid Mul Add",
        "Conv 8>8 1/1 32x32",
    ]
    assert [p.operator.work for p in placed] == [32 * 32 * 8 * 27, 32 * 32 * 64, 32 * 32 * 64]
    assert placed[1].operator.read == 8 * 32 * 32  # the convolution and the sum read the same map


def test_a_map_that_comes_later_is_no_part_of_the_sum():
    model = residual()
    nodes = list(model.graph.node)
    later = nodes[4]  # Add reads what the convolution behind the first one gives: only that one may take it
    later.input[:] = ["a", "m"]
    texts = [p.operator.text for p in Graph(model).operators()]
    assert texts[0] == "Conv 3>8 3/1 32x32"
    assert texts[1].endswith("Sigmoid Mul Add")


def test_a_tensor_without_a_size_is_refused():
    model = residual()
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    with pytest.raises(ValueError, match="size of the tensor"):
        Graph(model).operators()


@pytest.mark.parametrize("kind", EACH_KIND)
def test_the_parts_of_a_network_do_all_of_its_work(network, parts, kind):
    convolutions = [p.operator for p in parts[kind].operators if p.operator.text.startswith(("Conv", "MatMul"))]
    work = 2 * sum(op.work for op in convolutions) / 1e9
    assert work == pytest.approx(count_gflops(switch_to_deploy(network), SIZE), rel=1e-6)
    assert {p.row for p in parts[kind].operators} == set(range(len(network.model)))
    assert parts[kind].outputs == (4 + 2) * CELLS


def test_equal_operators_have_one_key(parts):
    first, again = (Graph(residual()).operators() for _ in range(2))
    assert [p.operator.digest for p in first] == [p.operator.digest for p in again]
    assert len({p.operator.digest for p in first}) == 3
    for placed in parts[FLOAT].operators:
        assert read_operator(json.loads(json.dumps(placed.operator.as_dict()))) == placed.operator


# Small models ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", EACH_KIND)
def test_small_models_are_computed_and_their_own_nodes_are_timed(parts, kind, tmp_path):
    runtime = "onnx" if kind == FLOAT else kind.split("-")[0]
    if not runtime_version(runtime):
        pytest.skip(f"{runtime} is not installed")
    operators = {p.operator.digest: p.operator for p in parts[kind].operators}
    longest = max(operators.values(), key=lambda op: op.work)
    pool = next(op for op in operators.values() if op.text.startswith(("Resize", "Interp", "Concat")))
    for op in (longest, pool):
        content = WRITERS[kind](op, tmp_path)
        opened = OPENERS[runtime](content, 1, True)
        for _ in range(2):
            opened.run()
        events = opened.events()
        inner, nodes = time_of_nodes(events)
        whole = sum(
            statistics.median(column) for column in zip(*([ms for _, ms in run] for run in events), strict=True)
        )
        assert nodes >= 1
        assert 0 < inner < whole


@pytest.mark.parametrize(("kind", "rounded"), [(FLOAT, False), ("onnx-int8", True), ("openvino-int8", True)])
def test_small_models_are_quantized_as_whole_files_are(parts, kind, rounded, tmp_path):
    ops = [p.operator for p in parts[kind].operators if p.operator.family.endswith("map>map")]
    graph = onnx.load_from_string(WRITERS[kind](ops[0], tmp_path)).graph
    assert any(node.op_type == "QuantizeLinear" for node in graph.node) == rounded
    if kind == "openvino-int8":  # nothing is rounded between a convolution and its activation
        conv = next(node for node in graph.node if node.name.startswith("operator/0"))
        readers = {node.op_type for node in graph.node if conv.output[0] in node.input}
        assert readers <= {"Sigmoid", "Mul", "Relu"}


def test_only_what_stands_between_the_convolutions_around_counts():
    runs = [
        [("input", 9.0), ("before/0/output_nchwc", 5.0), ("t0", 2.0), ("t1", 1.0), ("behind/t1/0", 7.0), ("last", 1.0)],
        [("input", 9.0), ("before/0/output_nchwc", 5.0), ("t0", 1.0), ("t1", 3.0), ("behind/t1/0", 7.0), ("last", 1.0)],
        [("input", 9.0), ("before/0/output_nchwc", 5.0), ("t0", 1.5), ("t1", 9.0), ("behind/t1/0", 7.0), ("last", 1.0)],
    ]
    assert time_of_nodes(runs) == (4.5, 2)
    assert time_of_nodes([[("t0", 2.0), ("part of another", 0.0)]]) == (2.0, 1)


# Tables ---------------------------------------------------------------------------------------------------------------
def test_costs_between_measured_ones_are_interpolated():
    costs = {operator(work): work / 1e6 for work in (1_000_000, 4_000_000, 16_000_000)}
    made = table(costs)
    known = made.estimate(operator(4_000_000))
    assert (known.ms, known.measured) == (4.0, True)
    for work in (2_000_000, 6_000_000, 64_000_000):
        unknown = made.estimate(operator(work))
        assert not unknown.measured
        assert unknown.ms == pytest.approx(work / 1e6, rel=0.02)


def test_a_family_that_was_not_measured_takes_a_wider_one():
    made = table({operator(1_000_000): 1.0, operator(1_000_000, "Softmax axis=1 plain>plain"): 50.0})
    other = operator(2_000_000, "Conv 5 /2 dense odd map>map Relu")
    assert made.estimate(other).ms == pytest.approx(2.0, rel=0.02)
    with pytest.raises(UserError, match="--operators"):
        table({}).estimate(other)


def test_a_table_forgets_operators_on_demand():
    costs = {operator(1_000_000): 1.0, operator(2_000_000): 2.5}
    made = table(costs).without([operator(2_000_000).digest])
    assert not made.estimate(operator(2_000_000)).measured
    assert made.estimate(operator(1_000_000)).measured


def test_tables_come_back_from_their_file(tmp_path):
    other = Setting("openvino", int8=True, threads=2)
    made = {SETTING: table({operator(1_000): 0.25}), other: table({operator(2_000): 1.5}, other)}
    made[other].refused = {"0123": "RuntimeError: no such layer"}
    save_tables(tmp_path / "folder" / "table.json", made)
    assert load_tables(tmp_path / "folder" / "table.json") == made
    assert load_table(tmp_path / "folder" / "table.json", "openvino", int8=True, threads=2) == made[other]


def test_a_table_of_a_former_version_does_not_say_why_operators_are_refused(tmp_path):
    save_tables(tmp_path / "table.json", {SETTING: table({operator(1_000): 0.25})})
    content = json.loads((tmp_path / "table.json").read_text())
    content["tables"][0]["refused"] = ["0123", "4567"]
    (tmp_path / "table.json").write_text(json.dumps(content))
    read = load_table(tmp_path / "table.json")
    assert read.known == {operator(1_000).digest, "0123", "4567"}
    assert read.summary == f"{SETTING}: 1 operators, 2 the runtime does not compute"


def test_what_is_no_table_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"python benchmark\.py --operators measures one"):
        load_table(tmp_path / "none.json")
    save_tables(tmp_path / "table.json", {SETTING: table({operator(1_000): 1.0})})
    with pytest.raises(UserError, match="--forms int8 --threads 2 measures them"):
        load_table(tmp_path / "table.json", "onnx", int8=True, threads=2)
    content = json.loads((tmp_path / "table.json").read_text())
    for damage in ({"format": 9}, {"tables": [{}]}, {"tables": 3}):
        (tmp_path / "bad.json").write_text(json.dumps(content | damage))
        with pytest.raises(UserError, match="is no table of operators"):
            load_tables(tmp_path / "bad.json")
    content["tables"][0]["costs"][0]["work"] = "much"
    (tmp_path / "bad.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="is no table of operators"):
        load_tables(tmp_path / "bad.json")


# Predictions ----------------------------------------------------------------------------------------------------------
def test_a_prediction_is_the_sum_of_its_rows(network, parts):
    operators = parts[FLOAT].operators
    made = table({placed.operator: 1.0 for placed in operators})
    found = predict(network, SIZE, made)
    assert found.measured == 1
    assert sum(found.rows.values()) == pytest.approx(len(operators))
    assert found.total_ms == pytest.approx(len(operators) + 0.5 + 2.0 * parts[FLOAT].outputs / 1e6)
    assert set(found.rows) == set(range(len(network.model)))
    partly = price(parts[FLOAT], made.without([operators[0].operator.digest]))
    assert 0 < partly.measured < 1


def test_the_share_of_right_predictions():
    assert within([(1.0, 1.0), (1.09, 1.0), (0.89, 1.0), (1.2, 1.0)]) == 0.5
    checked = [Checked("a.yaml", SETTING, 10.5, 13.0, 10.0), Checked("b.yaml", SETTING, 12.0, math.nan, 10.0)]
    text = check_table(checked)
    assert "50% of 2 predictions are within 10%; 0% are where" in text
    assert "ONNX Runtime, float, 1 thread\na.yaml" in text


# Measuring ------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    path = tmp_path_factory.mktemp("archive") / "operators.zip"
    operators = [placed.operator for placed in Graph(residual()).operators()]
    models = ((FLOAT, op, WRITERS[FLOAT](op, path.parent)) for op in operators)
    write_archive(path, models, {FLOAT: OVERHEADS[FLOAT]()})
    return path


@pytest.fixture(scope="module")
def ncnn_archive(parts, tmp_path_factory):
    path = tmp_path_factory.mktemp("archive") / "operators.zip"
    convolutions = [p.operator for p in parts[NCNN].operators if p.operator.text.startswith("Conv")][:3]
    models = ((NCNN, op, WRITERS[NCNN](op, path.parent)) for op in convolutions)
    write_archive(path, models, {NCNN: OVERHEADS[NCNN]()})
    return path


def test_a_second_start_measures_what_is_missing(archive, tmp_path):
    place, counts = tmp_path / "table.json", []
    opened = Archive(archive)
    made = measure_archive(opened, [SETTING], place, Effort(1), counts.append)
    assert len(made[SETTING].costs) == sum(counts) == 3
    assert all(cost.ms > 0 for cost in made[SETTING].costs.values())
    assert not missing(opened, SETTING, load_tables(place))
    measure_archive(opened, [SETTING], place, Effort(1), counts.append)
    assert sum(counts) == 3


def test_an_operator_that_the_runtime_does_not_compute_is_told_with_the_reason(archive, tmp_path, monkeypatch):
    class Refuses(OPENERS["onnx"]):
        def __init__(self, content, threads, profiled=True):
            if b"Sigmoid" in content:
                raise RuntimeError("no Sigmoid here\nand more")
            super().__init__(content, threads, profiled)

    monkeypatch.setitem(OPENERS, "onnx", Refuses)
    counts = []
    made = measure_archive(Archive(archive), [SETTING], tmp_path / "table.json", Effort(1), counts.append)[SETTING]
    assert made.summary.endswith("2 operators, 1 the runtime does not compute (RuntimeError: no Sigmoid here)")


@pytest.mark.parametrize(
    ("form", "package"), [("onnx", "onnxruntime"), pytest.param("ncnn", "ncnn", marks=skip_without_ncnn)]
)
def test_measuring_needs_no_torch(form, package, request, tmp_path):
    archive = request.getfixturevalue("archive" if form == "onnx" else "ncnn_archive")
    words = [str(archive), "--table", str(tmp_path / "table.json"), "--rounds", "1", "--forms", form]
    code = f"import sys\nfrom utils.operators.__main__ import main\ncode = main({words})\nprint(code, *sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    code, *modules = run.stdout.splitlines()[-1].split()
    assert code == "0"
    assert {"numpy", package} <= set(modules)
    assert not {"torch", "ultralytics", "onnx", "yaml", "cv2", "onnxruntime", "ncnn"} - {package} & set(modules)
    assert len(load_table(tmp_path / "table.json", form).costs) == 3
    assert "3/3 operators" in run.stderr


@pytest.mark.parametrize(
    ("content", "words", "message"),
    [
        (None, [], "none.zip"),
        (b"no archive", [], "holds no operators"),
        (None, ["--threads", "0"], "whole numbers from 1"),
    ],
)
def test_wrong_input_is_one_sentence(content, words, message, tmp_path, capsys):
    path = tmp_path / "none.zip"
    if content:
        path.write_bytes(content)
    assert measuring.main([str(path), *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


# benchmark.py ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"explain": True, "cfg": ["yolov5n"], "forms": ["onnx"], "threads": 1}, "benchmark.py --operators measures"),
        ({"operators": True, "forms": ["eager"]}, "operators are measured for the forms onnx, openvino"),
        ({"operators": True, "backbone": True}, "--backbone does not go with"),
        ({"threads": [1, 2]}, "--threads takes one number"),
    ],
)
def test_what_does_not_go_together(options, message, tmp_path):
    with pytest.raises(UserError, match=message):
        benchmark.run(**options, table=str(tmp_path / "none.json"))


@pytest.mark.slow
def test_from_a_yaml_to_an_explanation(tmp_path, caplog):
    cfg = write(tmp_path, tiny(), "tiny.yaml")
    options = {"cfg": [cfg], "imgsz": 64, "threads": 1, "rounds": 1, "forms": ["onnx", "int8"]}
    options |= {"table": tmp_path / "table.json", "project": tmp_path}
    with caplog.at_level("INFO"):
        benchmark.run(**options, operators=True, explain=True, check=True, write_operators=tmp_path / "parts.zip")
    assert "tiny.yaml at 64x64 in ONNX Runtime, INT8, 1 thread" in caplog.text
    assert "100% of it from operators that were measured" in caplog.text
    checked = json.loads((tmp_path / "exp" / "operators.json").read_text())
    assert {(entry["model"], entry["setting"]["int8"]) for entry in checked} == {
        ("tiny.yaml", False),
        ("tiny.yaml", True),
    }
    assert all(entry["predicted"] > 0 and entry["measured"] > 0 for entry in checked)
    assert Archive(tmp_path / "parts.zip").kinds.keys() == {FLOAT, "onnx-int8"}


@pytest.mark.slow
def test_the_operators_of_a_network_of_another_library(tmp_path, caplog):
    options = {"cfg": "ultralytics:yolov8n", "imgsz": 64, "threads": 1, "forms": "onnx", "table": tmp_path / "t.json"}
    save_tables(tmp_path / "t.json", {SETTING: table({operator(1_000_000): 0.1})})
    with caplog.at_level("INFO"):
        benchmark.run(**options, explain=True)
    assert "ultralytics-yolov8n at 64x64 in ONNX Runtime, float, 1 thread" in caplog.text
