"""Downloads of pretrained weights: a YAML may ask for them, but only the person at the command line can allow them."""

from __future__ import annotations

from models.errors import ConfigError

CONSENT = {"given": False}


def allow_downloads(allowed: bool = True) -> None:
    """Let YAMLs have pretrained weights downloaded from now on, or not any more."""
    CONSENT["given"] = allowed


def check_download(who: str) -> None:
    """Raise ConfigError unless downloads were allowed, where the row `who` of a YAML asks for one."""
    if not CONSENT["given"]:
        raise ConfigError(
            f"{who} asks for pretrained weights, which are downloaded only when you allow it: --download "
            "(allow_downloads() of models.downloads in Python)"
        )
