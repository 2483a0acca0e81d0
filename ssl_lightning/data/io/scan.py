"""Search for the image files of a folder, and the classes that its folders name."""

from __future__ import annotations

import os
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from operator import gt
from pathlib import Path

import numpy as np
import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from ssl_lightning.core.progress import watched
from ssl_lightning.core.untrusted import check_folder, printable
from ssl_lightning.data.io.file_list import MISSING, FileList, folder_prefix, join_names

EXTENSIONS = frozenset([".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"])
SHOWN = 10  # names in a message


def scan(folder: str | os.PathLike[str], *, stamps: bool = False) -> FileList:
    """Return the image files under `folder`, at any depth, in the same order on every machine.

    Hidden files and folders are skipped. Each link is followed once. A warning counts the files with other
    endings.

    Args:
        folder: The folder.
        stamps: Whether to read size and modification time of each file too.

    Raises:
        FileNotFoundError: The folder does not exist, or holds no image.
        NotADirectoryError: It is a file.
    """
    root = Path(folder).expanduser()
    check_folder(root)
    names: list[str] = []
    states, links = array("q"), bytearray()
    others: Counter[str] = Counter()
    for below, entry in _walk(root):
        _, dot, ending = entry.name.rpartition(".")
        ending = (dot + ending).lower()
        if ending not in EXTENSIONS:
            others[ending if dot else ""] += 1
            continue
        names.append(below + entry.name)
        links.append(entry.is_symlink())
        if stamps:
            states.extend(_stamp(entry))
    kinds = " ".join(sorted(extension[1:] for extension in EXTENSIONS))
    if not names:
        held = f"; it holds {_endings(others)}" if others else ""
        raise FileNotFoundError(f"folder {root} holds no image; looked for {kinds}, at any depth{held}")
    if others:
        count, verb = ("1 file", "is") if others.total() == 1 else (f"{others.total()} files", "are")
        rank_zero_warn(
            f"{count} in {root} {verb} not read: {_endings(others)}; {len(names)} files have "
            f"endings that are read ({kinds})"
        )
    read = np.array(states, np.int64).reshape(-1, 2) if stamps else None
    linked = np.frombuffer(bytes(links), bool)
    if any(map(gt, names, islice(names, 1, None))):
        order = sorted(range(len(names)), key=names.__getitem__)
        names = [names[row] for row in order]
        read, linked = None if read is None else read[order], linked[order]
    return FileList(folder_prefix(root), join_names(names), read, linked)


def classes_of(root: str | os.PathLike[str], paths: Sequence[str]) -> tuple[list[str], Tensor]:
    """Return the sorted class names and the class of each path, which the first folder below `root` names.

    A warning names the folders below `root` without an image.

    Returns:
        The names, and the labels (N,) int64.

    Raises:
        ValueError: Images lie in `root` itself and so have no class.
    """
    folder = Path(root).expanduser()
    prefix = folder_prefix(folder)
    bare, found, number = [], array("q"), dict[str, int]()
    for path in paths:
        name, slash, _ = path.removeprefix(prefix).partition("/")
        if not slash:
            bare.append(name)
        found.append(number.setdefault(name, len(number)))
    if bare:
        raise ValueError(
            f"{len(bare)} images lie in {root} itself and have no label: {_first(bare)}; "
            "put each image into a folder named after its class"
        )
    names = sorted(number)
    below = (path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    empty = sorted(set(below) - set(names))
    if empty:
        rank_zero_warn(f"{len(empty)} folders in {root} hold no image and are no class: {_first(empty)}")
    rank = torch.empty(len(names), dtype=torch.int64)
    rank[[number[name] for name in names]] = torch.arange(len(names))
    return names, rank[torch.tensor(found, dtype=torch.int64)]


def _walk(root: Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield each file that is not hidden, with the names of the folders between `root` and it.

    A folder comes before the folders in it, which come in the order of their names.
    """
    seen: set[str] = set()
    waiting = [("", os.fspath(root), os.path.realpath(root))]
    with watched(f"list {root}", None, "folders") as progress:
        while waiting:
            below, place, real = waiting.pop()
            if real in seen:  # a link back up the tree
                continue
            seen.add(real)
            folders = []
            for entry in _entries(place):
                if entry.name.startswith("."):
                    continue
                if _is_folder(entry):
                    folders.append(entry)
                else:
                    yield below, entry
            for entry in sorted(folders, key=lambda each: each.name, reverse=True):  # the last one is next
                linked = entry.is_symlink()
                inside = os.path.realpath(entry.path) if linked else os.path.join(real, entry.name)
                waiting.append((f"{below}{entry.name}/", entry.path, inside))
            progress.advance()


def _entries(place: str) -> Iterator[os.DirEntry[str]]:
    """Yield the entries of a folder; nothing if it may not be read."""
    try:
        with os.scandir(place) as entries:
            yield from entries
    except OSError:
        return


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _stamp(entry: os.DirEntry[str]) -> tuple[int, int]:
    """Return size and modification time (ns) of a file; see `file_list.stamp`."""
    try:
        status = entry.stat()
    except OSError:  # a dangling link; it equals no record, so it is decoded and reported
        return MISSING
    return status.st_size, status.st_mtime_ns


def _endings(counts: Counter[str]) -> str:
    """Name the endings of files with their numbers, the most frequent first."""
    named = [
        f"{count} {printable(ending, lines=False) or 'without ending'}"
        for ending, count in counts.most_common()
    ]
    return _first(named)


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
