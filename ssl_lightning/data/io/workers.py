"""Processes that decode pictures and cut views, and hand over whole batches in memory that all share."""

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

AHEAD = 2  # batches of each worker that are asked for before they are wanted
HELD = 3  # batches that who trains on them may hold: the one at work, and what Lightning fetches ahead


class ViewSource(Protocol):
    """What a worker needs."""

    labels: Tensor  # (N,) or (N, K) int64
    channels: int

    def view_size(self, augment: bool) -> int:
        """Return the height and width of views in pixels."""
        ...

    def view(self, index: int, seed: int | None) -> Tensor:
        """Return a view of an image, (C, size, size) uint8, augmented if there is a seed."""
        ...


class Job(NamedTuple):
    """A batch to be made.

    Args:
        indices: Which images, in order.
        seeds: One for each view that is augmented, None for each that is not.
        place: Which of the shared batches it is to be; -1 where there are none.
    """

    indices: list[int]
    seeds: list[int | None]
    place: int


class BatchWorkers:
    """Batches of views, made by processes that are kept over the epochs.

    A DataLoader by itself asks the system for new memory for each batch, which takes half as long as to cut
    its views out of decoded pictures. Here a worker writes into one of a few shared batches, and that is what
    is handed over, not copied; it is written anew once nobody holds it any more. Where all are held, a batch
    gets new memory.

    Args:
        source: A copy of its own: workers that are part of a cycle wait 5 s each for the collector.
        augment: Whether views are augmented.
        workers: Processes; 0 makes batches in this one.
    """

    def __init__(self, source: ViewSource, augment: bool, workers: int) -> None:
        self._source, self._augment, self._workers = source, augment, workers
        self._jobs = _Jobs()
        self._shared = torch.empty(0)  # (places, B, size, size, C) uint8, as `resize` leaves pixels
        self._asked: set[int] = set()  # places whose batches are being made
        # batches that others hold, by place
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
            self._loader = None  # whose workers end first
            self._loader = self._start(len(first[0]))
        self._asked.clear()  # of a pass that was left before its end: its jobs end before this one's begin
        self._jobs.coming = (Job(*each, self._free_place()) for each in chain([first], wanted))
        for images, labels in self._loader:
            yield self._handed_over(images, len(labels)).permute(0, 3, 1, 2), labels

    def _free_place(self) -> int:
        places = range(len(self._shared))
        place = next((place for place in places if place not in self._asked and place not in self._held), -1)
        self._asked.add(place)
        return place

    def _handed_over(self, images: Tensor | int, count: int) -> Tensor:
        """Return the batch that lies at a place, which is free once nothing of the batch is held."""
        if isinstance(images, Tensor):
            return images
        self._asked.discard(images)
        if has_gpu():
            return self._shared[images, :count].pin_memory()
        self._held[images] = batch = self._shared[images, :count].numpy()
        return torch.from_numpy(batch)  # which keeps the array as long as it, or a view of it, is kept

    def _start(self, batch: int) -> DataLoader:
        size = self._source.view_size(self._augment)
        places = AHEAD * self._workers + HELD if self._workers else 0
        shape = (places, batch, size, size, self._source.channels)
        self._shared = torch.empty(shape, dtype=torch.uint8).share_memory_()
        self._held = WeakValueDictionary()
        return DataLoader(
            _Made(self._source, self._shared),
            sampler=self._jobs,
            batch_size=None,
            num_workers=self._workers,
            prefetch_factor=AHEAD if self._workers else None,
            persistent_workers=self._workers > 0,
            pin_memory=has_gpu(),
            generator=torch.Generator(),  # else each pass draws from the global stream
        )


class _Jobs(Sampler):
    """Jobs set anew for each pass."""

    def __init__(self) -> None:
        self.coming: Iterable[Job] = ()

    def __iter__(self) -> Iterator[Job]:
        return iter(self.coming)


class _Made(Dataset):
    """The batch of each job, and its labels; of one in a shared place only the number of that."""

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
    """Whether batches are locked in memory, so that their transfer overlaps with computing."""
    return torch.cuda.is_available()  # a tenth of a millisecond each time
