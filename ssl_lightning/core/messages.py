"""Messages of this package: on the output of a command, and about values fitted to the data."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

log = logging.getLogger(__name__)
PACKAGE = Path(__file__).parents[1]


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


def shorten_warnings() -> None:
    """Let the warnings of this package name no line of its source, which tells a user nothing."""
    located = warnings.formatwarning

    def plain(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        if Path(filename).is_relative_to(PACKAGE):
            return f"warning: {message}\n"
        return located(message, category, filename, lineno, line)

    warnings.formatwarning = plain


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
