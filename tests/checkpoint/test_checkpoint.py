"""The checkpoint: written whole or not at all, read without running anything, refused in one sentence."""

import io
import os
import pickle
import random
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn
from torch.serialization import get_unsafe_globals_in_checkpoint

from models import DetectionModel
from models.errors import WeightsError
from tests.helpers import pictures, randomize_, tiny
from utils.checkpoint import load_checkpoint, pack_model, plain, save_checkpoint


@pytest.fixture(scope="module")
def model():
    return randomize_(DetectionModel(tiny(yaml_file="tiny.yaml")))


@pytest.fixture(scope="module")
def content(model):
    """A checkpoint with the kinds of values that training puts in."""
    return {
        **pack_model(model),
        "ema": model.state_dict(),
        "epoch": 3,
        "history": [{"map": 0.5, "epoch": np.int64(3)}],
        "done": False,
        "seed": None,
        "half": torch.ones(2, dtype=torch.float16),
    }


@pytest.fixture(scope="module")
def resumable(content, model):
    """A checkpoint of a training."""
    optimizer = torch.optim.AdamW(model.parameters())
    training = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "scaler": {}, "updates": 7}
    counts = {"epochs": 5, "seed": 0, "fitness": 0.5, "best_fitness": None, "metrics": {"map": 0.5}}
    split = {"source": "images", "pictures": 3, "objects": 4, "names": "x"}
    kept = {"options": {"epochs": 5}, "batch": 4, "splits": {"path": "data", "train": split, "val": split}}
    return {**content, **training, **counts, **kept, "stopper": {"best_fitness": 0.0, "best_epoch": 0}}


@pytest.fixture
def path(content, tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(content, path)
    return path


def assert_sentence(error, path):
    """The message is for people: one line, it names the file, and quotes no advice to load unsafely."""
    text = str(error)
    assert str(path) in text
    assert "\n" not in text
    assert "\x1b" not in text
    assert "weights_only" not in text, "advice to switch it off"
    assert len(text) < len(str(path)) + 400


def assert_refused(path, read=load_checkpoint):
    with pytest.raises(WeightsError) as caught:
        read(path)
    assert_sentence(caught.value, path)
    return str(caught.value)


# Writing --------------------------------------------------------------------------------------------------------------
def test_weights_come_back_bit_by_bit(model, path):
    loaded = load_checkpoint(path)
    assert not loaded.training
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) and ours[name].dtype == theirs[name].dtype for name in ours)


def test_the_model_computes_the_same(model, path):
    model, x = model.eval(), pictures(dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(load_checkpoint(path)(x)[0], model(x)[0])


def test_names_size_and_spec_come_back(model, tmp_path):
    named = DetectionModel(tiny(), nc=3)
    named.names, named.imgsz = {0: "one", 1: "zwei", 2: "трёх"}, [160, 96]
    save_checkpoint({**pack_model(named), "ema": named.state_dict()}, tmp_path / "a.pt")
    loaded = load_checkpoint(tmp_path / "a.pt")
    assert (loaded.names, loaded.imgsz, loaded.spec) == (named.names, named.imgsz, named.spec)


def test_nothing_in_the_file_needs_trust(path):
    assert get_unsafe_globals_in_checkpoint(path) == []


def test_names_in_a_list_are_numbered(model):
    other = DetectionModel(tiny())
    other.names = ["cat", "dog"]
    assert pack_model(other)["names"] == {0: "cat", 1: "dog"}


@pytest.mark.parametrize(
    "value",
    [np.float64(0.5), np.float32(0.5), np.int64(3), np.bool_(True), np.str_("x"), (1, 2), {3}, OrderedDict(a=1)],
    ids=repr,
)
def test_what_training_measures_can_be_read_back(value, tmp_path):
    save_checkpoint({"value": value}, tmp_path / "a.pt")
    assert get_unsafe_globals_in_checkpoint(tmp_path / "a.pt") == []
    back = torch.load(tmp_path / "a.pt", weights_only=True)["value"]
    assert back == (list(value) if isinstance(value, tuple | set) else value)


@pytest.mark.parametrize("key", [np.int64(1), np.str_("x"), 1, "x"], ids=repr)
def test_keys_are_plain_as_well(key, tmp_path):
    save_checkpoint({"value": {key: 1}}, tmp_path / "a.pt")
    assert torch.load(tmp_path / "a.pt", weights_only=True)["value"] == {key: 1}


class Name(str):
    """Text of a class of our own, which a reader would have to import."""


NOT_PLAIN = [object(), nn.Linear(1, 1), lambda: 0, b"bytes", Name("x")]


@pytest.mark.parametrize("value", NOT_PLAIN, ids=lambda value: type(value).__name__)
def test_anything_else_is_refused_or_made_plain(value, tmp_path):
    try:
        made = plain({"deep": [value]})
    except TypeError as e:
        assert type(value).__name__ in str(e)
    else:
        assert type(made["deep"][0]) in (str, int, float, bool)


def test_a_failed_write_leaves_the_old_file(content, path, monkeypatch):
    before = path.read_bytes()

    def half_a_write(value, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", half_a_write)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(content, path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_first_write_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    with pytest.raises(OSError, match="Input/output"):
        save_checkpoint({"value": 1}, tmp_path / "a.pt")
    assert not list(tmp_path.iterdir())


def test_unwritable_content_leaves_the_old_file(path):
    before = path.read_bytes()
    with pytest.raises(TypeError):
        save_checkpoint({"model": nn.Linear(1, 1)}, path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


# Refusing -------------------------------------------------------------------------------------------------------------
class Bomb:
    """Writes a marker when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def torchscript(path):
    torch.jit.trace(nn.Linear(1, 1), torch.zeros(1, 1)).save(str(path))


def ultralytics_like(path):
    torch.save({"epoch": 1, "model": nn.Linear(1, 1), "ema": None}, path)


def deflated(path):
    plain_file = path.read_bytes()
    with zipfile.ZipFile(io.BytesIO(plain_file)) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
        new.writestr("archive/data/bomb", bytes(50_000_000))


OTHER_FILES = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("not found\n" * 100),
    "web page": lambda path: path.write_text("<!DOCTYPE html><html><body>404</body></html>"),
    "picture": lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(500)),
    "zeros": lambda path: path.write_bytes(bytes(2000)),
    "truncated": truncated,
    "pickle": lambda path: path.write_bytes(pickle.dumps({"format": "repyolo/1"})),
    "zip": lambda path: zipfile.ZipFile(path, "w").writestr("a.txt", "b"),
    "zip bomb": deflated,
    "torchscript": torchscript,
    "ultralytics": ultralytics_like,
    "bare tensor": lambda path: torch.save(torch.zeros(3), path),
    "state dict": lambda path: torch.save({"a": torch.zeros(3)}, path),
    "numbered tensors": lambda path: torch.save({0: torch.zeros(3)}, path),
    "other version": lambda path: torch.save({"format": "repyolo/0"}, path),
    "format alone": lambda path: torch.save({"format": "repyolo/1"}, path),
    "folder": lambda path: (path.unlink(), path.mkdir()),
    "missing": lambda path: path.unlink(),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("spoil", OTHER_FILES.values(), ids=OTHER_FILES)
def test_another_kind_of_file_is_refused(spoil, path):
    spoil(path)
    assert_refused(path)


def test_an_impossible_name_is_refused():
    assert_refused("a" * 5000)


def test_pickled_code_is_not_run(path, tmp_path):
    marker = tmp_path / "marker"
    for bomb in ({"format": "repyolo/1", "yaml": Bomb(marker)}, Bomb(marker)):
        torch.save(bomb, path)
        assert "pickled code" in assert_refused(path)
        path.write_bytes(pickle.dumps(bomb))
        assert_refused(path)
    assert not marker.exists()


def assert_not_written(content, path):
    """What could not be read again is not written, for the same reason, and the old file stays."""
    before = path.read_bytes()
    with pytest.raises(WeightsError, match="is not written") as caught:
        save_checkpoint(content, path)
    assert_sentence(caught.value, path)
    assert path.read_bytes() == before
    return str(caught.value)


DAMAGED = [  # fields of a checkpoint whose value has a wrong type, range or text
    *({"names": names} for names in ({0: "a"}, {0: "a", 1: "b", 2: "c"}, {1: "a", 2: "b"}, ["a", "b"], None)),
    *({"names": names} for names in ({"zero": "a", "one": "b"}, {float("inf"): "a", 1: "b"}, {0: "a", 1: "\udcff"})),
    *({"names": names} for names in ({0: "a", 1: 2}, {False: "a", True: "b"}, {0: "a", 1: "b" * 300})),
    *({"yaml": yaml} for yaml in (None, "riformer-yolo.yaml", {}, {**tiny(), "nc": 3}, {**tiny(), 7: 1})),
    *({"yaml_name": name} for name in (None, 3, "", "a\0b", "\udcff.yaml", "a" * 300, "..")),
    *({"ema": ema} for ema in (None, {"a": 1}, [torch.zeros(1)], {1: torch.zeros(1)})),
    {"ema": {"a": torch.zeros(2).to_sparse()}},
    *({"imgsz": size} for size in ("large", [640, 640, 640], 0, -64, True, 64.0, [], 10**6, None)),
    *({"strides": strides} for strides in (None, 8, [0], [-8.0], ["8"], [float("nan")])),
    *({"task": task} for task in ("pose", 3, None)),
    *({"epoch": epoch} for epoch in ("0", -1, 1.5, True, None, 2**70)),
    *({"epochs": epochs} for epochs in ("3", 0, None)),
    *({"fitness": fitness} for fitness in ("a", float("nan"), [0.5])),
    *({"best_fitness": fitness} for fitness in ("a", float("inf"))),
    *({"metrics": metrics} for metrics in (None, {"map": "x"}, [1])),
    *({"history": history} for history in ("x", {}, ["x"], [{"map": "x"}], [{1: 2}])),
    *({"updates": updates} for updates in ("x", -1, None)),
    *({"stopper": stopper} for stopper in ({}, None, {"best_fitness": None, "best_epoch": "z"})),
    {"stopper": {"best_fitness": 0.5, "best_epoch": -1}},
    *({"seed": seed} for seed in ("x", -1, 0.5)),
    *({"scaler": scaler} for scaler in (None, {"scale": "x"}, [1])),
    *({"model": model} for model in (None, {"a": 1})),
    *({"options": options} for options in ("x", {1: 2}, {"a": torch.zeros(1)}, {"a": {"b": [{"c": [[1]]}]}})),
    *({"batch": batch} for batch in (0, -1, "4", None)),
    *({"splits": splits} for splits in ("x", {}, {"path": 3, "train": {}, "val": {}})),
    {"fused": 1},
    *({"optimizer": state} for state in ("x", {}, {"state": {}}, {"state": {}, "param_groups": "x"})),
    {"optimizer": {"state": {"a": {}}, "param_groups": []}},
    {"optimizer": {"state": {0: {"step": "x"}}, "param_groups": []}},
    {"optimizer": {"state": {}, "param_groups": [{"params": ["a"]}]}},
    {"optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}},
    {"optimizer": {"state": {}, "param_groups": [{"params": [0], "lr": float("nan")}]}},
]


@pytest.mark.parametrize("change", DAMAGED, ids=repr)
def test_a_damaged_field_is_neither_read_nor_written(change, resumable, path):
    assert next(iter(change)) in assert_not_written({**resumable, **change}, path)
    torch.save({**plain(resumable), **change}, path)
    assert next(iter(change)) in assert_refused(path)


def test_a_list_that_holds_itself_is_refused(resumable, path):
    loop = []
    loop.append(loop)
    torch.save({**plain(resumable), "history": loop}, path)
    assert_refused(path)


@pytest.mark.parametrize(
    "change",
    [
        {"yaml": {**tiny(), "width_multiple": 1.0}},
        {"yaml": tiny(head=[[-1, 1, "Cnov", []]])},
        {"ema": {}},
        {"ema": {"a": torch.zeros(1)}},
    ],
    ids=str,
)
def test_parts_that_do_not_fit_each_other_are_refused(change, content, path):
    save_checkpoint({**content, **change}, path)
    assert_refused(path)


def test_weights_that_are_nan_are_refused(content, path):
    """Whoever loads them would otherwise see nothing detected, or a training that diverges at once."""
    first, *_ = content["ema"]
    save_checkpoint({**content, "ema": {**content["ema"], first: content["ema"][first] * torch.nan}}, path)
    assert f"holds NaN in 1 of {len(content['ema'])} tensors: {first}" in assert_refused(path)


@pytest.mark.parametrize("key", ["yaml", "names", "ema", "yaml_name", "imgsz", "model", "history", "splits"])
def test_a_missing_part_is_refused(key, resumable, path):
    without = {k: v for k, v in resumable.items() if k != key}
    assert f"its field {key} is missing" in assert_not_written(without, path)
    torch.save(plain(without), path)
    assert f"its field {key} is missing" in assert_refused(path)


def test_a_deep_yaml_is_refused(content, path):
    deep = []
    for _ in range(200):
        deep = [deep]
    torch.save({**plain(content), "yaml": {**tiny(), "anchors": deep}}, path)
    assert_refused(path)


@pytest.mark.parametrize(
    ("word", "args"),
    [
        ("timm", ["resnet18", {"pretrained": True}]),
        ("timm", ["resnet18", {"checkpoint_path": "other.pth"}]),
        ("resnet18", [True]),
        ("RIFormer", ["s12", {"weights": "other.pth"}]),
    ],
    ids=str,
)
def test_a_checkpoint_cannot_make_us_open_or_download_others(word, args, content, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"a": torch.zeros(1)}, "other.pth")
    yaml = {"nc": 2, "backbone": [[-1, 1, word, args]], "head": [[["P4"], 1, "Detect", ["nc"]]]}
    save_checkpoint({**content, "yaml": yaml}, path)
    opened, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda file, **options: opened.append(str(file)) or load(file, **options))
    monkeypatch.setattr("timm.models._builder.load_pretrained", lambda *_, **options: opened.append("the network"))
    assert_refused(path)
    assert opened == [str(path)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_flipped_bit_is_refused_or_harmless(path, tmp_path):
    """Most bits are weights; those in the table of contents and in the pickle are where parsers break."""
    rng, raw = random.Random(0), path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        structure = archive.getinfo(next(name for name in archive.namelist() if name.endswith("data.pkl")))
        contents = archive.start_dir
    start = structure.header_offset
    spots = [*range(start, start + structure.file_size, 97), *range(contents, len(raw), 37)]
    spots += [rng.randrange(len(raw)) for _ in range(20)]
    damaged = tmp_path / "damaged.pt"
    for spot in spots:
        flipped = bytearray(raw)
        flipped[spot] ^= 1 << rng.randrange(8)
        damaged.write_bytes(flipped)
        try:
            load_checkpoint(damaged)
        except WeightsError as e:
            assert_sentence(e, damaged)


def test_flipped_weights_are_noticed(path):
    raw = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    raw[largest.header_offset + largest.file_size // 2] ^= 0x40
    path.write_bytes(raw)
    assert_refused(path)
