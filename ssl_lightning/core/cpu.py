"""How many cores there are for us. Without torch, as `launch` is."""

from __future__ import annotations

import os


def available_cores() -> int:
    """Cores that this process may use: those it is bound to, and no more than SLURM gave its job here.

    Not every SLURM binds jobs to their cores, and threads that share one with another job wait for it.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = os.environ.get("SLURM_CPUS_ON_NODE", "")
    return min(bound, max(1, int(given))) if given.isdigit() else bound
