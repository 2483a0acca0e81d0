"""CPU time of the starts of `data=folder` with many image files."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ssl_lightning.core.progress import tracked
from ssl_lightning.data.folder import Folder

A_FOLDER = 1000  # files
FEW = 1000  # files of the start that is compared with


def write_jpegs(folder: Path, count: int, side: int) -> None:
    """Write random JPEG pictures of `side` x `side` px, 1,000 a folder."""
    draws = np.random.default_rng(0)
    for number in tracked(range(count), "write files", "files"):
        place = folder / f"{number // A_FOLDER:05}"
        place.mkdir(parents=True, exist_ok=True)
        pixels = draws.integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number:08}.jpg")


def start(files: Path, cache: Path, *, verify: bool) -> float:
    """Set the data up; return the CPU seconds of this process, all threads together."""
    began = time.process_time()
    Folder(pretrain_dir=str(files), root=str(cache), verify=verify).setup()
    return time.process_time() - began


def main(arguments: Sequence[str] | None = None) -> int:
    """Print CPU time by file of the first start, a later one, and one that checks no file.

    It is how the time grows with the files: the difference to the same start with 1,000 of them.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=20_000, help=f"above {FEW:,}")
    parser.add_argument("--side", type=int, default=32, help="of a picture, in pixels")
    given = parser.parse_args(arguments)
    if given.files <= FEW:
        parser.error(f"--files is {given.files}; more than {FEW} are needed")
    with tempfile.TemporaryDirectory() as scratch:
        few, many = Path(scratch, "few"), Path(scratch, "many")
        write_jpegs(few, FEW, given.side)
        write_jpegs(many, given.files, given.side)
        start(few, Path(scratch, "warm"), verify=True)  # imports, and pools of threads
        for name, verify in (("first start", True), ("later start", True), ("data.verify=false", False)):
            fixed, whole = (
                start(files, Path(scratch, f"cache_{files.name}"), verify=verify) for files in (few, many)
            )
            each = 1e6 * (whole - fixed) / (given.files - FEW)
            print(f"{name}: {each:.1f} us of CPU time a file, {whole:.2f} s in all", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
