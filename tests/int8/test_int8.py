"""export.py --int8: the search for layers that stay in float, files and reports, and when nothing is written."""

import json

import onnx
import pytest

import export as script
import utils.int8.search
from tests.helpers import write
from tests.int8.quantizing import OUTLIER
from utils import cli
from utils.data.files import find_data
from utils.deploy.formats import FORMATS
from utils.evaluate.accuracy import Accuracy
from utils.int8.calibration import batches, calibration_pictures
from utils.int8.quantize import LayerNoise
from utils.int8.search import search

KEPT = 3  # layers, when each of the 20 costs 0.1 points and 1.75 are allowed


# The search -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("needed", "tried"),
    [(0, [0]), (1, [0, 1]), (3, [0, 1, 2, 3, 4]), (6, [0, 1, 2, 4, 5, 6, 8]), (9, [0, 1, 2, 4, 8])],
)
def test_the_fewest_layers_that_are_enough(needed, tried, tmp_path):
    layers = [LayerNoise(str(i), 1.0, 1.0, float(i)) for i in range(16)]
    reference = tmp_path / "float"
    reference.write_text("16")

    def write_text(floats):
        assert list(floats) == [str(i) for i in range(len(floats))]
        (tmp_path / str(len(floats))).write_text(str(len(floats)))
        return tmp_path / str(len(floats))

    def evaluate(path):
        return Accuracy(0.95, 0.9 if int(path.read_text()) >= needed else 0.8)

    points = search(FORMATS["onnx"], layers, write_text, reference, evaluate, max_drop=1.0)
    assert [point.floats for point in points] == [*tried, 16]
    found = utils.int8.search.Quantization(FORMATS["onnx"], layers, points, 1.0, 8, "data.yaml")
    assert found.ok is (needed <= 8)  # half of them
    assert found.kept == ([str(i) for i in range(needed)] if found.ok else [])


# As a command ---------------------------------------------------------------------------------------------------------
def command(*words):
    return cli.run_script(script.main, script.make_parser(), list(map(str, words)))


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def judge(monkeypatch, drop):
    """Let files be judged by the layers that are quantized: each of them costs `drop` points."""

    def measure(path, model, data, size):
        lost = drop / 100 * onnx_layers(path)
        return Accuracy(0.99 - lost, 0.9 - lost)

    monkeypatch.setattr("utils.int8.search.measure_file", measure)


def onnx_layers(path):
    """Return how many convolutions of a file read quantized weights."""
    graph = onnx.load(path).graph
    made = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    return sum(node.op_type == "Conv" and node.input[1] in made for node in graph.node)


def test_files_and_report(best, monkeypatch, caplog):
    judge(monkeypatch, drop=0.1)
    assert command("--weights", best, "--include", "onnx", "--int8", "--max-drop", 1.75) == 0
    folder = best.parent
    assert names_in(folder) == ["best-int8.onnx", "best.export.json", "best.int8.png", "best.onnx", "best.pt"]
    report = json.loads((folder / "best.export.json").read_text(encoding="utf-8"))
    found = report["int8"]["onnx"]
    count = len(found["layers"])
    assert found["file"] == "best-int8.onnx"
    assert found["bytes"] == (folder / "best-int8.onnx").stat().st_size < (folder / "best.onnx").stat().st_size
    assert found["drop"] <= 1.75 < 0.1 * count
    assert found["float_layers"] == [layer["name"] for layer in found["layers"]][:KEPT]
    assert OUTLIER in found["float_layers"]
    assert onnx_layers(folder / "best-int8.onnx") == count - KEPT
    assert [point["float_layers"] for point in found["curve"]][-1] == count
    assert all(point["latency_min_ms"] > 0 for point in found["curve"])
    assert 0.5 < found["share"]["parameters"] < 1
    assert f"{found['share']['operations']:.1%} of the operations are in INT8" in caplog.text
    assert (found["data"], found["calibration_pictures"], found["ok"]) == (str(best.parents[1] / "data.yaml"), 2, True)
    assert "<- written" in caplog.text
    assert OUTLIER in caplog.text


@pytest.mark.slow
def test_nothing_is_written_when_the_drop_is_too_large(best, monkeypatch, caplog):
    judge(monkeypatch, drop=10)
    assert command("--weights", best, "--include", "onnx", "--int8") == 1
    assert [name for name in names_in(best.parent) if not name.startswith("best.export-failed.")] == ["best.pt"]
    assert "nothing was written" in caplog.text


@pytest.mark.slow
def test_the_val_split_judges(best):
    assert command("--weights", best, "--include", "onnx", "--int8", "--max-drop", 100) == 0
    found = json.loads(best.with_name("best.export.json").read_text(encoding="utf-8"))["int8"]["onnx"]
    assert [point["float_layers"] for point in found["curve"]] == [0, len(found["layers"])]
    assert all(0 <= point["map50_95"] <= 100 for point in found["curve"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--half"], "--int8 and --half are two precisions: choose one"),
        (["--nms"], "--int8 quantizes the network alone: leave out --nms and --preprocess"),
        (["--include", "torchscript"], "--int8 is for onnx and openvino, of which --include names none"),
        (["--max-drop", "101"], "--max-drop is a number of points of mAP50-95 from 0 to 100, not 101"),
        (["--max-drop", "-1"], "--max-drop is a number of points of mAP50-95 from 0 to 100, not -1"),
        (["--opset", "12"], "--int8 needs an --opset of at least 13"),
        (["--imgsz", "64", "96"], "--int8 is judged by mAP50-95, on square pictures"),
        (["--batch-size", "2"], "--int8 is judged by mAP50-95, a picture at a time"),
        (["--data", "nothing.yaml"], "there is no file nothing.yaml"),
        (["--data", "shapes.yaml"], "the weights know 2 classes and"),
        (["--calibration-pictures", "0"], "expected a whole number of at least 1"),
    ],
)
def test_wrong_options_are_one_sentence(best, words, message, capsys):
    include = [] if "--include" in words else ["--include", "onnx"]
    assert command("--weights", best, "--int8", *include, *words) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1
    assert names_in(best.parent) == ["best.pt"]


@pytest.mark.parametrize("what", ["no pictures", "broken pictures"])
def test_a_train_split_without_pictures(best, what, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    if what == "broken pictures":
        (tmp_path / "labels").mkdir()
        (tmp_path / "empty/images").mkdir()
        (tmp_path / "empty/labels").mkdir()
        (tmp_path / "empty/images/a.jpg").write_bytes(b"broken")
        (tmp_path / "empty/labels/a.txt").write_text("")
    data = {"path": str(tmp_path / "set"), "train": str(tmp_path / "empty"), "val": "images", "names": ["cat", "dog"]}
    assert command("--weights", best, "--include", "onnx", "--int8", "--data", write(tmp_path, data)) == 2
    told = capsys.readouterr().err
    assert ("there are no pictures in" if what == "no pictures" else "can be read, nothing to calibrate with") in told
    assert names_in(best.parent) == ["best.pt"]


def test_calibration_pictures_are_spread_over_the_split(best):
    data = find_data("", best)
    assert [path.name for path in calibration_pictures(data, 1)] == ["bus.jpg"]
    assert [path.name for path in calibration_pictures(data, 100)] == ["bus.jpg", "zidane.jpg"]
    assert len({images.shape for images in batches(calibration_pictures(data, 100), (3, 1, 32, 64), "test")}) == 1
    assert find_data("shapes.yaml", best)["nc"] == 4
