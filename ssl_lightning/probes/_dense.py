"""Shared parts of the dense probes: splits in memory, standardised maps, work split over processes."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ssl_lightning.core.progress import tracked
from ssl_lightning.features.encode import Loader, evaluating, gather_batches
from ssl_lightning.probes._shared_maps import gather_maps
from ssl_lightning.probes.base import ProbeContext

MEASURED = 256  # training images that give the statistics, if the maps of all do not stay in memory


class StageMaps(nn.Module):
    """Chosen stage maps of a backbone, each channel standardised to mean 0 and deviation 1.

    The statistics are fixed, as in the linear probe. Otherwise the scale of the features would decide how
    fast a head learns, and an untrained backbone could lose by its scale alone. The backbone stays in eval
    mode.

    Args:
        context: Provides the backbone, its input and its precision.
        stages: Stage numbers, counted from 1, in rising order.
        copied: Work on a trainable copy of the backbone.
    """

    mean: list[Tensor]
    std: list[Tensor]

    def __init__(self, context: ProbeContext, stages: Sequence[int], *, copied: bool) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(context.backbone) if copied else context.backbone
        if copied:
            self.backbone.requires_grad_(True)
        self.stages, self.copied = list(stages), copied
        self.probe_input, self.precision = context.probe_input, context.precision
        self.device = torch.device(context.device)
        self.mean, self.std = [], []

    def train(self, mode: bool = True) -> StageMaps:
        """Keep the backbone in eval mode, so that its batch-norm statistics stay."""
        return self

    def raw(self, images: Tensor) -> list[Tensor]:
        """Encode images `(B, C, H, W)` uint8 to the chosen maps, without standardising."""
        return self.of_input(self.input(images))

    def input(self, images: Tensor) -> Tensor:
        """Convert images `(B, C, H, W)` uint8 to the input of the backbone.

        Raises:
            ValueError: The input is tiles.
        """
        with torch.no_grad(), self.precision():
            inputs = self.probe_input(images.to(self.device, non_blocking=True).float().div_(255))
        if inputs.ndim != 4:
            raise ValueError(
                "the segmentation and detection probes need full images; set encoding.input=image"
            )
        return inputs

    def of_input(self, inputs: Tensor) -> list[Tensor]:
        """Encode the output of `input` to the chosen maps, without standardising."""
        with (
            evaluating(self.backbone),
            torch.set_grad_enabled(self.copied and torch.is_grad_enabled()),
            self.precision(),
        ):
            maps = self.backbone(inputs)
        return [maps[stage - 1] for stage in self.stages]

    def scaled(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Standardise raw maps, as float32."""
        with torch.autocast(self.device.type, enabled=False):
            return [(x.float() - m) / s for x, m, s in zip(maps, self.mean, self.std, strict=True)]

    def forward(self, inputs: Tensor) -> list[Tensor]:
        """Encode the output of `input` to the chosen maps, standardised."""
        return self.scaled(self.of_input(inputs))

    @torch.no_grad()
    def measure(self, batches: Iterable[list[Tensor]]) -> None:
        """Compute mean and deviation of each channel from raw maps, over all processes.

        Args:
            batches: Raw maps of this process's images.

        Raises:
            ValueError: The maps are not finite because the backbone diverged.
        """
        channels: Any = self.backbone.feature_info.channels()  # type: ignore[operator, union-attr]
        nothing = [torch.zeros(3, channels[stage - 1]).double() for stage in self.stages]
        sums = [[each.to(self.device)] for each in nothing]  # a process may have no image
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
            total, squares, count = sum_over_processes(torch.stack(parts).sum(0))
            if not squares.isfinite().all():
                raise ValueError(f"features of stage{stage} are not finite; did the training diverge?")
            mean = total / count
            std = (squares / count - mean.square()).clamp(min=0).sqrt()
            alive = std > 1e-6 * mean.abs().clamp(min=1e-6)
            std = torch.where(alive, std, torch.inf)  # a constant channel becomes 0
            self.mean.append(mean.float().view(1, -1, 1, 1))
            self.std.append(std.float().view(1, -1, 1, 1))

    def measure_on(self, images: Tensor, batch_size: int) -> None:
        """Measure on at most 256 of the training images `(N, C, H, W)` uint8 that all processes hold."""
        sample = images[spread_over(len(images), MEASURED)]
        mine = tracked(own_batches(len(sample), batch_size), "measure features", "batches")
        self.measure(self.raw(sample[part]) for part in mine)


def stage_numbers(
    context: ProbeContext, stages: Sequence[int] | None, default: Sequence[int], name: str
) -> list[int]:
    """Return the stages of a probe, counted from 1, in rising order.

    Raises:
        ValueError: The backbone does not have one of them.
    """
    depth = len(context.backbone.feature_info.channels())  # type: ignore[operator, union-attr]
    chosen = sorted(set(default if stages is None else stages))
    if not chosen or chosen[0] < 1 or chosen[-1] > depth:
        raise ValueError(f"probe.{name}.stages is {chosen}; this backbone has the stages 1 to {depth}")
    return chosen


def read_split(loader: Loader, device: torch.device | str) -> tuple[Tensor, Any]:
    """Read a split into memory, all of it in every process.

    Returns:
        Images `(N, C, H, W)` uint8 and targets, masks `(N, H, W)` uint8 or a list of dicts, on the CPU.
    """
    images: list[Tensor] = []
    targets: list[Any] = []
    for batch, batch_targets in tracked(loader, "read images", "batches"):
        images.append(batch)
        targets.append(batch_targets.byte() if isinstance(batch_targets, Tensor) else batch_targets)
    counts = [len(batch) for batch in images]
    all_images = _gather(torch.cat(images), counts, device)
    if isinstance(targets[0], Tensor):
        return all_images, _gather(torch.cat(targets), counts, device)
    parts: list[list[Any]] = [targets]
    if dist.is_available() and dist.is_initialized():
        parts = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(parts, targets)
    batches = max(len(part) for part in parts)
    return all_images, [t for b in range(batches) for part in parts if b < len(part) for t in part[b]]


def _gather(local: Tensor, counts: Sequence[int], device: torch.device | str) -> Tensor:
    if not dist.is_available() or not dist.is_initialized():
        return local
    return gather_batches(local.to(device), counts).cpu()


def spread_over(count: int, wanted: int) -> list[int]:
    """Return at most `wanted` of 0..count-1, evenly spaced.

    >>> spread_over(10, 3)
    [0, 3, 6]
    """
    wanted = min(count, wanted)
    return [i * count // wanted for i in range(wanted)]


def rank_and_world() -> tuple[int, int]:
    """Return the rank of this process and the number of processes."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def own_part(count: int) -> slice:
    """Return this process's contiguous part of 0..count-1, split like `torch.tensor_split`; may be empty."""
    rank, world = rank_and_world()
    each, more = divmod(count, world)
    start = rank * each + min(rank, more)
    return slice(start, start + each + (rank < more))


def own_batches(count: int, size: int) -> list[slice]:
    """Return slices of at most `size` that cover this process's part of 0..count-1."""
    part = own_part(count)
    return [slice(first, min(first + size, part.stop)) for first in range(part.start, part.stop, size)]


def sum_over_processes(values: Tensor) -> Tensor:
    """Sum a tensor over all processes, in place, and return it."""
    if rank_and_world()[1] > 1:
        dist.all_reduce(values)
    return values


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Sum the gradients over all processes, in one message; the same parameters have one in each of them."""
    if rank_and_world()[1] == 1:
        return
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = sum_over_processes(torch.cat([grad.flatten() for grad in grads]))
    for grad, summed in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
        grad.copy_(summed.view_as(grad))


def gather_parts(own: Tensor) -> Tensor:
    """Concatenate tensors `(n, C, H, W)` of all processes, in the order of their ranks."""
    return own if rank_and_world()[1] == 1 else gather_maps(own, [len(own)])


def gather_objects(own: list[Any]) -> list[Any]:
    """Concatenate the lists of all processes, in the order of their ranks."""
    parts: list[list[Any]] = [own]
    if rank_and_world()[1] > 1:
        parts = [[] for _ in range(rank_and_world()[1])]
        dist.all_gather_object(parts, own)
    return [each for part in parts for each in part]
