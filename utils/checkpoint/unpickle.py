"""What torch.save wrote of whole modules, as data: tensors, plain containers and inert records of everything else.

A pickle is a program: reading it the usual way imports and calls whatever it names. Here a machine of our own steps
through its opcodes and calls nothing: a class or function is a `Global`, two strings; an object, or what a call would
have returned, is an `Inert` with its arguments, state and items. Only tensors, ordered dicts and sets are built, from
their parts.
"""

from __future__ import annotations

import io
import math
import pickletools
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor

from models.backbones.weights import TORCH_MAGIC, weights_file
from models.errors import WeightsError

MAX_PICKLE = 200_000_000  # bytes of the objects alone, without what tensors hold; YOLOv5x's are 0.4 million
MAX_DIMENSIONS = 16  # of a tensor
LEGACY_PROTOCOL = 1001  # that torch's files of before version 1.6 name
STORAGE_DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}
NAMED_DTYPES = {
    str(dtype).removeprefix("torch."): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)
}


class DamagedPickle(Exception):
    """The opcodes are not those of a file that torch wrote."""


class Global(NamedTuple):
    """A class or function that a pickle names. Nothing is imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Inert:
    """An object that was not built, or the result of a call that was not made.

    Attributes:
        kind: what would have been called; a `Global` or the result of another such call.
        args: the arguments, positional and then by name.
        state: what the object would have been set to; for most the dictionary of its attributes.
        items: what would have been appended or set as items, pairs for the latter.
    """

    __slots__ = ("args", "items", "kind", "state")

    def __init__(self, kind: object, args: object = ()) -> None:
        self.kind = kind
        self.args = args
        self.state: Any = None
        self.items: list[Any] = []

    @property
    def class_name(self) -> str:
        """The class's name without its module; empty if it is not the instance of a class."""
        return self.kind.name.rpartition(".")[2] if isinstance(self.kind, Global) else ""

    def get(self, name: str, default: Any = None) -> Any:
        """Return an attribute of the object."""
        return self.state.get(name, default) if isinstance(self.state, Mapping) else default


# Files ----------------------------------------------------------------------------------------------------------------
def read_pickled(file: str | Path) -> Any:
    """Return what torch.save wrote into a file, without running any of it.

    Both of torch's formats are read: the zip file, and the row of pickles of versions before 1.6.

    Raises:
        WeightsError: no such file, a damaged one, or another kind of file.
    """
    path = Path(file)
    with weights_file(path):
        return _read_zip(path) if zipfile.is_zipfile(path) else _read_legacy(path)


def _read_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        found = [name for name in names if name.endswith("/data.pkl")]
        if len(found) != 1 or any("/code/" in name for name in names):
            raise DamagedPickle("no data.pkl, or a TorchScript file")
        folder = found[0].removesuffix("data.pkl")
        if f"{folder}byteorder" in names and archive.read(f"{folder}byteorder") != b"little":
            raise WeightsError(f"{path} was written on a big-endian machine, which is not read")
        if archive.getinfo(found[0]).file_size > MAX_PICKLE:
            raise WeightsError(f"{path} has a pickle of more than {MAX_PICKLE:,} bytes, which no model has")
        storages: dict[str, bytearray] = {}

        def read_storage(dtype: torch.dtype, key: str, count: int) -> Tensor:
            if key not in storages:
                storages[key] = bytearray(archive.read(f"{folder}data/{key}"))
            return _as_tensor(storages[key], dtype, count)

        return Machine(read_storage).run(io.BytesIO(archive.read(found[0])))


def _read_legacy(path: Path) -> Any:
    """Read the row of pickles: magic number, protocol, machine, object and storage keys; then the storages' bytes."""
    size = path.stat().st_size
    storages: dict[str, tuple[torch.dtype, bytearray]] = {}
    total = 0

    def make_storage(dtype: torch.dtype, key: str, count: int) -> Tensor:
        nonlocal total
        if key not in storages:
            total += count * dtype.itemsize
            if total > size:
                raise DamagedPickle("storages of more bytes than the file has")
            storages[key] = dtype, bytearray(count * dtype.itemsize)
        return _as_tensor(storages[key][1], dtype, count)

    with path.open("rb") as f:
        if TORCH_MAGIC not in f.read(20):
            raise DamagedPickle("not a file of torch's")
        f.seek(0)
        machine = Machine(make_storage)
        _, protocol, _, content, keys = (machine.run(f) for _ in range(5))
        if protocol != LEGACY_PROTOCOL or sorted(keys) != sorted(storages):
            raise DamagedPickle("another protocol, or other storages than the tensors'")
        for key in keys:
            dtype, data = storages[key]
            (count,) = struct.unpack("<q", f.read(8))
            if count * dtype.itemsize != len(data) or f.readinto(data) != len(data):
                raise DamagedPickle("a storage is cut off")
    return content


def _as_tensor(data: bytearray, dtype: torch.dtype, count: int) -> Tensor:
    """Return the first `count` elements of a storage as a flat tensor that shares its memory."""
    if not 0 <= count * dtype.itemsize <= len(data):
        raise DamagedPickle("a tensor of more bytes than its storage has")
    return torch.frombuffer(data, dtype=dtype, count=count) if count else torch.empty(0, dtype=dtype)


# The machine ----------------------------------------------------------------------------------------------------------
ReadStorage = Callable[[torch.dtype, str, int], Tensor]  # dtype, key and number of elements to a flat tensor
Opcode = Callable[["Machine", Any], None]
OPCODES: dict[str, Opcode] = {}
SCALARS = (str, int, float, bool, bytes, type(None))


def opcode(*names: str) -> Callable[[Opcode], Opcode]:
    """Return a decorator that makes a method carry out these opcodes, given the argument written behind them."""

    def register(method: Opcode) -> Opcode:
        OPCODES.update(dict.fromkeys(names, method))
        return method

    return register


class Machine:
    """Carries out the opcodes of pickle protocols 1 to 5 that torch's files hold, and refuses all others.

    Memory is bounded by the pickle's own length: an opcode makes at most one small object, and what it reads is there.

    Args:
        read_storage: gives the elements of a tensor's storage.
    """

    def __init__(self, read_storage: ReadStorage) -> None:
        self.read_storage = read_storage
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []  # the stacks below each mark
        self.memo: dict[int, Any] = {}

    def run(self, file: IO[bytes]) -> Any:
        """Return the object of the pickle that starts where `file` stands, and leave `file` after it.

        Raises:
            DamagedPickle, ValueError, LookupError, TypeError: it is not one that torch writes.
        """
        self.stack, self.marked, self.memo = [], [], {}
        for code, argument, _ in pickletools.genops(file):
            if code.name == "STOP":
                return self.stack.pop()
            method = OPCODES.get(code.name)
            if method is None:
                raise DamagedPickle(f"opcode {code.name}")
            method(self, argument)
        raise DamagedPickle("no end")

    def pop_mark(self) -> list[Any]:
        """Return everything above the last mark, and drop both."""
        above, self.stack = self.stack, self.marked.pop()
        return above

    @opcode("PROTO", "FRAME")
    def skip(self, argument: Any) -> None: ...

    @opcode("MARK")
    def mark(self, _: Any) -> None:
        self.marked.append(self.stack)
        self.stack = []

    @opcode("POP")
    def pop(self, _: Any) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.pop_mark()

    @opcode("POP_MARK")
    def drop(self, _: Any) -> None:
        self.pop_mark()

    @opcode("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT")
    @opcode("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING")
    @opcode("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8")
    def push(self, argument: Any) -> None:
        self.stack.append(argument)

    @opcode("NONE")
    def push_none(self, _: Any) -> None:
        self.stack.append(None)

    @opcode("NEWTRUE")
    def push_true(self, _: Any) -> None:
        self.stack.append(True)

    @opcode("NEWFALSE")
    def push_false(self, _: Any) -> None:
        self.stack.append(False)

    # Containers
    @opcode("EMPTY_LIST", "EMPTY_SET")  # a set is a list until it is known what it holds
    def push_list(self, _: Any) -> None:
        self.stack.append([])

    @opcode("LIST", "FROZENSET")
    def push_marked_list(self, _: Any) -> None:
        marked = self.pop_mark()
        self.stack.append(marked)

    @opcode("EMPTY_DICT")
    def push_dict(self, _: Any) -> None:
        self.stack.append({})

    @opcode("DICT")
    def push_marked_dict(self, _: Any) -> None:
        items = self.pop_mark()
        self.stack.append({})
        self._set_items(items)

    @opcode("EMPTY_TUPLE")
    def push_tuple(self, _: Any) -> None:
        self.stack.append(())

    @opcode("TUPLE")
    def push_marked_tuple(self, _: Any) -> None:
        marked = self.pop_mark()
        self.stack.append(tuple(marked))

    @opcode("TUPLE1")
    def push_single(self, _: Any) -> None:
        self.stack.append((self.stack.pop(),))

    @opcode("TUPLE2")
    def push_pair(self, _: Any) -> None:
        self.stack[-2:] = [(self.stack[-2], self.stack[-1])]

    @opcode("TUPLE3")
    def push_triple(self, _: Any) -> None:
        self.stack[-3:] = [(self.stack[-3], self.stack[-2], self.stack[-1])]

    @opcode("APPEND")
    def append(self, _: Any) -> None:
        value = self.stack.pop()
        self._append([value])

    @opcode("APPENDS", "ADDITEMS")
    def extend(self, _: Any) -> None:
        self._append(self.pop_mark())

    @opcode("SETITEM")
    def set_item(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key, value])

    @opcode("SETITEMS")
    def set_items(self, _: Any) -> None:
        self._set_items(self.pop_mark())

    def _append(self, values: list[Any]) -> None:
        top = self.stack[-1]
        if not isinstance(top, list | Inert):
            raise DamagedPickle("append to something else than a list")
        (top.items if isinstance(top, Inert) else top).extend(values)

    def _set_items(self, values: list[Any]) -> None:
        top = self.stack[-1]
        pairs = list(zip(values[::2], values[1::2], strict=True))
        if isinstance(top, Inert):
            top.items.extend(pairs)
        elif isinstance(top, dict) and all(_is_key(key) for key, _ in pairs):
            top.update(pairs)
        else:
            raise DamagedPickle("items of something else than a dictionary, or keys that are neither text nor numbers")

    # The memo
    @opcode("BINPUT", "LONG_BINPUT")
    def memoize_at(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    @opcode("MEMOIZE")
    def memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    @opcode("BINGET", "LONG_BINGET")
    def recall(self, index: int) -> None:
        self.stack.append(self.memo[index])

    # What the usual machine would import and call
    @opcode("GLOBAL")
    def push_global(self, text: str) -> None:
        self.stack.append(Global(*text.split(" ", 1)))

    @opcode("STACK_GLOBAL")
    def push_stacked_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise DamagedPickle("a class whose name is no text")
        self.stack.append(Global(module, name))

    @opcode("REDUCE")
    def call(self, _: Any) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        self.stack.append(build(function, args))

    @opcode("NEWOBJ")
    def instance(self, _: Any) -> None:
        args, kind = self.stack.pop(), self.stack.pop()
        self.stack.append(Inert(kind, args))

    @opcode("NEWOBJ_EX")
    def instance_with_keywords(self, _: Any) -> None:
        keywords, args, kind = self.stack.pop(), self.stack.pop(), self.stack.pop()
        self.stack.append(Inert(kind, (args, keywords)))

    @opcode("BUILD")
    def set_state(self, _: Any) -> None:
        state, top = self.stack.pop(), self.stack[-1]
        if isinstance(top, Inert):  # others, such as state_dict()'s ordered dict, have attributes that say nothing
            top.state = state

    @opcode("BINPERSID")
    def push_persistent(self, _: Any) -> None:
        """A tensor's storage, ("storage", class, key, device, elements, ...), or ("module", class, file, source)."""
        identity = self.stack.pop()
        if isinstance(identity, tuple) and len(identity) == 4 and identity[0] == "module":
            self.stack.append(identity[1])
            return
        if not isinstance(identity, tuple) or len(identity) < 5 or identity[0] != "storage":
            raise DamagedPickle("a persistent object that is no storage")
        kind, key, count = identity[1], identity[2], identity[4]
        dtype = STORAGE_DTYPES.get(kind.name) if isinstance(kind, Global) else None
        if (
            dtype is None
            or not isinstance(key, str)
            or not _is_count(count)
            or (identity[5:] or (None,))[0] is not None
        ):
            raise DamagedPickle("a storage of an unknown type")
        self.stack.append(Storage(self.read_storage(dtype, key, count)))


class Storage(NamedTuple):
    """The elements of one or several tensors, in a row."""

    elements: Tensor


def _is_key(value: object) -> bool:
    """Return whether a value is hashed at once: tuples in tuples of a few bytes can take for ever."""
    parts = value if isinstance(value, tuple) else (value,)
    return all(type(part) in SCALARS for part in parts)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62


# What is built --------------------------------------------------------------------------------------------------------
def build(function: object, args: object) -> Any:
    """Return the tensor, parameter, ordered dict or set that a call means, or the record of another call."""
    builder = BUILDERS.get(str(function)) if isinstance(function, Global) else None
    return Inert(function, args) if builder is None or not isinstance(args, tuple) else builder(*args)


def build_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    """Return the view of a storage that a tensor is; the rest of its arguments serves training."""
    if not isinstance(storage, Storage):
        raise DamagedPickle("a tensor without storage")
    return view(storage.elements, offset, size, stride)


def build_tensor_of_dtype(
    storage: Any, offset: Any, size: Any, stride: Any, _grad: Any, _hooks: Any, dtype: Any, *_: Any
) -> Tensor:
    """Return a tensor of a type that has no storage class of its own."""
    known = NAMED_DTYPES.get(dtype.name) if isinstance(dtype, Global) else None
    if not isinstance(storage, Storage) or known is None:
        raise DamagedPickle("a tensor of an unknown type")
    return view(storage.elements.view(known), offset, size, stride)


def build_parameter(data: Any, *_: Any) -> Tensor:
    """Return a parameter's tensor."""
    if not isinstance(data, Tensor):
        raise DamagedPickle("a parameter that is no tensor")
    return data


def build_from_type(function: Any, _kind: Any, args: Any, _state: Any = None, *_: Any) -> Any:
    """Return the tensor of a subclass, or of one with attributes, as a plain one."""
    return build(function, args)


def build_ordered(*pairs: Any) -> OrderedDict[Any, Any]:
    """Return an ordered dict, empty in new files and with pairs in old ones."""
    ordered: OrderedDict[Any, Any] = OrderedDict()
    for key, value in pairs[0] if pairs else ():
        if not _is_key(key):
            raise DamagedPickle("a key that is neither text nor number")
        ordered[key] = value
    return ordered


def build_set(values: Any = ()) -> Any:
    """Return a set of texts or numbers; a list of anything else."""
    if not isinstance(values, list | tuple):
        raise DamagedPickle("a set of something else than values")
    return set(values) if all(map(_is_key, values)) else list(values)


BUILDERS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": build_tensor,
    "torch._utils._rebuild_tensor_v2": build_tensor,
    "torch._utils._rebuild_tensor_v3": build_tensor_of_dtype,
    "torch._utils._rebuild_parameter": build_parameter,
    "torch._utils._rebuild_parameter_with_state": build_parameter,
    "torch._tensor._rebuild_from_type_v2": build_from_type,
    "collections.OrderedDict": build_ordered,
    "builtins.set": build_set,
    "builtins.frozenset": build_set,
    "__builtin__.set": build_set,
    "__builtin__.frozenset": build_set,
}


def view(elements: Tensor, offset: Any, size: Any, stride: Any) -> Tensor:
    """Return the tensor of a size and strides, in elements, that starts at `offset` of a storage.

    Raises:
        DamagedPickle: it would read beyond the storage.
    """
    if not _are_counts([offset]) or not _are_counts(size) or not _are_counts(stride) or len(size) != len(stride):
        raise DamagedPickle("a tensor whose shape is none")
    if len(size) > MAX_DIMENSIONS or math.prod(size) >= 2**48:
        raise DamagedPickle("a tensor of no plausible size")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if math.prod(size) and last >= len(elements):
        raise DamagedPickle("a tensor that its storage does not hold")
    return elements.as_strided(tuple(size), tuple(stride), offset) if math.prod(size) else elements.new_empty(size)


def _are_counts(values: Any) -> bool:
    return isinstance(values, Sequence) and all(map(_is_count, values))
