"""Download of STL-10: torchvision's archive, fetched or placed in the cache by hand."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from ssl_lightning.data.io.arrays import PARTS, has_parts
from ssl_lightning.data.io.download import Source, check_file, fetch_url, obtain, unpack

CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
SIZE = 96
CHUNK = 4096
MAX_BYTES = 4_000_000_000  # of all files in the archive, which have 3.1 GB
STL_PARTS = ("unlabeled_images", *PARTS)
FILES = {"unlabeled": "unlabeled_X.bin", "train": "train_X.bin", "test": "test_X.bin"}


def obtain_stl10(root: Path) -> Path:
    """Return `<root>/stl10`: images (N, 96, 96, 3) uint8 of three splits, labels (N,) int64 of two.

    Raises:
        DownloadError: The archive is not available; says where to place it by hand.
    """
    from torchvision.datasets import STL10

    by_hand = root / STL10.filename

    def placed(out: Path, scratch: Path) -> None:
        if not by_hand.is_file():
            raise FileNotFoundError(f"file not found; download {STL10.url} elsewhere and place it there")
        archive = scratch / by_hand.name
        shutil.copyfile(by_hand, archive)  # a failed check removes the copy, never the user's file
        check_file(archive, STL10.tgz_md5, "md5")
        convert(archive, out, scratch)

    def official(out: Path, scratch: Path) -> None:
        fetch_url(STL10.url, scratch / STL10.filename, STL10.tgz_md5)
        convert(scratch / STL10.filename, out, scratch)

    sources = (
        Source(f"archive placed by hand at {by_hand}", placed, 2_640_397_119),
        Source("official archive, by torchvision", official, 2_640_397_119),
    )
    return obtain("STL-10", root / "stl10", sources, has_parts(STL_PARTS))


def convert(archive: Path, out: Path, scratch: Path, size: int = SIZE) -> None:
    """Unpack the archive into `scratch` and write its arrays to `out`, a chunk at a time.

    Files store each image by channel, then by column. Labels count from 1.
    """
    unpack(archive, scratch, MAX_BYTES)
    archive.unlink()  # frees 2.6 GB
    folder = scratch / "stl10_binary"
    for split, name in FILES.items():
        raw = np.memmap(folder / name, np.uint8, "r").reshape(-1, 3, size, size)  # (N, C, column, row)
        images = np.lib.format.open_memmap(
            out / f"{split}_images.npy", "w+", np.uint8, (len(raw), size, size, 3)
        )
        for start in range(0, len(raw), CHUNK):
            images[start : start + CHUNK] = raw[start : start + CHUNK].transpose(0, 3, 2, 1)
        images.flush()
        if split != "unlabeled":
            labels = np.fromfile(folder / f"{split}_y.bin", np.uint8).astype(np.int64) - 1
            if len(labels) != len(raw):
                raise ValueError(f"{split}_y.bin has {len(labels)} labels for {len(raw)} images")
            np.save(out / f"{split}_labels.npy", labels)
