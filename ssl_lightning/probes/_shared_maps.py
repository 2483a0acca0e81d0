"""Stage maps of the labelled splits, encoded in as few passes as the memory allows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_lightning.core.progress import tracked
from ssl_lightning.features.encode import Loader, evaluating, gather_batches, stage_maps

Split = tuple[Tensor, Tensor]  # maps (N, C, rows, columns) and labels (N,)


@dataclass(frozen=True)
class MapRequest:
    """Request of a probe for stage maps.

    Args:
        stage: Name of the stage, such as "stage2".
        pool: The map is average-pooled to at most pool x pool cells.
        max_memory_gb: Memory limit of the maps of all splits. They are kept in fp32 if they fit, else in
            bfloat16.
    """

    stage: str
    pool: int
    max_memory_gb: float

    def dtype(self, numbers: int) -> torch.dtype | None:
        """Return the type for keeping so many numbers; None if neither type fits."""
        fitting = (
            d for d in (torch.float32, torch.bfloat16) if numbers * d.itemsize <= 1e9 * self.max_memory_gb
        )
        return next(fitting, None)

    def cells(self, height: int, width: int) -> tuple[int, int]:
        """Return rows and columns of a map of this size after pooling."""
        return min(self.pool, height), min(self.pool, width)

    def take(self, maps: Sequence[Tensor]) -> Tensor:
        """Pool the requested map `(B, C, rows, columns)` in fp32 from the list of all stages."""
        full = maps[int(self.stage.removeprefix("stage")) - 1].float()
        return F.adaptive_avg_pool2d(full, self.cells(*full.shape[2:]))


class SharedMaps:
    """Stage maps of one frozen backbone, for all probes that request them one after another.

    A pass over the images encodes the requested maps. It also encodes the next requests, as long as all maps
    together fit in the memory limit of each. Maps without a further request are freed.

    Args:
        backbone: In any mode; it is encoded in eval mode.
        probe_input: Maps floats in [0, 1], `(B, C, H, W)`, to the backbone's input.
        loaders: For each split this process's share of the labelled batches.
        images: Number of images of all splits.
        upcoming: The future requests, in this order.
        precision: Creates the context of forward passes.
        device: Device of the computation and of the maps.
    """

    def __init__(
        self,
        backbone: nn.Module,
        probe_input: Callable[[Tensor], Tensor],
        loaders: Mapping[str, Loader],
        images: int,
        upcoming: Iterable[MapRequest],
        *,
        precision: Callable[[], AbstractContextManager[Any]],
        device: torch.device | str,
    ) -> None:
        self.backbone, self.probe_input, self.loaders, self.images = backbone, probe_input, loaders, images
        self.precision, self.device = precision, device
        self.passes = 0
        self._upcoming = list(upcoming)
        self._kept: dict[MapRequest, dict[str, Split]] = {}

    def expect(self, wanted: Iterable[MapRequest], images: int) -> None:
        """Add future requests, of a probe that knows its stages only once it has a backbone.

        Args:
            wanted: The requests, in their order.
            images: Number of images of all splits.
        """
        self.images = images
        self._upcoming += [each for each in wanted if each not in self._upcoming]

    def get(self, wanted: MapRequest) -> dict[str, Split]:
        """Return the maps and labels of each split, of all processes, on the device.

        Raises:
            ValueError: They do not fit in the memory limit.
        """
        if wanted not in self._kept:
            self._kept = {}  # free the memory before the next pass
            self._kept = self._encode(self._plan(wanted))
        if wanted in self._upcoming:
            self._upcoming.remove(wanted)
        found = self._kept[wanted]
        self._kept = {key: value for key, value in self._kept.items() if key in self._upcoming}
        return found

    def of_batch(self, images: Tensor, wanted: Iterable[MapRequest]) -> list[Tensor]:
        """Encode images uint8 to maps in fp32, in eval mode and without gradients."""
        with evaluating(self.backbone), torch.no_grad():
            with self.precision():
                inputs = self.probe_input(images.to(self.device, non_blocking=True).float().div_(255))
                maps = stage_maps(self.backbone, inputs)
            return [each.take(maps) for each in wanted]

    def shapes(self, wanted: Sequence[MapRequest]) -> list[torch.Size]:
        """Encode one image and return the shapes `(C, rows, columns)` of its maps."""
        images = next(images for images, *_ in self.loaders["test"] if len(images))
        return [maps.shape[1:] for maps in self.of_batch(images[:1], wanted)]

    def _plan(self, first: MapRequest) -> dict[MapRequest, torch.dtype]:
        """Return the maps of the next pass and the type for keeping each."""
        plan: dict[MapRequest, torch.dtype] = {}
        taken, allowed = 0, float("inf")
        for wanted, numbers in self._numbers([first, *self._upcoming]).items():
            dtype = wanted.dtype(numbers)
            if dtype is None:
                if not plan:
                    raise ValueError(
                        f"the maps of {first.stage} take {2 * numbers / 1e9:,.1f} GB in bfloat16, and "
                        f"max_memory_gb is {first.max_memory_gb:g}"
                    )
                break
            taken, allowed = taken + numbers * dtype.itemsize, min(allowed, 1e9 * wanted.max_memory_gb)
            if plan and taken > allowed:
                break
            plan[wanted] = dtype
        return plan

    def _numbers(self, wanted: Iterable[MapRequest]) -> dict[MapRequest, int]:
        """Count the numbers in the maps of all images."""
        wanted = list(dict.fromkeys(wanted))
        return {
            each: self.images * shape.numel() for each, shape in zip(wanted, self.shapes(wanted), strict=True)
        }

    def _encode(self, plan: Mapping[MapRequest, torch.dtype]) -> dict[MapRequest, dict[str, Split]]:
        self.passes += 1
        found: dict[MapRequest, dict[str, Split]] = {wanted: {} for wanted in plan}
        for split, loader in self.loaders.items():
            parts: dict[MapRequest, list[Tensor]] = {wanted: [] for wanted in plan}
            label_parts, counts = [], []
            for images, labels in tracked(loader, f"encode maps of {split}", "batches"):
                if not len(images):  # the last batch may have fewer images than there are processes
                    continue
                for wanted, maps in zip(plan, self.of_batch(images, plan), strict=True):
                    parts[wanted].append(maps.to(plan[wanted]))
                label_parts.append(labels.to(self.device))
                counts.append(len(images))
            all_labels = gather_batches(torch.cat(label_parts), counts)
            for wanted in plan:  # one at a time, to avoid a second copy of all maps in memory
                found[wanted][split] = gather_maps(torch.cat(parts.pop(wanted)), counts), all_labels
        return found


def gather_maps(local: Tensor, counts: Sequence[int]) -> Tensor:
    """Gather maps `(n, C, rows, columns)` as bytes, because not every backend gathers every type."""
    as_bytes = local.flatten(1).view(torch.uint8)
    return gather_batches(as_bytes, counts).view(local.dtype).unflatten(1, local.shape[1:])
