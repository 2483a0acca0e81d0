"""Base class of tasks that train two networks in turns, each with its own optimizer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn

from ssl_lightning.artifacts.checkpoints import FIRST_STEPS
from ssl_lightning.tasks.base import PretextTask


class TwoNetworks(PretextTask):
    """A task that may train a second network against the first, in Lightning's manual optimization.

    A subclass yields the loss "loss" of the first network from `rounds`, then each loss of the second one,
    and names the parameters of the second network. `Trainer(max_steps=...)` counts the steps of both
    optimizers, as Lightning does. DDP needs `strategy="ddp_find_unused_parameters_true"`.

    Args:
        backbone: The backbone.
        alternating: Whether there is a second network; without it this is a plain `PretextTask`.
        warmup_steps: Initial steps that train the first network alone.
        second_steps: Steps of the second network per step of the first.
        second_lr_factor: Learning rate of the second network relative to the first.
        accumulate_grad_batches: Number of batches whose gradients make one step of each network; the argument
            of this name of Lightning's Trainer does not work for two optimizers.
        gradient_clip_val: Largest norm of the gradient of each network; None does not clip. Likewise.
        **base: The keywords of `PretextTask`.

    Raises:
        ValueError: A number is out of range, or an option of two optimizers is given for one.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        alternating: bool,
        warmup_steps: int,
        second_steps: int,
        second_lr_factor: float,
        accumulate_grad_batches: int,
        gradient_clip_val: float | None,
        **base: Any,
    ) -> None:
        super().__init__(backbone, **base)
        if warmup_steps < 0:
            raise ValueError(f"task.warmup_steps is {warmup_steps}; it must be at least 0")
        if accumulate_grad_batches < 1 or (gradient_clip_val is not None and gradient_clip_val <= 0):
            raise ValueError(
                f"accumulate_grad_batches is {accumulate_grad_batches} and gradient_clip_val "
                f"{gradient_clip_val}; allowed are 1 or more, and None or above 0"
            )
        if not alternating and (accumulate_grad_batches > 1 or gradient_clip_val is not None):
            given = {
                "accumulate_grad_batches": accumulate_grad_batches,
                "gradient_clip_val": gradient_clip_val,
            }
            listed = ", ".join(f"{name}={value}" for name, value in given.items())
            raise ValueError(
                f"{type(self).__name__} has a single optimizer without its discriminator and does not take "
                f"{listed}; give them to the Trainer: Trainer({listed})"
            )
        if second_steps < 1:
            raise ValueError(f"task.discriminator_steps is {second_steps}; it must be at least 1")
        self.alternating, self.warmup_steps = alternating, warmup_steps
        self.automatic_optimization = not alternating
        self._second_steps, self._second_lr_factor = second_steps, second_lr_factor
        self._clip = gradient_clip_val
        self._accumulate_over(accumulate_grad_batches)

    def second_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the second network."""
        raise NotImplementedError

    def learn(self, name: str, loss: Tensor, steps: bool) -> None:
        """Add the gradient of a loss; after the last accumulated batch, step and clear the gradients."""
        with nullcontext() if steps else self._without_sync():
            self.manual_backward(loss / self._accumulate)
        if not steps:
            return
        number = 0 if name == "loss" else 1
        optimizers: Any = self.optimizers()
        optimizers[number].step()
        schedules: Any = self.lr_schedulers()
        if schedules:
            schedules[number].step()
        optimizers[number].zero_grad()

    def steps_done(self, batch_idx: int) -> int:
        """Return the number of steps of the first network before this batch."""
        if math.isinf(self.trainer.num_training_batches):
            return self._first_steps(self.trainer.global_step)
        in_epoch = math.ceil(self.trainer.num_training_batches / self._accumulate)
        return self.current_epoch * in_epoch + batch_idx // self._accumulate

    def trainer_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Handle accumulation and clipping, and count the steps of both optimizers, as Lightning does.

        Raises:
            ValueError: Batches are accumulated for several steps of the second network.
        """
        left = super().trainer_options(options)
        if not self.alternating:
            return left
        self._accumulate_over(left.pop("accumulate_grad_batches", 1))
        self._clip = left.pop("gradient_clip_val", None)
        steps = left.get("max_steps", -1)
        if steps > 0:
            left["max_steps"] = steps + self._second_steps * max(0, steps - self.warmup_steps)
        return left | {"find_unused_parameters": True}

    @property
    def accumulated_batches(self) -> int:
        return self._accumulate if self.alternating else super().accumulated_batches

    @property
    def max_steps(self) -> int:
        return self._first_steps(super().max_steps) if self.alternating else super().max_steps

    def _accumulate_over(self, batches: int) -> None:
        if batches > 1 and self._second_steps > 1:
            raise ValueError(
                f"task.discriminator_steps is {self._second_steps} and accumulate_grad_batches {batches}; "
                "only one of them may be above 1"
            )
        self._accumulate = batches

    def _first_steps(self, both: int) -> int:
        """Return the number of steps of the first network among those of both optimizers; -1 stays."""
        if both <= self.warmup_steps:
            return both
        return self.warmup_steps + math.ceil((both - self.warmup_steps) / (1 + self._second_steps))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self.alternating:
            checkpoint[FIRST_STEPS] = self._first_steps(checkpoint["global_step"])

    def check_trainer(self, trainer: pl.Trainer) -> None:
        super().check_trainer(trainer)
        if self.alternating and self._accumulate > 1 and trainer.precision == "16-mixed":
            raise ValueError(
                f"accumulate_grad_batches is {self._accumulate} with trainer.precision=16-mixed, whose loss "
                f"scale changes between the two optimizers of {type(self).__name__}; use "
                "trainer.precision=bf16-mixed or trainer.precision=32-true"
            )

    def configure_callbacks(self) -> Any:
        """Refuse what two optimizers cannot do; this hook comes before Lightning's own check."""
        trainer: Any = self.trainer
        refused = {}
        if trainer.gradient_clip_val:
            refused["gradient_clip_val"] = trainer.gradient_clip_val
        if trainer.accumulate_grad_batches != 1:
            refused["accumulate_grad_batches"] = trainer.accumulate_grad_batches
        if self.alternating and refused:
            kind, given = type(self).__name__, ", ".join(f"{name}={value}" for name, value in refused.items())
            raise ValueError(
                f"Trainer({given}) does not work for the two optimizers of {kind}; give it to the task: "
                f"{kind}(..., {given})"
            )
        return super().configure_callbacks()

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit":
            self.check_trainer(self.trainer)
        strategy: Any = self.trainer.strategy
        is_ddp = self.alternating and isinstance(strategy, DDPStrategy)
        if is_ddp and not strategy._ddp_kwargs.get("find_unused_parameters"):
            raise ValueError(
                f"{type(self).__name__} trains two networks in turns, so DDP must expect unused parameters: "
                "give Trainer(strategy='ddp_find_unused_parameters_true')"
            )

    def configure_optimizers(self) -> Any:
        if not self.alternating:
            return super().configure_optimizers()
        second = self.second_parameters()
        excluded = {id(p) for p in second}
        first: Iterable[nn.Parameter] = [p for p in self.parameters() if id(p) not in excluded]
        steps = self.total_steps()
        self.frozen_start.begin(steps)
        second_steps = self._second_steps * max(1, steps - self.warmup_steps)
        return (
            self.optimizer_for(first, steps),
            self.optimizer_for(second, second_steps, self._second_lr_factor),
        )

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        super().on_before_optimizer_step(optimizer)
        if self._clip:
            self.clip_gradients(optimizer, gradient_clip_val=self._clip)

    def _without_sync(self) -> AbstractContextManager[Any]:
        strategy: Any = self.trainer.strategy
        return strategy.block_backward_sync() if hasattr(strategy, "block_backward_sync") else nullcontext()
