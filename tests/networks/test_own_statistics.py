"""Batch-norm statistics for one kind of input, against a copy of the network."""

import copy

import pytest
import torch
from torch import Tensor, nn

from ssl_lightning.core.seeding import generator
from ssl_lightning.networks.own_statistics import OwnStatistics


def network(**options) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, **options), nn.ReLU(), nn.BatchNorm2d(4))


def images(name: str, shift: float = 0.0) -> Tensor:
    return torch.randn(8, 3, 6, 6, generator=generator(name)) + shift


@pytest.mark.parametrize("options", [{}, {"momentum": None}, {"track_running_stats": False}])
def test_two_inputs_leave_what_two_networks_keep(options: dict) -> None:
    shared = network(**options)
    one, two = copy.deepcopy(shared), copy.deepcopy(shared)
    own = OwnStatistics(shared)
    for step in range(3):
        for alone, shift in ((one, 0.0), (two, 5.0)):
            alone(images(f"{step} {shift}", shift))
        shared(images(f"{step} 0.0"))
        with own.used_by(shared):
            shared(images(f"{step} 5.0", 5.0))
    for network_ in (shared, one, two):
        network_.eval()
    x = images("test")
    assert torch.equal(shared(x), one(x))
    with own.used_by(shared):
        assert torch.equal(shared(x), two(x))
    assert torch.equal(shared(x), one(x))


def test_an_error_inside_gives_the_network_its_own_statistics_back() -> None:
    shared = network()
    own, before = OwnStatistics(shared), dict(shared[1]._buffers)
    with pytest.raises(RuntimeError), own.used_by(shared):
        shared(torch.zeros(1, 2, 6, 6))
    assert all(shared[1]._buffers[name] is value for name, value in before.items())
