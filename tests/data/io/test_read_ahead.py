"""Read-ahead requests pictures before their turn, in order, and once."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from ssl_lightning.data.io.read_ahead import STEP, request_ahead
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
    """Return an order that mixes two shards at a time: 4 and 1, then 0 and 5, then 3 and 2."""
    draw = torch.Generator().manual_seed(0)
    parts = [
        torch.cat([torch.arange(EACH) + EACH * shard for shard in two]) for two in ((4, 1), (0, 5), (3, 2))
    ]
    return torch.cat([part[torch.randperm(len(part), generator=draw)] for part in parts])


@pytest.fixture
def requested(monkeypatch) -> list[tuple[str, int]]:
    """Record the requests to the system: shard and offset."""
    seen = []

    def note(number: int, place: int, size: int, advice: int) -> None:
        assert (size, advice) == (STEP, os.POSIX_FADV_WILLNEED)
        seen.append((Path(os.readlink(f"/proc/self/fd/{number}")).stem, place))

    monkeypatch.setattr(os, "posix_fadvise", note)
    return seen


def places(table: np.ndarray, share: Share) -> set[tuple[str, int]]:
    rows = table[share.indices.numpy()]
    return {(str(row["shard"]), int(row["offset"])) for row in rows}


def test_each_window_is_requested_once_and_in_order_before_its_turn(shards, table, requested):
    given = shares(window_order())
    running = request_ahead(iter(given), table, shards, 2 * EACH * SIZE)
    for number, expected in enumerate(given):
        assert next(running) is expected
        assert places(table, expected) <= set(requested)
        window, part = divmod(
            number, 4
        )  # 16 images are 4 shares, and with each come 4 images of the next window
        assert len(requested) == min(16 * (window + 1) + 4 * (part + 1), 48)
    order = [(str(shard), place * ROOM) for shard in (1, 4, 0, 5, 2, 3) for place in range(EACH)]
    assert requested == order
    assert list(running) == []


def test_each_picture_is_requested_once_before_its_turn_whatever_the_limit(shards, table, requested):
    given = shares(window_order(), size=5)  # the shares do not end where the windows end
    for limit in (1, 4 * SIZE, 13 * SIZE, 10**9):
        requested.clear()
        for found, expected in zip(request_ahead(iter(given), table, shards, limit), given, strict=True):
            assert found is expected
            assert places(table, expected) <= set(requested)
        assert sorted(requested) == sorted((str(row["shard"]), row["offset"]) for row in table)
    assert list(request_ahead(iter([]), table, shards, 1)) == []


def test_a_large_picture_is_requested_in_steps(shards, table, requested):
    table["size"][3] = 2 * STEP + 1
    list(request_ahead(iter(shares(torch.tensor([3]))), table, shards, 1))
    assert requested == [("0", 3 * ROOM + step * STEP) for step in range(3)]


def test_a_missing_shard_is_left_to_who_reads_it(shards, table, requested):
    shards[1].unlink()
    given = shares(window_order())
    assert list(request_ahead(iter(given), table, shards, 10**9)) == given
    assert {shard for shard, _ in requested} == set("02345")


def test_the_system_takes_the_requests(shards, table):
    given = shares(window_order())
    assert list(request_ahead(iter(given), table, shards, 10**9)) == given
