"""Lists of files in one block of memory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np

from ssl_lightning.core.progress import tracked

CHUNK = 4096  # names that are decoded together
MISSING = (-1, -1)  # stamp of a file that does not exist


class FileList(Sequence[str]):
    """Paths of files in one block of memory, about 60 bytes a file.

    A list of strings takes twice as much, and worker processes end up with a copy each: reading a string
    counts a reference in its memory. They share this block.

    Args:
        folder: Text before each name: empty, or a folder with its last slash.
        block: The names, each ended by a zero byte.
        stamps: (N, 2) int64, size and modification time (ns) of each file, `MISSING` for a dangling link;
            None to read them when they are needed.
        links: (N,) bool, whether each file is a symbolic link; None if unknown.
    """

    def __init__(
        self, folder: str, block: bytes, stamps: np.ndarray | None = None, links: np.ndarray | None = None
    ) -> None:
        self.folder, self.block, self.links = folder, block, links
        self._stamps = stamps
        self._ends = np.flatnonzero(np.frombuffer(block, np.uint8) == 0)

    @classmethod
    def of(cls, paths: Iterable[str | os.PathLike[str]]) -> FileList:
        """Return the list of any paths."""
        return paths if isinstance(paths, cls) else cls("", join_names(os.fspath(path) for path in paths))

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        return self.folder + os.fsdecode(self._name(range(len(self))[index]))

    def __iter__(self) -> Iterator[str]:
        return (self.folder + name for name in self.names())

    def names(self) -> Iterator[str]:
        """Yield the name of each file, without the folder."""
        for first in range(0, len(self), CHUNK):
            last = min(first + CHUNK, len(self)) - 1
            start = self._ends[first - 1] + 1 if first else 0
            yield from os.fsdecode(self.block[start : self._ends[last]]).split("\0")

    def take(self, rows: np.ndarray) -> FileList:
        """Return the files at these rows (n,) int64, in their order."""
        block = b"".join(self._name(row) + b"\0" for row in rows.tolist())
        stamps = None if self._stamps is None else self._stamps[rows]
        return FileList(self.folder, block, stamps, None if self.links is None else self.links[rows])

    def stamps(self, what: str = "read sizes") -> np.ndarray:
        """Return size and modification time (ns) of each file, (N, 2) int64.

        Args:
            what: Name of the work of reading them, if they are unknown.
        """
        if self._stamps is None:
            each = tracked(self, what, "files", alone=True)
            self._stamps = np.array([stamp(path) for path in each], np.int64).reshape(-1, 2)
        return self._stamps

    def absolute(self) -> Iterator[str]:
        """Yield the absolute path of each file."""
        if not self.folder:
            return map(os.path.abspath, self)
        return iter(FileList(folder_prefix(os.path.abspath(self.folder)), self.block))

    def names_in(self, folder: str | os.PathLike[str]) -> bytes:
        """Return the names below a folder, each ended by a zero byte; files elsewhere keep their path."""
        prefix = folder_prefix(folder)
        if prefix == self.folder:
            return self.block
        return join_names(path.removeprefix(prefix) for path in self)

    def real_paths(self) -> Iterator[str]:
        """Yield the path of each file without symbolic links."""
        links = [True] * len(self) if self.links is None else self.links.tolist()
        folders: dict[str, str] = {}
        for path, link in zip(self, links, strict=True):
            if link:
                yield os.path.realpath(path)
                continue
            parent, slash, name = path.rpartition("/")
            if parent not in folders:
                folders[parent] = os.path.join(os.path.realpath(parent + slash), "")
            yield folders[parent] + name

    def _name(self, row: int) -> bytes:
        return self.block[self._ends[row - 1] + 1 if row else 0 : self._ends[row]]


def join_names(names: Iterable[str]) -> bytes:
    """Return names in one block, each ended by a zero byte."""
    return os.fsencode("\0".join([*names, ""]))


def folder_prefix(folder: str | os.PathLike[str]) -> str:
    """Return the text before the names of the files in a folder.

    >>> folder_prefix("photos"), folder_prefix("/"), folder_prefix(".")
    ('photos/', '/', '')
    """
    text = os.fspath(Path(folder).expanduser())
    return "" if text == "." else os.path.join(text, "")


def stamp(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Return size and modification time (ns) of a file, to detect changes."""
    try:
        status = os.stat(path)
    except OSError:
        return MISSING
    return status.st_size, status.st_mtime_ns
