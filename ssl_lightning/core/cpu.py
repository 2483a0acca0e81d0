"""CPU environment of a run: available cores, and settings of the memory allocator and of OpenMP."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Mapping
from pathlib import Path

# Environment variables that glibc reads when a process starts. Without them it returns the memory of every
# freed batch to the system and requests it again, page by page, in the next step: a training step on a CPU
# takes 1.1 to 1.3 times as long. 32 MiB is the largest threshold that it accepts.
ALLOCATOR = {
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
    "MALLOC_TOP_PAD_": str(2**28),
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
}
# An environment variable that libgomp, torch's OpenMP library, reads when it is loaded: how often a waiting
# thread looks again before it sleeps. By default it looks 300,000 times, for longer than a time slice. If
# another process holds a core, one thread then burns the time that the other needs (docs/speed.md).
SPINNING = {"GOMP_SPINCOUNT": "10000"}


def process_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return a copy of environment variables for a new process, with the settings above as defaults."""
    spinning = {} if "OMP_WAIT_POLICY" in environment else SPINNING  # it would override a policy of the user
    return ALLOCATOR | spinning | dict(environment)


def processor() -> str:
    """Return the name of the processor, such as "AMD EPYC 9R14"; "unknown" if the system does not tell."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, name = line.partition(":")
            if key.strip() == "model name" and name.strip():
                return " ".join(name.split())
    return platform.processor() or platform.machine() or "unknown"


def available_cores() -> int:
    """Count the cores that this process may use: its CPU affinity, capped by SLURM's allocation.

    Some SLURM clusters do not bind jobs to cores; threads that share a core with another job wait for it.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = os.environ.get("SLURM_CPUS_ON_NODE", "")
    return min(bound, max(1, int(given))) if given.isdigit() else bound
