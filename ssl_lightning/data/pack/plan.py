"""Plan of a pack: which image goes into which shard."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ssl_lightning.core.seeding import generator
from ssl_lightning.data.io.file_list import MISSING, FileList
from ssl_lightning.data.io.scan import classes_of, scan
from ssl_lightning.data.io.shard_index import FORMAT, TAR_BLOCK


@dataclass(frozen=True)
class PackPlan:
    """Images to pack, and the shard of each.

    Args:
        folder: The tree of images.
        paths: Images, in storage order.
        bytes: (N,) int64, size of each file.
        labels: (N,) int64, label of each image; -1 without labels.
        class_names: In label order; None without labels.
        ends: Number of images up to the end of each shard.
        max_pixels: Larger pictures are bad.
        max_bad: Largest fraction of bad files that is skipped.
        digest: Digest of images and settings.
    """

    folder: Path
    paths: FileList
    bytes: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...] | None
    ends: tuple[int, ...]
    max_pixels: int
    max_bad: float
    digest: str


def make_plan(
    folder: Path,
    *,
    labels: bool,
    shard_bytes: int,
    shard_images: int | None,
    seed: int | None,
    max_pixels: int,
    max_bad: float,
) -> PackPlan:
    """Find the images of a tree and assign them to shards.

    Args:
        folder: Images, at any depth.
        labels: Whether the first folder below `folder` names an image's class.
        shard_bytes: Largest size of a shard, except for a single image above it.
        shard_images: Images of a shard, regardless of their size; None for the limit `shard_bytes`.
        seed: Seed of the storage order; None stores images in the order of their paths.
        max_pixels, max_bad: See `PackPlan`.

    Raises:
        FileNotFoundError, NotADirectoryError: See `scan`.
        ValueError: A value is out of range; or see `classes_of`.
    """
    if shard_bytes < 1 or max_pixels < 1 or (shard_images is not None and shard_images < 1):
        raise ValueError(
            f"shards of {shard_bytes} bytes, samples-per-shard {shard_images}, max-pixels {max_pixels}; "
            "each must be at least 1"
        )
    if not 0 <= max_bad < 1:
        raise ValueError(f"max-bad is {max_bad}; allowed is a fraction from 0 to below 1")
    found = scan(folder, stamps=True)
    names, classes = classes_of(folder, found) if labels else ([], torch.full((len(found),), -1))
    order = torch.arange(len(found))
    if seed is not None:
        order = torch.randperm(len(found), generator=generator(seed, "pack"))
    digest = hashlib.sha256(repr((FORMAT, labels, shard_bytes, shard_images, seed, max_pixels)).encode())
    for name, (size, changed) in zip(found.names(), map(np.ndarray.tolist, found.stamps()), strict=True):
        state = [] if (size, changed) == MISSING else [size, changed]
        digest.update(f"{name!r} {state}\n".encode(errors="surrogateescape"))
    sizes = found.stamps()[:, 0].clip(min=0)[order.numpy()]
    return PackPlan(
        folder.expanduser(),
        found.take(order.numpy()),
        sizes,
        classes[order].numpy(),
        tuple(names) if labels else None,
        tuple(_ends(sizes.tolist(), shard_bytes, shard_images, labels)),
        max_pixels,
        max_bad,
        digest.hexdigest(),
    )


def _ends(sizes: Sequence[int], limit: int, count: int | None, labels: bool) -> list[int]:
    if count is not None:
        return [*range(count, len(sizes), count), len(sizes)]
    ends, used = [], 0
    for place, size in enumerate(sizes):
        stored = TAR_BLOCK + -(-size // TAR_BLOCK) * TAR_BLOCK + 2 * TAR_BLOCK * labels
        if used and used + stored > limit:
            ends.append(place)
            used = 0
        used += stored
    return [*ends, len(sizes)]
