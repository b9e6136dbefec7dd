"""Gradient re-parameterization: the plain network takes the steps of the one with branches."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models import create_model
from models.errors import UserError
from tests.helpers import pictures, relative_error, tiny
from utils.train.gradients import plain_convolutions, scale_steps, start_as_sum, step_factors

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, eps=1e-30),
}


class Sum(nn.Module):
    """Constant scales and linear addition: s (conv(x) + point(x)) [+ f x], f a factor per channel that is learnt."""

    def __init__(self, conv, scale):
        super().__init__()
        self.conv, self.scale = conv, scale
        self.point = nn.Conv2d(conv.in_channels, conv.out_channels, 1, conv.stride, groups=conv.groups, bias=False)
        keeps = conv.in_channels == conv.out_channels and conv.stride == (1, 1)
        self.factor = nn.Parameter(torch.ones(conv.out_channels, 1, 1)) if keeps else None

    def forward(self, x):
        y = self.scale * (self.conv(x) + self.point(x))
        return y if self.factor is None else y + self.factor * x

    def kernel(self):
        k = self.conv.kernel_size[0]
        kernel = self.scale * (self.conv.weight + F.pad(self.point.weight, [k // 2] * 4))
        if self.factor is None:
            return kernel
        one = nn.init.dirac_(torch.zeros_like(kernel), self.conv.groups)
        return kernel + one * self.factor[:, None]


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize(
    ("c1", "c2", "k", "options"),
    [(6, 6, 3, {}), (6, 6, 3, {"groups": 2}), (6, 6, 5, {"groups": 6}), (6, 8, 3, {}), (6, 6, 3, {"stride": 2})],
    ids=str,
)
def test_steps_are_those_of_the_sum(make, c1, c2, k, options, monkeypatch):
    torch.manual_seed(0)
    conv = nn.Conv2d(c1, c2, k, padding=k // 2, bias=False, **options).double()
    wide = Sum(conv, 0.7).double()
    plain = copy.deepcopy(conv)
    with torch.no_grad():
        plain.weight.copy_(wide.kernel())
    monkeypatch.setattr("utils.train.gradients.plain_convolutions", lambda _: {plain: 0.7})
    optimizers = [make(list(module.parameters())) for module in (wide, plain)]
    scale_steps(None, optimizers[1])
    first = plain.weight.detach().clone()
    for step in range(4):
        x = torch.randn(2, c1, 9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        for module, optimizer in zip((wide, plain), optimizers, strict=True):
            optimizer.zero_grad()
            module(x).tanh().square().sum().backward()
            optimizer.step()
        assert relative_error(plain.weight, wide.kernel()) <= 1e-12
    assert relative_error(plain.weight, first) > 1e-2


def test_factors_of_the_weights():
    factors = step_factors(nn.Conv2d(4, 4, 3, groups=2), 0.5)
    assert factors[0, 0].tolist() == [[0.5] * 3, [0.5, 2.0, 0.5], [0.5] * 3]
    assert factors[0, 1].tolist() == [[0.5] * 3, [0.5, 1.0, 0.5], [0.5] * 3]
    assert factors[3, 1, 1, 1] == 2.0
    assert step_factors(nn.Conv2d(4, 4, 3, 2), 0.5)[0, 0, 1, 1] == 1.0


def test_scales_fall_with_the_depth_behind_a_reduction():
    scales = plain_convolutions(create_model(tiny()))
    assert [(conv.stride[0], round(scale**2, 6)) for conv, scale in scales.items()] == [
        *[(2, 1.0), (2, 1.0), (1, 2.0), (2, 1.0)],
        *((1, round(2 / depth, 6)) for depth in range(1, len(scales) - 3)),
    ]


def test_new_weights_are_those_of_the_sum():
    model = create_model(tiny())
    before = copy.deepcopy(model)
    start_as_sum(model)
    for (conv, scale), old in zip(plain_convolutions(model).items(), plain_convolutions(before), strict=True):
        added = (conv.weight - scale * old.weight).detach()
        ring = added.clone()
        ring[:, :, 1, 1] = 0
        assert ring.abs().max() < 1e-6
        keeps = conv.in_channels == conv.out_channels and conv.stride == (1, 1)
        diagonal = added[:, :, 1, 1].diagonal()
        assert bool((diagonal > 0.5).float().mean() > 0.4) if keeps else bool((diagonal.abs() < 1.5).all())
    assert model.eval()(pictures(dtype=torch.float32))[0].isfinite().all()


def test_a_network_without_plain_convolutions_is_refused():
    with pytest.raises(UserError, match=r"which .* has none: leave it out"):
        plain_convolutions(create_model(tiny(overparameterize={"style": "acb"})))
