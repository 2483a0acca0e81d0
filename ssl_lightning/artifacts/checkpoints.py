"""Checkpoint files: written whole or not at all, checked before they are used, read without running code."""

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

SCHEMA, SCHEMA_KEY = 1, "ssl_lightning_schema"  # of what a run saves; those before it was counted have none
MAX_BYTES = 1 << 36  # of a checkpoint
OLD = b"\x80\x02\x8a\nl\xfc\x9c"  # what files of torch before 1.6 begin with: pickles, no archives


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write to a temporary name in the same folder, then rename; the file there before is kept until then.

    Loading is `weights_only`: a checkpoint from elsewhere cannot run code.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(target) as temporary, open(temporary, "wb") as file:
            torch.save(checkpoint, file)  # a file of Python's, whose error says when the disk is full

    def load_checkpoint(
        self, path: Any, map_location: Callable[..., Any] | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return load_checkpoint(Path(path))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises:
        ValueError: The file is absent, torn, of a newer version, or holds more than tensors and plain values.
    """
    if not is_complete(path):
        what = "not there" if not os.path.lexists(path) else _what_else(path)
        raise ValueError(f"{path} is {what}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} cannot be read as a checkpoint: {_reason(error)}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a checkpoint")
    if SCHEMA_KEY in content:  # weights of others have none
        try:
            check_schema(content, SCHEMA, SCHEMA_KEY)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    return content


def is_complete(path: Path) -> bool:
    """Whether a file is a complete archive of torch: every part is there and its checksum right.

    Parts that are packed or share bytes, as torch leaves none, would make much of a small file.
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


def _what_else(path: Path) -> str:
    """What a file is that is no whole archive of torch."""
    try:
        check_plain(path, MAX_BYTES)
        with open(path, "rb") as file:
            old = file.read(len(OLD)) == OLD
    except (OSError, ValueError) as error:
        return f"no checkpoint: {error}"
    advice = "; it may be of torch before 1.6: load and save it by a newer one, if you trust it"
    return "torn or no checkpoint" + advice * old


def _reason(error: Exception) -> str:
    """One line of what torch says; it also says how to run the code of the file."""
    if found := re.search(r"GLOBAL (\S+)", str(error)):
        return f"it would run {found[1]}, and no code of a file is run"
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"


def resume_point(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run folder: the last, or where that is torn the one before it.

    Returns:
        None if the run wrote none yet.

    Raises:
        ValueError: There are some, and all are torn.
    """
    found = [path for name in (LAST, PREVIOUS) if os.path.lexists(path := folder / CHECKPOINTS / name)]
    for path in found:
        if is_complete(path):
            return path
    if found:
        names = ", ".join(map(str, found))
        raise ValueError(f"no checkpoint of {folder} can be used: {names} torn; start the run anew")
    return None
