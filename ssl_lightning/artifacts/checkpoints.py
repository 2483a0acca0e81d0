"""Checkpoint files: atomic writes, checks before use, loading that runs no code."""

from __future__ import annotations

import os
import re
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from ssl_lightning.artifacts.run_folder import CHECKPOINTS, LAST, PREVIOUS
from ssl_lightning.core.atomic_files import atomic_file
from ssl_lightning.core.untrusted import check_plain, check_schema

FIRST_STEPS = "first_network_steps"  # key of a checkpoint of two optimizers: steps of the first one
SCHEMA, SCHEMA_KEY = 1, "ssl_lightning_schema"  # of checkpoints; the oldest ones have no schema key
MAX_BYTES = 1 << 36  # of a checkpoint
OLD = b"\x80\x02\x8a\nl\xfc\x9c"  # start of files of torch before 1.6, which are pickles, not archives
FOREIGN = re.compile(r"GLOBAL (\S+)")  # in torch's error: an object that it does not load


class ForeignObjectError(ValueError):
    """A file holds objects other than tensors and plain values; to load them would run code."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write to a temporary file in the same folder, then rename it over the old file.

    Loading is `weights_only`: a foreign checkpoint cannot run code.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(target) as temporary, open(temporary, "wb") as file:
            torch.save(checkpoint, file)  # a Python file: its error tells that the disk is full

    def load_checkpoint(
        self, path: Any, map_location: Callable[..., Any] | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return load_checkpoint(Path(path))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises:
        ValueError: The file is missing, torn, newer, or holds objects other than tensors and plain values.
    """
    if not is_complete(path) and (problem := _defect(path)):
        raise ValueError(f"{path} is {problem}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        kind = ForeignObjectError if FOREIGN.search(str(error)) else ValueError
        raise kind(f"{path} cannot be read as a checkpoint: {_reason(error)}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a checkpoint")
    if SCHEMA_KEY in content:  # foreign weights have no schema
        try:
            check_schema(content, SCHEMA, SCHEMA_KEY)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    return content


def is_complete(path: Path) -> bool:
    """Check that a file is a complete archive of torch, with all parts and correct checksums.

    Compressed or overlapping parts are refused: torch does not write them, and a small file could expand to a
    huge one.
    """
    try:
        check_plain(path, MAX_BYTES)
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
            packed = any(part.compress_type != zipfile.ZIP_STORED for part in parts)
            if packed or sum(part.file_size for part in parts) > os.path.getsize(path):
                return False
            return archive.testzip() is None
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error):
        return False


def _defect(path: Path) -> str:
    """Say why a file that is no complete archive cannot be read; empty for a file of an older torch."""
    if not os.path.lexists(path):
        return "not there"
    try:
        check_plain(path, MAX_BYTES)
        with open(path, "rb") as file:
            return "" if file.read(len(OLD)) == OLD else "torn or not a checkpoint"
    except (OSError, ValueError) as error:
        return f"not a checkpoint: {error}"


def _reason(error: Exception) -> str:
    """Shorten torch's error to one line, without its advice on how to run the file's code."""
    if found := FOREIGN.search(str(error)):
        return f"it would run {found[1]}, and code of a file is never run"
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"


def resume_point(folder: Path) -> Path | None:
    """Find the newest complete checkpoint of a run folder: the last, or the previous one if that is torn.

    Returns:
        None if the folder has no checkpoint yet.

    Raises:
        ValueError: All checkpoints are torn.
    """
    found = [path for name in (LAST, PREVIOUS) if os.path.lexists(path := folder / CHECKPOINTS / name)]
    for path in found:
        if is_complete(path):
            return path
    if found:
        names = ", ".join(map(str, found))
        raise ValueError(f"{folder} has no usable checkpoint: {names} torn; start a new run")
    return None
