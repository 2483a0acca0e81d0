"""Stage maps of the labelled splits, encoded in as few passes as the memory allows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_lightning.features.encode import Loader, evaluating, gather_batches, stage_maps

Split = tuple[Tensor, Tensor]  # maps (N, C, rows, columns) and labels (N,)


@dataclass(frozen=True)
class Wanted:
    """Maps that a probe asks for.

    Args:
        stage: Such as "stage2".
        pool: The map is averaged to at most pool x pool cells.
        max_memory_gb: Of the maps of all splits: kept in fp32 if they fit, else in bfloat16.
    """

    stage: str
    pool: int
    max_memory_gb: float

    def dtype(self, numbers: int) -> torch.dtype | None:
        """The type in which so many numbers are kept; None if they fit in neither."""
        fitting = (
            d for d in (torch.float32, torch.bfloat16) if numbers * d.itemsize <= 1e9 * self.max_memory_gb
        )
        return next(fitting, None)

    def cells(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of a map of some size once it is pooled."""
        return min(self.pool, height), min(self.pool, width)

    def take(self, maps: Sequence[Tensor]) -> Tensor:
        """Pool the map `(B, C, rows, columns)` in fp32 from the list of all stages."""
        full = maps[int(self.stage.removeprefix("stage")) - 1].float()
        return F.adaptive_avg_pool2d(full, self.cells(*full.shape[2:]))


class SharedMaps:
    """Stage maps of one frozen backbone, for all probes that ask for them one after another.

    A pass over the images encodes the maps that are asked for, and those that will be asked for next, as
    long as all of them together fit in the memory that each allows. Maps that nobody will ask for again
    are forgotten.

    Args:
        backbone: In the mode it is in; it is encoded in eval mode.
        feed: Turns floats in [0, 1], `(B, C, H, W)`, into what the backbone takes.
        loaders: For each split this process's share of the labelled batches.
        images: Number of images of all splits.
        upcoming: What will be asked for, in this order.
        precision: Makes the context that forward passes run in.
        device: Where to compute; the maps stay there.
    """

    def __init__(
        self,
        backbone: nn.Module,
        feed: Callable[[Tensor], Tensor],
        loaders: Mapping[str, Loader],
        images: int,
        upcoming: Iterable[Wanted],
        *,
        precision: Callable[[], AbstractContextManager[Any]],
        device: torch.device | str,
    ) -> None:
        self.backbone, self.feed, self.loaders, self.images = backbone, feed, loaders, images
        self.precision, self.device = precision, device
        self.passes = 0
        self._upcoming = list(upcoming)
        self._kept: dict[Wanted, dict[str, Split]] = {}

    def get(self, wanted: Wanted) -> dict[str, Split]:
        """Return the maps and labels of each split, of all processes, on the device.

        Raises:
            ValueError: They do not fit in the memory allowed.
        """
        if wanted not in self._kept:
            self._kept = {}  # before the next are made
            self._kept = self._encode(self._plan(wanted))
        if wanted in self._upcoming:
            self._upcoming.remove(wanted)
        found = self._kept[wanted]
        self._kept = {key: value for key, value in self._kept.items() if key in self._upcoming}
        return found

    def of_batch(self, images: Tensor, wanted: Iterable[Wanted]) -> list[Tensor]:
        """Encode a batch of images uint8, in eval mode and without gradients: the maps, in fp32."""
        with evaluating(self.backbone), torch.no_grad():
            with self.precision():
                fed = self.feed(images.to(self.device, non_blocking=True).float().div_(255))
                maps = stage_maps(self.backbone, fed)
            return [each.take(maps) for each in wanted]

    def shapes(self, wanted: Sequence[Wanted]) -> list[torch.Size]:
        """Return the shapes `(C, rows, columns)` of the maps of one image, found by encoding one."""
        images = next(images for images, *_ in self.loaders["test"] if len(images))
        return [maps.shape[1:] for maps in self.of_batch(images[:1], wanted)]

    def _plan(self, first: Wanted) -> dict[Wanted, torch.dtype]:
        """What the next pass encodes, and in which type it is kept."""
        plan: dict[Wanted, torch.dtype] = {}
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

    def _numbers(self, wanted: Iterable[Wanted]) -> dict[Wanted, int]:
        """Numbers in the maps of all images."""
        wanted = list(dict.fromkeys(wanted))
        return {
            each: self.images * shape.numel() for each, shape in zip(wanted, self.shapes(wanted), strict=True)
        }

    def _encode(self, plan: Mapping[Wanted, torch.dtype]) -> dict[Wanted, dict[str, Split]]:
        self.passes += 1
        found: dict[Wanted, dict[str, Split]] = {wanted: {} for wanted in plan}
        for split, loader in self.loaders.items():
            parts: dict[Wanted, list[Tensor]] = {wanted: [] for wanted in plan}
            label_parts, counts = [], []
            for images, labels in loader:
                if not len(images):  # fewer images than processes: this one has none of the last batch
                    continue
                for wanted, maps in zip(plan, self.of_batch(images, plan), strict=True):
                    parts[wanted].append(maps.to(plan[wanted]))
                label_parts.append(labels.to(self.device))
                counts.append(len(images))
            all_labels = gather_batches(torch.cat(label_parts), counts)
            for wanted in plan:  # one at a time, so that no second copy of all maps is ever held
                found[wanted][split] = gather_maps(torch.cat(parts.pop(wanted)), counts), all_labels
        return found


def gather_maps(local: Tensor, counts: Sequence[int]) -> Tensor:
    """`gather_batches` of maps `(n, C, rows, columns)` of any type: not every backend gathers every type."""
    as_bytes = local.flatten(1).view(torch.uint8)
    return gather_batches(as_bytes, counts).view(local.dtype).unflatten(1, local.shape[1:])
