"""Memory shared by threads that stand for processes; real processes are in test_sync_batch_norm.py."""

import mmap
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from ssl_lightning.networks.exchange import CAPACITY, SharedMemory

SIZE = 3


def ranks(timeout_s: float = 10.0) -> list[SharedMemory]:
    memory = mmap.mmap(-1, SharedMemory.length(SIZE))
    return [SharedMemory(memory, rank, SIZE, timeout_s) for rank in range(SIZE)]


def numbers(rank: int, step: int) -> torch.Tensor:
    shape = (CAPACITY,) if step % 10 == 0 else (2, 1 + step % 7)
    return torch.rand(shape, generator=torch.Generator().manual_seed(100 * step + rank))


def test_everyone_gets_what_everyone_sent_however_late_some_are() -> None:
    steps = 100

    def run(rank: int, shared: SharedMemory) -> list[torch.Tensor]:
        found = []
        for step in range(steps):
            if step % SIZE == rank and step % 5 == 0:
                time.sleep(0.002)
            found.append(shared.all_gather(numbers(rank, step)))
        return found

    with ThreadPoolExecutor(SIZE) as pool:
        results = list(pool.map(run, range(SIZE), ranks()))
    for step in range(steps):
        expected = torch.stack([numbers(rank, step) for rank in range(SIZE)])
        assert all(torch.equal(result[step], expected) for result in results)


def test_who_does_not_come_is_named() -> None:
    shared = ranks(0.05)
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(shared[rank].all_gather, torch.ones(2)) for rank in (0, 2)]
        for each in waiting:
            with pytest.raises(RuntimeError, match="rank 1 did not send"):
                each.result()
