"""Module imitation (RIFormer, https://arxiv.org/abs/2304.05659): modules of a teacher teach those of a student.

Modules are addressed by name: as their publisher calls them, translated as the names of a teacher's tensors are when
the student loads them. So PoolFormer's `stages.0.blocks.1.token_mixer` teaches RIFormer's `network.0.1.token_mixer`. As
in the paper each network sees its own maps, and what the modules give is compared, and what the blocks around them
give. Unlike there, squares are relative to the teacher's, so that all layers weigh alike whatever their scale.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from models import Backbone, DetectionModel
from models.backbones.weights import PLAIN, choose_dialect
from models.errors import UserError
from models.summary import on_meta, run_on_meta
from utils.train.teaching.losses import relative_square
from utils.train.teaching.maps import Tap, Watch

TOKEN_MIXER = "token_mixer"


class Pair(NamedTuple):
    """Names of two modules inside of their backbones."""

    teacher: str
    student: str


def list_backbone(model: DetectionModel, who: str) -> Backbone:
    """Return the last list backbone of a model; UserError if it has none."""
    found = [module for module in model.model if isinstance(module, Backbone)]
    if not found:
        raise UserError(f"--imitate is for list backbones, of which {who} has none")
    return found[-1]


def translation(teacher: Backbone, student: Backbone) -> Callable[[str], str]:
    """Return what gives a module of the teacher the name that the student has for what plays its part."""
    names = [teacher.published_name(name) for name in teacher.state_dict()]
    dialect = choose_dialect(names, student.dialects) or PLAIN
    return lambda name: next(iter(dialect.translate({f"{teacher.published_name(name)}.": torch.empty(0)}))).rstrip(".")


def pair_modules(
    teacher: Backbone, student: Backbone, word: str, translate: Callable[[str], str]
) -> tuple[list[Pair], list[Pair]]:
    """Return the modules called `word` in both backbones, each with its partner, and the blocks around them.

    Args:
        teacher: whose modules teach.
        student: whose modules learn.
        word: last part of their names.
        translate: from the name of a module of the teacher to that of its partner.

    Raises:
        UserError: one has no such module, or one without a partner.
    """
    theirs = {translate(name): name for name in modules_called(teacher, word)}
    own = {student.published_name(name): name for name in modules_called(student, word)}
    for side, names in (("the teacher", theirs), ("the model", own)):
        if not names:
            raise UserError(f"--imitate {word}: the backbone of {side} has no module of that name")
    if alone := sorted(theirs.keys() ^ own.keys()):
        counts = f"the teacher has {len(theirs)} modules {word}, the model {len(own)}"
        raise UserError(f"--imitate {word}: {counts}, and {alone[0]} has no partner; take a teacher of the same depth")
    pairs = [Pair(theirs[name], own[name]) for name in own]
    blocks = [Pair(pair.teacher.rpartition(".")[0], pair.student.rpartition(".")[0]) for pair in pairs]
    return pairs, [pair for pair in dict.fromkeys(blocks) if all(pair)]


def modules_called(network: nn.Module, word: str) -> list[str]:
    """Return the names of all modules whose last part is `word`."""
    return [name for name, _ in network.named_modules() if f".{name}".endswith(f".{word}")]


class Imitation:
    """The modules of a student that learn from those of a teacher.

    Args:
        teacher: network of the teacher, not fused.
        student: the model that is trained.
        word: what the modules are called.

    Raises:
        UserError: they do not fit.
    """

    def __init__(self, teacher: DetectionModel, student: DetectionModel, word: str) -> None:
        self.word = word
        other, own = list_backbone(teacher, "the teacher"), list_backbone(student, student.spec.name)
        self.modules, blocks = pair_modules(other, own, word, translation(other, own))
        self.pairs = [*self.modules, *blocks]
        sizes = [network.example_input().shape[2:] for network in (other, own)]
        size = (max(height for height, _ in sizes), max(width for _, width in sizes))
        theirs = shapes_of(other, [pair.teacher for pair in self.pairs], size)
        wanted = shapes_of(own, [pair.student for pair in self.pairs], size)
        for pair in self.pairs:
            if theirs[pair.teacher] != wanted[pair.student]:
                raise UserError(
                    f"--imitate {word}: {pair.teacher} of the teacher gives maps of {theirs[pair.teacher]}, "
                    f"{pair.student} of the model {wanted[pair.student]}, for a picture of {size[0]}x{size[1]}; take a "
                    f"teacher of the same width"
                )

    def taps(self, model: DetectionModel, of_teacher: bool) -> tuple[Tap, ...]:
        """Return the taps of a model that keep what its modules give, under the student's names."""
        network = list_backbone(model, "it")
        return tuple(
            Tap(network.get_submodule(pair.teacher if of_teacher else pair.student), False, _keep_copy(pair.student))
            for pair in self.pairs
        )

    def loss(self, student: Mapping[Hashable, Any], teacher: Mapping[Hashable, Any]) -> Tensor:
        """Return the mean over modules, and the same of the blocks around them, of the relative squared difference."""
        squares = [relative_square(student[pair.student], teacher[pair.student]) for pair in self.pairs]
        count = len(self.modules)
        parts = [torch.stack(part).mean() for part in (squares[:count], squares[count:]) if part]
        return torch.stack(parts).sum()


def shapes_of(network: Backbone, names: Sequence[str], size: tuple[int, int]) -> dict[str, tuple[int, ...]]:
    """Return the shapes (C, H, W) of what modules of a backbone give for a picture of `size`, run without data."""
    ghost = on_meta(network)
    watch = Watch(Tap(ghost.get_submodule(name), False, _keep_copy(name)) for name in names)
    watch.start()
    try:
        run_on_meta(ghost, size)
    finally:
        found = watch.stop()
    return {str(name): tuple(value.shape[1:]) for name, value in found.items()}


def _keep_copy(name: Hashable) -> Callable[[Any], dict[Hashable, Any]]:
    return lambda value: {name: value.clone()}  # what follows may change it in place
