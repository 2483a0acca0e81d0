"""Have the system read the next pictures of shards from front to back before they are asked for.

Pictures are drawn from a window of shards in a random order. On a hard disk or over a network a read at a
random place costs ten times a read in order. The system keeps what it read, for all processes, as long as it
has room.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from ssl_lightning.data.io.sources import Share

STEP = 1 << 17  # bytes of a request; Linux may cut longer ones short


def ahead(shares: Iterable[Share], table: np.ndarray, paths: Sequence[Path], limit: int) -> Iterator[Share]:
    """Yield the shares as they are; what the next ones need is requested meanwhile, bit by bit.

    Args:
        shares: Whose indices are rows of the table.
        table: With `shard`, `offset` and `size` of each picture.
        paths: The shards.
        limit: Bytes that are requested in one order of their places: a window's.
    """
    groups = _groups(shares, table, limit)
    group = next(groups, [])
    _request(_rows(group, table), paths)
    while group:
        following = next(groups, [])
        parts = np.array_split(_rows(following, table), len(group))
        for share, part in zip(group, parts, strict=True):
            _request(part, paths)
            yield share
        group = following


def _groups(shares: Iterable[Share], table: np.ndarray, limit: int) -> Iterator[list[Share]]:
    """Cut shares into groups of at least `limit` bytes, but for the last."""
    group: list[Share] = []
    total = 0
    for share in shares:
        group.append(share)
        total += int(table["size"][share.indices.numpy()].sum())
        if total >= limit:
            yield group
            group, total = [], 0
    if group:
        yield group


def _rows(group: Sequence[Share], table: np.ndarray) -> np.ndarray:
    """Return the rows of the pictures of some shares, sorted by their place."""
    rows = table[np.concatenate([np.empty(0, np.int64), *(share.indices.numpy() for share in group)])]
    return rows[np.lexsort((rows["offset"], rows["shard"]))]


def _request(rows: np.ndarray, paths: Sequence[Path]) -> None:
    """Ask the system for pictures, sorted by their place, without waiting for them."""
    for shard in np.unique(rows["shard"]):
        with contextlib.suppress(OSError), open(paths[shard], "rb") as file:  # who reads it names the error
            for row in rows[rows["shard"] == shard]:
                end = int(row["offset"]) + int(row["size"])
                for place in range(int(row["offset"]), end, STEP):
                    os.posix_fadvise(file.fileno(), place, STEP, os.POSIX_FADV_WILLNEED)
