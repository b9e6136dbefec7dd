"""Structural re-parameterization: what can be simpler for deployment says so, and one walker swaps it.

Four ideas carry the whole of it:
- `Reparameterizable.fuse()` returns an equivalent, simpler module and leaves the block as it was, so that
  "the same function" is a plain comparison of two modules;
- blocks of other libraries join through `register_fuser`, by type, those of a library that is slow to import
  (`register_library`) once it has been imported;
- a block that nobody registered, but that has a method of the usual names, is fused by it if the outcome computes the
  same (`foreign.py`);
- a BatchNorm that follows a convolution is found by watching one forward pass (`dataflow.py`), not by its class or
  its name, so that any network's pairs are folded.

Papers: RepVGG (https://arxiv.org/abs/2101.03697), DBB (https://arxiv.org/abs/2103.13425).
"""

from __future__ import annotations

import copy
import sys
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.parametrize import is_parametrized

from models.blocks.dataflow import Link, follow, ran_modules
from models.blocks.foreign import ForeignError, OwnMethods

Linear = _ConvNd | nn.Linear
L = TypeVar("L", bound=Linear)
W = TypeVar("W", bound=nn.Module)
M = TypeVar("M", bound=nn.Module)
Fuser = Callable[[nn.Module], "nn.Module | None"]  # an equivalent simpler module, or None: not mine, or nothing to do


class Reparameterizable(nn.Module, ABC):
    """A module that trains with more structure than its function needs."""

    @abstractmethod
    def fuse(self) -> nn.Module:
        """Return a module that computes this one's eval-mode function with less; `self` stays as it is.

        The result has the dtype and device of `self`. Its algebra is done in float64.
        """


@dataclass
class DeployReport:
    """What `switch_to_deploy` did: how many of what were fused, and which blocks and norms stayed, with the reason."""

    fused: Counter[str] = field(default_factory=Counter)
    left: list[str] = field(default_factory=list)
    by_own_method: set[str] = field(default_factory=set, repr=False)  # paths of blocks that fused themselves


FORWARDS: set[Any] = {  # of convolutions whose output is linear in their parameters `weight` and `bias`
    kind.forward
    for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)
}
CONV_FORWARDS = {
    kind._conv_forward for kind in (_ConvNd, nn.Conv1d, nn.Conv2d, nn.Conv3d)
}  # what some subclasses override
BN_FORWARDS: set[Any] = {_BatchNorm.forward, nn.SyncBatchNorm.forward}  # an affine map per channel, in eval mode
DEPTH = 3  # how deep blocks that fuse by a method of their own may come out of each other
_FUSERS: list[Fuser] = [lambda m: m.fuse() if isinstance(m, Reparameterizable) else None]
_LIBRARIES: dict[str, Callable[[], object]] = {}  # a package to what registers how its modules fuse, not called yet


def register_linear(kind: type[Linear]) -> None:
    """Say that a library's convolution with a `forward` of its own is linear in its `weight` and `bias`."""
    FORWARDS.add(kind.forward)


def register_batch_norm(kind: type[_BatchNorm]) -> None:
    """Say that a library's BatchNorm with a `forward` of its own is one, followed by its children in their order."""
    BN_FORWARDS.add(kind.forward)


def register_fuser(fuser: Fuser) -> Fuser:
    """Add the adapter of another library's blocks. It returns None for every module that is not one of these."""
    _FUSERS.append(fuser)
    return fuser


def register_library(package: str, register: Callable[[], object]) -> None:
    """Have `register` called, once, before anything is fused in a process that has imported `package`.

    It registers how the modules of `package` fuse, which may take importing much of it.
    """
    _LIBRARIES[package] = register


def _register_libraries() -> None:
    """Have the libraries that were imported since the last call register how their modules fuse."""
    for package in _LIBRARIES.keys() & sys.modules.keys():
        if register := _LIBRARIES.get(package):  # gone where another thread was here first
            register()
            _LIBRARIES.pop(package, None)


def switch_to_deploy(model: M, example: Tensor | None = None) -> M:
    """Return a copy of `model` in eval mode in which everything that can be fused is fused.

    The copy computes the same function as `model.eval()`. Its attribute `report` (`DeployReport`) says what was done;
    a model that is fused already comes back as a copy with the same report.

    Args:
        model: any module; it is left untouched, its training mode included.
        example: an input of `model`, (B, C, H, W). By default what `model.example_input()` returns.

    Raises:
        TypeError: `model` has no `example_input()` and no `example` is given.
    """
    deploy, report = _eval_copy(model)
    if example is None:
        if not hasattr(deploy, "example_input"):
            raise TypeError(f"switch_to_deploy needs an example input for a {type(model).__name__}")
        example = deploy.example_input()
    own = OwnMethods(report.by_own_method)
    own.watch(deploy, example)
    deploy = _fuse_blocks(deploy, report.fused, {}, (*_FUSERS, own))
    try:
        for _ in range(DEPTH):  # blocks that came out of others
            if not own.watch(deploy, example):
                break
            deploy = _fuse_blocks(deploy, report.fused, {}, (own,))
        own.check(deploy, example)
    except ForeignError as e:
        deploy, report = _eval_copy(model)
        deploy = _fuse_blocks(deploy, report.fused, {}, _FUSERS)
        own.left = [str(e)]
    report.left = own.left
    fold_batch_norms(deploy, example, report)
    deploy.report = report
    return deploy.eval()


def fuse_blocks(model: M) -> M:
    """Return a copy of `model` in eval mode whose blocks are fused; BatchNorms outside of blocks stay as they are.

    This is the form in which deploy weights are published. The copy's attribute `report` says what was done.
    """
    deploy, report = _eval_copy(model)
    deploy = _fuse_blocks(deploy, report.fused, {}, _FUSERS)
    deploy.report = report
    return deploy.eval()


def _eval_copy(model: nn.Module) -> tuple[Any, DeployReport]:
    """Return a copy of `model` in eval mode, and one of its report, which is empty at first."""
    _register_libraries()
    deploy: Any = copy.deepcopy(model).eval()
    return deploy, getattr(deploy, "report", None) or DeployReport()


def fuse_conv_bn(conv: L, bn: _BatchNorm) -> L:
    """Return one convolution (or linear layer) that computes `bn(conv(x))` in eval mode.

    Any dimension, groups, dilation, padding mode, transposed or not; dtype and device of `conv` are kept.

    Raises:
        ValueError: `bn` has no running statistics or another number of channels, `conv` computes its weights, or one of
            them does more than its class says.
    """
    _check_plain(conv, bn)
    scale, shift = bn_scale_shift(bn)
    weight = conv.weight.detach().double()
    channels = conv.out_features if isinstance(conv, nn.Linear) else conv.out_channels
    if scale.numel() != channels:
        raise ValueError(f"the convolution puts out {channels} channels and the BatchNorm takes {scale.numel()}")
    if isinstance(conv, _ConvTransposeNd):  # weight (in, out / groups, ...), where in is split by groups as well
        grouped = weight.unflatten(0, (conv.groups, -1))
        weight = (grouped * _as_column(scale.view(conv.groups, 1, -1), grouped)).flatten(0, 1)
    else:  # weight (out, in / groups, ...)
        weight = weight * _as_column(scale, weight)
    bias = shift if conv.bias is None else shift + scale * conv.bias.detach().double()
    return with_weights(conv, weight, bias)


def fuse_bn_conv(bn: _BatchNorm, conv: L) -> L:
    """Return one convolution (or linear layer) that computes `conv(bn(x))` in eval mode.

    Any dimension and groups; dtype and device of `conv` are kept.

    Raises:
        ValueError: as `fuse_conv_bn`, or `conv` is transposed or pads with zeros, which `bn` would not have shifted.
    """
    _check_plain(conv, bn)
    scale, shift = bn_scale_shift(bn)
    if isinstance(after_norm(bn), nn.Sequential):
        raise ValueError("an activation stands between it and the convolution")
    if isinstance(conv, _ConvTransposeNd):
        raise ValueError("the convolution that reads it is transposed")
    groups = 1 if isinstance(conv, nn.Linear) else conv.groups
    weight = conv.weight.detach().double()
    if scale.numel() != groups * weight.shape[1]:
        raise ValueError(f"it gives {scale.numel()} channels and the convolution takes {groups * weight.shape[1]}")
    if isinstance(conv, _ConvNd) and _pads_zeros(conv) and (shift.is_meta or bool(shift.any())):
        raise ValueError("the convolution that reads it pads with zeros, which it does not shift")
    grouped = weight.unflatten(0, (groups, -1))  # (groups, out / groups, in / groups, ...)
    scale, shift = (_as_column(v.view(groups, 1, -1), grouped) for v in (scale, shift))
    bias = (grouped * shift).flatten(2).sum(2).flatten()
    if conv.bias is not None:
        bias = bias + conv.bias.detach().double()
    return with_weights(conv, (grouped * scale).flatten(0, 1), bias)


def _pads_zeros(conv: _ConvNd) -> bool:
    return conv.padding_mode == "zeros" and conv.padding != "valid" and any(p != 0 for p in conv.padding)


def _check_plain(conv: Linear, bn: _BatchNorm) -> None:
    """Raise ValueError unless `conv` is linear in its weights, `bn` is a BatchNorm, and no hook changes either."""
    _register_libraries()
    conv_forward = getattr(type(conv), "_conv_forward", None)
    custom = conv_forward is not None and conv_forward not in CONV_FORWARDS
    if type(conv).forward not in FORWARDS or custom or is_parametrized(conv):
        raise ValueError(f"a {type(conv).__name__} computes its weights or output in a way of its own")
    if type(bn).forward not in BN_FORWARDS:
        raise ValueError(f"a {type(bn).__name__} has a forward of its own")
    if any(m._forward_hooks or m._forward_pre_hooks for m in (conv, bn)):
        raise ValueError("a hook on one of them may change what passes")


def bn_scale_shift(bn: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Return the float64 (scale, shift), each (C,), for which eval-mode `bn(x)` is `scale * x + shift`.

    Differentiable in the weight and the bias of `bn`.

    Raises:
        ValueError: `bn` normalizes by the batch, so that there is no such pair.
    """
    if bn.running_mean is None or bn.running_var is None:
        raise ValueError("a BatchNorm without running statistics depends on the batch and cannot be folded")
    scale = (bn.running_var.double() + bn.eps).rsqrt()
    if bn.weight is not None:
        scale = scale * bn.weight.double()
    shift = -scale * bn.running_mean.double()
    return scale, shift if bn.bias is None else shift + bn.bias.double()


def with_weights(module: W, weight: Tensor, bias: Tensor | None) -> W:
    """Return a copy of a linear `module` with these weights, cast to its dtype and device."""
    kept: dict[int, Any] = {id(p): p for p in (module.weight, module.bias)}  # not copied: others take their places
    fused: Any = copy.deepcopy(module, kept)
    like = fused.weight
    fused.weight = nn.Parameter(weight.to(like), requires_grad=like.requires_grad)
    fused.bias = None if bias is None else nn.Parameter(bias.to(like), requires_grad=like.requires_grad)
    return fused


def _as_column(vector: Tensor, like: Tensor) -> Tensor:
    """Return `vector` with trailing axes of length 1, so that it multiplies the leading axes of `like`."""
    return vector.reshape(*vector.shape, *[1] * (like.ndim - vector.ndim))


def _fuse_blocks(
    module: nn.Module, fused: Counter[str], done: dict[nn.Module, nn.Module], fusers: Sequence[Fuser]
) -> Any:
    """Swap, from the outside in, every block that one of `fusers` knows; return what takes the place of `module`.

    Args:
        done: what takes the place of each module seen so far, for those that stand in several places.
    """
    if module not in done:
        replaced = next((new for fuser in fusers if (new := fuser(module)) is not None), module)
        if replaced is not module:
            fused[type(module).__name__] += 1
        done[module] = done[replaced] = replaced
        for name, child in list(replaced._modules.items()):
            if child is not None:
                setattr(replaced, name, _fuse_blocks(child, fused, done, fusers))
    return done[module]


def fold_batch_norms(model: nn.Module, example: Tensor, report: DeployReport) -> None:
    """Fold, in place, every BatchNorm into the convolution that alone feeds it, or into the one that alone reads it.

    `report` gets the number of pairs, and the norms that stay, each with its reasons.
    """
    places = places_of(model)
    links = list(follow(model, example, producers=(_ConvNd, nn.Linear), consumers=(_BatchNorm,)))
    reading = {link.consumer for link in links}
    idle = [m for m in model.modules() if isinstance(m, _BatchNorm) and m not in reading]
    ran = ran_modules(model, example) if idle else set()
    blocks = {bn: _block_of(model, places[bn][0], ran) for bn in idle}
    stays: dict[Any, str] = {}  # BatchNorms
    for link in links:
        bn, conv = link.consumer, link.producer
        try:
            if conv is None or not _channels_first(link):
                raise ValueError("its input is not the output of one convolution alone")
            _check_alternatives(bn, blocks)
            replace_modules(model, {conv: fuse_conv_bn(conv, bn), bn: after_norm(bn)}, places)
            report.fused["Conv+BN"] += 1
        except ValueError as e:
            stays[bn] = str(e)
    kinds = tuple({type(bn) for bn in stays})
    readers = follow(model, example, producers=kinds, consumers=(_ConvNd, nn.Linear)) if stays else ()
    reader = {link.producer: link.consumer for link in readers if _channels_first(link)}
    for bn in list(stays):
        try:
            if bn not in reader:
                raise ValueError("its output is not what one convolution alone reads")
            _check_alternatives(bn, blocks)
            replace_modules(model, {reader[bn]: fuse_bn_conv(bn, reader[bn]), bn: nn.Identity()}, places)
            report.fused["BN+Conv"] += 1
            del stays[bn]
        except ValueError as e:
            stays[bn] += f"; {e}"
    stays |= dict.fromkeys(idle, "it does not run on the example picture")
    stays |= {m: f"a {type(m).__name__} computes in a way of its own" for m in model.modules() if _is_like_norm(m)}
    report.left += [f"{places[norm][0]}: {reason}" for norm, reason in stays.items()]


def _block_of(model: nn.Module, path: str, ran: set[nn.Module]) -> nn.Module:
    """Return the innermost module around that at `path` that ran: the one that decided not to run it."""
    parents = [path.rsplit(".", n)[0] for n in range(1, path.count(".") + 1)]
    return next((m for parent in parents if (m := model.get_submodule(parent)) in ran), model)


def _check_alternatives(bn: _BatchNorm, idle: dict[Any, nn.Module]) -> None:
    """Raise ValueError if a BatchNorm that did not run may take the place of `bn` for a picture of another size.

    Args:
        idle: the BatchNorms that did not run, each with the block that decided so.
    """
    for other, block in idle.items():
        if other.num_features == bn.num_features and any(m is bn for m in block.modules()):
            raise ValueError("another BatchNorm of its block, which the example picture does not run, may replace it")


def _is_like_norm(module: nn.Module) -> bool:
    """Return whether a module that is no BatchNorm of torch's has running statistics as one has."""
    has = all(isinstance(getattr(module, name, None), Tensor) for name in ("running_mean", "running_var"))
    return has and not isinstance(module, _BatchNorm)


def _channels_first(link: Link) -> bool:
    """Return whether axis 1, of which BatchNorm's channels are, is that of the convolution or linear layer as well."""
    linear = isinstance(link.producer, nn.Linear) or isinstance(link.consumer, nn.Linear)
    return not linear or len(link.shape) == 2


def places_of(model: nn.Module) -> dict[nn.Module, list[str]]:
    """Return the paths at which each module stands, of which it may have several."""
    places = defaultdict(list)
    for path, module in model.named_modules(remove_duplicate=False):
        places[module].append(path)
    return places


def replace_modules(model: nn.Module, replacements: dict[Any, nn.Module], places: dict[nn.Module, list[str]]) -> None:
    """Put modules into the places of others, which are theirs from then on."""
    for old, new in replacements.items():
        for path in places[old]:
            _set(model, path, new)
        places[new] = places[old]


def after_norm(bn: _BatchNorm) -> nn.Module:
    """Return what remains of a folded BatchNorm: nothing, or the activation that timm's BatchNormAct2d has inside."""
    rest = [m for m in bn.children() if not isinstance(m, nn.Identity)]
    return nn.Sequential(*rest) if rest else nn.Identity()


def _set(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
