"""Images and labels from the loaders of any Trainer, for callbacks that watch the features."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
)

from ssl_lightning.core.seeding import generator
from ssl_lightning.data.io.pixels import channels_last, to_pixels
from ssl_lightning.tasks._batches import unpack_batch

BATCH = 128  # images that are encoded at a time


@dataclass(frozen=True)
class Sample:
    """Images of a loader, the same ones in every process if its data set can be indexed.

    Args:
        images: `(N, C, H, W)` uint8.
        labels: `(N,)` int64, -1 where there is none.
    """

    images: Tensor
    labels: Tensor

    def batches(self, trainer: pl.Trainer) -> list[tuple[Tensor, Tensor]]:
        """Return the slices of this process, as `encode` takes them."""
        world, rank = trainer.world_size, trainer.global_rank
        pairs = zip(self.images.split(BATCH * world), self.labels.split(BATCH * world), strict=True)
        return [(x.tensor_split(world)[rank], y.tensor_split(world)[rank]) for x, y in pairs]


def paired_data(trainer: pl.Trainer) -> Any | None:
    """Return the data module of a Trainer if it is a `PairedDataModule`, else None."""
    data = getattr(trainer, "datamodule", None)
    return data if hasattr(data, "has_downstream") else None


def training_loader(trainer: pl.Trainer) -> Any:
    """Return the first training loader."""
    return _first(trainer.train_dataloader)


def validation_loader(trainer: pl.Trainer) -> Any | None:
    """Return the first validation loader, or None."""
    return _first(trainer.val_dataloaders)


def watched_sample(trainer: pl.Trainer, count: int) -> Sample:
    """Return up to `count` validation images; training images if there are none."""
    loader = validation_loader(trainer)
    return read_sample(training_loader(trainer) if loader is None else loader, count)


def read_sample(loader: Any, count: int) -> Sample:
    """Read up to `count` images; the loader and the random state stay as they are.

    They are a fixed draw if the data set can be indexed, because data sets are often sorted by class. Else
    they are the first ones that the loader gives.

    Args:
        loader: Any iterable of batches.
        count: At least 1.

    Raises:
        ValueError: The loader gives no batch, or one of another kind.
    """
    images, labels = [], []
    for batch in _plain_batches(loader, count):
        x, y = unpack_batch(batch)
        images.append(channels_first(x))
        labels.append(y if y.ndim == 1 else torch.full((len(x),), -1))  # one label each, or none
        if sum(map(len, images)) >= count:
            break
    if not images:
        raise ValueError("the loader gives no batch")
    return Sample(torch.cat(images)[:count], torch.cat(labels)[:count].to("cpu", torch.int64))


def channels_first(images: Any) -> Tensor:
    """Return images of any layout that `channels_last` takes as `(N, C, H, W)` uint8."""
    tensor = torch.as_tensor(images if isinstance(images, Tensor) else np.asarray(images))
    name = "the batch of images"
    return to_pixels(channels_last(tensor, name), name).movedim(-1, 1)


def _first(loaders: Any) -> Any | None:
    """Return the first of several loaders; None if there is none."""
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    if isinstance(loaders, (list, tuple)):
        return loaders[0] if loaders else None
    return loaders


def _plain_batches(loader: Any, count: int) -> Iterator[Any]:
    """Yield batches without worker processes, and without a trace in the loader or the random state."""
    if isinstance(loader, DataLoader) and (indices := _indices(loader)) is not None:
        order = torch.randperm(len(indices), generator=generator("fixed", "sample"))[:count].tolist()
        subset = Subset(loader.dataset, [indices[place] for place in order])
        loader = DataLoader(subset, batch_size=loader.batch_size or BATCH, collate_fn=loader.collate_fn)
    with isolate_rng():
        batches = iter(copy.copy(loader))
    while True:
        with isolate_rng():
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def _indices(loader: DataLoader[Any]) -> Sequence[int] | None:
    """Return the indices that a loader draws from its data set; None if they are unknown."""
    if isinstance(loader.dataset, IterableDataset):
        return None
    if isinstance(loader.sampler, (RandomSampler, SequentialSampler, DistributedSampler)):
        return range(len(loader.dataset))  # type: ignore[arg-type]
    return list(loader.sampler.indices) if isinstance(loader.sampler, SubsetRandomSampler) else None
