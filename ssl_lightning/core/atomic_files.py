"""Files that are whole or not there, and what is said when a disk is full. Without torch, as `launch` is."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from filelock import FileLock

FULL = (errno.ENOSPC, errno.EDQUOT)
SAID = ("No space left", "ENOSPC", "Disk quota")  # by what loses the number of the error: outside tools
SCARCE = 1 << 16  # bytes; so little is left where numpy says only that fewer values were written


class DiskFullError(OSError):
    """A disk has no room for what was to be written; the files that were there before are whole."""


@contextlib.contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Give a temporary path to write; on leaving, sync it to the disk and put it in place of `target`."""
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
    """Write a file, text as UTF-8, whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(content if isinstance(content, bytes) else content.encode())


def remove_leftovers(folder: Path, pattern: str = "**/.*.tmp") -> None:
    """Remove what processes that were killed while writing left in a folder, which must be the caller's."""
    for leftover in folder.glob(pattern):
        leftover.unlink(missing_ok=True)


def write_files(folder: Path, files: Mapping[str, str | bytes]) -> None:
    """Write files into a folder that may hold others, each whole or not at all, one process at a time."""
    with FileLock(folder / ".lock"):
        for name, content in files.items():
            remove_leftovers(folder, f".{name}.*.tmp")
            write_file(folder / name, content)


def is_full(error: BaseException, place: Path) -> bool:
    """Whether a failure to write in or below `place` comes from its disk, which is full."""
    seen: BaseException | None = error
    while seen is not None:  # torch raises an error of its own while that of the disk is on its way
        if getattr(seen, "errno", None) in FULL or any(said in str(seen) for said in SAID):
            return True
        seen = seen.__cause__ or seen.__context__
    return isinstance(error, OSError) and error.errno is None and shutil.disk_usage(place).free < SCARCE


@contextlib.contextmanager
def naming_full_disk(place: Path, advice: str) -> Iterator[None]:
    """Turn the error of a full disk into one line that says where, and what to do.

    Args:
        place: The folder that is written to; it exists.
        advice: What to do.

    Raises:
        DiskFullError: The disk is full; any other error is left as it is.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, DiskFullError) or not is_full(error, place):
            raise
        named = getattr(error, "filename", None)
        where = Path(os.fsdecode(named)).parent if named else place
        raise DiskFullError(
            f"no space is left on the disk of {where}; what was there is whole. {advice}"
        ) from error
