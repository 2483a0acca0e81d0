"""Trees of image files: search, decoding, and a check of all files before work starts."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
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

from ssl_lightning.core.atomic_files import write_file
from ssl_lightning.core.cpu import available_cores
from ssl_lightning.core.progress import tracked
from ssl_lightning.core.untrusted import check_folder, check_plain, printable
from ssl_lightning.data.io.eight_bit import (
    Facts,
    UnknownRangeError,
    describe_facts,
    eight_bit,
    examine,
    tiff_layout,
)

EXTENSIONS = frozenset([".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"])
# Formats by content. Pillow knows dozens more and passes some to external programs (PostScript to
# Ghostscript), regardless of the extension
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
SHOWN = 10  # bad files that a message names
SAMPLED = 64  # files that are decoded before work starts if not all are
PLAIN = Facts()  # of an ordinary image
T = TypeVar("T")

# `_open` raises it as an error; Pillow logs it for each file besides
logging.getLogger("PIL.TiffImagePlugin").addFilter(lambda record: "More samples" not in record.getMessage())


class BadImagesError(RuntimeError):
    """Too many files of a folder cannot be decoded."""


def scan(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the image files under `folder`, at any depth, in the same order on every machine.

    Hidden files and folders are skipped. Each link is followed once. A warning counts the files with other
    endings.

    Raises:
        FileNotFoundError: The folder does not exist, or holds no image.
        NotADirectoryError: It is a file.
    """
    root = Path(folder).expanduser()
    check_folder(root)
    found: list[Path] = []
    others: Counter[str] = Counter()
    seen: set[str] = set()
    walk = os.walk(root, followlinks=True)
    for parent, folders, names in tracked(walk, f"list {root}", "folders"):
        real = os.path.realpath(parent)
        if real in seen:  # a link back up the tree
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            if name.startswith("."):
                continue
            ending = os.path.splitext(name)[1].lower()
            if ending in EXTENSIONS:
                found.append(Path(parent, name))
            else:
                others[ending] += 1
    kinds = " ".join(sorted(extension[1:] for extension in EXTENSIONS))
    if not found:
        held = f"; it holds {_endings(others)}" if others else ""
        raise FileNotFoundError(f"folder {root} holds no image; looked for {kinds}, at any depth{held}")
    if others:
        rank_zero_warn(
            f"{others.total()} files in {root} are not read: {_endings(others)}; {len(found)} files have "
            f"endings that are read ({kinds})"
        )
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def classes_of(root: str | os.PathLike[str], paths: Sequence[Path]) -> tuple[list[str], list[int]]:
    """Return the sorted class names and the class of each path: the first folder below `root` names it.

    A warning names the folders below `root` without an image.

    Raises:
        ValueError: Images lie in `root` itself and so have no class.
    """
    folder = Path(root).expanduser()
    parts = [path.relative_to(folder).parts for path in paths]
    bare = [path[0] for path in parts if len(path) == 1]
    if bare:
        raise ValueError(
            f"{len(bare)} images lie in {root} itself and have no label: {_first(bare)}; "
            "put each image into a folder named after its class"
        )
    names = sorted({path[0] for path in parts})
    below = (path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    empty = sorted(set(below) - set(names))
    if empty:
        rank_zero_warn(f"{len(empty)} folders in {root} hold no image and are no class: {_first(empty)}")
    number = {name: index for index, name in enumerate(names)}
    return names, [number[path[0]] for path in parts]


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
    paths: Sequence[Path],
    *,
    max_pixels: int,
    max_bad: float,
    cache: Path,
    channels: int = 3,
    value_range: tuple[float, float] | None = None,
) -> tuple[list[Path], dict[Path, str]]:
    """Decode every image once; return the good ones, and the reason for each bad one.

    A record in `cache` holds size, modification time and `Facts` of each good file, so the next start decodes
    only new and changed files. Bad files are tried again every time. A warning says, with numbers, how images
    are read differently from what their files hold.

    Args:
        folder: Folder of the images; the record is named after it.
        paths: The images, under `folder`.
        max_pixels: Larger pictures are bad.
        max_bad: Largest fraction of bad files that is skipped.
        cache: Folder of the records.
        channels, value_range: See `eight_bit`.

    Raises:
        BadImagesError: More than `max_bad` of the files are bad; names the first ten.
    """
    reading = max_pixels, max(channels, 3), value_range  # grey files are as good as their RGB
    key = f"{folder.expanduser().resolve()}|{reading}|facts"
    record = cache / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # without a writable cache it is slower, but works
            cache.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(record.with_suffix(".lock")))  # one process checks, the others read
        known = _read_record(record)
        each = tracked(paths, f"look for changes in {folder}", "files", alone=True)
        stamps = {str(path): stamp(path) for path in each}
        unknown = [path for path in paths if known.get(str(path), (None, {}))[0] != stamps[str(path)]]
        facts, bad = _check(folder, unknown, *reading)
        if unknown:
            known |= {str(path): (stamps[str(path)], _changed(found)) for path, found in facts.items()}
            with contextlib.suppress(OSError):
                _write_record(record, known)
    if len(bad) > max_bad * len(paths):
        raise BadImagesError(
            f"{len(bad)} of {len(paths)} images in {folder} cannot be decoded; allowed is a fraction "
            f"max_bad {max_bad:g}:\n{describe_bad(bad)}"
        )
    good = [path for path in paths if path not in bad]
    changed = (known[str(path)][1] for path in good)
    warn_of_facts(folder, [Facts(**each) if each else PLAIN for each in changed], channels, value_range)
    return good, bad


def usable_images(folder: Path, paths: Sequence[Path] | None = None, **options: Any) -> list[Path]:
    """Return the images under a folder that can be decoded; a warning names the others.

    Args:
        folder: The folder.
        paths: The images; None for all, see `scan`.
        **options: The keywords of `good_images`, which names the errors too.
    """
    paths = scan(folder) if paths is None else paths
    good, bad = good_images(folder, paths, **options)
    if bad:
        rank_zero_warn(
            f"{len(bad)} of {len(paths)} images in {folder} cannot be decoded and are skipped:\n"
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
                found.append(examine(image, channels, value_range)[1])
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


def describe_bad(bad: dict[Path, str]) -> str:
    """Return a line for each reason with its first file, and the number of further files, for ten reasons."""
    by_reason: dict[str, list[Path]] = {}
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
    paths: Sequence[Path],
    max_pixels: int,
    channels: int,
    value_range: tuple[float, float] | None,
) -> tuple[dict[Path, Facts], dict[Path, str]]:
    """Decode images; return the facts of the good ones, and the reason for each bad one."""

    def check(path: Path) -> Facts | Exception:
        try:
            with open_image(path, max_pixels) as image:
                return examine(image, channels, value_range)[1]
        except Exception as error:  # decoders raise nearly everything on broken files
            return error

    with ThreadPoolExecutor(min(16, available_cores())) as pool:  # Pillow releases the GIL
        results: Iterable[Facts | Exception] = pool.map(check, paths)
        counted = tracked(results, f"check {folder}", "images", total=len(paths), alone=True)
        found = dict(zip(paths, counted, strict=True))
    facts = {path: result for path, result in found.items() if isinstance(result, Facts)}
    errors = {path: result for path, result in found.items() if isinstance(result, Exception)}
    floats = [error for error in errors.values() if isinstance(error, UnknownRangeError)]
    if floats:
        shared = UnknownRangeError(min(each.low for each in floats), max(each.high for each in floats))
        errors |= {path: shared for path, error in errors.items() if isinstance(error, UnknownRangeError)}
    return facts, {path: str(error) or type(error).__name__ for path, error in errors.items()}


def _changed(facts: Facts) -> dict[str, Any]:
    """Return the facts in which an image differs from an ordinary one, for a short record."""
    return {name: value for name, value in vars(facts).items() if value != getattr(PLAIN, name)}


def stamp(path: Path) -> list[int]:
    """Return size and modification time (ns) of a file, to detect changes; empty if it does not exist."""
    try:
        status = path.stat()
    except OSError:  # a dangling link; it equals no record, so it is decoded and reported
        return []
    return [status.st_size, status.st_mtime_ns]


def _read_record(record: Path) -> dict[str, Any]:
    """Return stamp and changed facts of each good image."""
    try:
        known = json.loads(record.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _write_record(record: Path, known: dict[str, Any]) -> None:
    write_file(record, json.dumps(known))


def _endings(counts: Counter[str]) -> str:
    """Name the endings of files with their numbers, the most frequent first."""
    named = [f"{count} {_name(ending) or 'without ending'}" for ending, count in counts.most_common()]
    return _first(named)


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
