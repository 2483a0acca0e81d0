"""The batch loader: its order and its state are plain functions of (seed, epoch, position)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ssl_lightning.core.seeding import generator
from ssl_lightning.data.io.sources import ImageSource, OrderedSource, Share


class BatchLoader:
    """Batches of uint8 images, the same whatever the number of processes, resumable at any batch.

    It is no `torch.utils.data.DataLoader`, so Lightning takes it as it is. An epoch is a permutation
    from (seed, epoch), uniform unless the source has an order of its own; global batch `b` is its
    `b`-th run of `batch_size`; process `rank` yields its contiguous part of each. A shuffled loader
    keeps (epoch, position), and a pass is the next `len(loader)` batches from there: one that was
    broken off (`limit_train_batches`) is continued by the next, across the end of the epoch if need
    be, so no pass is short and every image has its turn. After a restart Lightning counts the
    batches of the pass that was interrupted and ends it where it would have ended. A loader that
    does not shuffle keeps no state and always starts at its first batch.

    Args:
        source: The images.
        indices: Which of them, int64 (N,); none only where nothing is shuffled.
        batch_size: Images of a global batch, over all processes.
        seed: Of the order and of the augmentation.
        shuffle: Whether this is training: a new order each epoch, and state.
        augment: Whether images are augmented, by the source.
        drop_last: Whether a last batch that is not full is left out.
        rank: Number of this process.
        world_size: Number of processes.
        name: Of the random streams and in error messages.

    Raises:
        ValueError: If a size is out of range, or processes would get unequal parts in training.
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
            raise ValueError(f"batch_size of {name} is {batch_size}, and there are only {size} images")
        if batch_size < world_size:
            raise ValueError(f"batch_size of {name} is {batch_size} in all, below {world_size} processes")
        if shuffle and (batch_size % world_size or (not drop_last and size % batch_size % world_size)):
            raise ValueError(
                f"batch_size of {name} is {batch_size} in all; it must divide evenly among "
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
        """The epoch of the next batch."""
        return self._epoch

    @property
    def position(self) -> int:
        """The number, in its epoch, of the next batch."""
        return self._position

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch."""
        self._epoch, self._position = epoch, 0

    def __len__(self) -> int:
        """Batches that this process yields in a whole epoch, which is also the length of every pass."""
        full, rest = divmod(len(self.indices), self.batch_size)
        return full + (not self.drop_last and self._part(rest)[1] > 0)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield `len(self)` batches from where the loader stands: images uint8, labels int64.

        Shapes are (B, C, H, W) and (B,). A pass that starts within an epoch runs on into the next.
        """
        steps = len(self)
        first = self._epoch * steps + self._position if self.shuffle else 0  # counted over all epochs
        for count, batch in enumerate(self.source.iterate(self._shares(first, steps), self.augment), first):
            if self.shuffle:
                # Before the yield, since a checkpoint is written while the caller holds the batch
                self._epoch, self._position = divmod(count + 1, steps)
            yield batch

    @property
    def image_names(self) -> list[str]:
        """Name of each image of all processes, in the order of a loader that does not shuffle.

        Files are named by their path, others by their split and number.
        """
        return self.names(self.indices)

    def names(self, indices: Tensor) -> list[str]:
        """Name of each of some images of the source, `(n,)`, as `image_names`."""
        paths = getattr(self.source, "paths", None)
        numbers = indices.tolist()
        return [f"{self.name}/{i}" for i in numbers] if paths is None else [str(paths[i]) for i in numbers]

    def batch_indices(self, number: int) -> Tensor:
        """Which images of the source a global batch holds, (B,) int64 in its order.

        Args:
            number: Of the batch, counted from 0 over all epochs.
        """
        epoch, step = divmod(number, len(self))
        return self._order(epoch)[step * self.batch_size : (step + 1) * self.batch_size]

    def take(self, places: Tensor) -> Tensor:
        """Return the images (n, C, H, W) uint8 at some places (n,) of that order, not augmented."""
        one = BatchLoader(
            self.source, self.indices[places], len(places), seed=self.seed, shuffle=False, name=self.name
        )
        return next(iter(one))[0].cpu()

    def sample(self, count: int) -> BatchLoader:
        """Return a loader of at most so many of the images, in an order drawn once for all runs.

        Fewer are the first ones of more. Not the first in the loader's own order: files lie class by class.

        Raises:
            ValueError: The loader shuffles.
        """
        if self.shuffle:
            raise ValueError(f"{self.name} is shuffled; a fixed sample is of a loader that is not")
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
        """Return where the loader stands and what that refers to; the same in every process."""
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
        """Go on from where the loader stood that gave `state`.

        Raises:
            ValueError: If its seed, global batch size, number of images or layout are not this loader's.
        """
        if not self.shuffle or not state:
            return
        for key, mine in (
            ("seed", self.seed),
            ("batch_size", self.batch_size),
            ("images", len(self.indices)),
            ("layout", self._layout),
        ):
            before = state.get(key, "")  # older states have no layout
            if before != mine:
                raise ValueError(
                    f"the checkpoint's {self.name} data has {key} {before}, and this run has {mine}: "
                    "resuming would change the order of the data"
                )
        self._epoch, self._position = state["epoch"], state["position"]

    @property
    def _layout(self) -> str:
        return self.source.layout if isinstance(self.source, OrderedSource) else ""

    def _part(self, size: int) -> tuple[int, int]:
        """Return start and length of this process's part of `size` images, as `np.array_split` cuts."""
        each, more = divmod(size, self.world_size)
        return self.rank * each + min(self.rank, more), each + (self.rank < more)

    def _order(self, epoch: int) -> Tensor:
        """Images of an epoch, of all processes, in their order."""
        if not self.shuffle:
            return self.indices
        draw = generator(self.seed, self.name, "order", epoch)
        if isinstance(self.source, OrderedSource):
            return self.source.shuffled(self.indices, draw)
        return self.indices[torch.randperm(len(self.indices), generator=draw)]

    def _shares(self, first: int, steps: int) -> Iterator[Share]:
        """Yield this process's shares of the batches `first` to `first + steps`, over all epochs."""
        order, current = self.indices, None
        for count in range(first, first + steps):
            epoch, step = divmod(count, steps)
            if epoch != current:
                order, current = self._order(epoch), epoch
            batch = order[step * self.batch_size : (step + 1) * self.batch_size]
            start, length = self._part(len(batch))
            yield Share((self.seed, self.name, epoch), step, len(batch), start, batch[start : start + length])
