"""Processes that share a batch give the gradients, statistics and losses of one process that has all of it."""

import pytest
import torch

from tests.distributed.gradients import PICTURES, gradients, names_for
from tests.distributed.launching import run_forked


def flat(found, names):
    return torch.cat([found[name].double().flatten() for name in names])


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_learn_what_one_learns(processes, tmp_path):
    file = tmp_path / "shared.pt"
    run_forked(processes, tmp_path / "store", "tests.distributed.gradients", str(file))
    shared = torch.load(file, weights_only=True)
    for name in names_for(processes):
        alone = gradients(name, (0, PICTURES))
        assert shared[name].keys() == alone.keys()
        weights = [key for key in alone if key.endswith(("weight", "bias"))]
        got, want = flat(shared[name], weights), flat(alone, weights)
        assert (got - want).norm() < 1e-6 * want.norm(), name
        for key in alone.keys() - set(weights):
            assert (shared[name][key] - alone[key]).abs().max() <= 1e-6 * alone[key].abs().max(), (name, key)
