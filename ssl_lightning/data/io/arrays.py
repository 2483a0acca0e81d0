"""Cache of a data set as `.npy` files: `<split>_images.npy` and `<split>_labels.npy`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from ssl_lightning.data.io.download import ChecksumError

PARTS = ("train_images", "train_labels", "test_images", "test_labels")


def digest(array: np.ndarray) -> str:
    """Return the sha256 of an array's values in C order."""
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def save_verified(out: Path, arrays: Mapping[str, np.ndarray], digests: Mapping[str, str]) -> None:
    """Check all arrays against their digests, then save them to `out`.

    Raises:
        ChecksumError: A digest differs; names the array and both digests.
    """
    for name, array in arrays.items():
        if (got := digest(array)) != digests[name]:
            raise ChecksumError(f"sha256 of the decoded {name} is {got}, expected {digests[name]}")
    for name, array in arrays.items():
        np.save(out / f"{name}.npy", array)


def has_parts(parts: Sequence[str] = PARTS) -> Callable[[Path], bool]:
    """Return a check that a folder holds every part; the atomic rename guarantees the content."""
    return lambda folder: all((folder / f"{part}.npy").is_file() for part in parts)


def load(folder: Path, part: str) -> torch.Tensor:
    """Return one part as a tensor mapped from the file, so ranks share the memory.

    The map is copy-on-write: changes of the tensor do not reach the file.
    """
    return torch.from_numpy(np.load(folder / f"{part}.npy", mmap_mode="c"))
