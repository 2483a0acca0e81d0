"""Learning-rate schedules of `conf/scheduler`, and checks of optimizers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR


class _OneCycle(OneCycleLR):
    """One-cycle schedule that keeps its length on resume, since a run may resume with more epochs."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({key: state_dict[key] for key in ("last_epoch", "_step_count", "_last_lr")})


BELOW = {
    "lr": math.inf,
    "weight_decay": math.inf,
    "eps": math.inf,
    "momentum": 1,
    "betas": 1,
}  # all at least 0


def check_optimizer(
    make_optimizer: Callable[[Any], Optimizer], make_scheduler: Callable[[Optimizer, int], LRScheduler]
) -> None:
    """Raise early on settings that an optimizer or its schedule would refuse when training starts.

    Args:
        make_optimizer: A partial of an optimizer with its keywords; takes the weights.
        make_scheduler: Takes the optimizer and the number of steps.

    Raises:
        ValueError: The message names the setting.
    """
    for key, value in getattr(make_optimizer, "keywords", {}).items():
        below = BELOW.get(key, math.inf)
        if key in BELOW and not all(0 <= each < below for each in (value if key == "betas" else [value])):
            allowed = "0 or more" if below == math.inf else f"0 to below {below}"
            raise ValueError(f"optimizer.{key} is {value}; allowed is {allowed}")
    try:
        optimizer = make_optimizer([torch.nn.Parameter(torch.zeros(1))])
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"optimizer: {error}") from error
    make_scheduler(optimizer, 100)


def use_fused_kernels(optimizer: Optimizer) -> None:
    """Update all weights in one kernel, if the optimizer has one and no other implementation is chosen.

    SGD of a small network then takes a third of the time. The constructor's `fused=True` is not used, since
    Lightning would not clip the gradients: such an optimizer may itself undo the loss scaling of float16.
    """
    for group in optimizer.param_groups:
        chosen = group.get("foreach") or group.get("differentiable")
        if group.get("fused", False) is None and not chosen:
            group["fused"] = True


# Each schedule takes the optimizer and the total number of optimizer steps. It returns a scheduler, which is
# stepped once per optimizer step. Milestones and warm-up are fractions of the run, so that a shorter run
# keeps the shape of its schedule.


def one_cycle(
    optimizer: Optimizer, total_steps: int, *, warmup: float = 0.3, div_factor: float = 25.0
) -> LRScheduler:
    """Rise from lr/div_factor to lr over the first `warmup` of the run, then fall to 0 (Smith 2018).

    Momentum (or Adam's beta1) moves the other way between 0.95 and 0.85.
    """
    _check_fraction("warmup", warmup)
    if div_factor < 1:
        raise ValueError(f"scheduler.div_factor is {div_factor}; it must be 1 or more")
    peak = [group["lr"] for group in optimizer.param_groups]
    if warmup * total_steps == 1:  # torch would divide by 0; slightly less starts at the peak too
        warmup *= 1 - 1e-9
    return _OneCycle(optimizer, peak, total_steps=total_steps, pct_start=float(warmup), div_factor=div_factor)


def cosine(optimizer: Optimizer, total_steps: int, *, warmup: float = 0.0, final: float = 0.0) -> LRScheduler:
    """Linear warm-up over a fraction of the run, then a half cosine down to `final` * lr."""
    _check_fraction("warmup", warmup)
    if not 0 <= final <= 1:
        raise ValueError(f"scheduler.final is {final}; it is a fraction of the peak, 0 to 1")
    warmup_steps = round(warmup * total_steps)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    return LambdaLR(optimizer, factor)


def multistep(
    optimizer: Optimizer, total_steps: int, *, milestones: Sequence[float], gamma: float = 0.1
) -> LRScheduler:
    """Multiply the learning rate by `gamma` at each milestone, a fraction of the run in (0, 1)."""
    for milestone in milestones:
        _check_fraction("milestones", milestone)
    if gamma <= 0:
        raise ValueError(f"scheduler.gamma is {gamma}; it must be above 0")
    steps = [round(milestone * total_steps) for milestone in milestones]
    return LambdaLR(optimizer, lambda step: gamma ** sum(step >= at for at in steps))


def constant(optimizer: Optimizer, total_steps: int) -> LRScheduler:
    """Keep the learning rate as it is."""
    return LambdaLR(optimizer, lambda step: 1.0)


def _check_fraction(name: str, value: float) -> None:
    if not 0.0 <= value < 1.0:
        raise ValueError(f"scheduler.{name} is {value}; it is a fraction of the run, from 0 to below 1")
