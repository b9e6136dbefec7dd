"""For torch.hub: `torch.hub.load(folder, "custom", path="best.pt", source="local")`, by YOLOv5's habit.

`folder` is this one. It is the same as `from models import load; load("best.pt")`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from utils.detect.api import Detector

dependencies = ["torch", "torchvision", "ultralytics"]


def custom(
    path: str | Path | None = None,
    autoshape: bool = True,
    _verbose: bool = True,
    device: Any = "",
    **options: Any,
) -> Detector:
    """Return weights as a function of pictures; arguments and errors are those of `models.load`.

    `autoshape` and `_verbose` are YOLOv5's: pictures of any shape are taken in any case, and little is said.
    """
    if not autoshape:
        raise ValueError("autoshape=False asks for the bare network: utils.checkpoint.load_checkpoint(path) gives that")
    import models  # noqa: PLC0415 (another one may be there, which is to be named)

    if Path(__file__).parent not in (Path(place).resolve().parent for place in getattr(models, "__path__", [])):
        other = getattr(sys.modules["models"], "__file__", None) or "another folder"
        raise ImportError(f"RepYOLO's folder models is hidden by {other}: rename that, or use another process")
    return models.load(path, device, **options)
