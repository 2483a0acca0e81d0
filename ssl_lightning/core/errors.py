"""Errors that end a command with one line."""

from __future__ import annotations

import sys

from hydra.errors import CompactHydraException

from ssl_lightning.core.untrusted import printable


class RunError(CompactHydraException):
    """Failure of a run; Hydra prints its message without a traceback.

    The message may quote untrusted files, so characters that a terminal would obey are escaped.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def without_hint(error: BaseException) -> str:
    """Return the first line of an error of Lightning, without its advice.

    >>> without_hint(ImportError("Requirement 'x>=1' not met. HINT: Try running `pip install -U 'x>=1'`"))
    "Requirement 'x>=1' not met"
    """
    return str(error).partition(" HINT:")[0].strip().partition("\n")[0].rstrip(".")


def print_error(error: Exception) -> int:
    """Print an error after "error: "; return the exit status 1."""
    text = printable(str(error)).strip()
    print(text if text.startswith("error:") else f"error: {text}", file=sys.stderr)
    return 1
