"""Source of images in shards, read in an order that stays within a few shards."""

from __future__ import annotations

import contextlib
import os
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO, FileIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssl_lightning.data.io.folders import SAMPLED, as_tensor, decode, evenly, sample_images
from ssl_lightning.data.io.read_ahead import request_ahead
from ssl_lightning.data.io.shard_index import ShardError, ShardIndex
from ssl_lightning.data.io.sources import PictureSource, Share

OPEN_FILES = 64  # shards that a process keeps open


class ShardSource(PictureSource):
    """Images of a folder of shards.

    Each epoch visits the shards in a new order, `window` of them at a time, and their images in random order.
    This permutation depends on the draw only. Each image comes once for any number of processes and workers,
    and a loader can resume at any position.

    Args:
        index: Index of the folder.
        keep: (N,) int64, rows of the table to use; None for all.
        window: Shards whose images are mixed.
        read_ahead: Whether to request each window from the system in order before it is needed.
        **base: The keywords of `PictureSource`, without `labels`.
    """

    def __init__(
        self, index: ShardIndex, keep: np.ndarray | None = None, *, window: int, read_ahead: bool, **base: Any
    ) -> None:
        self.index = index
        self.keep = keep
        self.window = window
        self.read_ahead = read_ahead
        self._rows: np.ndarray | None = None
        self._files: OrderedDict[Path, FileIO] = OrderedDict()
        super().__init__(torch.from_numpy(self.rows["label"].astype(np.int64)), **base)

    def __getstate__(self) -> dict:
        return super().__getstate__() | {"_rows": None, "_files": OrderedDict()}  # a worker opens its own

    @property
    def rows(self) -> np.ndarray:
        """Position of each image, (N,) of `ROW`."""
        if self._rows is None:
            table = self.index.table
            self._rows = table if self.keep is None else table[self.keep]
        return self._rows

    @property
    def layout(self) -> str:
        """Description of the shards and the window, on which the order of an epoch depends."""
        return f"{self.index.digest[:16]} mixed {self.window} shards at a time"

    @property
    def paths(self) -> Sequence[str]:
        """Shard and name of each image, for messages."""
        return _Names(self)

    def name(self, index: int) -> str:
        """Return shard and name of an image."""
        row = self.rows[index]
        return f"{self.index.shards[row['shard']]}: {self.index.name(row)}"

    def picture(self, index: int) -> Tensor:
        """Return a full picture (C, H, W) uint8.

        Raises:
            RuntimeError: The shard is missing, or its content changed; names shard and image.
        """
        try:
            content = BytesIO(self.encoded(index))
            return as_tensor(decode(content, self.channels, self.max_pixels, self.value_range))
        except Exception as error:
            raise RuntimeError(
                f"{self.name(index)} cannot be read: {error}; `python -m ssl_lightning.data.pack --check "
                f"{self.index.folder}` compares all shards with their digests"
            ) from error

    def check_sample(self) -> None:
        """Decode a few images before work starts; see `sample_images`.

        Raises:
            ValueError: An image does not fit.
        """
        contents = {}
        for index in evenly(range(len(self)), SAMPLED):
            with contextlib.suppress(OSError, ShardError):  # `picture` raises it again
                contents[self.name(index)] = BytesIO(self.encoded(index))
        try:
            sample_images(
                contents, channels=self.channels, max_pixels=self.max_pixels, value_range=self.value_range
            )
        except ValueError as error:
            raise ValueError(f"{error}; or pack the images again without this one") from error

    def encoded(self, index: int) -> bytes:
        """Return the packed bytes of an image file.

        Raises:
            OSError, ShardError: The shard cannot be read, or its content changed.
        """
        row = self.rows[index]
        path = self.index.shards[row["shard"]]
        file = self._files.pop(path, None) or FileIO(path)
        self._files[path] = file  # most recently used
        if len(self._files) > OPEN_FILES:
            self._files.popitem(last=False)[1].close()
        size = int(row["size"])
        content = os.pread(file.fileno(), size, int(row["offset"]))
        if len(content) != size or zlib.crc32(content) != row["crc"]:
            raise ShardError(f"its {size:,} bytes in the shard differ from the packed ones")
        return content

    def shuffled(self, indices: Tensor, draw: torch.Generator) -> Tensor:
        """Return image indices (n,) int64 in the order of an epoch: windows of shards, mixed within each."""
        place = torch.empty(len(self.index.shards), dtype=torch.int64)
        place[torch.randperm(len(place), generator=draw)] = torch.arange(len(place))
        mixed = indices[torch.randperm(len(indices), generator=draw)]
        shard = torch.from_numpy(self.rows["shard"].astype(np.int64))[mixed]
        return mixed[(place[shard] // self.window).argsort(stable=True)]

    def iterate(self, shares: Iterable[Share], augment: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images (B, C, H, W) uint8 and labels (B,) int64 of each share, in order."""
        if self.read_ahead and hasattr(os, "posix_fadvise"):  # macOS has none
            limit = self.window * max(self.index.shard_bytes)
            shares = request_ahead(shares, self.rows, self.index.shards, limit)
        yield from super().iterate(shares, augment)


class _Names(Sequence[str]):
    """Names of a source's images, read on demand; names of many millions would take gigabytes."""

    def __init__(self, source: ShardSource) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: Any) -> Any:
        return self.source.name(index)
