"""Which pictures an epoch shows, by `--image-weights`: those of rare classes, and of classes that are hard, more often.

As in YOLOv5, a picture weighs the sum of the weights of its objects; a class weighs the more the fewer objects it has,
and the lower its mAP was in the last validation. A picture without objects is not shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def picture_weights(labels: Sequence[Any], maps: Sequence[float]) -> Tensor:
    """Return the probabilities (n,) by which pictures are drawn; alike where none would have any.

    Args:
        labels: of n pictures, each with the classes "cls" (objects, 1) of its objects.
        maps: mAP50-95 of each class, 0 to 1; 0 before the first validation.
    """
    classes = [label["cls"].reshape(-1).astype(np.int64) for label in labels]
    counts = np.bincount(np.concatenate(classes), minlength=len(maps)).clip(min=1)
    weights = (1 - np.asarray(maps)) ** 2 / counts
    drawn = torch.tensor([weights[found].sum() for found in classes], dtype=torch.float64)
    return drawn / drawn.sum() if drawn.sum() > 0 else torch.full_like(drawn, 1 / len(drawn))


def draw(weights: Tensor, seed: int) -> list[int]:
    """Return as many numbers of pictures as there are `weights` (n,), drawn by these, with repetition."""
    generator = torch.Generator().manual_seed(seed % 2**63)
    return torch.multinomial(weights, len(weights), replacement=True, generator=generator).tolist()
