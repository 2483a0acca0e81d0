"""Image files: decoding, and a check of all files of a folder before work starts."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from filelock import FileLock
from PIL import Image, UnidentifiedImageError
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from ssl_lightning.core.cpu import available_cores
from ssl_lightning.core.progress import watched
from ssl_lightning.core.untrusted import check_plain, printable
from ssl_lightning.data.io.eight_bit import (
    Facts,
    UnknownRangeError,
    describe_facts,
    eight_bit,
    inspect_image,
    tiff_layout,
)
from ssl_lightning.data.io.file_list import MISSING, FileList
from ssl_lightning.data.io.good_files import BAD, PLAIN, GoodFiles, read_good_files, write_good_files
from ssl_lightning.data.io.scan import SHOWN, scan

# Formats by content. Pillow knows dozens more and passes some to external programs (PostScript to
# Ghostscript), regardless of the extension
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
MAX_PIXELS = 50_000_000  # default limit of a picture
SAMPLED = 64  # files that are decoded before work starts if not all are
CHUNK = 64  # files that a thread checks at a time
T = TypeVar("T")

# `_open` raises it as an error; Pillow logs it for each file besides
logging.getLogger("PIL.TiffImagePlugin").addFilter(lambda record: "More samples" not in record.getMessage())


class BadImagesError(RuntimeError):
    """Too many files of a folder cannot be decoded."""


@contextlib.contextmanager
def open_image(path: str | os.PathLike[str] | BytesIO, max_pixels: float = math.inf) -> Iterator[Image.Image]:
    """Open an image file, or its content in memory, and read only the header.

    Raises:
        ValueError: The image has more than `max_pixels` pixels, or is not a regular file; a pipe would block.
        OSError: The file is missing, unreadable, or not an image of `FORMATS`.
    """
    if not isinstance(path, BytesIO):
        check_plain(path)
    with _open(path) as image:
        width, height = image.size
        if width * height > max_pixels:
            raise ValueError(f"{width} x {height} pixels are more than max_pixels {max_pixels}")
        yield image


def _open(path: str | os.PathLike[str] | BytesIO) -> Image.Image:
    """Open an image; if Pillow does not read this kind of TIFF, say which kind it is."""
    try:
        return Image.open(path, formats=FORMATS)
    except UnidentifiedImageError as error:
        with contextlib.nullcontext(path) if isinstance(path, BytesIO) else open(path, "rb") as file:
            layout = tiff_layout(file)
        if layout is None:
            raise
        raise UnidentifiedImageError(
            f"cannot identify {layout}; allowed are grey, RGB and RGBX of 8 and 16 bits, and grey of 32 bits"
        ) from error


def decode(
    path: str | os.PathLike[str] | BytesIO,
    channels: int,
    max_pixels: int,
    value_range: tuple[float, float] | None = None,
) -> Image.Image:
    """Decode a file, or its content in memory, to an upright 8-bit image; see `eight_bit`.

    An EXIF tag sets the orientation. A file of several pictures gives the first. Unless `channels` is 4,
    transparency is ignored, and the colours under it count.

    Raises:
        ValueError: It is not a regular file, has more than `max_pixels` pixels, has a pixel type without a
            known range, or has another number of channels.
        OSError: It is truncated or not an image.
    """
    with open_image(path, max_pixels) as image:  # checks the size before the pixels take memory
        return eight_bit(image, channels, value_range)


def as_tensor(image: Image.Image) -> Tensor:
    """Return the pixels of an 8-bit image as (C, H, W) uint8, channels-last in memory."""
    pixels = torch.from_numpy(np.array(image))  # a copy: Pillow's own memory is read-only
    return pixels.view(image.height, image.width, -1).permute(2, 0, 1)


def good_images(
    folder: Path,
    files: FileList,
    *,
    max_pixels: int,
    max_bad: float,
    cache: Path,
    channels: int = 3,
    value_range: tuple[float, float] | None = None,
) -> tuple[FileList, dict[str, str]]:
    """Decode every image once; return the good ones, and the reason for each bad one.

    A record in `cache` holds size, modification time and `Facts` of each good file, so the next start decodes
    only new and changed files. Bad files are tried again every time. A warning says, with numbers, how images
    are read differently from what their files hold.

    Args:
        folder: Folder of the images; the record is named after it.
        files: The images, under `folder`.
        max_pixels: Larger pictures are bad.
        max_bad: Largest fraction of bad files that is skipped.
        cache: Folder of the records.
        channels, value_range: See `eight_bit`.

    Raises:
        BadImagesError: More than `max_bad` of the files are bad; names the first ten.
    """
    reading = max_pixels, max(channels, 3), value_range  # grey files are as good as their RGB
    key = f"{folder.expanduser().resolve()}|{reading}"
    record = cache / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # without a writable cache it is slower, but works
            cache.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(record.with_suffix(".lock")))  # one process checks, the others read
        known = read_good_files(record)
        names, stamps = files.names_in(folder), files.stamps(f"look for changes in {folder}")
        rows = known.rows(names)
        same = (rows >= 0) & (stamps != MISSING).all(1)
        same[same] = (known.stamps[rows[same]] == stamps[same]).all(1)
        facts = {place: known.facts[row] for place, row in _recorded(known, rows, same)}
        found, bad = _check(folder, files, np.flatnonzero(~same), *reading)
        facts |= found
        stamps = stamps.copy()
        stamps[list(bad)] = BAD
        if (rows < 0).any() or (stamps != known.stamps[rows]).any():
            checked = GoodFiles(names, stamps, facts) + known.outside(names, folder.expanduser())
            with contextlib.suppress(OSError):
                write_good_files(record, checked)
    reasons = {files[place]: reason for place, reason in bad.items()}
    if len(bad) > max_bad * len(files):
        raise BadImagesError(
            f"{len(bad)} of {len(files)} images in {folder} cannot be decoded; allowed is a fraction "
            f"max_bad {max_bad:g}; remove or repair them:\n{describe_bad(reasons)}"
        )
    plain = [PLAIN] * (len(files) - len(bad) - len(facts))
    warn_of_facts(folder, [*facts.values(), *plain], channels, value_range)
    good = np.delete(np.arange(len(files)), list(bad))
    return files.take(good) if bad else files, reasons


def usable_images(folder: Path, files: FileList | None = None, **options: Any) -> FileList:
    """Return the images under a folder that can be decoded; a warning names the others.

    Args:
        folder: The folder.
        files: The images; None for all, see `scan`.
        **options: The keywords of `good_images`, which names the errors too.
    """
    files = scan(folder, stamps=True) if files is None else files
    good, bad = good_images(folder, files, **options)
    if bad:
        rank_zero_warn(
            f"{len(bad)} of {len(files)} images in {folder} cannot be decoded and are skipped:\n"
            + describe_bad(bad)
        )
    return good


def sample_images(
    files: Mapping[str, str | Path | BytesIO],
    *,
    channels: int,
    max_pixels: int,
    value_range: tuple[float, float] | None,
) -> None:
    """Decode a few images; a warning says how they are read differently from what their files hold.

    Args:
        files: Files, or their content, by name. Files that cannot be read are left out.
        channels, max_pixels, value_range: See `decode`.

    Raises:
        ValueError: The pixels do not fit `channels`, `max_pixels` or `value_range`; names the file.
    """
    found = []
    for name, file in files.items():
        try:
            with open_image(file, max_pixels) as image:
                found.append(inspect_image(image, channels, value_range))
        except OSError:  # reading it for a batch raises it again
            continue
        except ValueError as error:
            raise ValueError(f"{_name(name)}: {error}") from error
    warn_of_facts("a sample", found, channels, value_range)


def warn_of_facts(
    where: object, found: Sequence[Facts], channels: int, value_range: tuple[float, float] | None
) -> None:
    """Say with numbers how images are read differently from what they hold; see `describe_facts`."""
    if sentences := describe_facts(found, channels, value_range):
        rank_zero_warn("\n".join(f"{where}: {sentence}" for sentence in sentences))


def evenly(items: Sequence[T], count: int) -> list[T]:
    """Return up to `count` items that are evenly spaced in their order."""
    return [items[i * len(items) // count] for i in range(count)] if len(items) > count else list(items)


def describe_bad(bad: Mapping[str, str]) -> str:
    """Return a line for each reason with its first file, and the number of further files, for ten reasons."""
    by_reason: dict[str, list[str]] = {}
    for path, reason in bad.items():
        by_reason.setdefault(reason, []).append(path)
    lines = []
    for reason, paths in list(by_reason.items())[:SHOWN]:
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        lines.append(f"  {_name(paths[0])}{more}: {_name(reason)}")
    if len(by_reason) > SHOWN:
        lines.append(f"  and {sum(map(len, list(by_reason.values())[SHOWN:]))} more")
    return "\n".join(lines)


def _name(text: object) -> str:
    return printable(str(text), lines=False)


def _check(
    folder: Path,
    files: FileList,
    rows: np.ndarray,
    max_pixels: int,
    channels: int,
    value_range: tuple[float, float] | None,
) -> tuple[dict[int, Facts], dict[int, str]]:
    """Decode the images at `rows` once.

    Returns:
        Facts of the good ones that are no ordinary images, and the reason for each bad one, by row.
    """

    def check(path: str) -> Facts | Exception:
        try:
            with open_image(path, max_pixels) as image:
                return inspect_image(image, channels, value_range)
        except Exception as error:  # decoders raise nearly everything on broken files
            return error

    def check_chunk(start: int) -> list[tuple[int, Facts | Exception]]:
        results = [(row, check(files[row])) for row in rows[start : start + CHUNK].tolist()]
        return [(row, result) for row, result in results if result != PLAIN]

    facts: dict[int, Facts] = {}
    errors: dict[int, Exception] = {}
    with (
        watched(f"check {folder}", len(rows), "images", alone=True) as progress,
        ThreadPoolExecutor(min(16, available_cores())) as pool,  # Pillow releases the GIL
    ):
        starts = range(0, len(rows), CHUNK)
        for start, odd in zip(starts, pool.map(check_chunk, starts), strict=True):
            progress.advance(min(CHUNK, len(rows) - start))
            facts |= {row: result for row, result in odd if isinstance(result, Facts)}
            errors |= {row: result for row, result in odd if isinstance(result, Exception)}
    floats = [error for error in errors.values() if isinstance(error, UnknownRangeError)]
    if floats:
        shared = UnknownRangeError(min(each.low for each in floats), max(each.high for each in floats))
        errors |= {row: shared for row, error in errors.items() if isinstance(error, UnknownRangeError)}
    return facts, {row: str(error) or type(error).__name__ for row, error in errors.items()}


def _recorded(known: GoodFiles, rows: np.ndarray, same: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield place and recorded row of each unchanged file that is no ordinary image."""
    if known.facts:
        for place in np.flatnonzero(same).tolist():
            if int(rows[place]) in known.facts:
                yield place, int(rows[place])
