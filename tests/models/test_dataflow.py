"""Who feeds whom, read off one forward pass."""

import pytest
import torch
from torch import nn

from models.blocks.dataflow import follow


class Net(nn.Module):
    """Two linear maps `a`, `b` and two norms `n`, `m`; `wire(net, x)` is the forward pass."""

    def __init__(self, wire):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.n, self.m = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.wire = wire

    def forward(self, x):
        return self.wire(self, x)


def feeds(wire, x=None):
    net = Net(wire).eval()
    return by_name(net, torch.zeros(1, 3, 4, 4) if x is None else x)


def by_name(net, x):
    names = {module: name for name, module in net.named_modules()} | {None: None}
    links = follow(net, x, (nn.Conv2d,), (nn.BatchNorm2d,))
    return {names[link.consumer]: names[link.producer] for link in links}


def branch_on_training(net, x):
    return net.n(net.a(x)) if net.training else net.n(x)


@pytest.mark.parametrize(
    ("wire", "expected"),
    [
        (lambda n, x: n.n(n.a(x)), {"n": "a"}),
        (lambda n, x: n.m(n.b(n.n(n.a(x)))), {"n": "a", "m": "b"}),
        (lambda n, x: n.n(n.a(x)) + n.m(n.b(x)), {"n": "a", "m": "b"}),
        (lambda n, x: n.n(n.a(x) + n.b(x)), {"n": None}),
        (lambda n, x: n.n(x), {"n": None}),
        (lambda n, x: n.a(x), {}),
        (lambda n, x: n.n(n.m(n.a(x))), {"m": "a", "n": None}),
        (lambda n, x: n.n(n.a(x)) + n.m(n.a(x)), {"n": None, "m": None}),
        (lambda n, x: [n.n(y := n.a(x)), n.m(y)], {"n": None, "m": None}),
        (branch_on_training, {"n": None}),
    ],
)
def test_producers_are_found_by_what_runs(wire, expected):
    assert feeds(wire) == expected


def test_an_output_that_leaves_the_model_has_another_reader():
    assert feeds(lambda n, x: {"before": (y := n.a(x)), "after": [n.n(y)]}) == {"n": None}


def test_gradients_and_hooks_are_left_as_they_were():
    net = Net(lambda n, x: n.n(n.a(x))).eval()
    list(follow(net, torch.zeros(1, 3, 4, 4), (nn.Conv2d,), (nn.BatchNorm2d,)))
    assert not any(module._forward_hooks for module in net.modules())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


def test_hooks_go_even_when_the_model_fails():
    net = Net(lambda n, x: n.n(n.a(x[0]))).eval()
    with pytest.raises((RuntimeError, ValueError)):
        list(follow(net, torch.zeros(1, 5, 4, 4), (nn.Conv2d,), (nn.BatchNorm2d,)))
    assert not any(module._forward_hooks for module in net.modules())


def test_runs_without_data():
    net = Net(lambda n, x: n.n(n.a(x))).eval().to("meta")
    assert by_name(net, torch.empty(1, 3, 4, 4, device="meta")) == {"n": "a"}
