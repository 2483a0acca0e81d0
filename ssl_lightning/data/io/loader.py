"""Batch loader whose order and state are pure functions of (seed, epoch, position)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ssl_lightning.core.seeding import generator
from ssl_lightning.data.io.sources import ImageSource, OrderedSource, Share


class BatchLoader:
    """Batches of uint8 images, independent of the number of processes and resumable at any batch.

    The class is separate from `torch.utils.data.DataLoader`, so Lightning does not wrap it. An epoch is a
    permutation from (seed, epoch), uniform unless the source has its own order. Global batch `b` is the
    `b`-th slice of `batch_size` images, and process `rank` yields its contiguous part of it.

    A shuffled loader keeps (epoch, position), and a pass is the next `len(loader)` batches from there. If a
    pass stops early (`limit_train_batches`), the next one continues it, across the end of the epoch if
    needed: no pass is short, and every image has its turn. After a restart Lightning counts the batches of
    the interrupted pass and ends it at the right batch. A loader without shuffling has no state and always
    starts at its first batch.

    Args:
        source: The images.
        indices: Images of the source to use, int64 (N,); may be empty only without shuffling.
        batch_size: Images of a global batch, over all processes.
        seed: Seed of the order and the augmentation.
        shuffle: Whether to draw a new order each epoch and keep state, as for training.
        augment: Whether the source augments the images.
        drop_last: Whether to leave out an incomplete last batch.
        rank: Rank of this process.
        world_size: Number of processes.
        name: Name of the random streams, also for error messages.

    Raises:
        ValueError: A size is out of range, or processes would get unequal parts in training.
    """

    def __init__(
        self,
        source: ImageSource,
        indices: Tensor | Sequence[int],
        batch_size: int,
        *,
        seed: int,
        shuffle: bool,
        augment: bool = False,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
        name: str = "train",
    ) -> None:
        self.source = source
        self.indices = torch.as_tensor(indices, dtype=torch.int64)
        if batch_size < 1:
            raise ValueError(f"batch_size of {name} is {batch_size}; it must be at least 1")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank is {rank}; allowed are 0 to {world_size - 1}")
        size = len(self.indices)
        if (size == 0 and shuffle) or (drop_last and size < batch_size):
            raise ValueError(f"batch_size of {name} is {batch_size}, but there are only {size} images")
        if batch_size < world_size:
            raise ValueError(
                f"batch_size of {name} is {batch_size} over all processes; it must be at least their "
                f"number, {world_size}"
            )
        if shuffle and (batch_size % world_size or (not drop_last and size % batch_size % world_size)):
            raise ValueError(
                f"batch_size of {name} is {batch_size} over all processes; it must divide evenly among "
                f"{world_size} processes"
            )
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.augment = augment
        self.drop_last = drop_last
        self.rank = rank
        self.world_size = world_size
        self.name = name
        self._epoch = 0
        self._position = 0

    @property
    def epoch(self) -> int:
        """Epoch of the next batch."""
        return self._epoch

    @property
    def position(self) -> int:
        """Number of the next batch in its epoch."""
        return self._position

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch."""
        self._epoch, self._position = epoch, 0

    def __len__(self) -> int:
        """Return the number of batches of this process in an epoch, which is the length of every pass."""
        full, rest = divmod(len(self.indices), self.batch_size)
        return full + (not self.drop_last and self._part(rest)[1] > 0)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield `len(self)` batches from the current position: images uint8, labels int64.

        Shapes are (B, C, H, W) and (B,). A pass that starts within an epoch continues into the next.
        """
        steps = len(self)
        first = self._epoch * steps + self._position if self.shuffle else 0  # counted over all epochs
        for count, batch in enumerate(self.source.iterate(self._shares(first, steps), self.augment), first):
            if self.shuffle:
                # Before the yield, since Lightning saves checkpoints while it holds the batch
                self._epoch, self._position = divmod(count + 1, steps)
            yield batch

    @property
    def labels(self) -> Tensor:
        """Labels of the images of all processes, in the order of a loader without shuffling."""
        return self.source.labels[self.indices]

    @property
    def image_names(self) -> list[str]:
        """Names of the images of all processes, in the order of a loader without shuffling.

        The name of a file is its path. Other images are named by split and number.
        """
        return self.names(self.indices)

    def names(self, indices: Tensor) -> list[str]:
        """Return the names of images `(n,)` of the source; see `image_names`."""
        paths = getattr(self.source, "paths", None)
        numbers = indices.tolist()
        return [f"{self.name}/{i}" for i in numbers] if paths is None else [str(paths[i]) for i in numbers]

    def batch_indices(self, number: int) -> Tensor:
        """Return the images of a global batch as indices into the source, (B,) int64, in order.

        Args:
            number: Number of the batch, counted from 0 over all epochs.
        """
        epoch, step = divmod(number, len(self))
        return self._order(epoch)[step * self.batch_size : (step + 1) * self.batch_size]

    def take(self, places: Tensor) -> Tensor:
        """Return the images (n, C, H, W) uint8 at positions (n,) of `indices`, not augmented."""
        one = BatchLoader(
            self.source, self.indices[places], len(places), seed=self.seed, shuffle=False, name=self.name
        )
        return next(iter(one))[0].cpu()

    def sample(self, count: int) -> BatchLoader:
        """Return a loader of at most `count` images, in a fixed random order, the same for all runs.

        A smaller sample is the start of a larger one. The order is random because files are sorted by class.

        Raises:
            ValueError: The loader shuffles.
        """
        if self.shuffle:
            raise ValueError(f"loader {self.name} shuffles; a fixed sample needs a loader without shuffling")
        order = torch.randperm(len(self.indices), generator=generator("fixed", "sample"))
        return BatchLoader(
            self.source,
            self.indices[order[:count]],
            self.batch_size,
            seed=self.seed,
            shuffle=False,
            rank=self.rank,
            world_size=self.world_size,
            name=self.name,
        )

    def state_dict(self) -> dict[str, int | str]:
        """Return the position of the loader and the order it refers to; the same in every process."""
        if not self.shuffle:
            return {}
        return {
            "epoch": self._epoch,
            "position": self._position,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "images": len(self.indices),
            "layout": self._layout,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from the position in `state`.

        Raises:
            ValueError: Seed, global batch size, number of images or layout differ from this loader's.
        """
        if not self.shuffle or not state:
            return
        for key, current in (
            ("seed", self.seed),
            ("batch_size", self.batch_size),
            ("images", len(self.indices)),
            ("layout", self._layout),
        ):
            saved = state.get(key, "")  # older states have no layout
            if saved != current:
                raise ValueError(
                    f"the checkpoint's {self.name} data has {key} {saved}, and this run has {current}; "
                    "resuming would change the order of the data"
                )
        self._epoch, self._position = state["epoch"], state["position"]

    @property
    def _layout(self) -> str:
        return self.source.layout if isinstance(self.source, OrderedSource) else ""

    def _part(self, size: int) -> tuple[int, int]:
        """Return start and length of this process's part of `size` images, split like `np.array_split`."""
        each, more = divmod(size, self.world_size)
        return self.rank * each + min(self.rank, more), each + (self.rank < more)

    def _order(self, epoch: int) -> Tensor:
        """Return the images of an epoch, of all processes, in order."""
        if not self.shuffle:
            return self.indices
        draw = generator(self.seed, self.name, "order", epoch)
        if isinstance(self.source, OrderedSource):
            return self.source.shuffled(self.indices, draw)
        return self.indices[torch.randperm(len(self.indices), generator=draw)]

    def _shares(self, first: int, steps: int) -> Iterator[Share]:
        """Yield this process's shares of batches `first` to `first + steps`, counted over all epochs."""
        order, current = self.indices, None
        for count in range(first, first + steps):
            epoch, step = divmod(count, steps)
            if epoch != current:
                order, current = self._order(epoch), epoch
            batch = order[step * self.batch_size : (step + 1) * self.batch_size]
            start, length = self._part(len(batch))
            yield Share((self.seed, self.name, epoch), step, len(batch), start, batch[start : start + length])
