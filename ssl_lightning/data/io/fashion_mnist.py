"""Download of Fashion-MNIST: the official files, or Debian's package."""

from __future__ import annotations

import gzip
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ssl_lightning.data.io.arrays import has_parts, save_verified
from ssl_lightning.data.io.download import DownloadError, Source, fetch_url, obtain, run_tool, unpack_deb

CLASSES = (
    "t-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
DEBIAN_PACKAGE = "dataset-fashion-mnist"
MAX_PACKAGE = 100_000_000  # bytes of all files in Debian's package, which are gzipped and have 31 MB
MAX_BYTES = 60_000 * 28 * 28 + 16  # of a file, unpacked
FILES = {
    "train_images": "train-images-idx3-ubyte.gz",
    "train_labels": "train-labels-idx1-ubyte.gz",
    "test_images": "t10k-images-idx3-ubyte.gz",
    "test_labels": "t10k-labels-idx1-ubyte.gz",
}
# Of the decoded arrays; Debian compresses the files again, so digests of files differ by source
DIGESTS = {
    "train_images": "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012",
    "train_labels": "e3245b63f7c40d1c8b652835f19744d970c1613b40ddac6bcfc87b9c46e16a0b",
    "test_images": "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
    "test_labels": "d51d859896c55775b9e9e219b77ff03bcec1b6ac322f313544dc3f9e7bc94fae",
}


def obtain_fashion_mnist(root: Path) -> Path:
    """Return `<root>/fashion_mnist`, downloaded if missing: images (N, 28, 28, 1) uint8, labels (N,) int64.

    Raises:
        DownloadError: Neither source worked.
    """
    sources = (
        Source("official files, by torchvision", _official, 30_881_000),
        Source(f"Debian package {DEBIAN_PACKAGE}", _debian, 30_900_652),
    )
    return obtain("Fashion-MNIST", root / "fashion_mnist", sources, has_parts())


def _official(out: Path, scratch: Path) -> None:
    from torchvision.datasets import FashionMNIST

    failures = []
    for mirror in FashionMNIST.mirrors:
        try:
            for name, md5 in FashionMNIST.resources:
                fetch_url(mirror + name, scratch / name, md5)
            break
        except OSError as error:
            failures.append(f"{mirror}: {error}")
    else:
        raise DownloadError("; ".join(failures))
    save_verified(out, decode_idx(scratch), DIGESTS)


def _debian(out: Path, scratch: Path) -> None:
    download = ["apt-get", "download", DEBIAN_PACKAGE, "-o", "Acquire::Retries=1"]
    for scheme in ("http", "https"):
        download += ["-o", f"Acquire::{scheme}::Timeout=15"]
    if os.geteuid() == 0:  # apt's sandbox user may not write into our folder, and warns
        download += ["-o", "APT::Sandbox::User=root"]
    try:
        run_tool(download, scratch)
    except RuntimeError:
        if os.geteuid() != 0:  # only root may refresh apt's lists, which can be missing in a container
            raise
        run_tool(["apt-get", "update"], scratch)
        run_tool(download, scratch)
    archives = list(scratch.glob("*.deb"))
    if len(archives) != 1:
        raise RuntimeError(f"apt-get download left {len(archives)} packages, expected 1")
    unpack_deb(archives[0], scratch / "files", MAX_PACKAGE)
    save_verified(out, decode_idx(scratch / "files/usr/share/datasets/fashion-mnist"), DIGESTS)


def decode_idx(folder: Path) -> Mapping[str, np.ndarray]:
    """Decode the four gzipped idx files of MNIST's format in `folder`.

    Returns:
        The four arrays by name: images (N, H, W, 1) uint8, labels (N,) int64.

    Raises:
        ValueError: A file is not idx of unsigned bytes, or its size differs from its header.
        FileNotFoundError: A file is missing.
    """
    arrays = {}
    for name, file in FILES.items():
        with gzip.open(folder / file) as packed:
            data = packed.read(MAX_BYTES + 1)
        rank = data[3] if len(data) >= 4 else 0
        start = 4 + 4 * rank
        if data[:3] != b"\0\0\x08" or len(data) < start:
            raise ValueError(f"{file} is not an idx file of unsigned bytes")
        shape = tuple(int(size) for size in np.frombuffer(data, ">u4", count=rank, offset=4))
        values = np.frombuffer(data, np.uint8, offset=start)
        if len(data) > MAX_BYTES:
            raise ValueError(f"{file} holds more than {MAX_BYTES:,} bytes")
        if values.size != np.prod(shape) or rank != (3 if name.endswith("images") else 1):
            raise ValueError(f"{file} holds {values.size} values, but its header declares the shape {shape}")
        array = values.reshape(shape)
        arrays[name] = array[..., None] if rank == 3 else array.astype(np.int64)
    return arrays
