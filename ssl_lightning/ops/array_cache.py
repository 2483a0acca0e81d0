"""Cache of small arrays on disk, safe for many processes that read and write at once."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

import numpy as np


def read_array(path: Path | None) -> np.ndarray | None:
    """Load an array; None if the file is missing or damaged."""
    if path is None:
        return None
    try:
        array = np.load(path, allow_pickle=False)
    except Exception:  # numpy raises a dozen kinds of errors for other bytes
        return None
    return array if isinstance(array, np.ndarray) else None  # an archive of several arrays gives None


def write_array(path: Path | None, array: np.ndarray) -> None:
    """Write an array atomically.

    A read-only or full disk is not an error: the next run computes the array again.
    """
    if path is None:
        return
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                np.save(file, array)
            os.replace(name, path)
        finally:
            Path(name).unlink(missing_ok=True)  # already renamed after success
