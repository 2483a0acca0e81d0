"""Training steps of a task in a plain PyTorch loop, without framework overhead."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ssl_lightning.bench.build import autocast, wait
from ssl_lightning.core.seeding import generator
from ssl_lightning.tasks.base import PretextTask


class BareLoop:
    """Run steps of a task on prepared batches, without Trainer, loader, transfer, schedule and logs.

    The computation equals the framework's: corrupt, encode, score, backward, step.

    Args:
        task: A task without a Trainer.
        batches: `(images, labels)` as `step` takes them, used in turn.
        optimizers: One; for an adversarial task, the optimizers of generator and discriminator.
        precision: Lightning's name.
        clocked: Whether to add up the seconds of each part in `spent`; this synchronises with the device.
    """

    def __init__(
        self,
        task: PretextTask,
        batches: list[tuple[Tensor, Tensor]],
        optimizers: list[torch.optim.Optimizer],
        precision: str,
        *,
        clocked: bool = False,
    ) -> None:
        self.task, self.batches, self.optimizers, self.precision = task, batches, optimizers, precision
        self.clocked, self.done = clocked, 0
        self.spent: Counter[str] = Counter()
        task.train()
        if clocked:
            self._clock_backbone(task.backbone)

    def step(self) -> None:
        """Train on the next batch."""
        images, labels = self.batches[self.done % len(self.batches)]
        stream = generator("bench", self.done, device=images.device)
        self.done += 1
        self.train_on(images, labels, stream)

    def train_on(self, images: Tensor, labels: Tensor, stream: torch.Generator) -> None:
        """Corrupt, encode, score, backward, step."""
        rounds = self.task.rounds(images, labels, stream)
        while True:
            with self._clock("forward"), autocast(self.precision, self.task.device.type):
                name, scores = next(rounds, ("", {}))
            if not scores:
                return
            self._learn(0 if name == "loss" else 1, scores[name])

    def _learn(self, number: int, loss: Tensor) -> None:
        with self._clock("backward"):
            loss.backward()
        with self._clock("optimizer"):
            self.optimizers[number].step()
            self.optimizers[number].zero_grad()

    @contextmanager
    def _clock(self, part: str) -> Iterator[None]:
        if not self.clocked:
            yield
            return
        wait()
        began = time.perf_counter()
        yield
        wait()
        self.spent[part] += time.perf_counter() - began  # type: ignore[assignment]

    def _clock_backbone(self, backbone: nn.Module) -> None:
        began: list[float] = []

        def before(*_: object) -> None:
            wait()
            began.append(time.perf_counter())

        def after(*_: object) -> None:
            wait()
            self.spent["backbone forward"] += time.perf_counter() - began.pop()  # type: ignore[assignment]

        backbone.register_forward_pre_hook(before)
        backbone.register_forward_hook(after)
