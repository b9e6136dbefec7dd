"""Which module feeds which: read off one forward pass, so that no class, name or order of attributes is trusted."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Readers(TorchDispatchMode):
    """Counts, for every tensor, the operators that read it. Tensors are kept, so that their ids stay their own."""

    def __init__(self) -> None:
        super().__init__()
        self.count: dict[int, int] = defaultdict(int)
        self.kept: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs or {})):
            if isinstance(leaf, Tensor):
                self.count[id(leaf)] += 1
                self.kept.append(leaf)
        return func(*args, **(kwargs or {}))


def follow(
    model: nn.Module, example: Tensor, producers: tuple[type, ...], consumers: tuple[type, ...]
) -> Iterator[tuple[str, Any, str | None]]:
    """Yield (name, module, producer) for every module of the types `consumers` that `model(example)` runs.

    `producer` is the name of the module of the types `producers` whose output the consumer reads, if nothing else
    reads that output and both run once; otherwise None. Modules that do not run are not yielded.

    Args:
        model: in eval mode.
        example: an input of `model`; only its shape, dtype and device matter.
    """
    runs: dict[nn.Module, int] = defaultdict(int)
    made_by: dict[int, nn.Module] = {}  # id of an output tensor to the module that made it
    read: dict[nn.Module, Tensor] = {}  # a consumer's input
    names: dict[nn.Module, str] = {module: name for name, module in model.named_modules()}

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        runs[module] += 1
        if isinstance(module, consumers):
            read[module] = inputs[0]
        else:
            made_by[id(output)] = module

    hooks = [module.register_forward_hook(note) for module in names if isinstance(module, (*producers, *consumers))]
    try:
        with torch.no_grad(), _Readers() as readers:
            model(example)
    finally:
        for hook in hooks:
            hook.remove()
    for module, tensor in read.items():
        producer = made_by.get(id(tensor))
        alone = producer is not None and readers.count[id(tensor)] == 1 and runs[module] == runs[producer] == 1
        yield names[module], module, names[producer] if alone and producer is not None else None
