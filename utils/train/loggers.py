"""Services that follow a training, such as TensorBoard and W&B: those that --logger names, by ultralytics' callbacks.

ultralytics itself asks every service whose package is installed, unless its settings say otherwise; here none is asked
that the user has not named, and nothing is imported for it. What a service needs to know, such as an account, it reads
as its own documentation says, from the environment or its own files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from ultralytics.utils import LOGGER

from models.errors import UserError, cause


@dataclass(frozen=True)
class Service:
    """One that follows a training.

    Attributes:
        package: that is imported.
        pip: what pip calls it.
        module: of its callbacks, in ultralytics.utils.callbacks.
    """

    package: str
    pip: str
    module: str


SERVICES = {
    "tensorboard": Service("tensorboard", "tensorboard", "tensorboard"),
    "wandb": Service("wandb", "wandb", "wb"),
    "mlflow": Service("mlflow", "mlflow", "mlflow"),
    "clearml": Service("clearml", "clearml", "clearml"),
    "comet": Service("comet_ml", "comet-ml", "comet"),
}
NO_LOGGER = "none"  # the word of --logger for none of them, when a run is resumed that had some


def chosen_loggers(words: Sequence[str]) -> list[str]:
    """Return the services that --logger names, each once.

    Raises:
        UserError: it names some and none.
    """
    names = list(dict.fromkeys(words))
    if NO_LOGGER in names and len(names) > 1:
        raise UserError(f"--logger {NO_LOGGER} goes with no other name, not {' '.join(names)}")
    return [name for name in names if name != NO_LOGGER]


def check_loggers(names: Sequence[str], otherwise: str = "") -> None:
    """Raise UserError when the package of a service is not installed.

    Args:
        names: of the services.
        otherwise: what else can be done, as the end of a sentence.
    """
    missing = [name for name in names if not is_installed(SERVICES[name].package)]
    if missing:
        packages = " ".join(SERVICES[name].pip for name in missing)
        plural = "packages that are" if len(missing) > 1 else "a package that is"
        raise UserError(f"--logger {' '.join(missing)} needs {plural} not installed: pip install {packages}{otherwise}")


def is_installed(package: str) -> bool:
    """Return whether a package can be imported; a folder of its name, as some of them leave, is none."""
    try:
        found = find_spec(package)
    except ValueError:
        return False
    return found is not None and found.origin is not None


def add_loggers(engine: Any) -> None:
    """Add the callbacks of the services that the options of a trainer name.

    It takes the place of ultralytics' `add_integration_callbacks`, which is called for every trainer, validator,
    predictor and exporter; only trainers have such an option.

    Raises:
        UserError: a package is there but cannot be used.
    """
    for name in getattr(engine.args, "logger", None) or ():
        guard = Guard(name)
        for event, callback in callbacks_of(name).items():
            engine.add_callback(event, guard.around(callback))


def callbacks_of(name: str) -> dict[str, Callable[[Any], None]]:
    """Return the callbacks of a service by the event that they are for; UserError where its package does not work."""
    service = SERVICES[name]
    callbacks = import_module(f"ultralytics.utils.callbacks.{service.module}").callbacks
    if callbacks:
        return callbacks
    try:
        import_module(service.package)
        reason = "ultralytics does not use it under pytest and in GitHub's actions"
    except Exception as error:
        reason = cause(error)
    raise UserError(f"--logger {name}: the package {service.package} is installed but cannot be used: {reason}")


class Guard:
    """Keeps a training going when a service fails, such as for want of a network: it is told once and asked no more.

    Args:
        name: of the service.
    """

    def __init__(self, name: str) -> None:
        self.name, self.failed = name, False

    def around(self, callback: Callable[[Any], None]) -> Callable[[Any], None]:
        """Return a callback that does what another one does, but does not fail."""

        def call(engine: Any) -> None:
            if self.failed:
                return
            try:
                callback(engine)
            except Exception as error:
                self.failed = True
                LOGGER.warning(f"{self.name} fails and gets nothing more of this run: {cause(error)}")

        return call
