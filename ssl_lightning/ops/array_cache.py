"""Small arrays kept on disk between runs; any number of processes may read and write them at once."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

import numpy as np


def read_array(path: Path | None) -> np.ndarray | None:
    """Load an array; None where there is none, or not a whole one."""
    if path is None:
        return None
    try:
        array = np.load(path, allow_pickle=False)
    except Exception:  # numpy raises a dozen kinds of errors for bytes that are no array
        return None
    return array if isinstance(array, np.ndarray) else None  # not an archive of several


def write_array(path: Path | None, array: np.ndarray) -> None:
    """Keep an array for the next time; a reader sees all of it or nothing.

    A cache that is read-only or full is no error: it costs the time to compute the array again.
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
            Path(name).unlink(missing_ok=True)  # gone already, if all went well
