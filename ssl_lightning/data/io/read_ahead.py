"""Reading files from front to back before their parts are asked for, so that these come from memory.

Pictures are drawn from a window of shards in a random order, and on a hard disk or over a network a read of
one picture at a random place costs ten times what it costs to read on. A thread therefore reads what the next
window needs, sorted by its place, and throws it away: the operating system keeps it, for all processes, as
long as it has room. Nothing depends on it but the time.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from ssl_lightning.data.io.sources import Share

GAP = 1 << 18  # bytes between two pictures that are rather read than skipped
CHUNK = 1 << 22  # bytes of one read


def ahead(shares: Iterable[Share], table: np.ndarray, paths: Sequence[Path], limit: int) -> Iterator[Share]:
    """Yield the shares as they are, and let what they and the next of them need be read ahead.

    Args:
        shares: Whose indices are rows of the table.
        table: With `shard`, `offset` and `size` of each picture.
        paths: The shards.
        limit: Bytes that are read ahead at once: those of a window.
    """
    groups = _groups(shares, table, limit)
    reader = _Reader(paths)
    try:
        current = next(groups, [])
        reader.want(spans(current, table))
        while current:
            following = next(groups, [])
            reader.want(spans(following, table))
            yield from current
            reader.passed()
            current = following
    finally:
        reader.stop()


def spans(shares: Sequence[Share], table: np.ndarray) -> list[tuple[int, int, int]]:
    """Return what some shares need, (shard, start, end) in bytes, sorted; gaps of at most GAP are closed."""
    if not shares:
        return []
    rows = table[np.concatenate([share.indices.numpy() for share in shares])]
    rows = rows[np.lexsort((rows["offset"], rows["shard"]))]
    shard = rows["shard"].astype(np.int64)
    start = rows["offset"].astype(np.int64)
    end = start + rows["size"]
    new = np.r_[True, (shard[1:] != shard[:-1]) | (start[1:] - end[:-1] > GAP)]
    first = np.flatnonzero(new)
    last = np.r_[first[1:], len(rows)] - 1
    return list(zip(shard[first].tolist(), start[first].tolist(), end[last].tolist(), strict=True))


def _groups(shares: Iterable[Share], table: np.ndarray, limit: int) -> Iterator[list[Share]]:
    """Cut shares into groups: where other shards begin, or after `limit` bytes."""
    group: list[Share] = []
    shards: set[int] = set()
    total = 0
    for share in shares:
        rows = table[share.indices.numpy()]
        its = set(rows["shard"].tolist())
        if group and (total >= limit or not its & shards):
            yield group
            group, shards, total = [], set(), 0
        group.append(share)
        shards |= its
        total += int(rows["size"].sum())
    if group:
        yield group


class _Reader:
    """The thread; it gives up a group that was passed before it has come to its end."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths
        self.work: queue.SimpleQueue[tuple[int, list[tuple[int, int, int]]] | None] = queue.SimpleQueue()
        self.wanted = 0  # groups that were asked for
        self.gone = 0  # groups that were passed
        self.thread: threading.Thread | None = None

    def want(self, parts: list[tuple[int, int, int]]) -> None:
        if not parts:
            return
        self.work.put((self.wanted, parts))
        self.wanted += 1
        if self.thread is None:
            self.thread = threading.Thread(target=self._read, name="read ahead", daemon=True)
            self.thread.start()

    def passed(self) -> None:
        self.gone += 1

    def stop(self) -> None:
        self.gone = self.wanted + 1
        self.work.put(None)

    def _read(self) -> None:
        buffer = bytearray(CHUNK)
        while (job := self.work.get()) is not None:
            number, parts = job
            for shard, start, end in parts:
                if self.gone > number:
                    break
                try:
                    self._touch(number, self.paths[shard], start, end, buffer)
                except OSError:  # whoever needs it says so, and names it
                    continue

    def _touch(self, number: int, path: Path, start: int, end: int, buffer: bytearray) -> None:
        with open(path, "rb", buffering=0) as file:
            file.seek(start)
            while start < end and self.gone <= number:
                got = file.readinto(memoryview(buffer)[: min(CHUNK, end - start)])
                if not got:
                    return
                start += got
