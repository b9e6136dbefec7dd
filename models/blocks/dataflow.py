"""Which module feeds which: read off one forward pass, so that no class, name or order of attributes is trusted."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class Link:
    """A consumer that ran, and the producer whose output it alone reads; None if there is no such producer."""

    consumer: Any  # a module
    producer: Any  # a module, or None
    shape: tuple[int, ...]  # of what passes


class _Readers(TorchDispatchMode):
    """Counts, for every tensor, the operators that read it. Tensors are kept, so that their ids stay their own."""

    def __init__(self) -> None:
        super().__init__()
        self.count: dict[int, int] = defaultdict(int)
        self.kept: list[Tensor] = []

    def read(self, values: Any) -> None:
        for leaf in tree_leaves(values):
            if isinstance(leaf, Tensor):
                self.count[id(leaf)] += 1
                self.kept.append(leaf)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.read((args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def follow(
    model: nn.Module, example: Tensor, producers: tuple[type, ...], consumers: tuple[type, ...]
) -> Iterator[Link]:
    """Yield a link for every module of the types `consumers` that `model(example)` runs.

    The producer is the module of the types `producers` whose output the consumer reads, if nothing else reads that
    output (another operator, or whoever called the model), nothing else reads its weight, and both run once.

    Args:
        model: in eval mode.
        example: an input of `model`; only its shape, dtype and device matter.
    """
    runs: dict[nn.Module, int] = defaultdict(int)
    made: dict[int, tuple[nn.Module, Tensor]] = {}  # by the id of the output, which is kept with it
    read: dict[nn.Module, Tensor] = {}  # a consumer's input

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        runs[module] += 1
        if isinstance(module, consumers):
            read[module] = next(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        elif isinstance(output, Tensor):
            made[id(output)] = module, output

    watched = [module for module in model.modules() if isinstance(module, (*producers, *consumers))]
    hooks = [module.register_forward_hook(note, with_kwargs=True) for module in watched]
    try:
        with torch.no_grad(), _Readers() as readers:
            readers.read(model(example))
    finally:
        for hook in hooks:
            hook.remove()
    for consumer, tensor in read.items():
        producer, _ = made.get(id(tensor), (None, None))
        alone = (
            producer is not None
            and readers.count[id(tensor)] == 1
            and (producer.weight is None or readers.count[id(producer.weight)] == 1)
            and runs[consumer] == runs[producer] == 1
        )
        yield Link(consumer, producer if alone else None, tuple(tensor.shape))


def feeding_modules(model: nn.Module, example: Tensor, modules: Iterable[nn.Module]) -> set[nn.Module]:
    """Return those of some modules on whose outputs the inputs of others of them depend, by whatever stands between.

    Args:
        model: in eval mode.
        example: an input of `model`; only its shape, dtype and device matter.
        modules: of the model.
    """
    made: dict[Any, nn.Module] = {}  # by the nodes of autograd's graph, which stay their own while they are kept
    waiting: list[Any] = []

    def nodes(values: Any) -> list[Any]:
        leaves = [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
        return [leaf.grad_fn for leaf in leaves if leaf.grad_fn is not None]

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        waiting.extend(nodes((args, kwargs)))
        made.update(dict.fromkeys(nodes(output), module))

    hooks = [module.register_forward_hook(note, with_kwargs=True) for module in modules]
    try:
        with torch.enable_grad():
            model(example.detach().requires_grad_())
    finally:
        for hook in hooks:
            hook.remove()
    seen = set(waiting)
    while waiting:
        found = {node for node, _ in waiting.pop().next_functions if node is not None} - seen
        seen |= found
        waiting.extend(found)
    return {made[node] for node in seen if node in made}


def ran_modules(model: nn.Module, example: Tensor) -> set[nn.Module]:
    """Return the modules that `model(example)` calls."""
    ran: set[nn.Module] = set()
    watch_calls(model, example, model.modules(), lambda module, *_: ran.add(module))
    return ran


def watch_calls(model: nn.Module, example: Tensor, modules: Iterable[nn.Module], note: Callable[..., None]) -> None:
    """Run `model(example)` and call `note(module, args, kwargs)` before each call of one of `modules`."""
    hooks = [module.register_forward_pre_hook(note, with_kwargs=True) for module in modules]
    try:
        with torch.no_grad():
            model(example)
    finally:
        for hook in hooks:
            hook.remove()
