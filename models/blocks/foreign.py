"""Blocks of someone else that fuse by a method of their own: the method is called on a copy, and what it makes checked.

The names are those of RepVGG and RepMLP (`switch_to_deploy`, `local_inject`), MobileOne and UniRepLKNet
(`reparameterize`), RepLKNet (`merge_kernel`), RepViT and YOLOv7 (`fuse`). What a method of such a name does is not
trusted: the block before and after it must compute the same in float64, on inputs of the shapes that the block gets.
"""

from __future__ import annotations

import copy
import inspect
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from models.blocks.dataflow import watch_calls
from models.errors import cause

METHODS = ("switch_to_deploy", "local_inject", "reparameterize", "merge_kernel", "fuse")  # the most complete first
KNOWN = ("models", "torch", "ultralytics")  # packages in whose classes such a method means what registered fusers do
EXACT = 1e-9  # largest relative error of a fused block in float64
ADVICE = "derive from Reparameterizable, whose fuse() returns the fused module"
Run = tuple[tuple[Any, ...], dict[str, Any]]  # positional and keyword arguments of one call

_CALLING: ContextVar[bool] = ContextVar("_CALLING", default=False)  # a method is running, which may fuse what it holds


class ForeignError(Exception):
    """A network does not run with the blocks that fused by a method of their own."""


class OwnMethods:
    """A fuser of the blocks of a model that have such a method.

    Args:
        fused: paths of blocks that were fused so before, which are left alone; those of this time are added.
    """

    def __init__(self, fused: set[str]) -> None:
        self.fused = fused
        self.left: list[str] = []  # path and reason
        self._new: list[str] = []  # paths of blocks that were fused this time
        self._judged: set[nn.Module] = set()
        self._runs: dict[nn.Module, list[Run]] = {}
        self._paths: dict[nn.Module, str] = {}

    def watch(self, model: nn.Module, example: Tensor) -> bool:
        """Note which blocks are still to be judged, and what each gets in `model(example)`; return if there are any.

        Raises:
            ForeignError: as `check`.
        """
        self._paths = {
            module: path
            for path, module in model.named_modules()
            if methods_of(module) and path not in self.fused and module not in self._judged and not _CALLING.get()
        }
        if self._paths:
            self.check(model, example)
            self._runs = watch_runs(model, example, self._paths)
        return bool(self._paths)

    def check(self, model: nn.Module, example: Tensor) -> None:
        """Raise ForeignError if blocks were fused and `model(example)` fails, as it may read their parts."""
        try:
            if self._new:
                with torch.no_grad():
                    model(example)
        except Exception as e:
            paths = ", ".join(self._new)
            reason = f"it does not run with {paths} fused: {cause(e)}"
            raise ForeignError(f"the network: {reason}; {ADVICE}") from e

    def __call__(self, module: nn.Module) -> nn.Module | None:
        """Return the fused form of a watched block; None for others, and for those that are left as they are."""
        if module not in self._paths or module in self._judged:
            return None
        self._judged.add(module)
        path = self._paths[module]
        reasons = []
        for method in methods_of(module):
            try:
                replaced = call_method(module, method, self._runs.get(module, []))
            except ValueError as e:
                reasons.append(str(e))
                continue
            if replaced is not None:
                self._judged.add(replaced)
                self.fused.add(path)
                self._new.append(path)
                return replaced
        if reasons:
            self.left.append(f"{path or 'the network'}: {'; '.join(reasons)}; {ADVICE}")
        return None


def methods_of(module: nn.Module) -> list[str]:
    """Return the names of the methods by which a module of another's class might fuse."""
    kinds = type(module).__mro__
    return [
        name
        for name in METHODS
        if callable(getattr(kinds[0], name, None))
        and not any(name in vars(kind) and _package(kind) in KNOWN for kind in kinds)
        and _package(kinds[0]) not in (*KNOWN, "timm")  # timm's have their fuser, but not what derives from them
    ]


def _package(kind: type) -> str:
    return kind.__module__.partition(".")[0]


def watch_runs(model: nn.Module, example: Tensor, modules: dict[nn.Module, Any]) -> dict[nn.Module, list[Run]]:
    """Return the arguments with which `model(example)` calls each of some modules."""
    runs: dict[nn.Module, list[Run]] = defaultdict(list)

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        runs[module].append((args, kwargs))

    watch_calls(model, example, modules, note)
    return runs


def call_method(module: nn.Module, method: str, runs: list[Run]) -> nn.Module | None:
    """Return what `module.method()` makes of a copy of `module`, in eval mode; None if that changes no structure.

    A method may work in place or return another module. It works in float64 on the CPU; the result has the dtype and
    device of `module`.

    Raises:
        ValueError: the method takes arguments, fails, or makes something that does not compute the same in float64.
    """
    needed = _required_arguments(module, method)
    if needed:
        raise ValueError(f"its {method}() takes {', '.join(needed)} and was not called")
    tensors = [*module.parameters(), *module.buffers()]
    places = {(tensor.device, tensor.dtype) for tensor in tensors if tensor.is_floating_point()}
    if len(places) > 1 or any(tensor.is_meta for tensor in tensors):
        raise ValueError(f"its {method}() cannot be checked: its tensors have several dtypes or no data")
    before = copy.deepcopy(module).to("cpu", torch.float64)
    after = copy.deepcopy(before)
    with _alone(), torch.no_grad():
        try:
            result = getattr(after, method)()
        except Exception as e:
            raise ValueError(f"its {method}() raises {cause(e)}") from e
        after = (result if isinstance(result, nn.Module) else after).eval()
        if _structure(after) == _structure(before):
            return None
        _compare(before, after, method, runs)
    for device, dtype in places:
        after.to(device, dtype)
    return after


def _required_arguments(module: nn.Module, method: str) -> list[str]:
    """Return the names of the arguments without which a method cannot be called."""
    parameters = inspect.signature(getattr(module, method)).parameters.values()
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in optional]


@contextmanager
def _alone() -> Iterator[None]:
    """Keep what a method does to torch's settings inside; convolutions that it makes are of float64."""
    dtype, calling = torch.get_default_dtype(), _CALLING.set(True)
    try:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.set_default_dtype(torch.float64)
            yield
    finally:
        torch.set_default_dtype(dtype)
        _CALLING.reset(calling)


def _structure(module: nn.Module) -> list[Any]:
    """Return the types of all modules in a module and the shapes of its tensors, each with its path."""
    kinds = [(path, type(m)) for path, m in module.named_modules()]
    return [*kinds, *((name, tensor.shape) for name, tensor in module.state_dict().items())]


def _compare(before: nn.Module, after: nn.Module, method: str, runs: list[Run]) -> None:
    """Raise ValueError unless two modules in float64 on the CPU compute the same, on noise of the shapes of `runs`."""
    for tensor in (*after.parameters(), *after.buffers()):
        if tensor.device.type != "cpu" or (tensor.dtype != torch.float64 and tensor.is_floating_point()):
            kind = f"{tensor.dtype} on {tensor.device}".removeprefix("torch.")
            raise ValueError(f"its {method}() makes tensors of {kind} of a block in float64 on cpu")
    if not runs:
        raise ValueError(f"its {method}() cannot be checked: the block does not run on the example picture")
    generator = torch.Generator().manual_seed(0)
    for run in runs:
        args, kwargs = tree_map_only(Tensor, lambda tensor: _noise_like(tensor, generator), run)
        want = _outputs(before, args, kwargs, f"its {method}() cannot be checked: the block does not run in float64")
        got = _outputs(after, args, kwargs, f"after its {method}() it does not run")
        if [t.shape for t in want] != [t.shape for t in got]:
            raise ValueError(f"after its {method}() the outputs have other shapes")
        for error in map(_relative_error, got, want):
            if not error <= EXACT:
                raise ValueError(f"after its {method}() it computes something else, {error:.1e} off in float64")


def _noise_like(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Return float64 noise of a tensor's shape on the CPU; other than floating-point numbers stay what they are."""
    if not tensor.is_floating_point():
        return tensor.cpu()
    return torch.randn(tensor.shape, generator=generator, dtype=torch.float64)


def _outputs(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], failure: str) -> list[Tensor]:
    """Return the tensors that a module gives; it gets arguments of its own, which it may overwrite.

    Raises:
        ValueError: it fails, in any way that code of others may; `failure` says what that means.
    """
    args, kwargs = copy.deepcopy((args, kwargs))
    try:
        output = module(*args, **kwargs)
    except Exception as e:
        raise ValueError(f"{failure}: {cause(e)}") from e
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def _relative_error(got: Tensor, want: Tensor) -> float:
    """Return the largest difference over the largest value of `want`; NaN where something is not finite."""
    if not want.numel():
        return 0.0
    difference, size = (got.double() - want.double()).abs().max().item(), want.double().abs().max().item()
    return difference / size if size else difference
