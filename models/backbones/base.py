"""What a backbone promises: how many channels at which strides, said before it is run, and a list of feature maps.

A backbone registers under the word that a YAML row uses:

    @BACKBONES.register("MyNet")
    class MyNet(Backbone): ...
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from models.backbones.weights import (
    PLAIN,
    PLAIN_DEPLOY,
    Adapted,
    Dialect,
    WeightsReport,
    choose_dialect,
    choose_row,
    copy_tensors,
    read_source,
)
from models.blocks.reparam import fuse_blocks, switch_to_deploy
from models.errors import ConfigError, UserError, WeightsError, did_you_mean
from models.registry import Registry

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and deviation of its pictures, channel by channel


class MissingLevel(ConfigError):
    """A level is read that the backbone does not give.

    Args:
        what: the backbone, for the message.
        stride: of the level that is missing.
        has: the strides that it gives.
    """

    def __init__(self, what: str, stride: int, has: Sequence[int]) -> None:
        gives = ", ".join(map(level_name, has))
        super().__init__(f"{what} has no map at {level_name(stride)}, it gives {gives}")
        self.what, self.stride, self.has = what, stride, has

    def scaled(self, factor: int) -> MissingLevel:
        """Return the error of a backbone that reads a map of the stride `factor`, with the strides in the picture."""
        return MissingLevel(self.what, self.stride * factor, [stride * factor for stride in self.has])


class Backbone(nn.Module, ABC):
    """A network that returns one feature map per stride, high to low resolution.

    Attributes:
        archs: the architectures that the class builds; the first is the default. Empty: any name.
        dialects: how publishers name the tensors of these networks.
        channels: channels of each map.
        strides: stride of each map in input pixels, ascending, for instance (4, 8, 16, 32).
        in_channels: channels of the input picture.
        frozen: paths of the children that are not trained.
        form: in which it was built: a key of FORMS, or "train".
        weights_report: what came from a file, if anything did.
        notes: what a user should know of this network, one sentence each.
        size: height and width of the only pictures that it takes; None: any.
        normalization: mean and standard deviation of the channels of the pictures that published weights know.
        trained_by: the optimizer by which its authors train it, and their recipe in a few words; None: not known.
    """

    archs: ClassVar[tuple[str, ...]] = ()
    dialects: ClassVar[tuple[Dialect, ...]] = ()
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    in_channels: int
    frozen: tuple[str, ...] = ()
    form: str = "train"
    weights_report: WeightsReport | None = None
    notes: tuple[str, ...] = ()
    size: tuple[int, int] | None = None
    normalization: tuple[tuple[float, ...], tuple[float, ...]] = IMAGENET
    trained_by: tuple[str, str] | None = None

    @abstractmethod
    def forward(self, x: Tensor) -> list[Tensor]:
        """Map (B, in_channels, H, W) to one (B, channels[i], H / strides[i], W / strides[i]) per stride."""

    @property
    def example_side(self) -> int:
        """The side in pixels of a small picture that the network takes."""
        return 2 * self.strides[-1]

    @property
    def own_maps(self) -> tuple[nn.Module, dict[int, int]] | None:
        """The child that reads the published network's own maps, and their channels by stride.

        None: those are the maps that this network returns.
        """
        return None

    def published_name(self, name: str) -> str:
        """Return what publishers call the module or tensor that has this name in here, in training form."""
        return name

    def example_input(self) -> Tensor:
        """Return a small input of zeros, (1, in_channels, H, W), with the dtype and device of the weights."""
        return next(self.parameters()).new_zeros(1, self.in_channels, self.example_side, self.example_side)

    def make_head(self, num_classes: int) -> nn.Module:
        """Return the published classification head: the last map (B, C, H, W) to logits (B, num_classes).

        Raises:
            UserError: the family has none.
        """
        raise UserError(f"{type(self).__name__} has no classification head (num_classes={num_classes})")

    @classmethod
    def classifier(cls, arch: str, num_classes: int, in_channels: int = 3, **options: Any) -> nn.Module:
        """Return the network that was published for classification: (B, in_channels, H, W) to (B, num_classes)."""
        return Classifier(cls(arch, in_channels=in_channels, **options), num_classes)

    def adapt(self, tensors: dict[str, Tensor], dialect: Dialect) -> Adapted:  # noqa: ARG002
        """Fit the tensors of a file, under our names already, to this network; by default they stay as they are."""
        return Adapted(tensors)

    def adapt_back(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of this network, which is in deploy form, as published files have them.

        Where only names differ, `Dialect.written` says so; by default the tensors stay as they are.
        """
        return tensors


class Classifier(nn.Module):
    """A backbone and its classification head: (B, C, H, W) to logits (B, num_classes)."""

    weights_report: WeightsReport | None = None

    def __init__(self, backbone: Backbone, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = backbone.make_head(num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x)[-1])

    def example_input(self) -> Tensor:
        """Return a small input of zeros, (1, in_channels, H, W), with the dtype and device of the weights."""
        return self.backbone.example_input()

    def adapt(self, tensors: dict[str, Tensor], dialect: Dialect) -> Adapted:
        """Fit the tensors as the backbone does, under the names that they have in here."""
        adapted = self.backbone.adapt(tensors, dialect)
        inside = {name: name if name.startswith("head.") else f"backbone.{name}" for name in adapted.tensors}
        renamed = {inside[name]: tensor for name, tensor in adapted.tensors.items()}
        return adapted._replace(tensors=renamed, made=tuple(inside[name] for name in adapted.made))


BACKBONES = Registry[type[Backbone]]("backbone", base=Backbone)
FORMS: dict[str, Callable[[Any], Any]] = {  # of deployment, and what makes them
    "blocks": fuse_blocks,  # as most deploy weights are published: other BatchNorms stay
    "all": switch_to_deploy,
}


def create_backbone(
    name: str,
    arch: str | None = None,
    *,
    in_channels: int = 3,
    out_strides: Sequence[int] | None = None,
    num_classes: int | None = None,
    weights: str | Path | None = None,
    allow_partial: bool = False,
    deploy: bool | str = False,
    **options: Any,
) -> Any:
    """Build a registered backbone, or with `num_classes` its published classification network.

    Args:
        name: a word of `BACKBONES`, for instance "RIFormer" or "timm".
        arch: the architecture, with the family before it or not: A0, RepVGG-A0; the class's first one by default.
        in_channels: channels of the input picture.
        out_strides: the strides whose maps are wanted, all by default. What only serves others is not built.
        num_classes: build the classification network with so many logits instead, (B, C, H, W) to (B, num_classes).
        weights: a published file to start from, in training or deploy form, or `timm/NAME`, which timm downloads.
            A file in deploy form gives a network in that form.
        allow_partial: load whatever fits of the weights, even if it is little.
        deploy: build it in deploy form: True or "blocks" with its blocks fused, "all" with its BatchNorms folded too.
        options: further arguments of the class, for instance `drop_path=0.1`.

    Returns:
        A `Backbone`, or a module with logits. Its `weights_report` says what came from `weights`.

    Raises:
        UserError: an unknown name, architecture or option, or a stride that the backbone does not have.
        WeightsError: no such file, not one of tensors only, or of another network.
    """
    kind = BACKBONES[name]
    if arch is None:
        if not kind.archs:
            raise UserError(f"{name} needs an architecture, for instance create_backbone('{name}', arch=...)")
        arch = kind.archs[0]
    if kind.archs and isinstance(arch, str):
        arch = arch.removeprefix(f"{name}-")
    if kind.archs and arch not in kind.archs:
        hint = did_you_mean(str(arch), kind.archs)
        raise UserError(f"{name} has no architecture {arch!r}{hint}, expected one of {', '.join(kind.archs)}")
    if not _is_count(in_channels):
        raise UserError(f"{name} needs a picture of at least one channel, got in_channels={in_channels!r}")
    if num_classes is not None and (out_strides is not None or not _is_count(num_classes)):
        raise UserError(f"{name}: num_classes is a whole number from 1, without out_strides, got {num_classes!r}")
    if weights is not None and not isinstance(weights, str | Path):
        raise UserError(f"{name}'s weights must be the path of a file, got {weights!r}")
    try:
        inspect.signature(kind).bind(arch, in_channels=in_channels, out_strides=out_strides, **options)
    except TypeError as e:
        raise UserError(f"{name} {e}, its options are {', '.join(_options(kind))}") from e
    if not isinstance(deploy, bool) and deploy not in list(FORMS):
        raise UserError(f"{name}'s deploy is true, false or one of {', '.join(FORMS)}, got {deploy!r:.80}")
    network: Any
    if num_classes is None:
        network = kind(arch, in_channels=in_channels, out_strides=out_strides, **options)
    else:
        network = kind.classifier(arch, num_classes, in_channels=in_channels, **options)
    if weights is not None:
        network = load_weights(network, weights, allow_partial=allow_partial)
    return in_form(network, "blocks" if deploy is True else deploy) if deploy else network


def load_weights(network: Any, source: str | Path, *, allow_partial: bool = False) -> Any:
    """Return `network` with published weights; it is in deploy form if the file is.

    Args:
        network: a backbone or a classifier, whose `dialects` or whose backbone's say how publishers name its tensors.
        source: a file, or `timm/NAME`; of a checkpoint of ours the row of this backbone is taken.
        allow_partial: load whatever fits.

    Raises:
        WeightsError: no such file, not one of tensors only, or less than 90 % of the tensors match.
    """
    backbone = _backbone_of(network)
    tensors = choose_row(read_source(source), backbone.state_dict())
    dialect = choose_dialect(tensors, backbone.dialects) or PLAIN
    adapted = network.adapt(dialect.translate(tensors), dialect)
    target = _target(network, adapted, dialect)
    if dialect is PLAIN and target is not network:
        dialect = PLAIN_DEPLOY
        adapted = network.adapt(tensors, dialect)
    name = str(source) if str(source).startswith("timm/") else Path(source).name
    try:
        report = copy_tensors(target, adapted, name, dialect=dialect, allow_partial=allow_partial)
    except WeightsError as e:
        raise _other_family(tensors, backbone, source) or e from e
    loaded = in_form(target, "blocks") if dialect.deploy else target
    loaded.weights_report = report
    return loaded


def published_tensors(network: Any) -> tuple[dict[str, Tensor], str]:
    """Return the tensors of a network in deploy form as its authors publish them, and whose names they have.

    A family of which no deploy form is published has names of its own.

    Args:
        network: a backbone or a classifier; it stays as it is.

    Raises:
        UserError: BatchNorms are folded that published files have.
    """
    backbone = _backbone_of(network)
    dialect = next((dialect for dialect in backbone.dialects if dialect.written is not None), PLAIN_DEPLOY)
    fused = in_form(network, dialect.form)
    if dialect is not PLAIN_DEPLOY and _backbone_of(fused).form != dialect.form:
        raise UserError(
            f"all BatchNorms of this {type(backbone).__name__} are folded, and published files in deploy form have "
            f"those outside of its blocks: write it from the training form"
        )
    tensors = {name.removeprefix("backbone."): tensor.detach().cpu() for name, tensor in fused.state_dict().items()}
    return dialect.translate_back(_backbone_of(fused).adapt_back(tensors)), dialect.name


def in_form(network: Any, form: str) -> Any:
    """Return a backbone or a classifier in a form of FORMS; one that has this form or a later one stays as it is."""
    forms = ["train", *FORMS]
    if forms.index(_backbone_of(network).form) >= forms.index(form):
        return network
    made = FORMS[form](network)
    _backbone_of(made).form = form
    return made


def _backbone_of(network: Any) -> Any:
    return network.backbone if isinstance(network, Classifier) else network


def _target(network: Any, adapted: Adapted, dialect: Dialect) -> Any:
    """Return the network in the form that has most of the names of a file, in the one that trains if several do."""
    forms = [network]
    if dialect.deploy or (dialect is PLAIN and not network.state_dict().keys() <= adapted.tensors.keys()):
        forms += [in_form(network, form) for form in FORMS]
    return max(forms, key=lambda form: len(adapted.tensors.keys() & form.state_dict().keys()))


def _other_family(tensors: Mapping[str, Tensor], backbone: Backbone, source: str | Path) -> WeightsError | None:
    """Return the error that names another family, if its dialect is heard in the names of a file."""
    for name, kind in BACKBONES.items():
        if kind.archs and not isinstance(backbone, kind) and choose_dialect(tensors, kind.dialects):
            return WeightsError(f"{source} holds the weights of a {name}, not of a {type(backbone).__name__}")
    return None


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _options(kind: type[Backbone]) -> list[str]:
    """Return the names of the arguments that a YAML can give in its mapping."""
    own = [name for name in inspect.signature(kind).parameters if name not in ("in_channels", "out_strides")]
    return [*own, "weights", "allow_partial", "deploy"]


def list_backbones() -> dict[str, tuple[str, ...]]:
    """Return the registered backbones and their architectures; an empty tuple means any name of that library."""
    return {name: kind.archs for name, kind in BACKBONES.items()}


def select_strides(wanted: Sequence[int] | None, has: Sequence[int], what: str) -> tuple[int, ...]:
    """Return the `wanted` strides in ascending order, all of `has` if None.

    Raises:
        MissingLevel: a stride is wanted that `what` does not have.
    """
    missing = sorted(set(wanted or ()) - set(has))
    if missing:
        raise MissingLevel(what, missing[0], has)
    return tuple(sorted(set(wanted))) if wanted else tuple(has)


def level_name(stride: int) -> str:
    """Return how people call a stride: 8 is "P3 (stride 8)"."""
    return f"P{round(math.log2(stride))} (stride {stride:g})"


@torch.no_grad()
def check_backbone(backbone: Backbone, size: tuple[int, int] = (128, 192)) -> None:
    """Run `backbone` on zeros of `size` (H, W), multiples of its last stride, and compare with what it declares.

    Statistics and training modes stay as they are.

    Raises:
        UserError: it does not return a list of maps, or one differs from `channels` and `strides`.
    """
    modes = {module: module.training for module in backbone.modules()}
    try:
        maps = backbone.eval()(backbone.example_input().new_zeros(2, backbone.in_channels, *size))
    finally:
        for module, training in modes.items():
            module.training = training
    check_maps(backbone, maps, size)


def check_maps(backbone: Backbone, maps: Any, size: tuple[int, int]) -> None:
    """Compare what `backbone` returned for a batch of pictures of `size` (H, W) with what it declares.

    Raises:
        UserError: that is no list of maps, or one differs from `channels` and `strides`.
    """
    name, channels, strides = type(backbone).__name__, backbone.channels, backbone.strides
    if len(channels) != len(strides) or list(strides) != sorted(set(strides)):
        raise UserError(f"{name} must declare as many channels as ascending strides, but has {channels} and {strides}")
    if not isinstance(maps, list) or not all(isinstance(m, Tensor) for m in maps):
        raise UserError(f"{name} must return a list of feature maps, but returned a {type(maps).__name__}")
    said = [(c, size[0] // s, size[1] // s) for c, s in zip(channels, strides, strict=True)]
    came = [tuple(m.shape[1:]) for m in maps]
    if said != came:
        raise UserError(f"{name} declares maps of shapes {said} for a picture of {size}, but returned {came}")
