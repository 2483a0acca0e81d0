"""Training loop of the segmentation and detection heads, and selection of the kept state."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ssl_lightning.core.messages import fitted
from ssl_lightning.core.progress import tracked
from ssl_lightning.core.seeding import generator
from ssl_lightning.probes._dense import own_part, sum_gradients, sum_over_processes

OPTIMIZERS = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
WARMUP = 0.05  # share of the steps, before the cosine


@dataclass(frozen=True)
class BatchPart:
    """A batch of training images, and this process's part of it.

    Args:
        step: Number of the step, from 1.
        indices: Images `(B,)` int64 of all processes.
        part: The images of this process. There is at least one.
        weight: 1.0, or 0.0 if there are fewer images than processes and this one repeats the first image. Its
            loss then does not count; a process without a backward pass would lack gradients to sum.
    """

    step: int
    indices: Tensor
    part: slice
    weight: float

    @classmethod
    def of(cls, step: int, indices: Tensor, *, split: bool) -> BatchPart:
        """Split a batch over the processes, or give each process all of it."""
        part = own_part(len(indices)) if split else slice(0, len(indices))
        empty = part.start == part.stop
        return cls(step, indices, slice(0, 1) if empty else part, float(not empty))

    @property
    def mine(self) -> Tensor:
        """Images of this process, `(b,)` int64."""
        return self.indices[self.part]


@dataclass(frozen=True)
class TrainingPlan:
    """Training of a head: the keywords that the segmentation and detection probes share.

    Args:
        name: Name of the probe, for messages and random streams.
        steps: Optimizer steps.
        batch_size: Images of a step; all images if there are fewer.
        optimizer: "adamw" or "sgd" (momentum 0.9).
        lr: Peak learning rate of the head: linear warm-up over a twentieth of the steps, then a half cosine
            to 0.
        backbone_lr: Peak learning rate of the backbone, if it is trained.
        weight_decay: Weight decay of all trained weights.
        evals: Evaluations on held-out images, evenly spaced, at most one per step; the best state is kept.

    Raises:
        ValueError: A value is out of range.
    """

    name: str
    steps: int
    batch_size: int
    optimizer: str
    lr: float
    backbone_lr: float
    weight_decay: float
    evals: int

    def __post_init__(self) -> None:
        for key in ("steps", "batch_size", "lr", "backbone_lr", "evals"):
            if getattr(self, key) <= 0:
                raise ValueError(f"probe.{self.name}.{key} is {getattr(self, key)}; it must be above 0")
        if self.weight_decay < 0:
            raise ValueError(f"probe.{self.name}.weight_decay is {self.weight_decay}; it must be at least 0")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(
                f"probe.{self.name}.optimizer is {self.optimizer!r}; allowed are {', '.join(OPTIMIZERS)}"
            )

    def check(self, train: int) -> None:
        """Raise if there are no training images.

        Raises:
            ValueError: The message names the probe.
        """
        if train < 1:
            raise ValueError(f"probe {self.name} needs labelled training images; there are none")

    def fitted_limits(self, train: int) -> list[str]:
        """Describe the reduced batch size and evaluations; see `BaseProbe.fitted_limits`."""
        said = []
        if train < self.batch_size:
            said += [fitted(f"probe.{self.name}.batch_size", self.batch_size, train, train)]
        if self.steps < self.evals:
            key = f"probe.{self.name}.evals"
            said += [fitted(key, self.evals, self.steps, self.steps, "the training", "step")]
        return said

    def batches(self, images: int, seed: int) -> Iterator[Tensor]:
        """Yield the indices of a batch for each step: a new order each epoch, full batches only."""
        size = min(self.batch_size, images)
        batches_per_epoch = images // size
        for step in range(self.steps):
            epoch, batch = divmod(step, batches_per_epoch)
            if batch == 0:
                order = torch.randperm(images, generator=generator(seed, self.name, "order", epoch))
            yield order[batch * size : (batch + 1) * size]

    def train(
        self,
        head: nn.Module,
        backbone: nn.Module | None,
        loss: Callable[[BatchPart], Tensor],
        evaluate: Callable[[], dict[str, Any]],
        *,
        images: int,
        seed: int,
        choose_by: str,
        split: bool = True,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Train, then restore head and backbone to their best state on held-out images.

        Args:
            head: Always trained.
            backbone: Trained too; None leaves it frozen.
            loss: Returns this process's summand of the loss of a batch.
            evaluate: Returns held-out scores by name.
            images: Number of training images.
            seed: Seed of the order of the images.
            choose_by: Name of the score that selects the state; the first of equal ones wins.
            split: Split each batch over the processes; otherwise each process computes all of it.

        Returns:
            The held-out scores of that state, and the protocol of the training.

        Raises:
            ValueError: The loss is not finite.
        """
        groups: list[dict[str, Any]] = [{"params": list(head.parameters()), "lr": self.lr}]
        if backbone is not None:
            groups.append({"params": list(backbone.parameters()), "lr": self.backbone_lr})
        options = {"momentum": 0.9} if self.optimizer == "sgd" else {}
        optimizer = OPTIMIZERS[self.optimizer](groups, weight_decay=self.weight_decay, **options)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._factor)
        evals = min(self.evals, self.steps)
        at = {round(self.steps * part / evals) for part in range(1, evals + 1)}
        trained = [module for module in (head, backbone) if module is not None]
        best: tuple[float, int, dict[str, Any], list[dict[str, Any]]] | None = None
        curve: dict[str, float] = {}
        steps = tracked(self.batches(images, seed), "train", "steps", total=self.steps)
        for step, indices in enumerate(steps, 1):
            with torch.enable_grad():
                optimizer.zero_grad(set_to_none=True)
                total = loss(BatchPart.of(step, indices, split=split))
                total.backward()
            if split:
                sum_gradients(parameter for group in groups for parameter in group["params"])
            optimizer.step()
            schedule.step()
            if step in at:
                total = sum_over_processes(total.detach()) if split else total
                if not total.isfinite():
                    raise ValueError(
                        f"the loss of probe {self.name} is {total.item()} at step {step}; lower probe."
                        f"{self.name}.lr ({self.lr})"
                    )
                figures = evaluate()
                curve[str(step)] = figures[choose_by]
                if best is None or figures[choose_by] > best[0]:
                    states = [copy.deepcopy(module.state_dict()) for module in trained]
                    best = figures[choose_by], step, figures, states
        assert best is not None
        for module, state in zip(trained, best[3], strict=True):
            module.load_state_dict(state)
        protocol = {
            "backbone": "frozen"
            if backbone is None
            else f"fine-tuned, lr {self.backbone_lr:g}, batch-norm statistics kept",
            "steps": self.steps,
            "batch_size": min(self.batch_size, images),
            "optimizer": self.optimizer,
            "lr": self.lr,
            "weight_decay": self.weight_decay,
            "schedule": f"warm-up {WARMUP:g}, cosine to 0",
            "chosen": f"{choose_by} on held-out images",
            "chosen_step": best[1],
            "candidates": curve,
        }
        return best[2], protocol

    def _factor(self, step: int) -> float:
        warmup = max(1, round(WARMUP * self.steps))
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, self.steps - warmup)))
