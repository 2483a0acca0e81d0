"""Colour statistics of a data set, measured once and cached between runs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_lightning.ops.ab_bins import soft_encode
from ssl_lightning.ops.array_cache import read_array, write_array
from ssl_lightning.ops.lab import rgb_to_lab

CHUNK = 1 << 20  # pixels converted at once
VERSION = 2  # part of a cached file's name: raise it when the measured quantities change


@dataclass(frozen=True)
class AbStatistics:
    """Colour statistics of a data set, in Lab units.

    Args:
        counts: `(Q,)` float64, number of colours nearest to each bin.
        mean: `(2,)` float64, mean a and b.
        std: Root mean square deviation of a and b from their means, over both.
    """

    counts: Tensor
    mean: Tensor
    std: float


def shrink(ab: Tensor, reduction: int) -> Tensor:
    """Average ab `(B, 2, H, W)` over cells to `(B, 2, ceil(H / reduction), ceil(W / reduction))`."""
    return F.adaptive_avg_pool2d(ab, (-(-ab.shape[2] // reduction), -(-ab.shape[3] // reduction)))


def pixels(maps: Tensor) -> Tensor:
    """List the pixels of `(B, C, H, W)` as rows `(B * H * W, C)`; a view if the maps are channels-last."""
    return maps.permute(0, 2, 3, 1).flatten(0, 2)


def measure(images: Tensor, bins: Tensor, candidates: Tensor, reduction: int = 1) -> AbStatistics:
    """Measure the colours of images.

    Args:
        images: `(n, 3, H, W)` uint8.
        bins: `(Q, 2)`, see `gamut_bins`.
        candidates: Their table, see `candidate_table`.
        reduction: Side in pixels of the cells that colours are averaged over, as in the network's targets.
    """
    counts = torch.zeros(len(bins), dtype=torch.float64)
    total, squares, seen = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64), 0
    for chunk in images.split(max(1, CHUNK // images[0, 0].numel())):
        ab = pixels(shrink(rgb_to_lab(chunk)[:, 1:], reduction))  # (N, 2)
        nearest = soft_encode(ab, bins, candidates, neighbours=1)[0].flatten()
        counts += nearest.bincount(minlength=len(bins))
        total += ab.double().sum(0)
        squares += ab.double().square().sum(0)
        seen += len(ab)
    mean = total / seen
    std = (squares / seen - mean.square()).clamp(min=0).mean().sqrt()
    return AbStatistics(counts, mean, float(std))


def cached_statistics(
    sample: Callable[[int], Tensor],
    count: int,
    bins: Tensor,
    candidates: Tensor,
    reduction: int,
    cache_dir: str | os.PathLike[str] | None,
) -> AbStatistics:
    """Measure the colours of `sample(count)`, or read the cached statistics.

    The name of the cached file is a hash of the bins and of the first images, with the counts: the first 32
    images identify a data set without decoding the complete sample.

    Args:
        sample: Returns the first n images of a fixed order, `(n, 3, H, W)` uint8.
        count: Number of images to measure.
        bins: `(Q, 2)`.
        candidates: Their table.
        reduction: See `measure`.
        cache_dir: Folder of the cache; None does not cache.
    """
    path = None
    if cache_dir is not None:
        digest = hashlib.blake2b(digest_size=12)
        for part in (bins, sample(min(count, 32))):
            digest.update(part.contiguous().numpy().tobytes())
        name = f"{len(bins)}-{count}-{reduction}-{digest.hexdigest()}-v{VERSION}.npy"
        path = Path(cache_dir).expanduser() / "ab_priors" / name
    kept = read_array(path)
    if kept is None or kept.shape != (len(bins) + 3,) or not np.isfinite(kept).all():
        found = measure(sample(count), bins, candidates, reduction)
        kept = torch.cat([found.mean, torch.tensor([found.std]).double(), found.counts]).numpy()
        write_array(path, kept)
    values = torch.from_numpy(kept)
    return AbStatistics(values[3:], values[:2], float(values[2]))
