"""MuSGD's steps in float32."""

import pytest
import torch
from ultralytics.optim import muon

from utils.train.muon import MuSGD, orthogonalized, theirs


@pytest.mark.parametrize("shape", [(8, 72), (64, 16), (5, 5), (1, 9), (9, 1)])
def test_singular_values_come_near_one_and_vectors_stay(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    found = orthogonalized(matrix[None])[0]
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    turned = left.T @ found @ right.T
    assert torch.allclose(turned, turned.diagonal().diag(), atol=1e-4)
    assert 0.6 < turned.diagonal()[values > values.max() / 20].min() <= turned.diagonal().max() < 1.3


def test_it_is_what_ultralytics_computes_in_bfloat16():
    torch.manual_seed(0)
    matrices = torch.zeros(3, 24, 40)
    for matrix, rows in zip(matrices, (24, 7, 0), strict=True):
        matrix[:rows] = torch.randn(rows, 40)
    found, wanted = orthogonalized(matrices), theirs(matrices).float()
    assert not found[1, 7:].any()
    assert not found[2].any()
    assert (found - wanted).abs().max() < 0.03 * wanted.abs().max()


def test_a_step_of_the_optimizer_uses_it_and_leaves_ultralytics_as_it_was(monkeypatch):
    kernel = torch.nn.Parameter(torch.randn(8, 4, 3, 3))
    kernel.grad = torch.randn_like(kernel)
    before, seen = kernel.detach().clone(), []
    monkeypatch.setattr("utils.train.muon.orthogonalized", lambda x: seen.append(x.shape) or orthogonalized(x))
    optimizer = MuSGD([{"params": [kernel], "use_muon": True}], lr=0.1, momentum=0.9, nesterov=True, muon=1.0, sgd=0.0)
    optimizer.step()
    assert seen == [(1, 8, 36)]
    assert muon.zeropower_via_newtonschulz5 is theirs
    moved = (before - kernel.detach()).flatten(1) / 0.1
    assert torch.allclose(moved, orthogonalized(kernel.grad.flatten(1)[None])[0], atol=1e-3)
