"""Errors that end a command with one line."""

from __future__ import annotations

import sys

from hydra.errors import CompactHydraException, InstantiationException

from ssl_lightning.core.untrusted import printable


class RunError(CompactHydraException):
    """Failure of a run; Hydra prints its message without a traceback.

    The message may quote untrusted files, so characters that a terminal would obey are escaped.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def cause_of(error: Exception) -> Exception:
    """Return the error of a constructor, which Hydra wraps; any other error as it is."""
    while isinstance(error, InstantiationException) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error


def first_line(error: BaseException) -> str:
    """Return the first line of an error of a library, without its advice.

    >>> first_line(ImportError("Requirement 'x>=1' not met. HINT: Try running `pip install -U 'x>=1'`"))
    "Requirement 'x>=1' not met"
    """
    return str(error).partition(" HINT:")[0].strip().partition("\n")[0].rstrip(".")


def a_kind_of(value: object) -> str:
    """Return the type of a value, or the name of a type, with its article.

    >>> a_kind_of(None), a_kind_of(0.5), a_kind_of([0.5]), a_kind_of(int)
    ('None', 'a float', 'a list', 'an int')
    """
    name = value.__name__ if isinstance(value, type) else type(value).__name__
    return "None" if value is None else f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def print_error(error: Exception) -> int:
    """Print an error, after "error: " unless it is a `RunError`; return the exit status 1."""
    text = printable(str(error)).strip()
    print(text if isinstance(error, RunError) else f"error: {text}", file=sys.stderr)
    return 1
