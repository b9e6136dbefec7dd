"""Pickled checkpoints are read without running anything, and what torch does not write is refused."""

import pickle
import struct
import sys
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from models import create_model
from models.errors import WeightsError
from tests.checkpoint.yolov5 import save_as_yolov5
from tests.helpers import tiny
from utils import convert
from utils.checkpoint import load_checkpoint, pack_model, save_checkpoint
from utils.checkpoint.unpickle import Global, Inert, read_pickled


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
