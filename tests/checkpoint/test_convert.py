"""Checkpoints of YOLOv5 and ultralytics become ours: the same network, and nothing of the file is run."""

import copy
import pickle
import struct
import subprocess
import sys
import tracemalloc
import types
import zipfile
from collections import OrderedDict
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn
from ultralytics.nn import tasks
from ultralytics.nn.modules import head as heads

import detect
import export
import train
import val
from models import create_model
from models.errors import UserError, WeightsError
from tests.helpers import randomize_, relative_error, tiny
from utils import cli, convert
from utils.checkpoint import load_checkpoint, pack_model, read_checkpoint, save_checkpoint
from utils.checkpoint.unpickle import Global, Inert, read_pickled

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def picture():
    """A real picture, (1, 3, 128, 96), RGB in [0, 1]."""
    pixels = cv2.resize(cv2.imread(str(ROOT / "data/images/bus.jpg")), (96, 128))
    return torch.from_numpy(pixels[:, :, ::-1].copy()).permute(2, 0, 1)[None].float() / 255


# ultralytics ----------------------------------------------------------------------------------------------------------
def ultralytics_model(name, **changes):
    """Return an ultralytics model with random statistics, rounded to what its half precision checkpoint holds."""
    cfg = {**tasks.yaml_model_load(name), **changes}
    kinds = {"seg": tasks.SegmentationModel, "cls": tasks.ClassificationModel}
    kind = next((kinds[part] for part in Path(name).stem.split("-") if part in kinds), tasks.DetectionModel)
    return randomize_(kind(cfg, nc=5, verbose=False)).half().float().eval()


def save_as_ultralytics(model, path, **content):
    model = copy.deepcopy(model).half()
    model.names = {i: f"name {i}" for i in range(5)}
    model.args = {"imgsz": 320, "task": "detect"}
    torch.save({"epoch": -1, "best_fitness": np.float64(0.5), "model": None, "ema": model, **content}, path)
    return path


def predict(model, x):
    """Return what a model predicts, with prototypes if it has them."""
    with torch.no_grad():
        output = model(x)[0]
    return output if isinstance(output, tuple) else (output,)


ULTRALYTICS = ["yolov5n.yaml", "yolov8n.yaml", "yolo11n.yaml", "yolo26n.yaml", "yolov8n-seg.yaml", "yolo11n-cls.yaml"]
MORE = {
    f"{name}.yaml": {} for name in "yolov9t yolov10n yolov8n-p2 yolov8n-p6 yolov5n-p6 yolov8n-ghost yolov6n".split()
}
MORE |= {f"{name}.yaml": {} for name in "yolov6n yolo11n-seg yolo26n-p2 yolov3-tiny yolo26n-seg yolov8n-cls".split()}
MORE |= {"yolo26n-cls.yaml": {}}
MORE |= {  # the rules for large models, at small widths
    "yolov8s.yaml": {"scales": {"s": [0.33, 0.25, 1024]}, "scale": "s", "activation": "nn.LeakyReLU(0.1)"},
    "yolo11m.yaml": {"scales": {"m": [0.5, 0.25, 512]}, "scale": "m"},
    "yolo12l.yaml": {"scales": {"l": [0.5, 0.25, 512]}, "scale": "l"},
    "yolo26x.yaml": {"scales": {"x": [1.0, 0.25, 512]}, "scale": "x"},
    "yolov8x-seg.yaml": {"scales": {"x": [1.0, 0.25, 512]}, "scale": "x"},
}


def assert_same_network(name, changes, picture, tmp_path):
    theirs = ultralytics_model(name, **changes)
    ours = load_checkpoint(convert.run(save_as_ultralytics(theirs, tmp_path / "theirs.pt")))
    theirs.model[-1].end2end = ours.end2end  # which their predictor sets
    picture = picture if max(ours.stride) < 64 else picture.repeat(1, 1, 1, 2)[..., :128]
    pairs = list(zip(predict(theirs, picture), predict(ours, picture), strict=True))
    assert all(relative_error(b.double(), a.double()) < 1e-6 for a, b in pairs)
    assert (ours.names[3], ours.nc, ours.imgsz) == ("name 3", 5, 320)


@pytest.mark.slow
@pytest.mark.parametrize("name", ULTRALYTICS)
def test_an_ultralytics_model_predicts_the_same(name, picture, tmp_path):
    assert_same_network(name, {}, picture, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_more_ultralytics_models_predict_the_same(name, picture, tmp_path):
    assert_same_network(name, MORE[name], picture, tmp_path)


def test_the_head_is_the_one_of_the_file_whatever_ultralytics_built_last(tmp_path):
    file = save_as_ultralytics(ultralytics_model("yolo11n.yaml"), tmp_path / "yolo11n.pt")
    ultralytics_model("yolov8n.yaml")
    assert heads.Detect.legacy, "ultralytics marks its class, not its model"
    convert.run(file)


@pytest.mark.parametrize(
    ("kind", "name", "head"),
    [
        (tasks.PoseModel, "yolov8n-pose.yaml", "Pose"),
        (tasks.OBBModel, "yolov8n-obb.yaml", "OBB"),
    ],
)
def test_a_head_that_there_is_not_here_is_named(kind, name, head, tmp_path):
    torch.save({"model": kind(name, nc=5, verbose=False), "ema": None}, tmp_path / "a.pt")
    with pytest.raises(WeightsError, match=f"whose head is {head}, of which there are Classify, Detect, IAuxDetect"):
        convert.run(tmp_path / "a.pt")


def test_a_row_that_there_is_not_here_is_named(tmp_path):
    rows = [[-1, 1, "Conv", [16, 3, 2]], [-1, 1, "nn.Dropout2d", [0.1]], [-1, 1, "Conv", [16, 3, 2]]]
    cfg = {"nc": 5, "backbone": rows, "head": [[[1, 2], 1, "Detect", ["nc"]]], "yaml_file": "mine.yaml"}
    torch.save({"model": tasks.DetectionModel(cfg, verbose=False), "ema": None}, tmp_path / "a.pt")
    with pytest.raises(WeightsError, match=r"cannot be built here: mine.yaml, row 1 .*nn.Dropout2d"):
        convert.run(tmp_path / "a.pt")


# YOLOv5 ---------------------------------------------------------------------------------------------------------------
PLACES = {"AnchorDetect": "models.yolo", "AnchorSegment": "models.yolo"}  # of YOLOv5's classes; others: models.common
CLASSES = {"AnchorDetect": "Detect", "AnchorSegment": "Segment"}
ANCHORED = {"anchors": [[10, 13, 16, 30], [60, 90, 110, 70]], "head": [*tiny()["head"][:-1], [[5, 3], 1, "Detect"]]}
ANCHORED["head"][-1] = [[5, 3], 1, "Detect", ["nc", "anchors"]]


def as_yolov5(module, fakes):
    """Return a module whose classes are at the places where YOLOv5 has them, with the same attributes and children."""
    name = type(module).__name__
    kind = type(module)
    if not kind.__module__.startswith("torch."):
        place, name = fakes[PLACES.get(name, "models.common")], CLASSES.get(name, name)
        if not hasattr(place, name):
            setattr(place, name, type(name, (nn.Module,), {"__module__": place.__name__, "__qualname__": name}))
        kind = getattr(place, name)
    made = kind.__new__(kind)
    made.__dict__.update(module.__dict__)
    made._modules = {key: as_yolov5(child, fakes) for key, child in module._modules.items()}
    return made


def save_as_yolov5(model, path, monkeypatch, key="ema", buffers=(), **options):
    """Write a model of ours as YOLOv5 does: its classes, its attributes, anchors in cells."""
    fakes = {name: types.ModuleType(name) for name in ("models.yolo", "models.common")}
    head = model.model[-1]
    body = as_yolov5(model.half().model, fakes)
    last = list(body._modules.values())[-1]
    last._buffers = {"anchors": head.anchor_sizes / head.stride.view(-1, 1, 1), **dict(buffers)}
    for name in ("cells", "anchor_sizes"):
        last.__dict__.pop(name, None)
    fakes["models.yolo"].DetectionModel = type("DetectionModel", (nn.Module,), {"__module__": "models.yolo"})
    root = fakes["models.yolo"].DetectionModel()
    root.model, root.names, root.stride = body, [f"name {i}" for i in range(model.nc)], head.stride
    root.yaml = {**model.spec.as_dict(), "ch": 3, "yaml_file": "yolov5t.yaml"}
    content = {
        "epoch": -1,
        "best_fitness": np.array([0.5]),
        "model": None,
        "ema": None,
        "updates": 9,
        "optimizer": None,
    }
    with monkeypatch.context() as patch:
        for name, fake in fakes.items():
            patch.setitem(sys.modules, name, fake)
        torch.save(
            {**content, key: root, "opt": {"imgsz": 320, "cfg": "x.yaml"}, "git": {}, "date": "now"}, path, **options
        )
    model.float()
    return path


@pytest.fixture
def yolov5(tmp_path, monkeypatch):
    """Return a model with anchors and its file."""
    model = randomize_(create_model(tiny(**ANCHORED))).half().float().eval()
    model.model[-1].anchor_sizes *= 1.5  # as AutoAnchor leaves them
    return model, save_as_yolov5(model, tmp_path / "yolov5t.pt", monkeypatch)


def test_a_yolov5_model_predicts_the_same(yolov5, picture):
    theirs, file = yolov5
    ours = load_checkpoint(convert.run(file))
    assert relative_error(predict(ours, picture)[0].double(), predict(theirs, picture)[0].double()) < 1e-6
    assert (ours.names[1], ours.imgsz, ours.spec.name) == ("name 1", 320, "yolov5t.yaml")
    assert ours.spec.anchors == ((15, 19.5, 24, 45), (90, 135, 165, 105))


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source")
@pytest.mark.parametrize("options", [{"key": "model"}, {"_use_new_zipfile_serialization": False}], ids=str)
def test_other_forms_of_yolov5_files_are_read(yolov5, options, tmp_path, monkeypatch):
    model, file = yolov5
    other = save_as_yolov5(model, tmp_path / "other.pt", monkeypatch, **options)
    first, second = (read_checkpoint(convert.run(path))["ema"] for path in (file, other))
    assert all(torch.equal(first[name], second[name]) for name in first.keys() | second.keys())


def test_a_yolov5_segmenter_predicts_the_same(tmp_path, monkeypatch, picture):
    cfg = tiny(**ANCHORED)
    cfg["backbone"] = [[-1, 1, "Conv", [16, 3, 2]], *cfg["backbone"]]
    cfg["head"] = [*cfg["head"][:2], [[-1, 3], 1, "Concat", [1]], [[6, 4], 1, "Segment", ["nc", "anchors", 4, 16]]]
    theirs = randomize_(create_model(cfg)).half().float().eval()
    ours = load_checkpoint(convert.run(save_as_yolov5(theirs, tmp_path / "seg.pt", monkeypatch)))
    pairs = list(zip(predict(ours, picture), predict(theirs, picture), strict=True))
    assert (ours.task, len(pairs)) == ("segment", 2)
    assert all(relative_error(a.double(), b.double()) < 1e-6 for a, b in pairs)


def test_the_anchor_grid_of_old_versions_is_passed_over(yolov5, tmp_path, monkeypatch):
    model = yolov5[0]
    grid = model.model[-1].anchor_sizes.view(2, 1, -1, 1, 1, 2)
    file = save_as_yolov5(model, tmp_path / "old.pt", monkeypatch, buffers={"anchor_grid": grid})
    assert torch.equal(load_checkpoint(convert.run(file)).model[-1].anchor_sizes, model.model[-1].anchor_sizes)


def test_the_file_names_yolov5s_classes(yolov5):
    with zipfile.ZipFile(yolov5[1]) as archive:
        content = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    assert all(
        name in content for name in (b"cmodels.yolo\nDetectionModel", b"cmodels.common\nC3", b"cmodels.yolo\nDetect\n")
    )


@pytest.mark.parametrize("own", [False, True], ids=["torch's", "YOLOv5's"])
def test_another_activation_is_noticed(own, tmp_path, monkeypatch):
    model = create_model(tiny(**ANCHORED))
    act = type("Hardswish", (nn.Module,), {"__module__": "models.common"})()  # as in YOLOv5's first versions
    model.model[1].act = act if own else nn.Hardswish()
    file = save_as_yolov5(model, tmp_path / "old.pt", monkeypatch)
    with pytest.raises(WeightsError, match=r"model\.1\.act is Hardswish there and SiLU here"):
        convert.run(file)
    assert convert.run(file, allow_partial=True).is_file()


@pytest.mark.parametrize(("attribute", "value"), [("eps", 1e-5), ("momentum", 0.5)])
def test_settings_that_change_what_is_computed_are_noticed(attribute, value, tmp_path, monkeypatch):
    model = create_model(tiny(**ANCHORED))
    setattr(model.model[1].bn, attribute, value)
    file = save_as_yolov5(model, tmp_path / "old.pt", monkeypatch)
    if attribute == "momentum":
        assert convert.run(file).is_file()
    else:
        with pytest.raises(WeightsError, match=r"model\.1\.bn has eps=1e-05 there"):
            convert.run(file)


def test_weights_that_are_not_finite_are_refused(tmp_path, monkeypatch):
    model = create_model(tiny(**ANCHORED))
    model.model[0].conv.weight.data[0] = float("nan")
    with pytest.raises(WeightsError, match="not finite"):
        convert.run(save_as_yolov5(model, tmp_path / "nan.pt", monkeypatch))


def test_a_missing_tensor_is_refused_unless_partial_is_allowed(tmp_path, monkeypatch):
    model = create_model(tiny(**ANCHORED))
    del model.model[1].bn._buffers["running_var"]
    file = save_as_yolov5(model, tmp_path / "part.pt", monkeypatch)
    with pytest.raises(WeightsError, match=r"1 missing \(model\.1\.bn\.running_var\)"):
        convert.run(file)
    assert convert.run(file, allow_partial=True).is_file()


# The script -----------------------------------------------------------------------------------------------------------
def test_nothing_is_overwritten_unasked(yolov5):
    output = convert.run(yolov5[1])
    assert output.name == "yolov5t-repyolo.pt"
    before = output.read_bytes()
    with pytest.raises(UserError, match="--exist-ok"):
        convert.run(yolov5[1])
    assert output.read_bytes() == before
    assert convert.run(yolov5[1], exist_ok=True) == output
    for other, problem in ((yolov5[1], "the file to convert"), (yolov5[1].parent, "a folder")):
        with pytest.raises(UserError, match=problem):
            convert.run(yolov5[1], output=other, exist_ok=True)


def test_exit_codes(tmp_path, capsys):
    assert cli.run_script(convert.main, convert.make_parser(), [str(tmp_path / "none.pt")]) == 2
    assert cli.run_script(convert.main, convert.make_parser(), []) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


SCRIPTS = {"train": train, "val": val, "detect": detect, "export": export}


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_the_scripts_say_how_to_convert(script, yolov5, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = yolov5[1]
    with pytest.raises(WeightsError, match=f"python -m utils.convert {file}"):
        script.run(weights=file)


@pytest.mark.slow
def test_the_command_makes_what_detect_uses(tmp_path):
    save_as_ultralytics(ultralytics_model("yolo11n.yaml"), tmp_path / "yolo11n.pt")
    words = [sys.executable, "-m", "utils.convert", str(tmp_path / "yolo11n.pt")]
    done = subprocess.run(words, check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "matched     499" in done.stdout + done.stderr
    detect.run(weights=tmp_path / "yolo11n-repyolo.pt", imgsz=64, project=tmp_path, source=ROOT / "data/images/bus.jpg")


# Reading without running ----------------------------------------------------------------------------------------------
class Plain(nn.Module):
    """A module with a number of a kind that a test wants."""

    def __init__(self, value):
        super().__init__()
        self.register_buffer("value", value)


STRANGE_TENSORS = {
    "half": torch.rand(2, 3).half(),
    "bfloat16": torch.rand(2, 3).bfloat16(),
    "double": torch.rand(2, 3).double(),
    "bool": torch.tensor([True, False]),
    "uint8": torch.arange(5, dtype=torch.uint8),
    "int8": torch.arange(5, dtype=torch.int8),
    "int16": torch.arange(5, dtype=torch.int16),
    "int32": torch.arange(5, dtype=torch.int32),
    "int64": torch.arange(5),
    "uint16": torch.arange(5).to(torch.uint16),
    "complex": torch.rand(2, dtype=torch.complex64),
    "scalar": torch.tensor(3.5),
    "empty": torch.empty(0, 4),
    "transposed": torch.arange(6.0).view(2, 3).t(),
    "part": torch.arange(20.0)[3:11:2],
    "expanded": torch.tensor([1.0, 2.0]).expand(3, 2),
    "channels last": torch.rand(1, 2, 3, 4).to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("tensor", STRANGE_TENSORS.values(), ids=STRANGE_TENSORS)
def test_tensors_are_read_as_torch_reads_them(tensor, new, tmp_path):
    if tensor.dtype == torch.uint16 and not new:
        pytest.skip("torch writes no such file")
    path = tmp_path / "a.pt"
    parameter = nn.Parameter(tensor, requires_grad=False)
    torch.save(
        {"a": tensor, "b": [tensor, tensor[:1]] if tensor.ndim else tensor, "p": parameter},
        path,
        _use_new_zipfile_serialization=new,
    )
    ours, theirs = read_pickled(path), torch.load(path, weights_only=True)
    for a, b in ((ours["a"], theirs["a"]), (ours["p"], theirs["p"])):
        assert (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride())
        assert torch.equal(a, b.data) if b.dtype != torch.uint16 else a.tolist() == b.tolist()
    if tensor.ndim and tensor.numel():
        assert ours["b"][0].data_ptr() == ours["a"].data_ptr(), "one storage"


def test_containers_and_stand_ins(tmp_path):
    value = {
        "list": [1, -2, 2**70, 1.5, True, None, "é", b"\x00\xff"],
        "tuple": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
        "ordered": OrderedDict(a=1),
        "set": {1, "a"},
        "path": Path("x"),
        "module": Plain(torch.ones(1)),
        3: {},
    }
    value["itself"] = value["list"]
    torch.save(value, tmp_path / "a.pt")
    read = read_pickled(tmp_path / "a.pt")
    assert {k: v for k, v in read.items() if k not in ("path", "module", "list", "itself")} == {
        k: v for k, v in value.items() if k not in ("path", "module", "list", "itself")
    }
    assert read["list"][:-1] == value["list"][:-1]
    assert read["itself"] is read["list"]
    assert isinstance(read["path"], Inert)
    assert read["module"].kind == Global(__name__, "Plain")
    assert torch.equal(read["module"].get("_buffers")["value"], torch.ones(1))


def zipped(path, pickled, **records):
    """Write what looks like a file of torch's around a pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
        for key, content in records.items():
            archive.writestr(f"archive/data/{key}", content)
    return path


def legacy(path, pickled):
    """Write what looks like a file of an old torch around a pickle, without any storage."""
    parts = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {})]
    path.write_bytes(b"".join([*parts, pickled, pickle.dumps([], 2)]))
    return path


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def call(module, name, *args):
    """Return the opcodes of a call with arguments that are opcodes already."""
    return f"c{module}\n{name}\n(".encode() + b"".join(args) + b"tR"


def storage(count, key="0", kind="FloatStorage"):
    return b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu") + number(count) + b"tQ"


def number(value):
    raw = value.to_bytes(9, "little", signed=True)
    return b"\x8a\x09" + raw


def numbers(*values):
    return b"(" + b"".join(map(number, values)) + b"t"


def tensor(count, offset, size, stride, **options):
    parts = (storage(count, **options), number(offset), numbers(*size), numbers(*stride), b"\x89", b"N")
    return call("torch._utils", "_rebuild_tensor_v2", *parts)


HARMLESS = {  # forms of running code; {} is where the marker file's name goes
    "os.system": lambda marker: call("os", "system", text(f"touch {marker}")),
    "posix.system": lambda marker: call("posix", "system", text(f"touch {marker}")),
    "eval": lambda marker: call("builtins", "eval", text(f"open({marker!r}, 'w')")),
    "exec": lambda marker: call("__builtin__", "exec", text(f"open({marker!r}, 'w')")),
    "open": lambda marker: call("io", "open", text(marker), text("w")),
    "subprocess": lambda marker: call("subprocess", "check_output", b"]" + text("touch") + b"a" + text(marker) + b"a"),
    "import": lambda marker: call("builtins", "__import__", text("antigravity")),
    "getattr chain": lambda marker: (
        call("builtins", "getattr", call("builtins", "__import__", text("os")), text("system"))
        + b"("
        + text(f"touch {marker}")
        + b"tR"
    ),
    "stacked global": lambda marker: b"\x8c\x02os\x8c\x06system\x93(" + text(f"touch {marker}") + b"tR",
    "operator": lambda marker: (
        call("operator", "methodcaller", text("system"), text(f"touch {marker}")) + b"(cos\nos\ntR"
    ),
    "new object": lambda marker: b"csubprocess\nPopen\n(]" + text("touch") + b"a" + text(marker) + b"at\x81",
    "setstate": lambda marker: (
        b"ctorch.nn\nModule\n)\x81}" + text("__setstate__") + b"cos\nsystem\nsb" + text(f"touch {marker}") + b"b"
    ),
    "class": lambda marker: b"ctorch.nn\nModule\n)\x81}" + text("__class__") + b"cos\nsystem\nsb",
    "reduce key": lambda marker: (
        b"ctorch.nn\nModule\n)\x81}" + text("__reduce__") + call("os", "system", text(f"touch {marker}")) + b"sb"
    ),
    "from type": lambda marker: call(
        "torch._tensor", "_rebuild_from_type_v2", b"cos\nsystem\n", b"N", b"(" + text(f"touch {marker}") + b"t", b"N"
    ),
    "state of a tensor": lambda marker: tensor(2, 0, (2,), (1,)) + b"}" + text("__class__") + b"cos\nsystem\nsb",
    "append": lambda marker: b"cos\nsystem\n)\x81" + text(f"touch {marker}") + b"a",
    "items": lambda marker: b"cos\nsystem\n)\x81" + text("a") + text(f"touch {marker}") + b"s",
    "module source": lambda marker: (
        b"(" + text("module") + b"cos\nsystem\n" + text("f.py") + text(f"open({marker!r}, 'w')") + b"tQ)\x81"
    ),
}
REFUSED = {  # what torch does not write
    "old instance": b"(" + text("touch") + b"ios\nsystem\n",
    "old object": b"(cos\nsystem\n" + text("touch") + b"o",
    "extension": b"\x82\x01",
    "out of band": b"\x97",
    "text of protocol 0": b"S'x'\n",
    "persistent text": b"Pstorage\n",
    "persistent list": b"]Q",
    "persistent in persistent": b"("
    + storage(2)
    + b"ctorch\nFloatStorage\n"
    + text("0")
    + text("cpu")
    + number(2)
    + b"tQ",
    "unknown storage": storage(2, kind="QInt8Storage"),
    "code as storage": storage(2, kind="system"),
    "key outside": storage(2, key="../data.pkl"),
    "key that is none": storage(2, key="99"),
    "storage too short": storage(3),
    "storage of 2^60": storage(2**60),
    "negative storage": storage(-1),
    "tensor too large": tensor(2, 0, (3,), (1,)),
    "tensor behind the end": tensor(2, 2, (1,), (1,)),
    "tensor before the start": tensor(2, -1, (1,), (1,)),
    "negative stride": tensor(2, 1, (2,), (-1,)),
    "stride behind the end": tensor(2, 0, (2,), (2,)),
    "size and stride": tensor(2, 0, (2, 1), (1,)),
    "size of 2^60": tensor(2, 0, (2**30, 2**30), (0, 0)),
    "many dimensions": tensor(2, 0, (1,) * 1000, (1,) * 1000),
    "tensor of no storage": call("torch._utils", "_rebuild_tensor_v2", b"N", number(0), b")", b")", b"\x89", b"N"),
    "parameter of no tensor": call("torch._utils", "_rebuild_parameter", b"N", b"\x89", b"N"),
    "list as key": b"}]Ns",
    "tuples in tuples as key": b"})" + b"2\x86" * 60 + b"Ns",
    "ordered dict of tuples": call("collections", "OrderedDict", b"])" + b"2\x86" * 60 + b"N\x86a"),
    "append to a number": number(1) + b"Na",
    "odd items": b"}(" + number(1) + b"u",
    "no mark": b"t",
    "nothing to call": b"R",
    "memo that is not": b"h\x07",
    "no end": b"N" * 10,
    "text of 2^60 bytes": b"\x8d" + struct.pack("<Q", 2**60) + b"x",
    "bytes of 2^60 bytes": b"\x8e" + struct.pack("<Q", 2**60) + b"x",
    "bytearray of 2^40 bytes": b"\x96" + struct.pack("<Q", 2**40) + b"x",
    "number of 2^30 bytes": b"\x8b" + struct.pack("<i", 2**30) + b"x",
    "number of -1 bytes": b"\x8b" + struct.pack("<i", -1) + b"x",
    "frame of 2^60 bytes": b"\x95" + struct.pack("<Q", 2**60),
    "unknown opcode": b"\xff",
    "not text": b"X" + struct.pack("<I", 2) + b"\xff\xfe",
}
EVENTS = {"os.system", "subprocess.Popen", "pickle.find_class", "exec", "compile", "os.posix_spawn", "os.fork"}


@pytest.fixture(scope="module")
def happened():
    """What happened in this process since it was cleared, as audit event → its first arguments.

    A hook stays for all later tests, which raise millions of events: this one runs no Python code.
    """
    events = {}
    sys.addaudithook(events.setdefault)
    return events


@pytest.fixture
def watched(tmp_path, happened):
    """Fail if code is run or modules are imported meanwhile; give the file that attacks would make."""
    for write in (zipped, legacy):  # what is imported or compiled once is, before anything is watched
        write(tmp_path / "first.pt", b"\x80\x02N.")
        for read in (convert.run, load_checkpoint):
            with pytest.raises(WeightsError):
                read(tmp_path / "first.pt")
    modules = set(sys.modules)
    happened.clear()
    yield tmp_path / "marker"
    assert not EVENTS & happened.keys()
    assert set(sys.modules) == modules
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("attack", HARMLESS.values(), ids=HARMLESS)
def test_a_call_is_not_made(attack, watched, tmp_path):
    code = attack(str(watched))
    path = zipped(tmp_path / "a.pt", b"\x80\x02}" + text("model") + code + b"s.", **{"0": bytes(8)})
    assert isinstance(read_pickled(path)["model"], Inert | torch.Tensor)
    for read in (convert.run, load_checkpoint):
        with pytest.raises(WeightsError, match=r"model of YOLOv5|more than tensors|not a weights file"):
            read(path)


@pytest.mark.parametrize("pickled", REFUSED.values(), ids=REFUSED)
def test_what_torch_does_not_write_is_refused(pickled, watched, tmp_path):
    end = b"" if pickled in (REFUSED["no end"], REFUSED["unknown opcode"]) else b"."
    path = zipped(tmp_path / "a.pt", b"\x80\x02" + pickled + end, **{"0": bytes(8)})
    tracemalloc.start()
    try:
        with pytest.raises(WeightsError, match="not a weights file"):
            read_pickled(path)
        assert tracemalloc.get_traced_memory()[1] < 3e7
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("attack", HARMLESS.values(), ids=HARMLESS)
def test_a_call_is_not_made_in_the_old_format(attack, watched, tmp_path):
    path = legacy(tmp_path / "a.pt", b"\x80\x02}" + text("model") + attack(str(watched)) + b"s.")
    for read in (convert.run, load_checkpoint):
        with pytest.raises(WeightsError, match=r"model of YOLOv5|more than tensors|not a weights file"):
            read(path)


@pytest.mark.parametrize("count", [2, 2**40, 2**60])
def test_a_storage_that_is_not_in_an_old_file_is_refused(count, watched, tmp_path):
    assert read_pickled(legacy(tmp_path / "good.pt", b"\x80\x02}.")) == {}
    path = legacy(tmp_path / "a.pt", b"\x80\x02" + tensor(count, 0, (count,), (1,)) + b".")
    with pytest.raises(WeightsError, match="not a weights file"):
        read_pickled(path)


SLOW_TO_WALK = {
    "far memo": b"Nr\xff\xff\xff\xff",
    "deep list": b"]" * 50_000 + b"a" * 49_999,
    "deep tuple": b")" + b"\x85" * 50_000,
    "doubled lists": b"]" + b"".join(b"q\x01]h\x01ah\x01a" for _ in range(100)),
    "deep calls": b"cos\nsystem\n" + b")R" * 20_000,
    "deep from type": b"N" + b"".join(b"q\x01ctorch._tensor\n_rebuild_from_type_v2\n(N" for _ in range(2)) + b"ttR",
    "big number": b"\x8b" + struct.pack("<i", 2_000_000) + b"\x7f" * 2_000_000,
}


@pytest.mark.slow
@pytest.mark.parametrize("pickled", SLOW_TO_WALK.values(), ids=SLOW_TO_WALK)
def test_time_and_memory_are_bounded(pickled, watched, tmp_path):
    path = zipped(tmp_path / "a.pt", b"\x80\x02" + pickled + b".")
    tracemalloc.start()
    try:
        with pytest.raises(WeightsError):
            convert.run(path)
        assert tracemalloc.get_traced_memory()[1] < 1e8
    finally:
        tracemalloc.stop()


def module(children, **attributes):
    """Return the opcodes of a module: its children by name, and other attributes, as opcodes."""
    named = b"".join(text(key) + child + b"s" for key, child in children.items())
    more = b"".join(text(key) + value + b"s" for key, value in attributes.items())
    return b"cmodels.yolo\nModel\n)\x81}" + text("_modules") + b"}" + named + b"s" + more + b"b"


def test_modules_in_each_other_without_end_are_refused(watched, tmp_path):
    head = b"cmodels.yolo\nDetect\n)\x81q\x07}" + text("_modules") + b"}" + text("0") + b"h\x07ssb"
    pickled = module({"model": module({"0": head})}, yaml=b"}" + text("backbone") + b"]s" + text("head") + b"]s")
    path = zipped(tmp_path / "a.pt", b"\x80\x02" + pickled + b".")
    with pytest.raises(WeightsError, match="in each other"):
        convert.run(path)


YAMLS = {
    "no rows": b"}" + text("backbone") + b"]s" + text("head") + b"]s",
    "no sections": b"}",
    "text": text("yolov5s.yaml"),
    "code": b"cos\nsystem\n",
    "code in rows": b"}"
    + text("backbone")
    + b"]cos\nsystem\nas"
    + text("head")
    + b"]s"
    + text("nc")
    + number(2)
    + b"s",
    "huge": b"}" + text("backbone") + b"]s" + text("head") + b"]s" + text("nc") + number(2**60) + b"s",
}


@pytest.mark.parametrize("maker", ["models.yolo", "ultralytics.nn.tasks"])
@pytest.mark.parametrize("yaml", YAMLS.values(), ids=YAMLS)
def test_a_yaml_that_is_none_is_refused(yaml, maker, watched, tmp_path):
    head = b"cmodels.yolo\nDetect\n)\x81}" + text("stride") + tensor(2, 0, (1,), (1,)) + b"s"
    head += text("_buffers") + b"}" + text("anchors") + tensor(2, 0, (1, 1, 2), (2, 2, 1)) + b"ssb"
    pickled = module({"model": module({"0": head})}, yaml=yaml).replace(
        b"cmodels.yolo\nModel", f"c{maker}\nModel".encode()
    )
    path = zipped(tmp_path / "a.pt", b"\x80\x02" + pickled + b".", **{"0": bytes(8)})
    with pytest.raises(WeightsError, match=r"a\.pt"):
        convert.run(path)


def other_bomb(path):
    zipped(path, b"\x80\x02N.")
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(50_000_000))


def ours(path):
    model = create_model(tiny())
    save_checkpoint({**pack_model(model), "ema": model.state_dict()}, path)


OTHER_FILES = {
    "missing": lambda path: None,
    "folder": lambda path: path.mkdir(),
    "empty": lambda path: path.write_bytes(b""),
    "web page": lambda path: path.write_text("<!DOCTYPE html><html><body>404: Not Found</body></html>"),
    "bare pickle": lambda path: path.write_bytes(pickle.dumps({"model": None})),
    "zip": lambda path: zipfile.ZipFile(path, "w").writestr("a.txt", "b"),
    "zip bomb": other_bomb,
    "torchscript": lambda path: torch.jit.trace(nn.Linear(1, 1), torch.zeros(1, 1)).save(str(path)),
    "state dict": lambda path: torch.save({"a": torch.zeros(3)}, path),
    "another module": lambda path: torch.save({"model": nn.Sequential(nn.Linear(1, 1))}, path),
    "ours": ours,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", OTHER_FILES.values(), ids=OTHER_FILES)
def test_another_kind_of_file_is_refused(make, tmp_path):
    path = tmp_path / "a.pt"
    make(path)
    with pytest.raises(WeightsError) as caught:
        convert.run(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert ("use it as it is" in message) == (make is ours)
    assert not (tmp_path / "a-repyolo.pt").exists()


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source")
@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_a_damaged_file_is_refused_or_harmless(new, yolov5, tmp_path, monkeypatch):
    file = save_as_yolov5(yolov5[0], tmp_path / "good.pt", monkeypatch, _use_new_zipfile_serialization=new)
    raw, rng = file.read_bytes(), np.random.default_rng(0)
    bad = tmp_path / "bad.pt"
    start = raw.find(b"cmodels.yolo") if new else 0
    for _ in range(20):
        spoilt = bytearray(raw)
        if rng.random() < 0.3:
            del spoilt[rng.integers(len(raw)) :]
        else:
            spoilt[rng.integers(start, start + 8000)] ^= 1 << rng.integers(8)
        bad.write_bytes(spoilt)
        try:
            convert.run(bad, exist_ok=True)
        except WeightsError as e:
            assert "\n" not in str(e)


def test_a_damaged_pickle_is_refused_or_harmless(yolov5, tmp_path):
    """As above, with the zip file's checksums right."""
    with zipfile.ZipFile(yolov5[1]) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in parts if name.endswith("data.pkl"))
    rng, bad = np.random.default_rng(0), tmp_path / "bad.pt"
    for _ in range(30):
        spoilt = bytearray(parts[name])
        spoilt[rng.integers(len(spoilt))] = rng.integers(256)
        with zipfile.ZipFile(bad, "w") as archive:
            for part, content in {**parts, name: bytes(spoilt)}.items():
                archive.writestr(part, content)
        try:
            convert.run(bad, exist_ok=True)
        except WeightsError as e:
            assert "\n" not in str(e)
