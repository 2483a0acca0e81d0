"""Schedules against their formulas, and fused optimizers against plain ones."""

import math

import pytest
import torch

from ssl_lightning.engine import optim


def rates(make, steps: int, lr: float = 0.5, **options) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr, momentum=0.9)
    schedule = make(optimizer, steps, **options)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_one_cycle_rises_to_lr_and_falls_to_zero() -> None:
    found = rates(optim.one_cycle, 100, warmup=0.3, div_factor=25)
    assert found[0] == pytest.approx(0.5 / 25)
    assert max(found) == pytest.approx(0.5)
    assert found.index(max(found)) == 29
    assert found[-1] < 1e-5


@pytest.mark.parametrize(("steps", "warmup"), [(10, 0.1), (4, 0.25), (100, 0.01)])
def test_one_cycle_may_warm_up_for_one_step(steps: int, warmup: float) -> None:
    found = rates(optim.one_cycle, steps, warmup=warmup)
    assert found[0] == pytest.approx(0.5)
    assert found == sorted(found, reverse=True)
    assert found[-1] < 1e-5


def test_cosine_against_its_formula() -> None:
    found = rates(optim.cosine, 20, warmup=0.2, final=0.1)
    assert found[:4] == pytest.approx([0.125, 0.25, 0.375, 0.5])
    expected = [0.5 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * t / 16))) for t in range(16)]
    assert found[4:] == pytest.approx(expected)


def test_multistep_equals_rotnets_schedule_at_any_length() -> None:
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


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, True), ({"foreach": True}, None), ({"fused": False}, False)],
)
def test_fused_kernels_compute_the_same_and_keep_explicit_choices(
    options: dict[str, bool], expected: bool | None
) -> None:
    found = []
    for fuse in (False, True):
        weights = [torch.linspace(-1, 1, 50).requires_grad_(), torch.ones(3, 4).requires_grad_()]
        optimizer = torch.optim.SGD(
            weights, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01, **options
        )
        if fuse:
            optim.use_fused_kernels(optimizer)
            assert optimizer.param_groups[0]["fused"] is expected
        for step in range(5):
            for weight in weights:
                weight.grad = torch.full_like(weight, 0.3 - 0.1 * step)
            with torch.no_grad():
                optimizer.step()
        found.append([weight.detach() for weight in weights])
    torch.testing.assert_close(found[0], found[1])


def test_optimizers_without_fused_kernels_stay_unchanged() -> None:
    optimizer = torch.optim.RMSprop([torch.ones(2, requires_grad=True)])
    optim.use_fused_kernels(optimizer)
    assert "fused" not in optimizer.param_groups[0]
