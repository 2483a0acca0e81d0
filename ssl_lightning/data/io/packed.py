"""Packs of decoded pictures: uint8 pixels in one file that all processes map."""

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

from ssl_lightning.core.progress import tracked
from ssl_lightning.data.io.augment import resize
from ssl_lightning.data.io.download import lock_of, locked, say
from ssl_lightning.data.io.file_list import MISSING, FileList
from ssl_lightning.data.io.folders import as_tensor, decode, describe_bad, open_image
from ssl_lightning.data.io.sources import FileSource, default_workers

END = struct.Struct("<8sqq")  # MAGIC, number of pictures, offset of the table
MAGIC = b"sslpack2"  # part of the digest; change it when the format or the pixels change
TITLE = "data.cache"
SAMPLE = 500  # pictures whose headers give the estimate of a pack's size


class CacheSpaceError(RuntimeError):
    """The disk has no room for a pack; no partial file is left."""


class PackedSource(FileSource):
    """Image files decoded once into a pack, from which all views are cut.

    Views of a picture with a shorter side of at most `side` equal the views of a `FileSource` bit for bit. A
    file that could not be decoded for the pack is tried again when it is used, and raises the same error as
    without a pack.

    Args:
        paths: One file per image.
        labels: (N,) or (N, K) int64, or None for none.
        folder: Folder of the packs.
        side: Upper limit of the shorter side of a picture in the pack, in pixels.
        **base: The keywords of `FileSource`.

    Raises:
        CacheSpaceError: The disk has no room for the pack.
        DownloadError: The folder is not writable.
    """

    def __init__(
        self, paths: Sequence[str | Path], labels: Tensor | None, *, folder: Path, side: int, **base: Any
    ) -> None:
        super().__init__(paths, labels, **base)
        self.pack = make_pack(
            self.paths,
            folder,
            channels=self.channels,
            side=side,
            max_pixels=self.max_pixels,
            value_range=self.value_range,
        )
        self._mapped: tuple[Tensor, np.ndarray] | None = None

    def __getstate__(self) -> dict:
        return super().__getstate__() | {"_mapped": None}  # a worker maps the file itself

    def picture(self, index: int) -> Tensor:
        """Return a picture from the pack, (C, H, W) uint8, as a view of the mapped file."""
        if self._mapped is None:
            mapped, places = read_pack(self.pack)
            with warnings.catch_warnings(action="ignore"):  # about read-only memory
                self._mapped = torch.from_numpy(mapped), places
        pixels, table = self._mapped
        offset, height, width = table[index].tolist()
        if height == 0:
            return super().picture(index)
        stored = pixels[offset : offset + height * width * self.channels]
        return stored.view(height, width, self.channels).permute(2, 0, 1)


def make_pack(
    paths: Sequence[str | Path],
    folder: Path,
    *,
    channels: int,
    side: int,
    max_pixels: int,
    value_range: tuple[float, float] | None = None,
) -> Path:
    """Return the pack of image files; if it is missing or incomplete, decode all files in threads.

    A pack is `<digest>.bin`: the pixels of each picture (H, W, C), a table (N, 3) int64 of offset, height and
    width, and the END record. The digest covers the list of files with sizes and modification times, and
    every setting that changes a pixel. A pack is never updated: another list gives another pack. Old packs
    are not deleted, and a user may delete them.

    If several processes need the pack, one makes it and the others wait.

    Args:
        paths: The files, in the order of the pictures.
        folder: Folder of the packs.
        channels: 1 for grey, 3 for RGB, 4 for four channels as they are.
        side: Upper limit of the shorter side of a picture; larger pictures are resized (bicubic).
        max_pixels: Larger files are not decoded.
        value_range: See `eight_bit`.

    Raises:
        CacheSpaceError: The disk has no room for the pack.
        DownloadError: The folder is not writable.
    """
    settings = (MAGIC, channels, side, max_pixels, *(value_range or ()))
    digest = hashlib.sha256(repr(settings).encode())
    files = FileList.of(paths)
    stamps = files.stamps(f"{TITLE}: look for changes")
    for path, (size, changed) in zip(files.absolute(), map(np.ndarray.tolist, stamps), strict=True):
        state = [] if (size, changed) == MISSING else [size, changed]
        digest.update(os.fsencode(f"{path}\0{state}\0"))
    final = folder / f"{digest.hexdigest()[:32]}.bin"
    if is_complete_pack(final):  # without a lock, so that a filled read-only cache works
        return final
    with locked(TITLE, final):
        if not is_complete_pack(final):
            _remove_leftovers(final)
            _write(final, files, channels, side, max_pixels, value_range)
    return final


def is_complete_pack(pack: Path) -> bool:
    """Return whether a pack exists and has the size in its END record."""
    try:
        with pack.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - END.size))
            magic, count, table = END.unpack(file.read())
    except (OSError, struct.error):
        return False
    return magic == MAGIC and size == table + count * 3 * 8 + END.size


def read_pack(pack: Path) -> tuple[np.ndarray, np.ndarray]:
    """Map a pack read-only; return its bytes (uint8) and the table (N, 3) int64 of offset, height, width.

    A picture that could not be decoded has height and width 0.
    """
    mapped = np.memmap(pack, np.uint8, "r").view(np.ndarray)  # slices of a plain array are cheaper
    _, count, table = END.unpack(mapped[-END.size :].tobytes())
    return mapped, mapped[table : table + count * 3 * 8].view("<i8").reshape(count, 3)


def shrunk_size(width: int, height: int, side: int) -> tuple[int, int]:
    """Return width and height of a picture shrunk to a shorter side of at most `side`."""
    shorter = min(width, height)
    if shorter <= side:
        return width, height
    return round(width * side / shorter), round(height * side / shorter)


def _write(
    final: Path,
    paths: FileList,
    channels: int,
    side: int,
    max_pixels: int,
    value_range: tuple[float, float] | None,
) -> None:
    """Decode all files and write the pack; the caller holds the lock."""

    def decoded(path: str) -> np.ndarray | str:
        try:
            picture = as_tensor(decode(path, channels, max_pixels, value_range))
        except Exception as error:  # decoders raise nearly everything on broken files
            return str(error) or type(error).__name__
        height, width = picture.shape[1:]
        wide, high = shrunk_size(width, height, side)
        if (wide, high) != (width, height):
            picture = resize(picture, high, wide)
        return picture.permute(1, 2, 0).contiguous().numpy()

    expected = _expected_bytes(paths, channels, side)
    if shutil.disk_usage(final.parent).free < expected:
        _raise_full(final.parent, expected, side)
    say(f"{TITLE}: decoding {len(paths):,} pictures into {final}, about {_size(expected)}")
    work = _work_file(final)
    table = np.zeros((len(paths), 3), "<i8")
    bad: dict[str, str] = {}
    end, start = 0, time.monotonic()
    pictures = map_in_order(decoded, paths, default_workers())
    pictures = tracked(pictures, f"{TITLE}: decode", "pictures", total=len(paths), alone=True)
    try:
        with work.open("wb") as file:
            for place, pixels in enumerate(pictures):
                if isinstance(pixels, str):
                    bad[paths[place]] = pixels
                    continue
                table[place] = end, *pixels.shape[:2]
                end += file.write(pixels.data)
            aligned = end + file.write(bytes(-end % 8))
            file.write(table.tobytes() + END.pack(MAGIC, len(paths), aligned))
            file.flush()
            os.fsync(file.fileno())  # before the rename, so that a power cut leaves no truncated file
        os.replace(work, final)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            work.unlink(missing_ok=True)
            _raise_full(final.parent, expected, side)
        raise
    finally:
        work.unlink(missing_ok=True)
    say(f"{TITLE}: {_size(end)} ready after {time.monotonic() - start:.0f} s")
    if bad:
        say(
            f"{TITLE}: {len(bad)} of {len(paths)} pictures cannot be decoded and will stop a run that uses "
            f"them:\n{describe_bad(bad)}"
        )


def map_in_order(work: Callable[[Any], Any], items: Sequence, threads: int) -> Iterator[Any]:
    """Yield `work(item)` of each item in order, computed by threads (Pillow releases the GIL).

    `pool.map` would decode without limit and keep all pictures in memory if writing is slower.
    """
    with ThreadPoolExecutor(threads) as pool:
        ahead: deque[Future] = deque()
        for item in items:
            ahead.append(pool.submit(work, item))
            if len(ahead) > 2 * threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _expected_bytes(paths: FileList, channels: int, side: int) -> int:
    """Estimate the size of a pack in bytes from the headers of a sample of the files."""
    sizes = []
    for path in paths[:: max(1, len(paths) // SAMPLE)]:
        with contextlib.suppress(Exception), open_image(path) as image:  # decoding reports bad files
            width, height = shrunk_size(*image.size, side)
            sizes.append(width * height * channels)
    return len(paths) * sum(sizes) // max(1, len(sizes))


def _raise_full(folder: Path, expected: int, side: int) -> NoReturn:
    free = shutil.disk_usage(folder).free
    raise CacheSpaceError(
        f"{TITLE} needs about {_size(expected)} in {folder}, which has {_size(free)} free; set data.root to "
        f"a folder on a larger disk, data.cache_side below {side} to store smaller pictures, or "
        "data.cache=false"
    )


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _work_file(final: Path) -> Path:
    """Return the work file of a pack; the holder of the lock owns it."""
    return final.with_name(f".{final.name}.tmp")


def _remove_leftovers(final: Path) -> None:
    """Remove partial files of killed processes, except packs that another process is writing."""
    final.unlink(missing_ok=True)  # incomplete
    _work_file(final).unlink(missing_ok=True)
    for leftover in final.parent.glob(".*.bin.tmp"):
        other = final.with_name(leftover.name.removeprefix(".").removesuffix(".tmp"))
        with contextlib.suppress(Timeout), lock_of(other).acquire(timeout=0):
            leftover.unlink(missing_ok=True)
