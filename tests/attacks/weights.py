"""Attacks by weights: checkpoints that are pickles, fields of checkpoints, exported files and their metadata."""

from __future__ import annotations

import io
import json
import shutil
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from tests.attacks.attack import Attack, Attacks, Command, Place
from tests.attacks.payloads import LAUGHS, WRAPPINGS, archive, expressions, pickles, yaml_tags
from tests.attacks.yamls import EXPRESSIONS, HERE, SOME, TAGS, train_on

PICKLES = tuple(pickles(SOME))


def detect_with(place: Place, weights: str, *more: str) -> Command:
    """Return the command that looks for objects with some weights."""
    return ["detect", "--weights", weights, "--source", str(place.base / "photo.png"), "--device", "cpu", *more]


# Checkpoints ----------------------------------------------------------------------------------------------------------
OPENERS: dict[str, Callable[[Place], Command]] = {
    "detect": lambda place: detect_with(place, "evil.pt"),
    "val": lambda place: ["val", "--weights", "evil.pt", "--data", str(place.base / "data.yaml")],
    "export": lambda place: ["export", "--weights", "evil.pt"],
    "train": lambda place: train_on(place, str(place.base / "data.yaml"), "--weights", "evil.pt"),
    "benchmark": lambda place: ["benchmark", "--weights", "evil.pt", "--rounds", "1"],
    "utils.convert": lambda place: ["utils.convert", "evil.pt"],
    "utils.check_weights": lambda place: check_weights(place, "evil.pt"),
}


def check_weights(place: Place, weights: str) -> Command:
    """Return the command that measures published weights on class folders."""
    words = ["--arch", "RepVGG/A0", "--weights", weights, "--data", str(place.base / "folders/val")]
    return ["utils.check_weights", *words]


def pickled() -> Attacks:
    """Yield attacks by checkpoints that call a function when they are unpickled."""
    openers = list(OPENERS)
    for number, name in enumerate(PICKLES):
        for turn, (form, wrap) in enumerate(WRAPPINGS.items()):
            opener = openers[(number + turn) % len(openers)]

            def prepare(place: Place, name: str = name, wrap: Any = wrap, opener: str = opener) -> Command:
                place.write("evil.pt", wrap(pickles(place.marker)[name]))
                place.write("evil.py", f"open({str(place.marker)!r}, 'w')")
                return OPENERS[opener](place)

            yield Attack("checkpoint, pickled code", f"{name} in {form}, by {opener}", prepare)


FIELDS: dict[str, Callable[[Place], Any]] = {
    "nothing": lambda _: None,
    "a number": lambda _: -7,
    "no number": lambda _: float("nan"),
    "text": lambda place: expressions(place.marker)["eval"],
    "bytes": lambda _: b"\xff\x00",
    "a lone surrogate": lambda _: "\ud800",
    "a list": lambda _: [[], {}],
    "a dictionary": lambda _: {"a": {"b": 1}},
    "a tensor": lambda _: torch.full((2,), float("nan")),
    "much text": lambda _: "x" * 1_000_000,
    "deep lists": lambda _: deep(),
    "a path": lambda _: "../../outside/secret.txt",
}


def deep() -> list[Any]:
    """Return lists in each other, as deep as they can be pickled."""
    found: list[Any] = []
    for _ in range(200):
        found = [found]
    return found


def fields() -> Attacks:
    """Yield attacks by sound checkpoints with one field exchanged."""
    for key in (
        "format",
        "model",
        "spec",
        "names",
        "imgsz",
        "epoch",
        "nc",
        "task",
        "data",
        "train_args",
        "ema",
        "stride",
    ):
        for name, value in FIELDS.items():

            def prepare(place: Place, key: str = key, value: Callable[[Place], Any] = value) -> Command:
                content = torch.load(place.base / "best.pt", weights_only=True)
                torch.save({**content, key: value(place)}, place.folder / "evil.pt")
                return detect_with(place, "evil.pt", "--nosave")

            yield Attack("checkpoint, changed field", f"{name} as {key}", prepare)


def damaged() -> Attacks:
    """Yield attacks by files that are no whole checkpoint."""

    def attack(name: str, content: Callable[[bytes], bytes]) -> Attack:
        def prepare(place: Place) -> Command:
            place.write("evil.pt", content((place.base / "best.pt").read_bytes()))
            return detect_with(place, "evil.pt")

        return Attack("checkpoint, damaged", name, prepare)

    yield attack("nothing", lambda _: b"")
    for part in (0.01, 0.3, 0.9, 0.999):
        yield attack(f"the first {part:.1%}", lambda b, p=part: b[: int(len(b) * p)])
    yield attack("zeros in the middle", lambda b: b[: len(b) // 2] + bytes(4096) + b[len(b) // 2 + 4096 :])
    yield attack("the end twice", lambda b: b + b[-4096:])
    yield attack("an archive of another kind", lambda _: zipped({"evil.py": b"open('executed', 'w')"}))
    yield attack("a bomb", lambda _: zipped({"best/data.pkl": bytes(2**28), "best/version": b"3"}))
    yield attack("names that lead out", lambda _: zipped({"../../outside/secret.txt": b"changed"}))
    yield attack("text", lambda _: b"open('executed', 'w')")
    yield attack("HTML", lambda _: b"<html><script>alert(1)</script></html>")


def zipped(entries: dict[str, bytes]) -> bytes:
    """Return a compressed archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in entries.items():
            file.writestr(name, content)
    return buffer.getvalue()


# Files of tensors -----------------------------------------------------------------------------------------------------
TENSOR = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
TENSOR_8 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
HEADERS: dict[str, dict[str, Any] | bytes] = {
    "nothing": {},
    "a giant shape": {"a": {**TENSOR, "shape": [2**40, 2**40]}},
    "a shape that overflows": {"a": {**TENSOR, "shape": [2**62, 4]}},
    "a negative shape": {"a": {**TENSOR, "shape": [-2, -2]}},
    "another shape": {"a": {**TENSOR, "shape": [3, 2]}},
    "a thousand dimensions": {"a": {**TENSOR, "shape": [2, 2, *[1] * 1000]}},
    "no dimensions": {"a": TENSOR_8, "b": {"dtype": "I64", "shape": [], "data_offsets": [8, 16]}},
    "no numbers": {"a": TENSOR, "b": {**TENSOR, "shape": [0, 2**60], "data_offsets": [16, 16]}},
    "fractions as shape": {"a": {**TENSOR, "shape": [2.5, 2]}},
    "texts as shape": {"a": {**TENSOR, "shape": ["2", "2"]}},
    "overlapping offsets": {"a": TENSOR, "b": TENSOR},
    "a gap": {"a": TENSOR, "b": {**TENSOR, "data_offsets": [32, 48]}},
    "offsets in the wrong order": {"a": {**TENSOR, "data_offsets": [16, 0]}},
    "offsets behind the end": {"a": {**TENSOR, "data_offsets": [2**40, 2**40 + 16]}},
    "negative offsets": {"a": {**TENSOR, "data_offsets": [-16, 0]}},
    "giant offsets": {"a": {**TENSOR, "data_offsets": [0, 2**64 - 1]}},
    "an unknown type": {"a": {**TENSOR, "dtype": "PICKLE"}},
    "another size of type": {"a": {**TENSOR, "dtype": "F64"}},
    "whole numbers": {"a": {**TENSOR, "dtype": "I32"}},
    "eight bits": {"a": {**TENSOR, "dtype": "F8_E4M3", "shape": [4, 4]}},
    "four bits": {"a": {**TENSOR, "dtype": "F4", "shape": [8, 4]}},
    "truths": {"a": {**TENSOR, "dtype": "BOOL", "shape": [4, 4]}},
    "complex numbers": {"a": {**TENSOR, "dtype": "C64", "shape": [2]}},
    "a path as a name": {"../../outside/secret.txt": TENSOR},
    "a long name": {"a" * 1_000_000: TENSOR},
    "code as a name": {expressions(HERE)["eval"]: TENSOR},
    "an escape as a name": {"\x1b[2J": TENSOR},
    "100,000 names": {f"a{i}": {**TENSOR, "shape": [0], "data_offsets": [0, 0]} for i in range(100_000)}
    | {"a": TENSOR},
    "code as metadata": {"__metadata__": {"format": expressions(HERE)["eval"]}, "a": TENSOR},
    "numbers as metadata": {"__metadata__": {"format": 7}, "a": TENSOR},
    "lists as metadata": {"__metadata__": [[]], "a": TENSOR},
    "a name twice": b'{"a": %s, "a": %s}' % ((json.dumps(TENSOR).encode(),) * 2),
    "metadata that are no UTF-8": b'{"__metadata__": {"a": "\xff\xfe"}}',
    "a lone surrogate": b'{"\\ud800": %s}' % json.dumps(TENSOR).encode(),
    "deep brackets": b'{"a": ' + b"[" * 100_000,
    "no mapping": b"{7}",
    "null bytes": b"{" + bytes(999),
}
LENGTHS = {"none": 0, "one": 1, "too long": 999, "a giant": 2**63 - 1, "the largest": 2**64 - 1, "100 MB": 10**8}


def tensor_file(header: dict[str, Any] | bytes, content: bytes = bytes(16), length: int | None = None) -> bytes:
    """Return a file of safetensors, whose header may say anything, with the length that it says of itself."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + content


def tensor_files() -> Attacks:
    """Yield attacks by files of safetensors."""
    contents: dict[str, Callable[[Place], bytes]] = {
        **{name: lambda _, h=header: tensor_file(h) for name, header in HEADERS.items()},
        **{
            f"length: {n}": lambda _, length=length: tensor_file({"a": TENSOR}, length=length)
            for n, length in LENGTHS.items()
        },
        "no content": lambda _: tensor_file({"a": TENSOR}, b""),
        "half of the content": lambda _: tensor_file({"a": TENSOR}, bytes(8)),
        "no numbers in it": lambda _: tensor_file({"a": TENSOR}, b"\xff" * 16),
        "a pickle": lambda place: pickles(place.marker)["os.system"],
        "a pickle as content": lambda place: tensor_file({"a": TENSOR}, pickles(place.marker)["os.system"]),
        "a checkpoint": lambda place: archive(pickles(place.marker)["os.system"]),
    }
    openers: dict[str, Callable[[Place], Command]] = {
        "utils.check_weights": lambda place: check_weights(place, "evil.safetensors"),
        "utils.convert": lambda _: [
            *"utils.convert evil.safetensors --arch RepVGG/A0 --output new.safetensors".split()
        ],
        "models.yolo": lambda _: [*"models.yolo --cfg evil.yaml --imgsz 64".split()],
    }
    for number, (name, content) in enumerate(contents.items()):
        opener = list(openers)[number % len(openers)]

        def prepare(place: Place, content: Callable[[Place], bytes] = content, opener: str = opener) -> Command:
            place.write("evil.safetensors", content(place))
            row = [-1, 1, "RepVGG", ["A0", {"weights": "evil.safetensors", "allow_partial": True}]]
            place.write("evil.yaml", json.dumps({"nc": 2, "backbone": [row], "head": [[["P3"], 1, "Detect", ["nc"]]]}))
            return openers[opener](place)

        yield Attack("safetensors", f"{name}, by {opener}", prepare)


# Exports --------------------------------------------------------------------------------------------------------------
class Writer(nn.Module):
    """Writes to a file when it is run."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        torch.from_file("executed", True, 16).fill_(65.0)
        return torch.zeros(1, 6, 84) + self.weight


class Reader(nn.Module):
    """Prints a file when it is run."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        found = torch.from_file("../outside/secret.txt", True, 4)
        print(found)
        found.fill_(0.0)
        return torch.zeros(1, 6, 84) + self.weight


def save_program(module: nn.Module, path: Path, **disguise: Any) -> None:
    """Write a module as a TorchScript file; `disguise` are further files in it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.script(module).save(str(path), **disguise)


def programs() -> Attacks:
    """Yield attacks by TorchScript files."""
    for title, module in {"writes": Writer, "reads and changes": Reader}.items():
        for name, disguise in {
            "alone": {},
            "with metadata": {"config.txt": json.dumps({"names": {"0": "a"}, "imgsz": [64, 64]})},
            "with our report beside it": {},
        }.items():

            def prepare(
                place: Place, module: Any = module, disguise: dict[str, str] = disguise, name: str = name
            ) -> Command:
                save_program(module(), place.folder / "best.torchscript", _extra_files=disguise)
                if "report" in name:
                    shutil.copy(place.base / "best.export.json", place.folder)
                return detect_with(place, "best.torchscript")

            yield Attack("TorchScript", f"a file that {title}, {name}", prepare)
    for name, script in {"val": ["val", "--data", "data.yaml"], "benchmark": ["benchmark"], "train": ["train"]}.items():

        def other(place: Place, script: Command = script) -> Command:
            save_program(Writer(), place.folder / "best.torchscript")
            shutil.copy(place.base / "data.yaml", place.folder)
            return [*script, "--weights", "best.torchscript"]

        yield Attack("TorchScript", f"a file that writes, by {name}", other)
    for ending in (".pt", ".onnx", ".mnn"):

        def renamed(place: Place, ending: str = ending) -> Command:
            save_program(Writer(), place.folder / f"evil{ending}")
            return detect_with(place, f"evil{ending}")

        yield Attack("TorchScript", f"a file that writes, called {ending}", renamed)


METADATA = ("names", "imgsz", "stride", "batch", "task", "channels", "end2end", "nms", "args", "preprocess", "author")


def onnx_files() -> Attacks:
    """Yield attacks by ONNX files."""

    def attack(name: str, change: Callable[[Place, onnx.ModelProto], object]) -> Attack:
        def prepare(place: Place) -> Command:
            graph = onnx.load(place.base / "best.onnx")
            change(place, graph)
            place.write("evil.onnx", graph.SerializeToString())
            return detect_with(place, "evil.onnx")

        return Attack("ONNX", name, prepare)

    for key in METADATA:
        yield attack(f"code as {key}", lambda p, g, k=key: set_metadata(g, k, expressions(p.marker)["eval"]))
        yield attack(f"brackets as {key}", lambda p, g, k=key: set_metadata(g, k, "[" * 90_000))
    for name, value in {
        "a giant": "10**10**10",
        "a negative number": "-1",
        "a set": "{1, 2}",
        "many classes": str(dict.fromkeys(range(9_000), "a")),
        "a formatted text": "f'{open(1)}'",
        "null bytes": "\0",
    }.items():
        yield attack(f"{name} as names", lambda p, g, v=value: set_metadata(g, "names", v))
        yield attack(f"{name} as imgsz", lambda p, g, v=value: set_metadata(g, "imgsz", v))
    for name in ("../outside/secret.txt", "/etc/passwd", "/dev/zero", "http://192.0.2.1/weights", "missing.bin"):
        yield attack(f"weights in {name}", lambda p, g, n=name: outside_weights(g, n))
    yield attack("an operator of another domain", lambda p, g: setattr(g.graph.node[0], "domain", "com.stranger"))
    yield attack("an unknown operator", lambda p, g: setattr(g.graph.node[0], "op_type", "System"))
    yield attack("a giant tensor", giant_tensor)
    yield attack("a giant picture", lambda p, g: set_shape(g, 2**31 - 64))
    yield attack("no outputs", lambda p, g: g.graph.ClearField("output"))
    yield attack("no inputs", lambda p, g: g.graph.ClearField("input"))
    yield attack("no nodes", lambda p, g: g.graph.ClearField("node"))
    yield attack("an opset of the future", lambda p, g: setattr(g.opset_import[0], "version", 9999))
    for part in (0.0, 0.5, 0.99):

        def cut(place: Place, part: float = part) -> Command:
            content = (place.base / "best.onnx").read_bytes()
            place.write("evil.onnx", content[: int(part * len(content))])
            return detect_with(place, "evil.onnx")

        yield Attack("ONNX", f"the first {part:.0%}", cut)


def set_metadata(graph: onnx.ModelProto, key: str, value: str) -> None:
    """Give a graph an entry of metadata in place of the one of that name."""
    kept = [entry for entry in graph.metadata_props if entry.key != key]
    pairs = [(entry.key, entry.value) for entry in kept] + [(key, value)]
    del graph.metadata_props[:]
    helper.set_model_props(graph, dict(pairs))


def outside_weights(graph: onnx.ModelProto, location: str) -> None:
    """Have a weight read from another file."""
    weight = next(tensor for tensor in graph.graph.initializer if len(tensor.dims) == 4)
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    entry = weight.external_data.add()
    entry.key, entry.value = "location", location


def giant_tensor(_: Place, graph: onnx.ModelProto) -> None:
    """Have the graph make a tensor that no machine holds."""
    shape = numpy_helper.from_array(np.array([2**40, 2**20]), "giant_shape")
    graph.graph.initializer.append(shape)
    graph.graph.node.insert(0, helper.make_node("ConstantOfShape", ["giant_shape"], ["giant"]))
    graph.graph.output.append(helper.make_tensor_value_info("giant", TensorProto.FLOAT, None))


def set_shape(graph: onnx.ModelProto, side: int) -> None:
    """Have the graph say that it takes pictures of another size."""
    for dim in graph.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_value = side


XML = {
    "an entity of a file": '<!DOCTYPE n [<!ENTITY e SYSTEM "file:///etc/passwd">]><net name="&e;" version="11"/>',
    "an entity of an address": '<!DOCTYPE n [<!ENTITY e SYSTEM "http://192.0.2.1/">]><net name="&e;" version="11"/>',
    "nested entities": "<!DOCTYPE n ["
    + '<!ENTITY a "aaaaaaaaaa">'
    + "".join(f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefghi", "bcdefghij", strict=True))
    + ']><net name="&j;" version="11"/>',
    "an extension": '<net name="x" version="11"><layers><layer id="0" type="System" version="evil.so"/></layers></net>',
    "nothing": "",
}


def openvino_folders() -> Attacks:
    """Yield attacks by folders of OpenVINO."""

    def attack(name: str, change: Callable[[Place, Path], object]) -> Attack:
        def prepare(place: Place) -> Command:
            folder = place.folder / "evil_openvino_model"
            shutil.copytree(place.base / "best_openvino_model", folder)
            change(place, folder)
            return detect_with(place, folder.name)

        return Attack("OpenVINO", name, prepare)

    for tag in TAGS:
        yield attack(
            f"tag {tag} in the metadata",
            lambda p, f, t=tag: (f / "metadata.yaml").write_text(f"names: {yaml_tags(p.marker)[t]}\n"),
        )
    for name in EXPRESSIONS[:3]:
        yield attack(
            f"{name} in the metadata",
            lambda p, f, n=name: (f / "metadata.yaml").write_text(json.dumps({"names": expressions(p.marker)[n]})),
        )
    for name, text in XML.items():
        yield attack(f"XML: {name}", lambda p, f, t=text: next(f.glob("*.xml")).write_text(t))
    yield attack("nested aliases as names", lambda _, f: (f / "metadata.yaml").write_text(f"{LAUGHS}names: [*l]\n"))
    yield attack("weights that lead out", lambda p, f: relink(next(f.glob("*.bin")), p.secret))
    yield attack("endless weights", lambda p, f: relink(next(f.glob("*.bin")), Path("/dev/zero")))
    yield attack("endless metadata", lambda p, f: relink(f / "metadata.yaml", Path("/dev/zero")))
    yield attack("no weights", lambda p, f: next(f.glob("*.bin")).unlink())


def relink(path: Path, target: Path) -> None:
    """Put a link in the place of a file."""
    path.unlink()
    path.symlink_to(target)


def weight_attacks() -> Iterator[Attack]:
    """Yield all of this file."""
    for make in (pickled, fields, damaged, tensor_files, programs, onnx_files, openvino_folders):
        yield from make()
