"""Large kernels: every smaller kernel beside them goes into them."""

import pytest
import torch
from torch import nn

from models import switch_to_deploy
from models.blocks.large_kernels import DILATED, DilatedReparamBlock, RepLKBlock
from models.errors import UserError
from tests.helpers import randomize_, relative_error

EXACT = 1e-12


def maps(height=23, width=18):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 8, height, width, generator=generator, dtype=torch.float64)


def assert_one_kernel(block):
    """Check that a block computes the same fused, with one large kernel and no BatchNorm."""
    block = randomize_(block).double().eval()
    deploy = switch_to_deploy(block, maps())
    assert type(deploy.conv) is nn.Conv2d
    assert not [m for m in deploy.modules() if isinstance(m, nn.BatchNorm2d)]
    assert deploy.report.fused["LargeKernel"] == 1
    for size in ((23, 18), (7, 40)):
        assert relative_error(deploy(maps(*size)), block(maps(*size))) <= EXACT
    return deploy


@pytest.mark.parametrize("k", DILATED)
def test_dilated_kernels_fuse_into_the_large_one(k):
    block = DilatedReparamBlock(8, k, nn.GELU())
    assert len(block.conv.branches) == len(DILATED[k])
    deploy = assert_one_kernel(block)
    assert deploy.conv.weight.shape == (8, 1, k, k)


@pytest.mark.parametrize(("c2", "k", "small", "e"), [(8, 31, 5, 1.0), (8, 13, 3, 2.0), (12, 7, 5, 0.5)])
def test_the_small_kernel_fuses_into_the_large_one(c2, k, small, e):
    block = RepLKBlock(8, c2, k, small, e=e)
    assert block.add == (c2 == 8)
    deploy = assert_one_kernel(block)
    assert deploy.conv.weight.shape == (int(c2 * e), 1, k, k)


def test_the_shortcut_may_be_left_out():
    assert not RepLKBlock(8, 8, 7, 3, shortcut=False).add


@pytest.mark.parametrize(("k", "small"), [(30, 5), (31, 4), (5, 5), (3, 5)])
def test_kernels_that_have_no_common_middle_are_refused(k, small):
    with pytest.raises(UserError, match=f"smaller odd one in its middle, got {k} and {small}"):
        RepLKBlock(8, 8, k, small)


def test_a_side_that_has_no_dilated_kernels_is_refused():
    with pytest.raises(UserError, match="one of the sides 5, 7, 9, 11, 13, 15, 17, got 12"):
        DilatedReparamBlock(8, 12, nn.Identity())
