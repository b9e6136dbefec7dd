"""Logits of two forms are judged by the rounding of the unfused one."""

import pytest
import torch

from utils.prove.logits import LEAST_ROUNDING, ROUNDINGS, SAMPLE, LogitDifference


def compared(own, off, pictures=20, batch=6):
    """Return what is found where float32 moves the logits by `own` and fusing by `off`, both of each picture."""
    exact = torch.randn(pictures, 5, generator=torch.Generator().manual_seed(0)).double()
    exact /= exact.abs().amax(1, keepdim=True)
    asked = []
    found = LogitDifference()
    for start in range(0, pictures, batch):
        part = slice(start, start + batch)

        def truth(numbers, part=part):
            asked.extend((numbers + part.start).tolist())
            return exact[part][numbers]

        moved = torch.ones(5).double()
        found.add(exact[part] + own[part, None] * moved, exact[part] + off[part, None] * moved, truth)
    return found, asked


@pytest.mark.parametrize(("own", "off", "beyond"), [(1e-6, -5e-6, 0), (1e-3, -5e-3, 0), (1e-6, 5e-5, 20), (0, 3e-7, 0)])
def test_float32_decides_what_is_rounding(own, off, beyond):
    found, asked = compared(torch.full((20,), own), torch.full((20,), off))
    assert (found.beyond, found.ok) == (beyond, beyond == 0)
    assert found.rounding == pytest.approx(max(own, LEAST_ROUNDING), rel=1e-2)
    assert found.tolerance == pytest.approx(ROUNDINGS * max(own, LEAST_ROUNDING), rel=1e-2)
    assert set(range(SAMPLE)) <= set(asked)
    assert (len(set(asked)) == SAMPLE) is (beyond == 0)


def test_a_picture_that_float32_itself_moves_far_is_no_fault():
    own, off = torch.full((20,), 1e-6), torch.full((20,), 1e-6)
    own[15], off[15] = 1e-2, -1e-2
    found, asked = compared(own, off)
    assert found.ok
    assert asked == [*range(SAMPLE), 15]
    off[17] = 1e-2
    assert compared(own, off)[0].beyond == 1
