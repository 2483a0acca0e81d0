"""List of the failed jobs of a sweep, of which Hydra reports only the first; imports no torch."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from ssl_lightning.config.composition import command_overrides
from ssl_lightning.core.untrusted import printable


@dataclass
class Jobs:
    """Jobs of a sweep that ran in this process.

    Args:
        overrides: Overrides of every job, in order.
        failures: Error of each failed job, by its place in `overrides`.
    """

    overrides: list[list[str]] = field(default_factory=list)
    failures: dict[int, str] = field(default_factory=dict)

    def watch(self, task: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Wrap the function of a command, so that each job of a sweep leaves its error here."""

        @functools.wraps(task)  # Hydra names the job after the module of the function
        def watched(cfg: Any) -> Any:
            hydra = HydraConfig.get()
            if hydra.mode != RunMode.MULTIRUN:
                return task(cfg)
            self.overrides.append(command_overrides(hydra))
            try:
                return task(cfg)
            except Exception as error:
                self.failures[len(self.overrides) - 1] = str(error) or type(error).__name__
                raise

        return watched

    def summary(self) -> list[str]:
        """Return a heading and a line for each failed job, with the overrides that jobs do not share."""
        if not self.failures:
            return []
        shared = set.intersection(*map(set, self.overrides)) if len(self.overrides) > 1 else set()
        lines = [f"{len(self.failures)} of {len(self.overrides)} jobs of the sweep failed:"]
        for place, error in self.failures.items():
            own = " ".join(each for each in self.overrides[place] if each not in shared)
            lines.append(
                printable(f"  job {place}, {own}: {error.removeprefix('error: ').partition(chr(10))[0]}")
            )
        return lines


@contextmanager
def failed_jobs_named() -> Iterator[Jobs]:
    """Print all failed jobs at the end of a sweep, also if it is interrupted."""
    jobs = Jobs()
    try:
        yield jobs
    finally:
        for line in jobs.summary():
            print(line, file=sys.stderr, flush=True)
