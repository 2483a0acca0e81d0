"""Messages of this package on a command's output."""

from __future__ import annotations

import logging
from typing import TextIO


def show_messages(output: TextIO) -> None:
    """Print the messages that this package logs, progress lines among them."""
    handler = logging.StreamHandler(output)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log = logging.getLogger("ssl_lightning")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
