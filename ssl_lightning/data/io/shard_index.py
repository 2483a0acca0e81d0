"""The index of a folder of shards: where each image lies in its tar file, checked before it is believed.

Shards are plain tar files in webdataset's convention (`<key>.jpg` and `<key>.cls` beside each other), which
the `webdataset` library reads as they are. Beside them lie

- `images.npy`: one `ROW` for each image, in the order in which they are stored;
- `names.txt`: the path of each in the tree that was packed, a line each, for people;
- `index.json`: counts, class names, and size and sha256 of every other file. It is written last, so a folder
  that has it is whole.
"""

from __future__ import annotations

import hashlib
import json
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

INDEX_NAME, TABLE_NAME, NAMES_NAME = "index.json", "images.npy", "names.txt"
FORMAT = "ssl_lightning shards 1"
SHARD_NAME = re.compile(r"shard-\d{6,}\.tar")
TAR_BLOCK = 512  # bytes, of which all that is in a tar file takes a whole number; its headers too
MAX_IMAGE_BYTES = 1 << 30  # of one encoded image
MAX_INDEX_BYTES = 1 << 28  # of index.json, that is of about a million shards
ROW = np.dtype(
    [
        ("offset", "<u8"),  # of the encoded image in its shard
        ("name", "<u8"),  # offset of its line in names.txt
        ("digest", "<u8"),  # first 8 bytes of its sha256, by which copies are known
        ("size", "<u4"),  # bytes
        ("crc", "<u4"),  # CRC-32 of the bytes, checked whenever they are read
        ("shard", "<u4"),  # place in the list of shards
        ("label", "<i4"),  # -1 for none
    ]
)


class ShardError(RuntimeError):
    """A folder of shards is not whole, or not what its index says."""


@dataclass(frozen=True)
class ShardIndex:
    """What is in a folder of shards.

    Args:
        folder: Where they are.
        shards: Their paths, in order.
        shard_bytes: The size of each.
        table: (N,) of `ROW`, mapped from its file and checked.
        class_names: In label order; None without labels.
        largest: Pixels of the largest picture.
        digest: Hex digest of the index, and so of all that it names.
    """

    folder: Path
    shards: tuple[Path, ...]
    shard_bytes: tuple[int, ...]
    table: np.ndarray
    class_names: tuple[str, ...] | None
    largest: int
    digest: str

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"table": len(self.table)}  # another process maps it itself

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state | {"table": _table(state["folder"] / TABLE_NAME, state["table"])})

    def name(self, row: np.void) -> str:
        """Return the path that an image had in the tree that was packed."""
        with open(self.folder / NAMES_NAME, "rb") as file:
            file.seek(int(row["name"]))
            return file.readline().rstrip(b"\n").decode(errors="replace")


def read_index(folder: Path) -> ShardIndex:
    """Read the index of a folder of shards, and check that these are there and whole, by their sizes.

    Nothing in it is believed: whatever points out of a shard, or is absurdly large, is refused.

    Raises:
        FileNotFoundError: The folder has no index.
        ShardError: A file is missing or of another size than the index says, or the index itself is
            broken or makes no sense; names the file.
    """
    path = folder / INDEX_NAME
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} has no {INDEX_NAME}, so it is no folder of shards, or its packing did not come to an "
            f"end; `python -m ssl_lightning.data.pack <images> {folder}` makes one"
        )
    content = read_bounded(path, MAX_INDEX_BYTES)
    try:
        stored = json.loads(content)
        if stored["format"] != FORMAT:
            raise ValueError(f"its format is {stored['format']!r}; known is {FORMAT!r}")
        shards = [_entry(each, SHARD_NAME) for each in stored["shards"]]
        others = [_entry(stored["table"], TABLE_NAME), _entry(stored["names"], NAMES_NAME)]
        images, largest, class_names = stored["images"], stored["largest"], stored["class_names"]
        if not (_whole_number(images) and _whole_number(largest)):
            raise ValueError("its counts are no whole numbers above 0")
        if class_names is not None and not _is_class_list(class_names):
            raise ValueError("its class names are no list of different names")
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ShardError(f"{path} is broken, or not an index of shards: {error}") from error
    for name, size, _ in shards + others:
        check_size(folder / name, size)
    for name, _, digest in others:
        check_digest(folder / name, digest)
    table = _table(folder / TABLE_NAME, images)
    classes = len(class_names or ())
    _check_table(path, table, [size for _, size, _ in shards], others[1][1], classes)
    return ShardIndex(
        folder,
        tuple(folder / name for name, _, _ in shards),
        tuple(size for _, size, _ in shards),
        table,
        None if class_names is None else tuple(class_names),
        largest,
        hashlib.sha256(content).hexdigest(),
    )


def check_shards(folder: Path) -> int:
    """Read every shard of a folder and compare it with its digest; return the bytes that were read.

    Raises:
        FileNotFoundError, ShardError: See `read_index`; or the bytes of a shard are others.
    """
    index = read_index(folder)
    stored = json.loads((folder / INDEX_NAME).read_bytes())
    for path, entry in zip(index.shards, stored["shards"], strict=True):
        check_digest(path, entry["sha256"])
    return sum(index.shard_bytes)


def entry(path: Path) -> dict[str, Any]:
    """Describe a file as the index does: name, size in bytes and sha256."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": digest}


def read_bounded(path: Path, limit: int) -> bytes:
    """Read a plain file of at most `limit` bytes; a ShardError names one that is larger, or no file."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > limit:
        raise ShardError(f"{path} is no plain file of at most {limit:,} bytes")
    return path.read_bytes()


def check_size(path: Path, expected: int) -> None:
    """Raise ShardError unless a plain file is there and has a size in bytes."""
    try:
        status = path.stat()
    except OSError as error:
        raise ShardError(f"{path} is missing, and {INDEX_NAME} beside it names it: {error}") from error
    if not stat.S_ISREG(status.st_mode) or status.st_size != expected:
        raise ShardError(
            f"{path} has {status.st_size:,} bytes, and {INDEX_NAME} beside it says {expected:,}: it was cut "
            "short or replaced; copy or pack the folder again"
        )


def check_digest(path: Path, expected: str) -> None:
    """Raise ShardError unless the content of a file has a sha256."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise ShardError(
            f"{path} has other content than {INDEX_NAME} beside it says (sha256 {found[:12]}..., expected "
            f"{expected[:12]}...); copy or pack the folder again"
        )


def _entry(stored: Any, name: str | re.Pattern[str]) -> tuple[str, int, str]:
    found, size, digest = stored["name"], stored["bytes"], stored["sha256"]
    if not (re.fullmatch(name, found) and _whole_number(size) and re.fullmatch("[0-9a-f]{64}", digest)):
        raise ValueError(f"it has a wrong entry, {str(stored)[:100]}")
    return found, size, digest


def _whole_number(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_class_list(names: Any) -> bool:
    texts = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return texts and 0 < len(names) == len(set(names))


def _table(path: Path, images: int) -> np.ndarray:
    try:
        table = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ShardError(f"{path} is no table of images: {error}") from error
    if table.dtype != ROW or table.shape != (images,):
        raise ShardError(f"{path} is no table of {images:,} images")
    return table


def _check_table(
    path: Path, table: np.ndarray, shard_bytes: list[int], names_bytes: int, classes: int
) -> None:
    """Refuse rows that point anywhere but into a shard, and labels without a class."""

    def refuse(wrong: np.ndarray, what: str) -> None:
        if wrong.any():
            first = int(wrong.argmax())
            raise ShardError(f"{path.parent / TABLE_NAME}: image {first} {what}; no such folder is read")

    refuse(table["shard"] >= len(shard_bytes), f"is in a shard that is not among the {len(shard_bytes)}")
    sizes = table["size"].astype(np.int64)
    refuse((sizes < 1) | (sizes > MAX_IMAGE_BYTES), f"has not between 1 and {MAX_IMAGE_BYTES:,} bytes")
    ends = np.array(shard_bytes, np.uint64)[table["shard"]]
    outside = (table["offset"] > ends) | (ends - np.minimum(table["offset"], ends) < table["size"])
    refuse(outside, "reaches beyond the end of its shard")
    refuse(table["name"] >= names_bytes, f"has its name beyond the end of {NAMES_NAME}")
    lowest = 0 if classes else -1
    wrong = (table["label"] < lowest) | (table["label"] >= max(classes, 0))
    refuse(wrong, f"has a label that is not among {classes} classes")
