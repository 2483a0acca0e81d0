"""Schedules against their formulas."""

import math

import pytest
import torch

from ssl_lightning import optim


def rates(make, steps: int, lr: float = 0.5, **options) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr, momentum=0.9)
    schedule = make(optimizer, steps, **options)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_one_cycle_rises_to_lr_and_falls_to_nothing() -> None:
    found = rates(optim.one_cycle, 100, warmup=0.3, div_factor=25)
    assert found[0] == pytest.approx(0.5 / 25)
    assert max(found) == pytest.approx(0.5)
    assert found.index(max(found)) == 29
    assert found[-1] < 1e-5


def test_cosine_against_its_formula() -> None:
    found = rates(optim.cosine, 20, warmup=0.2, final=0.1)
    assert found[:4] == pytest.approx([0.125, 0.25, 0.375, 0.5])
    expected = [0.5 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * t / 16))) for t in range(16)]
    assert found[4:] == pytest.approx(expected)


def test_multistep_is_rotnets_at_any_length() -> None:
    found = rates(optim.multistep, 200, lr=0.1, milestones=[0.3, 0.6, 0.8], gamma=0.2)
    for epoch, expected in (
        (0, 0.1),
        (59, 0.1),
        (60, 0.02),
        (119, 0.02),
        (120, 0.004),
        (160, 0.0008),
        (199, 0.0008),
    ):
        assert found[epoch] == pytest.approx(expected)


def test_constant() -> None:
    assert rates(optim.constant, 5) == [0.5] * 5


@pytest.mark.parametrize("options", [{"warmup": 1.0}, {"warmup": -0.1}])
def test_fractions_are_checked(options: dict) -> None:
    with pytest.raises(ValueError, match="fraction of the run"):
        rates(optim.cosine, 5, **options)
