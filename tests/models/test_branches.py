"""Branches beside a convolution: the fused convolution computes their sum, whatever the convolution is."""

import copy

import pytest
import torch
from torch import nn

from models.blocks.branches import STYLES, BranchedConv, Part
from tests.helpers import randomize_, relative_error

EXACT = 1e-12

CONVOLUTIONS = {
    "plain": lambda: nn.Conv2d(6, 8, 3, padding=1, bias=False),
    "same width": lambda: nn.Conv2d(6, 6, 3, padding=1),
    "stride": lambda: nn.Conv2d(6, 8, 3, 2, 1),
    "uneven stride": lambda: nn.Conv2d(6, 8, 3, (1, 2), 1),
    "groups": lambda: nn.Conv2d(6, 9, 3, padding=1, groups=3, bias=False),
    "groups, same width": lambda: nn.Conv2d(6, 6, 3, padding=1, groups=2),
    "depthwise": lambda: nn.Conv2d(6, 6, 3, padding=1, groups=6),
    "depthwise, wider": lambda: nn.Conv2d(6, 12, 5, 2, 2, groups=6),
    "dilation": lambda: nn.Conv2d(6, 6, 3, padding=2, dilation=2),
    "dilation, stride": lambda: nn.Conv2d(6, 8, 3, 2, 2, (2, 1)),
    "no padding": lambda: nn.Conv2d(6, 6, 3),
    "much padding": lambda: nn.Conv2d(6, 6, 3, padding=3),
    "uneven padding": lambda: nn.Conv2d(6, 6, 5, padding=(0, 4), groups=2),
    "7x7": lambda: nn.Conv2d(3, 8, 7, 2, 3),
    "2x2": lambda: nn.Conv2d(6, 6, 2),
    "patches": lambda: nn.Conv2d(6, 8, 4, 4),
    "4x4": lambda: nn.Conv2d(6, 8, 4, 2, 1, groups=2),
    "same": lambda: nn.Conv2d(6, 6, 4, padding="same"),
    "valid": lambda: nn.Conv2d(6, 8, 3, padding="valid"),
    "reflect": lambda: nn.Conv2d(6, 6, 3, padding=1, padding_mode="reflect"),
    "replicate": lambda: nn.Conv2d(6, 8, 3, 2, 2, padding_mode="replicate"),
    "circular": lambda: nn.Conv2d(6, 6, 3, padding=2, dilation=2, padding_mode="circular"),
}


def branched(make, style, bn=True):
    torch.manual_seed(0)
    conv = make()
    norm = nn.BatchNorm2d(conv.out_channels) if bn else nn.Identity()
    return randomize_(BranchedConv(conv, norm, STYLES[style](conv))).double().eval()


def pictures_for(conv, height=11, width=14):
    return torch.randn(2, conv.in_channels, height, width, dtype=torch.float64)


@pytest.mark.parametrize("bn", [True, False], ids=["BatchNorm", "bare"])
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("make", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
@torch.no_grad()
def test_fused_convolution_is_the_sum(make, style, bn):
    block = branched(make, style, bn)
    fused = block.fuse()
    assert type(fused) is nn.Conv2d
    assert str(fused).replace(", bias=False", "") == str(block.conv).replace(", bias=False", "")
    for size in ((11, 14), (8, 9)):
        x = pictures_for(block.conv, *size)
        assert relative_error(fused(x), block(x)) <= EXACT


@pytest.mark.parametrize("style", STYLES)
@torch.no_grad()
def test_every_branch_adds_something(style):
    """Otherwise a branch that its kernel forgets would not show."""
    block = branched(CONVOLUTIONS["groups, same width"], style)
    x = pictures_for(block.conv)
    whole = block(x)
    for i in range(len(block.branches)):
        fewer = copy.deepcopy(block)
        del fewer.branches[i]
        assert relative_error(fewer(x), whole) > 1e-2
        assert relative_error(fewer.fuse()(x), fewer(x)) <= EXACT


@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("dilation", [1, 2, 3])
@torch.no_grad()
def test_a_dilated_part_stands_in_the_middle(size, dilation):
    conv = nn.Conv2d(4, 4, 13, padding=6, groups=4)
    block = BranchedConv(conv, nn.BatchNorm2d(4), [Part(conv, (size, size), (dilation, dilation))])
    block = randomize_(block).double().eval()
    x = pictures_for(conv)
    assert relative_error(block.fuse()(x), block(x)) <= EXACT


@pytest.mark.parametrize("style", STYLES)
def test_kernel_and_bias_are_differentiable(style):
    block = branched(CONVOLUTIONS["same width"], style)
    sum(t.square().sum() for t in block.get_equivalent_kernel_bias()).backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in block.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("style", STYLES)
def test_dtype_is_kept_and_the_block_left_alone(style, dtype):
    block = branched(CONVOLUTIONS["plain"], style).to(dtype)
    before = copy.deepcopy(block.state_dict())
    fused = block.fuse()
    assert {p.dtype for p in fused.parameters()} == {dtype}
    assert all(torch.equal(before[name], tensor) for name, tensor in block.state_dict().items())


@pytest.mark.parametrize("style", STYLES)
def test_a_norm_that_is_none_is_refused(style):
    conv = CONVOLUTIONS["plain"]()
    block = BranchedConv(conv, nn.GroupNorm(1, 8), STYLES[style](conv))
    with pytest.raises(ValueError, match="GroupNorm"):
        block.fuse()
