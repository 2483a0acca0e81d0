"""Checkpoint files: written whole or not at all, checked before they are used, read without running code."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from ssl_lightning.files import atomic_file

LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"
FOLDER = "checkpoints"  # in the run folder


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
        ValueError: The file is absent, torn, or holds more than tensors and plain values.
    """
    if not is_whole(path):
        raise ValueError(f"{path} is {'torn or no checkpoint' if path.exists() else 'not there'}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} cannot be read as a checkpoint: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a checkpoint")
    return content


def is_whole(path: Path) -> bool:
    """Whether a file is a complete archive of torch: every part is there and its checksum right."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError):
        return False


def resume_point(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run folder: the last, or where that is torn the one before it.

    Returns:
        None if the run wrote none yet.

    Raises:
        ValueError: There are some, and all are torn.
    """
    found = [path for name in (LAST, PREVIOUS) if (path := folder / FOLDER / name).exists()]
    for path in found:
        if is_whole(path):
            return path
    if found:
        names = ", ".join(map(str, found))
        raise ValueError(f"no checkpoint of {folder} can be used: {names} torn; start the run anew")
    return None
