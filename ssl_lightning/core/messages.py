"""Messages of this package: on the output of a command, and about values fitted to the data."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

log = logging.getLogger(__name__)


@contextmanager
def showing_messages(output: TextIO) -> Iterator[None]:
    """Print the messages that this package logs within the block, progress lines among them."""
    handler = logging.StreamHandler(output)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log = logging.getLogger("ssl_lightning")
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def tell(message: str) -> None:
    """Log a message in the first process, as a warning so that Python shows it without any setup."""
    from pytorch_lightning.utilities import rank_zero_only  # not at import, since it imports torch

    rank_zero_only(log.warning)(message)


def fitted(
    key: str,
    given: object,
    used: object,
    count: int,
    owner: str = "the train split",
    noun: str = "labelled image",
) -> str:
    """Return the sentence for a value that is fitted to the number of images.

    >>> fitted("data.max_labels", 400, 320, 320, "fake")
    'data.max_labels is 400; 320 is used, since fake has 320 labelled images'
    """
    return f"{key} is {given}; {used} is used, since {owner} has {count} {noun}{'s' * (count != 1)}"
