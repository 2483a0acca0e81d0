"""Progress lines of long work: what runs, how far it is, and the time left."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from typing import Protocol, TypeVar

EVERY_S = 10.0  # seconds between two lines

log = logging.getLogger(__name__)
T = TypeVar("T")


class Work:
    """Work that may take long, and the number of its finished items.

    Args:
        what: Name of the work, such as "encode train".
        total: Number of its items; None if it is unknown.
        unit: Name of the items, in the plural.
        began: Time of its start in seconds.
    """

    def __init__(self, what: str, total: int | None, unit: str, began: float) -> None:
        self.what, self.total, self.unit, self.began = what, total, unit, began
        self.done = 0

    def advance(self, count: int = 1) -> None:
        """Count finished items; this touches no clock, no file and no device."""
        self.done += count

    def state(self, now: float) -> str:
        """Return how far the work is, and the time left; the time so far if that is unknown.

        >>> work = Work("encode", 5000, "images", began=0.0)
        >>> work.advance(1200)
        >>> work.state(now=30.0)
        '1,200 of 5,000 images, 95 s left'
        """
        passed = now - self.began
        if self.total is None:
            return ", ".join([f"{self.done:,} {self.unit}"] * (self.done > 0) + [f"{span(passed)} so far"])
        if not self.done:
            return f"0 of {self.total:,} {self.unit}, {span(passed)} so far"
        left = passed * max(0, self.total - self.done) / self.done
        return f"{self.done:,} of {self.total:,} {self.unit}, {span(left)} left"


class Stop(Protocol):
    """End of the lines; `threading.Event` is one."""

    def wait(self, timeout: float) -> bool:
        """Wait for so many seconds; return whether the work ended."""
        ...


_running: list[Work] = []  # outermost first
_show: list[Callable[[str], None]] = [log.info]  # the last one gets the lines


@contextmanager
def watched(what: str, total: int | None = None, unit: str = "", *, alone: bool = False) -> Iterator[Work]:
    """Log a line about the work in this block every 10 seconds, from a thread.

    Lines go to the logger of this module at level INFO, so they appear where a program configures logging, as
    our commands do. Work of less than 10 seconds logs nothing. Of nested work, the innermost is counted. Only
    rank 0 logs.

    Args:
        what: Name of the work.
        total: Number of its items; None if it is unknown.
        unit: Name of the items, in the plural.
        alone: This process works for all others, so it logs with any rank.

    Yields:
        The work, whose `advance` counts finished items.

    Example:
        >>> with watched("encode train", 2, "batches") as progress:
        ...     for batch in range(2):
        ...         progress.advance()
    """
    current = Work(what, total, unit, time.monotonic())
    if not (alone or _is_first()):
        yield current
        return
    place = len(_running)
    _running.append(current)
    ended = threading.Event()
    if place == 0:
        threading.Thread(target=report, args=(_running, ended), daemon=True).start()
    try:
        yield current
    finally:
        del _running[place:]  # with iterations of `tracked` that an error left
        ended.set()


def tracked(
    items: Iterable[T], what: str, unit: str, *, total: int | None = None, alone: bool = False
) -> Iterator[T]:
    """Yield items within work that counts them; `total` is their number if they have no length."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with watched(what, total, unit, alone=alone) as progress:
        for item in items:
            yield item
            progress.advance()


@contextmanager
def shown_by(show: Callable[[str], None]) -> Iterator[None]:
    """Pass the lines of this block to a function instead of the logger."""
    _show.append(show)
    try:
        yield
    finally:
        _show.remove(show)


def report(running: Sequence[Work], ended: Stop, clock: Callable[[], float] = time.monotonic) -> None:
    """Show the running work every 10 seconds until the work ends."""
    while not ended.wait(EVERY_S):
        if works := list(running):
            names = ", ".join(each.what for each in works)
            _show[-1](f"{names}: {works[-1].state(clock())}")


def span(seconds: float) -> str:
    """Return a duration in words.

    >>> [span(each) for each in (7.6, 100, 600, 9000)]
    ['8 s', '100 s', '10 min', '2 h 30 min']
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _is_first() -> bool:
    return os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0"
