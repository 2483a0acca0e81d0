"""Two processes of one group for a test: the test's own as rank 0, and a new one as rank 1."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

Work = Callable[[int, Path], None]


def in_two_processes(work: Work, folder: Path) -> None:
    """Call `work(rank, folder)` in both processes; a new process takes seconds to import torch.

    Args:
        work: A function of a module, so that the new process finds it.
        folder: Where the processes meet, and where `work` leaves what the test reads.
    """
    other = mp.spawn(_second, (work, folder), nprocs=1, join=False)
    _in_group(0, work, folder)
    other.join()


def _second(index: int, work: Work, folder: Path) -> None:
    torch.set_num_threads(1)
    _in_group(1, work, folder)


def _in_group(rank: int, work: Work, folder: Path) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(minutes=5)
    )
    try:
        work(rank, folder)
    finally:
        dist.destroy_process_group()
