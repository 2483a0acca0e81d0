"""Ask the system to read the next pictures of shards in order, before they are needed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from ssl_lightning.data.io.sources import Share

STEP = 1 << 17  # bytes of a request; Linux may truncate longer ones


def request_ahead(
    shares: Iterable[Share], table: np.ndarray, paths: Sequence[Path], limit: int
) -> Iterator[Share]:
    """Yield the shares unchanged, and gradually request the pictures of the next ones.

    Pictures are drawn from a window of shards in random order. On a hard disk or over a network a random read
    costs ten times a sequential one. The page cache keeps the pictures for all processes as long as it has
    room.

    Args:
        shares: Shares whose indices are rows of the table.
        table: `shard`, `offset` and `size` of each picture.
        paths: The shards.
        limit: Bytes to request in one sweep from front to back: a window.
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
    """Group shares into at least `limit` bytes each, except for the last group."""
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
    """Return the table rows of the pictures of shares, sorted by position."""
    rows = table[np.concatenate([np.empty(0, np.int64), *(share.indices.numpy() for share in group)])]
    return rows[np.lexsort((rows["offset"], rows["shard"]))]


def _request(rows: np.ndarray, paths: Sequence[Path]) -> None:
    """Request pictures, sorted by position, without waiting for them."""
    for shard in np.unique(rows["shard"]):
        with contextlib.suppress(OSError), open(paths[shard], "rb") as file:  # the real read reports it
            for row in rows[rows["shard"] == shard]:
                end = int(row["offset"]) + int(row["size"])
                for place in range(int(row["offset"]), end, STEP):
                    os.posix_fadvise(file.fileno(), place, STEP, os.POSIX_FADV_WILLNEED)
