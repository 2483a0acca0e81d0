"""What the probes of masks and boxes share: splits in memory, stage maps of one scale, the training."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ssl_lightning.encoding import Loader, evaluating, gather_batches
from ssl_lightning.probes.base import Setting
from ssl_lightning.seeding import generator

OPTIMIZERS = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
MEASURED = 256  # training images that give the scale of the maps where the maps of all are not kept
WARMUP = 0.05  # of the steps, before the cosine


@dataclass(frozen=True)
class Plan:
    """How a head is trained: the keywords that the dense probes share.

    Args:
        name: Of the probe, for messages and random streams.
        steps: Optimizer steps.
        batch_size: Images of a step.
        optimizer: "adamw" or "sgd" (momentum 0.9).
        lr: Of the head at its peak: linear warm-up over a twentieth of the steps, then a half cosine to 0.
        trunk_lr: Of the trunk, where it is trained.
        weight_decay: Of everything that is trained.
        evals: Evaluations on held-out images, evenly spread; the best of these states is kept.

    Raises:
        ValueError: A value is out of range.
    """

    name: str
    steps: int
    batch_size: int
    optimizer: str
    lr: float
    trunk_lr: float
    weight_decay: float
    evals: int

    def __post_init__(self) -> None:
        for key in ("steps", "batch_size", "lr", "trunk_lr", "evals"):
            if getattr(self, key) <= 0:
                raise ValueError(f"probe.{self.name}.{key} is {getattr(self, key)}; it must be above 0")
        if self.weight_decay < 0:
            raise ValueError(f"probe.{self.name}.weight_decay is {self.weight_decay}; it must be at least 0")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(
                f"probe.{self.name}.optimizer is {self.optimizer!r}; allowed are {', '.join(OPTIMIZERS)}"
            )
        if self.evals > self.steps:
            raise ValueError(
                f"probe.{self.name}.evals is {self.evals}; at most one a step is allowed ({self.steps})"
            )

    def check(self, train: int, heldout: int) -> None:
        """Refuse data with too few images.

        Raises:
            ValueError: There is no whole batch, or nothing to choose by.
        """
        if train < self.batch_size or heldout < 1:
            raise ValueError(
                f"probe.{self.name} needs batch_size ({self.batch_size}) training images and a held-out one; "
                f"there are {train} and {heldout}"
            )

    def batches(self, images: int, seed: int) -> Iterator[Tensor]:
        """Yield indices `(batch_size,)` for each step: a new order each epoch, whole batches only."""
        whole = images // self.batch_size
        for step in range(self.steps):
            epoch, place = divmod(step, whole)
            if place == 0:
                order = torch.randperm(images, generator=generator(seed, self.name, "order", epoch))
            yield order[place * self.batch_size : (place + 1) * self.batch_size]

    def train(
        self,
        head: nn.Module,
        trunk: nn.Module | None,
        loss: Callable[[Tensor, int], Tensor],
        evaluate: Callable[[], dict[str, Any]],
        *,
        images: int,
        seed: int,
        choose_by: str,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Train; leave head and trunk in the state that did best on held-out images.

        Args:
            head: What is trained in any case.
            trunk: Trained too; None leaves it alone.
            loss: Takes the indices of a batch and the number of the step.
            evaluate: Returns held-out figures by name.
            images: Training images.
            seed: Names the order of the images.
            choose_by: The figure that chooses; the first of equal ones.

        Returns:
            The held-out figures of that state, and what the protocol says of the training.

        Raises:
            ValueError: The loss is not finite.
        """
        groups: list[dict[str, Any]] = [{"params": list(head.parameters()), "lr": self.lr}]
        if trunk is not None:
            groups.append({"params": list(trunk.parameters()), "lr": self.trunk_lr})
        options = {"momentum": 0.9} if self.optimizer == "sgd" else {}
        optimizer = OPTIMIZERS[self.optimizer](groups, weight_decay=self.weight_decay, **options)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._factor)
        at = {round(self.steps * part / self.evals) for part in range(1, self.evals + 1)}
        trained = [module for module in (head, trunk) if module is not None]
        best: tuple[float, int, dict[str, Any], list[dict[str, Any]]] | None = None
        curve: dict[str, float] = {}
        total = None
        for step, indices in enumerate(self.batches(images, seed), 1):
            with torch.enable_grad():
                optimizer.zero_grad(set_to_none=True)
                total = loss(indices, step)
                total.backward()
            optimizer.step()
            schedule.step()
            if step in at:
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
            "trunk": "frozen"
            if trunk is None
            else f"fine-tuned, lr {self.trunk_lr:g}, batch-norm statistics kept",
            "steps": self.steps,
            "batch_size": self.batch_size,
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


class StageMaps(nn.Module):
    """Some stage maps of a trunk, each channel brought to mean 0 and deviation 1 by fixed numbers.

    As the linear probe does: else the scale of its features would decide how fast a head learns from a trunk,
    and an untrained one would be beaten for its scale alone. The trunk stays in eval mode.

    Args:
        setting: Whose trunk, how it is fed and in what precision it computes.
        stages: Which, counted from 1, in rising order.
        copied: Work on a copy of the trunk, to be trained.
    """

    mean: list[Tensor]
    std: list[Tensor]

    def __init__(self, setting: Setting, stages: Sequence[int], *, copied: bool) -> None:
        super().__init__()
        self.trunk = copy.deepcopy(setting.trunk) if copied else setting.trunk
        if copied:
            self.trunk.requires_grad_(True)
        self.stages, self.copied = list(stages), copied
        self.feed, self.precision = setting.feed, setting.precision
        self.device = torch.device(setting.device)
        self.mean, self.std = [], []

    def train(self, mode: bool = True) -> StageMaps:
        """Leave the mode of the trunk alone; it encodes in eval mode, so that its statistics stay."""
        return self

    def raw(self, images: Tensor) -> list[Tensor]:
        """Encode images `(B, C, H, W)` uint8 to the chosen maps, as the trunk returns them."""
        return self.of_input(self.input(images))

    def input(self, images: Tensor) -> Tensor:
        """Make of images `(B, C, H, W)` uint8 what the trunk takes.

        Raises:
            ValueError: The probe is fed tiles.
        """
        with torch.no_grad(), self.precision():
            fed = self.feed(images.to(self.device, non_blocking=True).float().div_(255))
        if fed.ndim != 4:
            raise ValueError("probes of masks and boxes need whole images: encoding.input=image")
        return fed

    def of_input(self, fed: Tensor) -> list[Tensor]:
        """Encode what `input` made."""
        with (
            evaluating(self.trunk),
            torch.set_grad_enabled(self.copied and torch.is_grad_enabled()),
            self.precision(),
        ):
            maps = self.trunk(fed)
        return [maps[stage - 1] for stage in self.stages]

    def scaled(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Bring raw maps to scale, as float32."""
        with torch.autocast(self.device.type, enabled=False):
            return [(x.float() - m) / s for x, m, s in zip(maps, self.mean, self.std, strict=True)]

    def forward(self, fed: Tensor) -> list[Tensor]:
        """Encode what `input` made to the chosen maps, in scale."""
        return self.scaled(self.of_input(fed))

    @torch.no_grad()
    def measure(self, batches: Iterable[list[Tensor]]) -> None:
        """Take the scale from raw maps.

        Raises:
            ValueError: They are not finite, as those of a trunk that diverged.
        """
        sums: list[list[Tensor]] = [[] for _ in self.stages]
        for maps in batches:
            for parts, x in zip(sums, maps, strict=True):
                flat = x.double().transpose(0, 1).flatten(1)  # (C, B * h * w)
                parts.append(
                    torch.stack(
                        [flat.sum(1), flat.square().sum(1), torch.full_like(flat[:, 0], flat.shape[1])]
                    )
                )
        self.mean, self.std = [], []
        for stage, parts in zip(self.stages, sums, strict=True):
            total, squares, count = torch.stack(parts).sum(0)
            if not squares.isfinite().all():
                raise ValueError(f"features of stage{stage} are not finite; did the training diverge?")
            mean = total / count
            std = (squares / count - mean.square()).clamp(min=0).sqrt()
            alive = std > 1e-6 * mean.abs().clamp(min=1e-6)
            std = torch.where(alive, std, torch.inf)  # a channel that never varies is 0
            self.mean.append(mean.float().view(1, -1, 1, 1))
            self.std.append(std.float().view(1, -1, 1, 1))


def stage_numbers(
    setting: Setting, stages: Sequence[int] | None, default: Sequence[int], name: str
) -> list[int]:
    """Return which stages a probe works on, counted from 1, in rising order.

    Raises:
        ValueError: The trunk does not have one of them.
    """
    depth = len(setting.trunk.feature_info.channels())  # type: ignore[operator, union-attr]
    chosen = sorted(set(default if stages is None else stages))
    if not chosen or chosen[0] < 1 or chosen[-1] > depth:
        raise ValueError(f"probe.{name}.stages is {chosen}; this trunk has the stages 1 to {depth}")
    return chosen


def collect(loader: Loader, device: torch.device | str) -> tuple[Tensor, Any]:
    """Read a whole split into memory, in every process all of it.

    Returns:
        Images `(N, C, H, W)` uint8 and targets, masks `(N, H, W)` uint8 or a list of dicts, on the CPU.
    """
    images: list[Tensor] = []
    targets: list[Any] = []
    for batch, of_batch in loader:
        images.append(batch)
        targets.append(of_batch.byte() if isinstance(of_batch, Tensor) else of_batch)
    counts = [len(batch) for batch in images]
    whole = _gather(torch.cat(images), counts, device)
    if isinstance(targets[0], Tensor):
        return whole, _gather(torch.cat(targets), counts, device)
    parts: list[list[Any]] = [targets]
    if dist.is_available() and dist.is_initialized():
        parts = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(parts, targets)
    batches = max(len(part) for part in parts)
    return whole, [t for b in range(batches) for part in parts if b < len(part) for t in part[b]]


def _gather(local: Tensor, counts: Sequence[int], device: torch.device | str) -> Tensor:
    if not dist.is_available() or not dist.is_initialized():
        return local
    return gather_batches(local.to(device), counts).cpu()


def chunks(count: int, size: int) -> Iterator[slice]:
    """Yield slices of `size` that cover 0..count-1, the last maybe smaller."""
    for first in range(0, count, size):
        yield slice(first, min(first + size, count))


def spread(count: int, wanted: int) -> list[int]:
    """Return at most `wanted` of 0..count-1, evenly spread.

    >>> spread(10, 3)
    [0, 3, 6]
    """
    wanted = min(count, wanted)
    return [i * count // wanted for i in range(wanted)]


def is_first_process() -> bool:
    """Whether this process writes pictures."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0
