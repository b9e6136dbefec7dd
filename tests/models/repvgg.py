"""RepVGG of few channels, the golden file of the original, and how exactly results agree."""

import pytest

from models import create_backbone
from tests.helpers import golden, randomize_

EXACT, SAME, SINGLE = 1e-12, 1e-9, 1e-5  # a block in float64, a network in float64, a network in float32
ORIGINAL = golden("repvgg-a0")
NARROW = {"width_multiplier": (0.25, 0.125, 0.125, 0.125)}  # 16, 16, 16, 32, 64 channels: every block, little work
each_style = pytest.mark.parametrize("style", ["repvgg", "qarep"])


def narrow(arch="A0", **options):
    """Return a RepVGG of few channels with random weights and statistics, in eval mode."""
    return randomize_(create_backbone("RepVGG", arch, **NARROW, **options)).eval()
