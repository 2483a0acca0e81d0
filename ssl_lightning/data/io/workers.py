"""Worker processes that decode pictures and write batches of views into shared memory."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import NamedTuple, Protocol
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

PREFETCH = 2  # batches that each worker makes ahead
HELD = 3  # batches that the consumer may hold: the current one, and those that Lightning prefetches


class ViewSource(Protocol):
    """Source of views for a worker."""

    labels: Tensor  # (N,) or (N, K) int64
    channels: int

    def view_size(self, augment: bool) -> int:
        """Return the height and width of views in pixels."""
        ...

    def view(self, index: int, seed: int | None) -> Tensor:
        """Return a view of an image, (C, size, size) uint8, augmented if there is a seed."""
        ...


class Job(NamedTuple):
    """Batch for a worker to make.

    Args:
        indices: Images of the source, in order.
        seeds: Seed of each augmented view, None for a view without augmentation.
        place: Shared batch to write to; -1 for new memory.
    """

    indices: list[int]
    seeds: list[int | None]
    place: int


class BatchWorkers:
    """Batches of views from worker processes that persist over the epochs.

    A plain DataLoader allocates new memory for each batch, which takes half as long as cutting its views
    from decoded pictures. Here a worker writes into one of a few shared batches, which is yielded without a
    copy and reused once no one holds it. If all are held, a batch gets new memory.

    Args:
        source: Private copy; in a reference cycle each worker would wait 5 s for the garbage collector.
        augment: Whether views are augmented.
        workers: Number of processes; 0 makes batches in the calling process.
    """

    def __init__(self, source: ViewSource, augment: bool, workers: int) -> None:
        self._source, self._augment, self._workers = source, augment, workers
        self._jobs = _Jobs()
        self._shared = torch.empty(0)  # (places, B, size, size, C) uint8, as `resize` leaves pixels
        self._pending: set[int] = set()  # places of batches that a worker makes
        # Batches that the consumer holds, by place
        self._held: WeakValueDictionary[int, np.ndarray] = WeakValueDictionary()
        self._loader: DataLoader | None = None

    def batches(
        self, wanted: Iterable[tuple[list[int], list[int | None]]]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images (B, C, size, size) uint8, channels-last in memory, and labels (B,) or (B, K) int64.

        Args:
            wanted: Indices and seeds of each batch, none larger than the first.
        """
        wanted = iter(wanted)
        first = next(wanted, None)
        if first is None:
            return
        if self._loader is None or (self._workers and len(first[0]) > self._shared.shape[1]):
            self._loader = None  # ends its workers first
            self._loader = self._start(len(first[0]))
        # A pass may have stopped early; its jobs end before the jobs of this pass begin
        self._pending.clear()
        self._jobs.coming = (Job(*each, self._free_place()) for each in chain([first], wanted))
        for images, labels in self._loader:
            yield self._take(images, len(labels)).permute(0, 3, 1, 2), labels

    def _free_place(self) -> int:
        places = range(len(self._shared))
        place = next((p for p in places if p not in self._pending and p not in self._held), -1)
        self._pending.add(place)
        return place

    def _take(self, images: Tensor | int, count: int) -> Tensor:
        """Return the batch at a place; the place is free again once no view of the batch is held."""
        if isinstance(images, Tensor):
            return images
        self._pending.discard(images)
        if has_gpu():
            return self._shared[images, :count].pin_memory()
        self._held[images] = batch = self._shared[images, :count].numpy()
        return torch.from_numpy(batch)  # the tensor and its views keep the array alive

    def _start(self, batch: int) -> DataLoader:
        size = self._source.view_size(self._augment)
        places = PREFETCH * self._workers + HELD if self._workers else 0
        shape = (places, batch, size, size, self._source.channels)
        self._shared = torch.empty(shape, dtype=torch.uint8).share_memory_()
        self._held = WeakValueDictionary()
        return DataLoader(
            _Batches(self._source, self._shared),
            sampler=self._jobs,
            batch_size=None,
            num_workers=self._workers,
            prefetch_factor=PREFETCH if self._workers else None,
            persistent_workers=self._workers > 0,
            pin_memory=has_gpu(),
            generator=torch.Generator(),  # otherwise each pass draws from the global stream
        )


class _Jobs(Sampler):
    """Jobs of the current pass."""

    def __init__(self) -> None:
        self.coming: Iterable[Job] = ()

    def __iter__(self) -> Iterator[Job]:
        return iter(self.coming)


class _Batches(Dataset):
    """Batch and labels of each job; a batch in shared memory is given by its place."""

    def __init__(self, source: ViewSource, shared: Tensor) -> None:
        self._source, self._shared = source, shared

    def __getitem__(self, job: Job) -> tuple[Tensor | int, Tensor]:
        source = self._source
        views = (
            source.view(index, seed).permute(1, 2, 0)
            for index, seed in zip(job.indices, job.seeds, strict=True)
        )
        labels = source.labels[job.indices]
        if job.place < 0:
            return torch.stack(list(views)), labels
        for place, view in zip(self._shared[job.place, : len(labels)], views, strict=True):
            place.copy_(view)
        return job.place, labels


@functools.cache
def has_gpu() -> bool:
    """Return whether there is a GPU, so that batches are pinned for an overlapping transfer."""
    return torch.cuda.is_available()  # cached, since a call takes 0.1 ms
