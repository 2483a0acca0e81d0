"""What is read before it is asked for, against loops by hand."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from ssl_lightning.data.io import read_ahead
from ssl_lightning.data.io.read_ahead import ahead, spans
from ssl_lightning.data.io.shard_index import ROW
from ssl_lightning.data.io.sources import Share

EACH, SIZE, ROOM = 8, 100, 160  # images of a shard; bytes of one, and to the next one


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    found = [tmp_path / f"{number}.tar" for number in range(6)]
    for path in found:
        path.write_bytes(bytes(EACH * ROOM))
    return found


@pytest.fixture
def table() -> np.ndarray:
    rows = np.zeros(6 * EACH, ROW)
    rows["shard"] = np.repeat(range(6), EACH)
    rows["offset"] = np.tile(np.arange(EACH) * ROOM, 6)
    rows["size"] = SIZE
    return rows


def shares(order: torch.Tensor, size: int = 4) -> list[Share]:
    return [Share((0,), number, size, 0, part) for number, part in enumerate(order.split(size))]


def window_order() -> torch.Tensor:
    """Two shards at a time, mixed: 4 and 1, then 0 and 5, then 3 and 2."""
    draw = torch.Generator().manual_seed(0)
    parts = [
        torch.cat([torch.arange(EACH) + EACH * shard for shard in two]) for two in ((4, 1), (0, 5), (3, 2))
    ]
    return torch.cat([part[torch.randperm(len(part), generator=draw)] for part in parts])


@pytest.fixture
def touched(monkeypatch) -> list[tuple[str, int, int]]:
    """What the thread has read: shard, start and end."""
    seen = []

    def touch(self, number, path, start, end, buffer):
        seen.append((path.stem, start, end))

    monkeypatch.setattr(read_ahead._Reader, "_touch", touch)
    return seen


def settled(seen: list, count: int) -> None:
    start = time.monotonic()
    while len(seen) < count and time.monotonic() - start < 10:
        time.sleep(0.001)
    assert len(seen) == count


def test_each_window_is_read_once_and_in_order_before_its_turn(shards, table, touched):
    given = shares(window_order())
    running = ahead(iter(given), table, shards, 10**9)
    whole = EACH * ROOM - (ROOM - SIZE)
    for number, expected in enumerate(given):
        assert next(running) is expected
        window = number // 4  # 16 images are 4 shares
        settled(touched, min(2 * window + 4, 6))  # this one and the next
    assert touched == [(shard, 0, whole) for shard in "140523"]
    assert list(running) == []


def test_spans_are_those_of_a_loop(table, monkeypatch):
    monkeypatch.setattr(read_ahead, "GAP", 200)  # to the next image but one it is 220
    for seed in range(20):
        indices = torch.randperm(48, generator=torch.Generator().manual_seed(seed))[:20]
        expected: list[list[int]] = []
        for index in sorted(indices.tolist()):
            shard, start = index // EACH, index % EACH * ROOM
            if expected and expected[-1][0] == shard and start - expected[-1][2] <= 200:
                expected[-1][2] = start + SIZE
            else:
                expected.append([shard, start, start + SIZE])
        assert spans(shares(indices), table) == [tuple(each) for each in expected]
    assert spans([], table) == []


def test_no_more_than_the_limit_is_read_ahead(shards, table, touched, monkeypatch):
    monkeypatch.setattr(read_ahead, "GAP", -1)  # each image by itself
    given = shares(torch.arange(16).reshape(2, EACH).T.flatten())  # of two shards in turns: one window
    running = ahead(iter(given), table, shards, 4 * SIZE)
    for number, expected in enumerate(given):
        assert next(running) is expected
        settled(touched, min(8 + 4 * number, 16))  # this group of 4 images and the next
    assert len(set(touched)) == 16


def test_what_was_passed_is_given_up_and_the_thread_ends(shards, table, monkeypatch):
    begun, go = threading.Event(), threading.Event()
    read = []

    def slow(self, number, path, start, end, buffer):
        begun.set()
        go.wait(10)
        read.append(path.stem)

    monkeypatch.setattr(read_ahead._Reader, "_touch", slow)
    before = threading.active_count()
    running = ahead(iter(shares(window_order())), table, shards, 10**9)
    for _ in range(9):  # into the last window
        next(running)
    assert begun.wait(10)
    go.set()
    settled(read, 3)
    assert read == ["1", "2", "3"]  # 1 was being read; 4, 0 and 5 are no longer worth it
    running.close()
    start = time.monotonic()
    while threading.active_count() > before and time.monotonic() - start < 10:
        time.sleep(0.001)
    assert threading.active_count() == before


def test_the_thread_reads_what_it_should_and_survives_a_missing_shard(shards, table, monkeypatch):
    monkeypatch.setattr(read_ahead, "CHUNK", 300)
    counted: list[int] = []

    class File:
        def __init__(self, path, *_, **__):
            self.file = open(path, "rb", buffering=0)  # noqa: SIM115

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def seek(self, place):
            self.file.seek(place)

        def readinto(self, buffer):
            counted.append(self.file.readinto(buffer))
            return counted[-1]

    monkeypatch.setattr(read_ahead, "open", File, raising=False)
    shards[1].unlink()
    given = shares(window_order())
    running = ahead(iter(given), table, shards, 10**9)
    next(running)
    start = time.monotonic()
    while sum(counted) < 3 * (EACH * ROOM - 60) and time.monotonic() - start < 10:
        time.sleep(0.001)
    assert sum(counted) == 3 * (EACH * ROOM - 60)  # 4, 0 and 5; shard 1 is gone
    assert max(counted) == 300
