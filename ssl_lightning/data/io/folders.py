"""Trees of image files: search, decoding, and a check of all files before work starts."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from PIL import Image, ImageOps
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from ssl_lightning.core.atomic_files import write_file
from ssl_lightning.core.cpu import available_cores
from ssl_lightning.core.progress import tracked
from ssl_lightning.core.untrusted import check_plain, printable

EXTENSIONS = frozenset([".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"])
# Formats by content. Pillow knows dozens more and passes some to external programs (PostScript to
# Ghostscript), regardless of the extension
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
SHOWN = 10  # bad files that a message names


class BadImagesError(RuntimeError):
    """Too many files of a folder cannot be decoded."""


def scan(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the image files under `folder`, at any depth, in the same order on every machine.

    Hidden files and folders are skipped. Each link is followed once.

    Raises:
        FileNotFoundError: The folder does not exist, or holds no image.
        NotADirectoryError: It is a file.
    """
    root = Path(folder).expanduser()
    if not root.exists():
        raise FileNotFoundError(f"folder {root} does not exist")
    if not root.is_dir():
        raise NotADirectoryError(f"{root} is a file; a folder of images is needed")
    found: list[Path] = []
    seen: set[str] = set()
    walk = os.walk(root, followlinks=True)
    for parent, folders, names in tracked(walk, f"list {root}", "folders"):
        real = os.path.realpath(parent)
        if real in seen:  # a link back up the tree
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            Path(parent, name)
            for name in names
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS
        ]
    if not found:
        kinds = " ".join(sorted(extension[1:] for extension in EXTENSIONS))
        raise FileNotFoundError(f"folder {root} holds no image; looked for {kinds}, at any depth")
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def classes_of(root: str | os.PathLike[str], paths: Sequence[Path]) -> tuple[list[str], list[int]]:
    """Return the sorted class names and the class of each path: the first folder below `root` names it.

    Raises:
        ValueError: Images lie in `root` itself and so have no class.
    """
    parts = [path.relative_to(Path(root).expanduser()).parts for path in paths]
    bare = [path[0] for path in parts if len(path) == 1]
    if bare:
        raise ValueError(
            f"{len(bare)} images lie in {root} itself and have no label: {_first(bare)}; "
            "put each image into a folder named after its class"
        )
    names = sorted({path[0] for path in parts})
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
    with Image.open(path, formats=FORMATS) as image:
        width, height = image.size
        if width * height > max_pixels:
            raise ValueError(f"{width} x {height} pixels are more than max_pixels {max_pixels}")
        yield image


def decode(path: str | os.PathLike[str] | BytesIO, channels: int, max_pixels: int) -> Image.Image:
    """Decode a file, or its content in memory, to upright 8-bit grey (channels 1) or RGB (channels 3).

    An EXIF tag sets the orientation. An animation gives its first picture. Transparency is ignored, and the
    colours under it count.

    Raises:
        ValueError: It is not a regular file, has more than `max_pixels` pixels, or has a pixel type without
            a known range.
        OSError: It is truncated or not an image.
    """
    with open_image(path, max_pixels) as image:  # checks the size before the pixels take memory
        image.load()
        return eight_bit(image, channels)


def eight_bit(image: Image.Image, channels: int) -> Image.Image:
    """Convert an image of any mode to upright 8-bit grey (channels 1) or RGB (channels 3); see `decode`.

    Raises:
        ValueError: Its pixels are floats, which have no known range.
    """
    upright: Image.Image = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):  # 16 bits; a direct conversion would clip them at 255
        values = np.asarray(upright).astype(np.int64).clip(0, 65535)
        upright = Image.fromarray((values // 257).astype(np.uint8))
    elif upright.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if upright.mode == "P":  # take the colours of the palette, not its indices
        upright = upright.convert("RGB")
    return upright.convert("L" if channels == 1 else "RGB")


def as_tensor(image: Image.Image) -> Tensor:
    """Return the pixels of an 8-bit grey or RGB image as (C, H, W) uint8, channels-last in memory."""
    pixels = torch.from_numpy(np.array(image))  # a copy: Pillow's own memory is read-only
    return pixels.view(image.height, image.width, -1).permute(2, 0, 1)


def good_images(
    folder: Path, paths: Sequence[Path], *, max_pixels: int, max_bad: float, cache: Path
) -> tuple[list[Path], dict[Path, str]]:
    """Decode every image once; return the good ones, and the reason for each bad one.

    A record in `cache` holds size and modification time of each good file, so the next start decodes only
    new and changed files. Bad files are tried again every time.

    Args:
        folder: Folder of the images; the record is named after it.
        paths: The images, under `folder`.
        max_pixels: Larger pictures are bad.
        max_bad: Largest fraction of bad files that is skipped.
        cache: Folder of the records.

    Raises:
        BadImagesError: More than `max_bad` of the files are bad; names the first ten.
    """
    key = f"{folder.expanduser().resolve()}|{max_pixels}"
    record = cache / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # without a writable cache it is slower, but works
            cache.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(record.with_suffix(".lock")))  # one process checks, the others read
        known = _read_record(record)
        each = tracked(paths, f"look for changes in {folder}", "files", alone=True)
        stamps = {str(path): stamp(path) for path in each}
        unknown = [path for path in paths if known.get(str(path)) != stamps[str(path)]]
        bad = _check(folder, unknown, max_pixels)
        if unknown:
            good_stamps = {name: found for name, found in stamps.items() if Path(name) not in bad}
            with contextlib.suppress(OSError):
                _write_record(record, good_stamps)
    if len(bad) > max_bad * len(paths):
        raise BadImagesError(
            f"{len(bad)} of {len(paths)} images in {folder} cannot be decoded; allowed is a fraction "
            f"max_bad {max_bad:g}:\n{describe_bad(bad)}"
        )
    return [path for path in paths if path not in bad], bad


def usable_images(folder: Path, *, max_pixels: int, max_bad: float, cache: Path) -> list[Path]:
    """Return the images under a folder that can be decoded; a warning names the others.

    For arguments and errors see `scan` and `good_images`.
    """
    paths = scan(folder)
    good, bad = good_images(folder, paths, max_pixels=max_pixels, max_bad=max_bad, cache=cache)
    if bad:
        rank_zero_warn(
            f"{len(bad)} of {len(paths)} images in {folder} cannot be decoded and are skipped:\n"
            + describe_bad(bad)
        )
    return good


def describe_bad(bad: dict[Path, str]) -> str:
    """Return one line for each of the first ten bad files, and the number of further ones."""
    lines = [f"  {_name(path)}: {_name(reason)}" for path, reason in list(bad.items())[:SHOWN]]
    if len(bad) > SHOWN:
        lines.append(f"  and {len(bad) - SHOWN} more")
    return "\n".join(lines)


def _name(text: object) -> str:
    return printable(str(text), lines=False)


def _check(folder: Path, paths: Sequence[Path], max_pixels: int) -> dict[Path, str]:
    def reason(path: Path) -> str | None:
        try:
            decode(path, 3, max_pixels)
        except Exception as error:  # decoders raise nearly everything on broken files
            return str(error) or type(error).__name__
        return None

    with ThreadPoolExecutor(min(16, available_cores())) as pool:  # Pillow releases the GIL
        reasons: Iterable[str | None] = pool.map(reason, paths)
        counted = tracked(reasons, f"check {folder}", "images", total=len(paths), alone=True)
        return {path: why for path, why in zip(paths, counted, strict=True) if why is not None}


def stamp(path: Path) -> list[int]:
    """Return size and modification time (ns) of a file, to detect changes; empty if it does not exist."""
    try:
        status = path.stat()
    except OSError:  # a dangling link; it equals no record, so it is decoded and reported
        return []
    return [status.st_size, status.st_mtime_ns]


def _read_record(record: Path) -> dict[str, list[int]]:
    try:
        known = json.loads(record.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _write_record(record: Path, stamps: dict[str, list[int]]) -> None:
    write_file(record, json.dumps(stamps))


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
