"""What an optimizer does with each tensor of a model: its learning rate, and whether it decays.

The rule of weight decay stands in `kind_of`: matrices and kernels decay. Norms, biases and factors do not; factors are
what multiplies or shifts channels, such as layer scales, affine token mixers, factors of branches and of a weighted
sum, and what a network itself excepts, such as position embeddings.

The backbone may learn `lr_backbone` times as fast as the rest, and more slowly the nearer a block is to the picture, by
a factor `layer_decay` from block to block, as BEiT is fine-tuned (https://arxiv.org/abs/2106.08254).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models import DetectionModel
from models.errors import UserError
from models.parts import backbone_blocks, backbone_roots, block_of, classifier_names, is_under
from utils.train.muon import MuSGD

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
LINEAR = (nn.Linear, nn.modules.conv._ConvNd)
WEIGHTS, NORM, FACTORS, BIASES = KINDS = ("weights", "norms", "factors", "biases")  # of tensors; the first decays
BACKBONE, REST, SCORES = PARTS = ("backbone", "neck, head", "class scores")  # of a model
ORTHOGONAL = {"muon": 0.2, "sgd": 1.0}  # parts of the two steps that MuSGD adds, as ultralytics takes them
CLASS_RATE = 3.0  # how many times as fast class scores learn with MuSGD
CLASS_LAYERS = ("cv3", "one2one_cv3", "proto.semseg")  # that give scores of classes alone, in a head without anchors


@dataclass(frozen=True)
class Entry:
    """A tensor that is learnt.

    Attributes:
        tensor: itself.
        kind: one of KINDS.
        part: one of PARTS; scores of classes are one where they have a rate of their own.
        rate: by which the learning rate is multiplied for it.
        muon: whether its steps are made orthogonal, by MuSGD.
    """

    tensor: nn.Parameter
    kind: str
    part: str
    rate: float
    muon: bool

    @property
    def group(self) -> str:
        """The kind of group in ultralytics' loop: "bias" starts at warmup_bias_lr, which is none of a slow backbone."""
        if self.kind == BIASES and (self.part != BACKBONE or self.rate == 1):
            return "bias"
        return "muon" if self.muon else "weight" if self.kind == WEIGHTS else "bn"


def kind_of(module: nn.Module, name: str, tensor: Tensor) -> str:
    """Return of which of KINDS a tensor is that a module holds by this name: the one rule of weight decay."""
    if "bias" in name:
        return BIASES
    if isinstance(module, NORMS):
        return NORM
    is_vector = tensor.numel() == max(tensor.shape, default=1) and not isinstance(module, LINEAR)
    return FACTORS if tensor.ndim < 2 or tensor[0].numel() == 1 or is_vector else WEIGHTS


def optimized(
    model: DetectionModel, lr_backbone: float = 1.0, layer_decay: float = 1.0, muon: bool = False
) -> list[Entry]:
    """Return all tensors of a model, in the order in which the optimizer has them.

    Args:
        model: to train.
        lr_backbone: learning rate of the backbone, as a multiple of that of the rest.
        layer_decay: factor of the learning rate from each block of the backbone to the one before it. The last block
            has it once.
        muon: whether the optimizer is MuSGD, for which matrices and kernels have their own steps, and scores of classes
            their own rate.

    Raises:
        UserError: rates of the backbone of a model that has none.
    """
    rate_of, part_of = backbone_rates(model, lr_backbone, layer_decay), parts(model)
    excepted = excepted_from_decay(model)
    entries = []
    for path, module in model.named_modules():
        for own, tensor in module.named_parameters(recurse=False):
            name = f"{path}.{own}" if path else own
            kind = FACTORS if id(tensor) in excepted else kind_of(module, own, tensor)
            part = part_of(name) if muon or part_of(name) == BACKBONE else REST
            rate = rate_of(name) if part == BACKBONE else CLASS_RATE if part == SCORES else 1.0
            entries.append(Entry(tensor, kind, part, rate, muon and kind == WEIGHTS and tensor.ndim in (2, 4)))
    unique = {id(entry.tensor): entry for entry in reversed(entries)}  # of a tensor that two modules share the first
    kept = [entry for entry in entries if unique[id(entry.tensor)] is entry]
    return sorted(kept, key=lambda entry: KINDS.index(entry.kind))


def parts(model: DetectionModel) -> Callable[[str], str]:
    """Return what says to which of PARTS of a model the tensor of a name belongs."""
    roots = backbone_roots(model)
    scores = [f"model.{len(model.nodes) - 1}.{layer}" for layer in CLASS_LAYERS]
    outside = {f"{root}.{name}" for root, module in roots.items() for name in classifier_names(module)}

    def part_of(name: str) -> str:
        if name not in outside and any(is_under(name, root) for root in roots):
            return BACKBONE
        return SCORES if any(is_under(name, layer) for layer in scores) else REST

    return part_of


def backbone_rates(model: DetectionModel, lr_backbone: float, layer_decay: float) -> Callable[[str], float]:
    """Return what says by what the learning rate of a tensor of the backbone is multiplied; arguments as above."""
    if (lr_backbone, layer_decay) != (1, 1) and not backbone_roots(model):
        raise UserError(f"{model.spec.name} has no backbone: leave out --lr-backbone and --layer-decay")
    blocks = backbone_blocks(model) if layer_decay != 1 else []
    count = max((block.number for block in blocks), default=0) + 1

    def rate_of(name: str) -> float:
        block = block_of(name, blocks)
        return lr_backbone * (layer_decay ** (count - block.number) if block else 1.0)

    return rate_of


def excepted_from_decay(model: nn.Module) -> set[int]:
    """Return the ids of the tensors that networks say not to decay, as timm's do by `no_weight_decay`."""
    found = set()
    for module in model.modules():
        declared: Any = getattr(module, "no_weight_decay", None)
        names = declared() if callable(declared) else ()
        found |= {id(tensor) for name, tensor in module.named_parameters() if name in names}
    return found


def make_optimizer(
    entries: Sequence[Entry], name: str, lr: float, momentum: float, decay: float, fused: bool
) -> torch.optim.Optimizer:
    """Return the optimizer of a training, with ultralytics' settings.

    Args:
        entries: what it optimizes; those that are treated alike come into one group.
        name: of an optimizer, as torch spells it, or MuSGD.
        lr: learning rate, 0 to 1, which each entry's `rate` multiplies.
        momentum: of SGD and RMSprop; of the Adam family the first beta.
        decay: weight decay of weights, at least 0.
        fused: take each step in one pass over the tensors, where this optimizer can.
    """
    groups: dict[tuple[str, float], dict[str, Any]] = {}
    for entry in entries:
        decayed = decay if entry.kind == WEIGHTS else 0.0
        own = {"params": [], "lr": lr * entry.rate, "weight_decay": decayed, "param_group": entry.group}
        own |= {"use_muon": True} if entry.muon else {}
        groups.setdefault((entry.group, entry.rate), own)["params"].append(entry.tensor)
    if name in ("SGD", "MuSGD", "RMSprop"):
        settings: dict[str, Any] = {"momentum": momentum} | ({} if name == "RMSprop" else {"nesterov": True})
    else:
        settings = {"betas": (momentum, 0.999)}
    kind = MuSGD if name == "MuSGD" else getattr(torch.optim, name)
    settings |= ORTHOGONAL if name == "MuSGD" else {}
    settings |= {"fused": True} if fused and "fused" in inspect.signature(kind).parameters else {}
    return kind([*groups.values()], lr=lr, **settings)


def groups_table(entries: Sequence[Entry], name: str, lr: float, decay: float) -> str:
    """Return a table of what is learnt how: a line for each kind of tensor in each part of the model."""
    lines = [f"{name + ' learns':<24}{'tensors':>8}{'learning rate':>22}{'decay':>9}"]
    for part in PARTS:
        for kind in KINDS:
            rates = [entry.rate * lr for entry in entries if (entry.part, entry.kind) == (part, kind)]
            if rates:
                low, high = f"{min(rates):.3g}", f"{max(rates):.3g}"
                span = high if low == high else f"{low} to {high}"
                lines.append(f"  {part + ': ' + kind:<22}{len(rates):>8}{span:>22}{decay * (kind == WEIGHTS):>9g}")
    return "\n".join(lines)
