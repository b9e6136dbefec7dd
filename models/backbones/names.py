"""The names by which a command line calls a backbone: RIFormer, RepVGG/A0, timm/mobileone_s0, mobileone_s0."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable

from models.backbones.base import BACKBONES, list_backbones
from models.backbones.lazy_timm import is_timm_model, timm_models
from models.errors import UserError, did_you_mean

TIMM = "timm/"


def all_names() -> list[str]:
    """Return the names of all backbones: "RepVGG/A0" and so on, then timm's as "timm/NAME"."""
    own = [f"{name}/{arch}" for name, archs in list_backbones().items() for arch in archs]
    plain = [name for name, archs in list_backbones().items() if not archs and f"{name}/" != TIMM]
    return [*own, *plain, *(f"{TIMM}{name}" for name in timm_models())]


def match_names(pattern: str) -> list[str]:
    """Return the names that match a pattern with wildcards, in any case; timm's match without their "timm/" too.

    Raises:
        UserError: none does.
    """
    names, wanted = all_names(), pattern.lower()
    forms = {name: (name.lower(), name.lower().removeprefix(TIMM)) for name in names}
    found = [name for name in names if any(fnmatch.fnmatchcase(form, wanted) for form in forms[name])]
    if not found:
        hint = did_you_mean(pattern.strip("*?"), (name.removeprefix(TIMM) for name in names))
        raise UserError(f"no backbone has a name like '{pattern}'{hint}")
    return found


def split_name(name: str, what: str = "backbone or timm model", others: Iterable[str] = ()) -> tuple[str, str | None]:
    """Return a name as the first two arguments of `create_backbone`; the architecture may be left out.

    Args:
        name: "RIFormer", "RepVGG/A0", "timm/mobileone_s0" or "mobileone_s0".
        what: what it should be the name of, for the message.
        others: further names that may have been meant.

    Raises:
        UserError: there is no such backbone, or it is "timm" alone.
    """
    kind, slash, arch = name.partition("/")
    if kind in BACKBONES and (arch or BACKBONES[kind].archs):
        return kind, arch if slash else None
    if kind in BACKBONES:
        raise UserError(f"{kind} needs an architecture behind it, such as {kind}/resnet18")
    if is_timm_model(name):
        return TIMM.rstrip("/"), name
    hint = did_you_mean(name, [*BACKBONES, *all_names(), *timm_models(), *others])
    raise UserError(f"there is no {what} called '{name}'{hint}")
