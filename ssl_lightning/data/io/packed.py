"""Pictures decoded once: their uint8 pixels, one after the other, in one file that all processes map.

A pack is `<digest>.bin`: the pixels of each picture (H, W, C), then a table (N, 3) int64 of offset, height
and width, then the END record. The digest stands for the list of files with their sizes and times of change,
and for all that changes a pixel, so a pack never has to be updated: another list is another pack. Nobody
deletes old packs, and everybody may.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import struct
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from filelock import Timeout
from torch import Tensor

from ssl_lightning.data.io.augment import resize
from ssl_lightning.data.io.download import lock_of, locked, say
from ssl_lightning.data.io.folders import as_tensor, decode, describe_bad, opened, stamp
from ssl_lightning.data.io.sources import FileSource, default_workers

END = struct.Struct("<8sqq")  # MAGIC, number of pictures, offset of the table
MAGIC = b"sslpack2"  # a new one for each format and for other pixels: it is part of the digest
TITLE = "data.cache"
TELL_S = 30.0  # seconds between two lines on how far a pack is
SAMPLE = 500  # pictures from whose headers the size of a pack is told beforehand


class CacheSpaceError(RuntimeError):
    """The disk has no room for a pack; nothing was left on it."""


class PackedSource(FileSource):
    """Image files that were decoded once, and whose views are cut from the pack.

    A picture whose shorter side is at most `side` has the same views as in a `FileSource`, bit for bit. A
    file that could not be decoded for the pack is tried again when its turn comes, and then is what it is
    without a pack: an error that names it.

    Args:
        paths: One file per image.
        labels: (N,) or (N, K) int64, or None for none.
        folder: Where packs are.
        side: Longest that the shorter side of a picture in the pack may be, in pixels.
        **base: The keywords of `FileSource`.

    Raises:
        CacheSpaceError: There is no room for the pack.
        DownloadError: The folder cannot be written.
    """

    def __init__(
        self, paths: Sequence[Path], labels: Tensor | None, *, folder: Path, side: int, **base: Any
    ) -> None:
        super().__init__(paths, labels, **base)
        self.pack = make_pack(paths, folder, channels=self.channels, side=side, max_pixels=self.max_pixels)
        self._mapped: tuple[Tensor, np.ndarray] | None = None

    def __getstate__(self) -> dict:
        return super().__getstate__() | {"_mapped": None}  # a worker maps the file itself

    def picture(self, index: int) -> Tensor:
        """Return a whole picture as it is in the pack, (C, H, W) uint8: a view of the mapped file."""
        if self._mapped is None:
            mapped, places = read_pack(self.pack)
            with warnings.catch_warnings(action="ignore"):  # that nobody may write to it: nobody does
                self._mapped = torch.from_numpy(mapped), places
        pixels, table = self._mapped
        offset, height, width = table[index].tolist()
        if height == 0:
            return super().picture(index)
        stored = pixels[offset : offset + height * width * self.channels]
        return stored.view(height, width, self.channels).permute(2, 0, 1)


def make_pack(paths: Sequence[Path], folder: Path, *, channels: int, side: int, max_pixels: int) -> Path:
    """Return the pack of some image files; decodes them all, in threads, unless it is there and whole.

    However many processes ask, one does the work and the others wait.

    Args:
        paths: The files, in the order of the pictures.
        folder: Where packs are.
        channels: 1 for grey, 3 for RGB.
        side: Longest that the shorter side of a picture may be; larger ones are resized (bicubic).
        max_pixels: Larger files are not decoded.

    Raises:
        CacheSpaceError: There is no room for it.
        DownloadError: The folder cannot be written.
    """
    digest = hashlib.sha256(repr((MAGIC, channels, side, max_pixels)).encode())
    for path in paths:
        digest.update(os.fsencode(os.path.abspath(path)) + b"\0" + repr(stamp(path)).encode() + b"\0")
    final = folder / f"{digest.hexdigest()[:32]}.bin"
    if is_complete_pack(final):  # no lock: a cache that is read-only, and has it, is good enough
        return final
    with locked(TITLE, final):
        if not is_complete_pack(final):
            _remove_leftovers(final)
            _write(final, paths, channels, side, max_pixels)
    return final


def is_complete_pack(pack: Path) -> bool:
    """Return whether a pack is there and as long as its last bytes say."""
    try:
        with pack.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - END.size))
            magic, count, table = END.unpack(file.read())
    except (OSError, struct.error):
        return False
    return magic == MAGIC and size == table + count * 3 * 8 + END.size


def read_pack(pack: Path) -> tuple[np.ndarray, np.ndarray]:
    """Map a pack, read-only: all its bytes (uint8), and the table (N, 3) int64 of offset, height, width.

    A picture that could not be decoded has height and width 0.
    """
    mapped = np.memmap(pack, np.uint8, "r").view(np.ndarray)  # whose slices are cheaper
    _, count, table = END.unpack(mapped[-END.size :].tobytes())
    return mapped, mapped[table : table + count * 3 * 8].view("<i8").reshape(count, 3)


def shrunk(width: int, height: int, side: int) -> tuple[int, int]:
    """Return width and height of a picture after its shorter side became at most `side`."""
    shorter = min(width, height)
    if shorter <= side:
        return width, height
    return round(width * side / shorter), round(height * side / shorter)


def _write(final: Path, paths: Sequence[Path], channels: int, side: int, max_pixels: int) -> None:
    """Decode all files and place the pack; the caller holds the lock."""

    def decoded(path: Path) -> np.ndarray | str:
        try:
            picture = as_tensor(decode(path, channels, max_pixels))
        except Exception as error:  # decoders raise nearly everything on broken files
            return str(error) or type(error).__name__
        height, width = picture.shape[1:]
        wide, high = shrunk(width, height, side)
        if (wide, high) != (width, height):
            picture = resize(picture, high, wide)
        return picture.permute(1, 2, 0).contiguous().numpy()

    expected = _expected_bytes(paths, channels, side)
    if shutil.disk_usage(final.parent).free < expected:
        _refuse(final.parent, expected, side)
    say(f"{TITLE}: decoding {len(paths):,} pictures into {final}, about {_size(expected)}")
    work = _work_file(final)
    table = np.zeros((len(paths), 3), "<i8")
    bad: dict[Path, str] = {}
    end, start = 0, time.monotonic()
    told = start
    try:
        with work.open("wb") as file:
            for done, pixels in enumerate(in_order(decoded, paths, default_workers()), 1):
                if isinstance(pixels, str):
                    bad[paths[done - 1]] = pixels
                    continue
                table[done - 1] = end, *pixels.shape[:2]
                end += file.write(pixels.data)
                if (now := time.monotonic()) - told > TELL_S:
                    left = (now - start) * (len(paths) / done - 1) / 60
                    say(
                        f"{TITLE}: {done:,} of {len(paths):,} pictures, {_size(end)}, {left:.0f} minutes left"
                    )
                    told = now
            aligned = end + file.write(bytes(-end % 8))
            file.write(table.tobytes() + END.pack(MAGIC, len(paths), aligned))
            file.flush()
            os.fsync(file.fileno())  # before the rename, so that a power cut leaves no husk
        os.replace(work, final)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            work.unlink(missing_ok=True)
            _refuse(final.parent, expected, side)
        raise
    finally:
        work.unlink(missing_ok=True)
    say(f"{TITLE}: {_size(end)} ready after {time.monotonic() - start:.0f} s")
    if bad:
        say(
            f"{TITLE}: {len(bad)} of {len(paths)} pictures cannot be decoded, and stop a run that comes to "
            f"them:\n{describe_bad(bad)}"
        )


def in_order(work: Callable[[Any], Any], items: Sequence, threads: int) -> Iterator[Any]:
    """Yield `work(item)` of each item in order, computed by threads (Pillow lets go of the GIL).

    Not `pool.map`, which would go on decoding, and keep all pictures, where writing is slower.
    """
    with ThreadPoolExecutor(threads) as pool:
        ahead: deque[Future] = deque()
        for item in items:
            ahead.append(pool.submit(work, item))
            if len(ahead) > 2 * threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _expected_bytes(paths: Sequence[Path], channels: int, side: int) -> int:
    """Return about how large a pack becomes, from the headers of some files all over the list."""
    sizes = []
    for path in paths[:: max(1, len(paths) // SAMPLE)]:
        with contextlib.suppress(Exception), opened(path) as image:  # a bad one is told of when decoded
            width, height = shrunk(*image.size, side)
            sizes.append(width * height * channels)
    return len(paths) * sum(sizes) // max(1, len(sizes))


def _refuse(folder: Path, expected: int, side: int) -> NoReturn:
    free = shutil.disk_usage(folder).free
    raise CacheSpaceError(
        f"{TITLE} needs about {_size(expected)} in {folder}, where {_size(free)} are free; set "
        f"data.root to a folder on a larger disk, data.cache_side below {side} to store smaller pictures, or "
        "data.cache=false"
    )


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _work_file(final: Path) -> Path:
    """Return where a pack is written; whoever holds its lock owns it."""
    return final.with_name(f".{final.name}.tmp")


def _remove_leftovers(final: Path) -> None:
    """Remove what killed processes left of this pack and of others, unless these are just being written."""
    final.unlink(missing_ok=True)  # not whole
    _work_file(final).unlink(missing_ok=True)
    for leftover in final.parent.glob(".*.bin.tmp"):
        other = final.with_name(leftover.name.removeprefix(".").removesuffix(".tmp"))
        with contextlib.suppress(Timeout), lock_of(other).acquire(timeout=0):
            leftover.unlink(missing_ok=True)
