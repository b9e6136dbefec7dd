"""BatchNorms of torchvision and timm that are frozen: folded like any other."""

import pytest
import torch
from timm.layers import FrozenBatchNormAct2d
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from models import create_model, switch_to_deploy  # noqa: F401 (a model's words register what fuses)
from models.blocks.frozen import thaw
from models.layers import build_backbone  # noqa: F401


def randomized(norm):
    """The norm with random statistics and factors, in float64."""
    g = torch.Generator().manual_seed(0)
    for name, buffer in norm.named_buffers():
        buffer.copy_(torch.rand(buffer.shape, generator=g) + 0.5 if name != "bias" else torch.randn(6, generator=g))
    return norm.double()


@pytest.mark.parametrize(
    "norm",
    [FrozenBatchNorm2d(6, eps=1e-3), FrozenBatchNormAct2d(6, eps=1e-3), FrozenBatchNormAct2d(6, apply_act=False)],
    ids=["torchvision", "timm", "timm without activation"],
)
@pytest.mark.parametrize(("stride", "groups"), [(1, 1), (2, 3)])
def test_a_frozen_batch_norm_is_folded(norm, stride, groups):
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, stride, groups=groups, bias=False).double(), randomized(norm), nn.Hardswish()
    )
    x = torch.randn(2, 3, 17, 11, dtype=torch.float64)
    deploy = switch_to_deploy(network, x)
    expected = network(x)
    assert ((deploy(x) - expected).abs().max() / expected.abs().max()).item() < 1e-12
    assert deploy.report.fused["Conv+BN"] == 1
    assert not deploy.report.left
    assert not any(isinstance(m, nn.BatchNorm2d | type(norm)) for m in deploy.modules())
    assert {p.dtype for p in deploy.parameters()} == {torch.float64}


def test_one_that_cannot_be_folded_is_listed():
    network = nn.Sequential(nn.ReLU(), FrozenBatchNorm2d(3))
    assert len(switch_to_deploy(network, torch.randn(1, 3, 8, 8)).report.left) == 1


def test_dtype_and_constants_are_kept():
    norm = thaw(FrozenBatchNorm2d(4).half())
    assert {buffer.dtype for name, buffer in norm.named_buffers() if name != "num_batches_tracked"} == {torch.float16}
    assert not any(p.requires_grad for p in norm.parameters())
