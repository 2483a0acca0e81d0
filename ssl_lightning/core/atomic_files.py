"""Atomic file writes, and clear errors on a full disk; imports no torch."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

FULL = (errno.ENOSPC, errno.EDQUOT)
FULL_TEXTS = ("No space left", "ENOSPC", "Disk quota")  # of external tools, whose errors carry no errno
SCARCE = 1 << 16  # free bytes; numpy reports a full disk only as fewer values written


class DiskFullError(OSError):
    """The disk is full; existing files are intact."""


@contextlib.contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yield a temporary path; on success, sync it to the disk and move it to `target`."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
        sync_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a crash of the machine."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_file(path: Path, content: str | bytes) -> None:
    """Write a file atomically, text as UTF-8."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(content if isinstance(content, bytes) else content.encode())


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically."""
    write_file(path, json.dumps(content, indent=1))


def remove_leftovers(folder: Path, pattern: str = "**/.*.tmp") -> None:
    """Remove temporary files of killed processes; no other process may write to the folder."""
    for leftover in folder.glob(pattern):
        leftover.unlink(missing_ok=True)


def write_files(folder: Path, files: Mapping[str, str | bytes]) -> None:
    """Write files into a folder atomically, one process at a time."""
    with FileLock(folder / ".lock"):
        for name, content in files.items():
            remove_leftovers(folder, f".{name}.*.tmp")
            write_file(folder / name, content)


def is_full(error: BaseException, place: Path) -> bool:
    """Whether an error while writing below `place` comes from a full disk."""
    link: BaseException | None = error
    while link is not None:  # torch raises its own error, which has the error of the disk as context
        if getattr(link, "errno", None) in FULL or any(text in str(link) for text in FULL_TEXTS):
            return True
        link = link.__cause__ or link.__context__
    return isinstance(error, OSError) and error.errno is None and shutil.disk_usage(place).free < SCARCE


@contextlib.contextmanager
def naming_full_disk(place: Path, advice: str) -> Iterator[None]:
    """Turn the error of a full disk into one line with the place and advice.

    Args:
        place: Existing folder that is written to.
        advice: What to do.

    Raises:
        DiskFullError: The disk is full; other errors pass unchanged.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, DiskFullError) or not is_full(error, place):
            raise
        named = getattr(error, "filename", None)
        where = Path(os.fsdecode(named)).parent if named else place
        raise DiskFullError(
            f"no space is left on the disk of {where}; existing files are intact. {advice}"
        ) from error
