"""Branches for the convolutions of any network: they train with it, and fusing takes them away.

A convolution is widened where four things hold; all others stay as they are:
- it is torch's own nn.Conv2d, of k x k pixels with k > 1, without a hook and with weights that are parameters;
- it runs when the network predicts, and no block that fuses by itself replaces or changes it: what has branches already
  gets no more, nor does a branch that only trains;
- a BatchNorm alone reads it, which becomes its own, or it has a bias: the branches shift its output, and what has
  neither would have more parameters after fusing than it had before;
- the network gets branches for the first time.

New branches end in a BatchNorm. Beside a convolution that has learnt something its factor starts at 0, so that the
widened network computes what the narrow one did, in training mode as well. Beside one that has not it starts at 1, as
in the papers of all styles: with 0 the other weights of a branch would get no gradient at first.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from models.blocks.branches import STYLES, BranchedConv
from models.blocks.dataflow import follow, ran_modules
from models.blocks.reparam import after_norm, fuse_blocks, fuse_conv_bn, places_of, replace_modules
from models.errors import ConfigError, did_you_mean


def widen(
    network: nn.Module,
    style: str,
    example: Tensor,
    limit: float = math.inf,
    trained: Collection[nn.Module] | None = None,
) -> int:
    """Give the convolutions of a network branches, in place, and return how many got some.

    Args:
        network: any module.
        style: one of STYLES.
        example: an input of it, (B, C, H, W).
        limit: parameters that the branches may have, which are made only if they have no more.
        trained: modules among which are the convolutions that have learnt something; None: all have.

    Raises:
        ConfigError: an unknown style, no convolution that could get branches, or too many parameters.
    """
    if style not in STYLES:
        hint = did_you_mean(style, STYLES)
        raise ConfigError(f"unknown style of branches '{style}'{hint}, expected one of {', '.join(STYLES)}")
    norms = narrow_convolutions(network, example)
    if not norms:
        raise ConfigError(
            f"no convolution can be given branches of the style {style}: none of k x k pixels with a BatchNorm or a "
            "bias stands outside of blocks that have branches already"
        )
    with torch.device("meta"):
        added = sum(p.numel() for conv in norms for branch in STYLES[style](conv) for p in branch.parameters())
    if added > limit:
        raise ConfigError(f"branches of the style {style} have {added:,} parameters, expected at most {limit:,}")
    places = places_of(network)
    for conv, bn in norms.items():
        wide = _branched(conv, bn, style, 0.0 if trained is None or conv in trained else 1.0)
        after = {} if bn is None else {bn: after_norm(bn)}
        replace_modules(network, {conv: wide, **after}, places)
    return len(norms)


def narrow_convolutions(network: nn.Module, example: Tensor) -> dict[nn.Conv2d, _BatchNorm | None]:
    """Return the convolutions that can get branches, in their order, each with its own BatchNorm or None."""
    fused = fuse_blocks(network)  # a copy: its forward pass leaves no trace in the network
    own = dict(network.named_modules())
    kept = {m: own[path] for path, m in fused.named_modules() if path in own and _is_same(m, own[path])}
    run = {m for m in ran_modules(fused, example) if isinstance(m, nn.Conv2d)}
    pairs = {
        link.producer: link.consumer
        for link in follow(fused, example, producers=(nn.Conv2d,), consumers=(_BatchNorm,))
        if link.consumer in kept and _is_pair(link.producer, link.consumer)
    }
    return {
        kept[m]: kept[pairs[m]] if m in pairs else None
        for m in fused.modules()
        if m in run and m in kept and _is_plain(m) and (m in pairs or m.bias is not None)
    }


def _is_same(module: Any, other: Any) -> bool:
    """Return whether fusing has left a convolution or a BatchNorm as it was."""
    if type(module) is not type(other) or not isinstance(module, nn.Conv2d | _BatchNorm):
        return False
    before = other.state_dict()
    return all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def _is_plain(conv: Any) -> bool:
    """Return whether a convolution is torch's own, of k x k pixels with k > 1."""
    height, width = conv.kernel_size
    hooked = conv._forward_hooks or conv._forward_pre_hooks
    return type(conv) is nn.Conv2d and height == width > 1 and not hooked


def _is_pair(conv: nn.Conv2d | None, bn: _BatchNorm) -> bool:
    """Return whether the BatchNorm that alone reads a convolution folds into it."""
    if conv is None:
        return False
    try:
        fuse_conv_bn(conv, bn)
    except ValueError:
        return False
    return True


def _branched(conv: nn.Conv2d, bn: _BatchNorm | None, style: str, factor: float) -> BranchedConv:
    """Return what computes bn(conv(x)) plus branches, whose last BatchNorms start with this factor."""
    wide = BranchedConv(conv, nn.Identity() if bn is None else _alone(bn), STYLES[style](conv))
    wide.branches.to(conv.weight)
    for norm in (m for m in wide.branches.modules() if isinstance(m, nn.BatchNorm2d)):
        if bn is not None:
            norm.eps, norm.momentum = bn.eps, bn.momentum
    branches: Any = wide.branches
    for branch in branches:
        nn.init.constant_(branch.bn.weight, factor)
    return wide.train(conv.training)


def _alone(bn: _BatchNorm) -> _BatchNorm:
    """Return a BatchNorm without what else it does, such as the activation of timm's BatchNormAct2d."""
    if isinstance(bn, nn.BatchNorm2d) and type(bn).forward is nn.BatchNorm2d.forward:
        return bn
    alone = nn.BatchNorm2d(bn.num_features, bn.eps, bn.momentum, bn.affine).to(bn.running_mean)
    alone.load_state_dict(bn.state_dict(), strict=False)
    return alone
