"""Index of a folder of shards: the position of each image in its tar file, checked before use."""

from __future__ import annotations

import hashlib
import json
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ssl_lightning.core.progress import tracked

INDEX_NAME, TABLE_NAME, NAMES_NAME = "index.json", "images.npy", "names.txt"
FORMAT = "ssl_lightning shards 1"
SHARD_NAME = re.compile(r"shard-\d{6,}\.tar")
TAR_BLOCK = 512  # bytes; headers and contents of a tar file are padded to a multiple of it
MAX_IMAGE_BYTES = 1 << 30  # of one encoded image
MAX_INDEX_BYTES = 1 << 28  # of index.json, enough for about a million shards
ROW = np.dtype(
    [
        ("offset", "<u8"),  # of the encoded image in its shard
        ("name", "<u8"),  # offset of its line in names.txt
        ("digest", "<u8"),  # first 8 bytes of its sha256, to find copies
        ("size", "<u4"),  # bytes
        ("crc", "<u4"),  # CRC-32 of the bytes, checked at every read
        ("shard", "<u4"),  # number of its shard
        ("label", "<i4"),  # -1 for none
    ]
)


class ShardError(RuntimeError):
    """A folder of shards is incomplete or does not match its index."""


@dataclass(frozen=True)
class ShardIndex:
    """Contents of a folder of shards.

    Shards are plain tar files in webdataset's convention (`<key>.jpg` and `<key>.cls`), which the
    `webdataset` library reads. The folder also holds

    - `images.npy`: one `ROW` for each image, in storage order;
    - `names.txt`: the original path of each image, one a line, for people;
    - `index.json`: counts, class names, and size and sha256 of every other file. It is written last, so a
      folder with an index is complete.

    Args:
        folder: The folder.
        shards: Paths of the shards, in order.
        shard_bytes: Size of each shard.
        table: (N,) of `ROW`, mapped from its file and checked.
        class_names: In label order; None without labels.
        largest: Pixels of the largest picture.
        digest: Hex digest of the index, and so of all files that it lists.
    """

    folder: Path
    shards: tuple[Path, ...]
    shard_bytes: tuple[int, ...]
    table: np.ndarray
    class_names: tuple[str, ...] | None
    largest: int
    digest: str

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"table": len(self.table)}  # another process maps the file itself

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state | {"table": _table(state["folder"] / TABLE_NAME, state["table"])})

    def name(self, row: np.void) -> str:
        """Return the original path of an image, relative to the packed tree."""
        with open(self.folder / NAMES_NAME, "rb") as file:
            file.seek(int(row["name"]))
            return file.readline().rstrip(b"\n").decode(errors="replace")


def read_index(folder: Path) -> ShardIndex:
    """Read the index of a folder of shards, and check the size of every shard.

    The index is not trusted: positions outside a shard and absurd sizes raise an error.

    Raises:
        FileNotFoundError: The folder has no index.
        ShardError: A file is missing or has another size than in the index, or the index is broken or
            inconsistent; names the file.
    """
    path = folder / INDEX_NAME
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} has no {INDEX_NAME}: it is not a folder of shards, or packing did not finish; "
            f"run `python -m ssl_lightning.data.pack <images> {folder}`"
        )
    content = read_bounded(path, MAX_INDEX_BYTES)
    try:
        stored = json.loads(content)
        if stored["format"] != FORMAT:
            raise ValueError(f"format is {stored['format']!r}; allowed is {FORMAT!r}")
        shards = [_entry(each, SHARD_NAME) for each in stored["shards"]]
        others = [_entry(stored["table"], TABLE_NAME), _entry(stored["names"], NAMES_NAME)]
        images, largest, class_names = stored["images"], stored["largest"], stored["class_names"]
        if not (_whole_number(images) and _whole_number(largest)):
            raise ValueError("counts must be integers above 0")
        if class_names is not None and not _is_class_list(class_names):
            raise ValueError("class_names must be a list of different names")
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ShardError(f"{path} is not a valid index of shards: {error}") from error
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
    """Compare every shard of a folder with its digest; return the number of bytes read.

    Raises:
        FileNotFoundError, ShardError: See `read_index`; or the content of a shard differs.
    """
    index = read_index(folder)
    stored = json.loads((folder / INDEX_NAME).read_bytes())
    each = tracked(index.shards, f"check {folder}", "shards")
    for path, entry in zip(each, stored["shards"], strict=True):
        check_digest(path, entry["sha256"])
    return sum(index.shard_bytes)


def entry(path: Path) -> dict[str, Any]:
    """Return the index entry of a file: name, size in bytes and sha256."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": digest}


def read_bounded(path: Path, limit: int) -> bytes:
    """Read a regular file of at most `limit` bytes; raise ShardError for any other."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > limit:
        raise ShardError(f"{path} is not a regular file of at most {limit:,} bytes")
    return path.read_bytes()


def check_size(path: Path, expected: int) -> None:
    """Raise ShardError unless a regular file exists and has the expected size in bytes."""
    try:
        status = path.stat()
    except OSError as error:
        raise ShardError(f"{path} is missing, but {INDEX_NAME} beside it lists it: {error}") from error
    if not stat.S_ISREG(status.st_mode) or status.st_size != expected:
        raise ShardError(
            f"{path} has {status.st_size:,} bytes, but {INDEX_NAME} beside it expects {expected:,}: the file "
            "was truncated or replaced; copy or pack the folder again"
        )


def check_digest(path: Path, expected: str) -> None:
    """Raise ShardError unless a file has the expected sha256."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise ShardError(
            f"{path} differs from {INDEX_NAME} beside it (sha256 {found[:12]}..., expected "
            f"{expected[:12]}...); copy or pack the folder again"
        )


def _entry(stored: Any, name: str | re.Pattern[str]) -> tuple[str, int, str]:
    found, size, digest = stored["name"], stored["bytes"], stored["sha256"]
    if not (re.fullmatch(name, found) and _whole_number(size) and re.fullmatch("[0-9a-f]{64}", digest)):
        raise ValueError(f"invalid entry {str(stored)[:100]}")
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
        raise ShardError(f"{path} is not a table of images: {error}") from error
    if table.dtype != ROW or table.shape != (images,):
        raise ShardError(f"{path} is not a table of {images:,} images")
    return table


def _check_table(
    path: Path, table: np.ndarray, shard_bytes: list[int], names_bytes: int, classes: int
) -> None:
    """Raise ShardError for rows that point outside their shard, and for labels without a class."""

    def refuse(wrong: np.ndarray, fault: str) -> None:
        if wrong.any():
            first = int(wrong.argmax())
            raise ShardError(f"{path.parent / TABLE_NAME}: image {first} {fault}; pack the folder again")

    refuse(table["shard"] >= len(shard_bytes), f"has a shard number outside 0..{len(shard_bytes) - 1}")
    sizes = table["size"].astype(np.int64)
    refuse((sizes < 1) | (sizes > MAX_IMAGE_BYTES), f"has a size outside 1..{MAX_IMAGE_BYTES:,} bytes")
    ends = np.array(shard_bytes, np.uint64)[table["shard"]]
    outside = (table["offset"] > ends) | (ends - np.minimum(table["offset"], ends) < table["size"])
    refuse(outside, "ends beyond the end of its shard")
    refuse(table["name"] >= names_bytes, f"has a name beyond the end of {NAMES_NAME}")
    lowest = 0 if classes else -1
    wrong = (table["label"] < lowest) | (table["label"] >= max(classes, 0))
    refuse(wrong, f"has a label outside the {classes} classes")
