"""What the probes of masks and boxes share: splits in memory, and stage maps of one scale."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ssl_lightning.features.encode import Loader, evaluating, gather_batches
from ssl_lightning.probes.base import Setting

MEASURED = 256  # training images that give the scale of the maps where the maps of all are not kept


class StageMaps(nn.Module):
    """Some stage maps of a backbone, each channel brought to mean 0 and deviation 1 by fixed numbers.

    As the linear probe does: else the scale of its features would decide how fast a head learns from a backbone,
    and an untrained one would be beaten for its scale alone. The backbone stays in eval mode.

    Args:
        setting: Whose backbone, how it is fed and in what precision it computes.
        stages: Which, counted from 1, in rising order.
        copied: Work on a copy of the backbone, to be trained.
    """

    mean: list[Tensor]
    std: list[Tensor]

    def __init__(self, setting: Setting, stages: Sequence[int], *, copied: bool) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(setting.backbone) if copied else setting.backbone
        if copied:
            self.backbone.requires_grad_(True)
        self.stages, self.copied = list(stages), copied
        self.feed, self.precision = setting.feed, setting.precision
        self.device = torch.device(setting.device)
        self.mean, self.std = [], []

    def train(self, mode: bool = True) -> StageMaps:
        """Leave the mode of the backbone alone; it encodes in eval mode, so that its statistics stay."""
        return self

    def raw(self, images: Tensor) -> list[Tensor]:
        """Encode images `(B, C, H, W)` uint8 to the chosen maps, as the backbone returns them."""
        return self.of_input(self.input(images))

    def input(self, images: Tensor) -> Tensor:
        """Make of images `(B, C, H, W)` uint8 what the backbone takes.

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
            evaluating(self.backbone),
            torch.set_grad_enabled(self.copied and torch.is_grad_enabled()),
            self.precision(),
        ):
            maps = self.backbone(fed)
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
            ValueError: They are not finite, as those of a backbone that diverged.
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
        ValueError: The backbone does not have one of them.
    """
    depth = len(setting.backbone.feature_info.channels())  # type: ignore[operator, union-attr]
    chosen = sorted(set(default if stages is None else stages))
    if not chosen or chosen[0] < 1 or chosen[-1] > depth:
        raise ValueError(f"probe.{name}.stages is {chosen}; this backbone has the stages 1 to {depth}")
    return chosen


def read_split(loader: Loader, device: torch.device | str) -> tuple[Tensor, Any]:
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
