"""Continued pretraining of given weights: a backbone that is frozen at first, and its own learning rate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

FROZEN = "frozen_steps"  # key of a checkpoint
FACTOR = "lr_factor"  # key of a parameter group, until its learning rate is set


class FrozenStart:
    """Keep a backbone as it is in the first optimizer steps of a run.

    Its gradients are computed and dropped, so the optimizer skips its weights: no weight decay, no momentum.
    Its layers are in evaluation mode, so batch-norm statistics stay too. All parameters still require
    gradients, as DDP expects. A CUDA graph is recorded again when the modes change.

    The number of steps is fixed when the run starts. A run that resumes with another length keeps it.

    Args:
        share: Share of the run, from 0 to below 1.

    Raises:
        ValueError: The share is out of range.
    """

    def __init__(self, share: float) -> None:
        if not 0 <= share < 1:
            raise ValueError(
                f"task.freeze_until is {share}; allowed is a share of the run, from 0 to below 1"
            )
        self.share = share
        self.steps = 0
        self.active = False  # in this step
        self._stored: int | None = None  # of the run that is resumed
        self._modes: dict[nn.Module, bool] = {}  # of the layers before they were frozen

    def begin(self, total_steps: int) -> None:
        """Set the number of steps for a run of so many optimizer steps."""
        self.steps = round(self.share * total_steps) if self._stored is None else self._stored
        self._stored = None

    def update(self, backbone: nn.Module, done: int) -> None:
        """Set the modes of the backbone for the step after `done` optimizer steps."""
        self.active = done < self.steps
        if self.active:
            self._modes = self._modes or {part: part.training for part in backbone.modules()}
            backbone.eval()  # in every step, since a callback may have changed it
        elif self._modes:
            for part, training in self._modes.items():
                part.training = training
            self._modes = {}

    def drop_gradients(self, backbone: nn.Module) -> None:
        """Set the gradients of a frozen backbone to None."""
        if self.active:
            for parameter in backbone.parameters():
                parameter.grad = None

    def save(self, checkpoint: dict[str, Any]) -> None:
        """Add the number of steps to a checkpoint, if there are any."""
        if self.steps:
            checkpoint[FROZEN] = self.steps

    def load(self, checkpoint: Mapping[str, Any]) -> None:
        """Take the number of steps of a checkpoint."""
        self._stored = int(checkpoint.get(FROZEN, 0))


def parameter_groups(
    parameters: Iterable[nn.Parameter], backbone: nn.Module, factor: float
) -> list[dict[str, Any]]:
    """Split parameters into groups for an optimizer: others first, then the backbone's, if there are any.

    A backbone that is frozen at first needs its own group too: torch's fused SGD cannot update weights with
    and without momentum in one group.

    Args:
        parameters: The parameters.
        backbone: Owner of the second group.
        factor: Learning rate of the second group relative to the first.

    Returns:
        The groups that are not empty, the backbone's with its factor under `FACTOR`.
    """
    own = {id(parameter) for parameter in backbone.parameters()}
    given = list(parameters)
    inside = [parameter for parameter in given if id(parameter) in own]
    outside = [parameter for parameter in given if id(parameter) not in own]
    groups: list[dict[str, Any]] = [{"params": outside}, {"params": inside, FACTOR: factor}]
    return [group for group in groups if group["params"]]
