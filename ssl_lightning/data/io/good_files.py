"""Record of the files of a folder that were decoded once, read and written in one piece."""

from __future__ import annotations

import io
import json
import os
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ssl_lightning.core.atomic_files import write_file
from ssl_lightning.data.io.eight_bit import Facts

FORMAT = 1  # of the record; another one is ignored
BAD = (-2, -2)  # stamp of a file that cannot be decoded; it equals that of no file
PLAIN = Facts()  # of an ordinary image


@dataclass(frozen=True)
class GoodFiles:
    """Files that could be decoded, as they were then.

    Args:
        block: Their names below the folder, each ended by a zero byte.
        stamps: (N, 2) int64, size and modification time (ns); `BAD` for a file that could not be decoded.
        facts: Facts of the files that are no ordinary images, by row.
    """

    block: bytes = b""
    stamps: np.ndarray = field(default_factory=lambda: np.empty((0, 2), np.int64))
    facts: dict[int, Facts] = field(default_factory=dict)

    def rows(self, block: bytes) -> np.ndarray:
        """Return the row of each name of a block, (n,) int64; -1 for a name that is not recorded."""
        if block == self.block:
            return np.arange(len(self.stamps))
        place = {name: row for row, name in enumerate(self.block.split(b"\0")[:-1])}
        return np.array([place.get(name, -1) for name in block.split(b"\0")[:-1]], np.int64)

    def outside(self, block: bytes, folder: Path) -> GoodFiles:
        """Return the recorded files that exist, but are not in a block: another list of the folder."""
        listed = set(block.split(b"\0"))
        kept = [
            row
            for row, name in enumerate(self.block.split(b"\0")[:-1])
            if name not in listed and os.path.lexists(os.path.join(os.fsencode(folder), name))
        ]
        names = self.block.split(b"\0")
        facts = {place: self.facts[row] for place, row in enumerate(kept) if row in self.facts}
        return GoodFiles(b"".join(names[row] + b"\0" for row in kept), self.stamps[kept], facts)

    def __add__(self, other: GoodFiles) -> GoodFiles:
        count = len(self.stamps)
        shifted = {row + count: facts for row, facts in other.facts.items()}
        stamps = np.concatenate([self.stamps, other.stamps])
        return GoodFiles(self.block + other.block, stamps, self.facts | shifted)


def read_good_files(record: Path) -> GoodFiles:
    """Read a record; one that is missing, broken or of another format is empty."""
    try:
        with np.load(io.BytesIO(record.read_bytes()), allow_pickle=False) as stored:
            block, stamps = stored["names"].tobytes(), stored["stamps"]
            facts = json.loads(stored["facts"].tobytes())
            known = int(stored["format"]) == FORMAT
        if known and stamps.dtype == np.int64 and stamps.shape == (block.count(b"\0"), 2):
            return GoodFiles(block, stamps, {int(row): _facts(each) for row, each in facts.items()})
    except (OSError, ValueError, TypeError, KeyError, AttributeError, EOFError, zipfile.BadZipFile):
        pass
    return GoodFiles()


def write_good_files(record: Path, files: GoodFiles) -> None:
    """Write a record atomically."""
    facts = {row: _changed(each) for row, each in files.facts.items()}
    content = io.BytesIO()
    np.savez(
        content,
        format=np.array(FORMAT),
        names=np.frombuffer(files.block, np.uint8),
        stamps=files.stamps,
        facts=np.frombuffer(json.dumps(facts).encode(), np.uint8),
    )
    write_file(record, content.getvalue())


def _changed(facts: Facts) -> dict[str, Any]:
    """Return the facts in which an image differs from an ordinary one, for a short record."""
    return {name: value for name, value in vars(facts).items() if value != getattr(PLAIN, name)}


def _facts(stored: dict[str, Any]) -> Facts:
    wide = stored.pop("wide", None)
    return Facts(None if wide is None else (float(wide[0]), float(wide[1])), **stored)
