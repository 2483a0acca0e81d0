"""Exchange of a few numbers between the processes of one machine, through memory that they share."""

from __future__ import annotations

import mmap
import os
import platform
import secrets
import time
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.constants import default_pg_timeout

CAPACITY = 2**14  # float32 of a process in one exchange; more go through torch.distributed
LINE = 8  # int64 in a line of the cache, so that no two processes write to one
YIELDING_S = 0.01  # a process that has waited for longer no longer keeps its core busy
STRONG_ORDER = ("x86_64", "amd64")  # machines on which stores are seen in the order in which they were made


def all_gather(own: Tensor) -> Tensor:
    """Gather tensors of equal shape from all processes: `(processes, *shape)`. Every process must ask.

    Small float32 tensors go through shared memory where all processes are on one machine of x86-64: gloo
    wakes several threads for each exchange, which takes over a millisecond where the cores are busy. Others
    go through torch.distributed.

    Raises:
        RuntimeError: Another process did not ask within half an hour, the limit of torch.distributed.
    """
    if own.dtype == torch.float32 and own.numel() <= CAPACITY and (shared := _of_group()) is not None:
        return shared.all_gather(own)
    shares = own.new_empty(dist.get_world_size(), *own.shape)
    dist.all_gather(list(shares), own)
    return shares


class SharedMemory:
    """Memory that several processes map: how many exchanges each has made, and two places for its values.

    A process writes its values, then its count, and waits until no count is behind its own. The places take
    turns: a process writes to one again when all have made the exchange after it, and so have read it.

    Args:
        memory: Of `length(size)` bytes, 0 at first.
        rank: Number of this process.
        size: Number of processes.
        timeout_s: How long to wait for the others.
    """

    def __init__(self, memory: mmap.mmap, rank: int, size: int, timeout_s: float) -> None:
        counts = np.frombuffer(memory, np.int64, size * LINE)
        values = np.frombuffer(memory, np.float32, 2 * size * CAPACITY, offset=counts.nbytes)
        self._counts = counts.reshape(size, LINE)[:, 0]
        self._values = torch.from_numpy(values.reshape(2, size, CAPACITY))
        self._rank, self._timeout_s, self._done = rank, timeout_s, 0

    @staticmethod
    def length(size: int) -> int:
        """Bytes that so many processes need."""
        return size * (8 * LINE + 2 * 4 * CAPACITY)

    def all_gather(self, own: Tensor) -> Tensor:
        """Gather `(processes, *shape)`, float32 and at most `CAPACITY` numbers of each.

        Raises:
            RuntimeError: Another process did not come.
        """
        self._done += 1
        place = self._values[self._done % 2, :, : own.numel()]
        place[self._rank] = own.detach().flatten()
        self._counts[self._rank] = self._done
        if self._counts.min() < self._done:
            self._wait()
        return place.reshape(-1, *own.shape).clone()

    def _wait(self) -> None:
        began = time.monotonic()
        while self._counts.min() < self._done:
            waited = time.monotonic() - began
            if waited > self._timeout_s:
                late = np.flatnonzero(self._counts < self._done).tolist()
                raise RuntimeError(f"rank {late[0]} did not send its batch statistics for {waited:.0f} s")
            if waited < YIELDING_S:
                os.sched_yield()  # not a sleep, whose end takes longer than the exchange
            else:
                time.sleep(YIELDING_S / 10)


# By process group, which must not be kept alive: it has threads that are to end before the interpreter does
_known: WeakKeyDictionary[Any, SharedMemory | None] = WeakKeyDictionary()


def _of_group() -> SharedMemory | None:
    group = dist.group.WORLD
    if group not in _known:
        _known[group] = _connect()
    return _known[group]


def _connect() -> SharedMemory | None:
    """Map one memory in all processes, or in none, which may be on several machines or in containers."""
    rank, size = dist.get_rank(), dist.get_world_size()
    handle, told = -1, [("", b"")]
    if rank == 0 and hasattr(os, "memfd_create"):  # a file without a name: nothing is left of it
        handle, token = os.memfd_create("ssl_lightning"), secrets.token_bytes(16)
        os.write(handle, token)
        os.ftruncate(handle, SharedMemory.length(size))
        told = [(f"/proc/{os.getpid()}/fd/{handle}", token)]
    dist.broadcast_object_list(told)
    memory = _map(*told[0], SharedMemory.length(size))
    each: list[Any] = [None] * size
    dist.all_gather_object(each, memory is not None)
    if handle >= 0:
        os.close(handle)
    if memory is None or not all(each):
        return None
    if rank == 0:
        memory[:16] = bytes(16)
    dist.barrier()  # all counts are 0
    return SharedMemory(memory, rank, size, default_pg_timeout.total_seconds())


def _map(path: str, token: bytes, length: int) -> mmap.mmap | None:
    """Map the file of another process; None where it is not there, or another one."""
    if not path or platform.machine().lower() not in STRONG_ORDER:
        return None
    try:
        handle = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return None
    try:
        memory = mmap.mmap(handle, length)
    except (OSError, ValueError):
        return None
    finally:
        os.close(handle)
    return memory if memory[: len(token)] == token else None
