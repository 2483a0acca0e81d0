"""Near-duplicates of images: difference hashes, and a search for hashes that differ in few bits."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch.nn.functional as F
from torch import Tensor

ROWS, COLUMNS = 8, 9  # of a grid; its 64 differences along the rows are the bits of a hash
STEP = 1.0  # difference of neighbouring cells that a compression does not turn round, in grey levels
FEWEST = 32  # such differences in an image that can be told from others
PAIRS = 1 << 22  # pairs compared at a time, which bounds the memory
BITS = 64


def grey_grids(images: Tensor) -> Tensor:
    """Reduce images to grey grids of 8 rows and 9 columns.

    Args:
        images: `(N, C, H, W)` uint8.

    Returns:
        `(N, 8, 9)` float32 from 0 to 255.
    """
    grey = images.float().mean(1, keepdim=True)  # (N, 1, H, W)
    return F.interpolate(grey, (ROWS, COLUMNS), mode="bilinear", antialias=True)[:, 0]


def difference_hashes(grids: Tensor) -> np.ndarray:
    """Hash grids `(N, 8, 9)` by the signs of their differences along the rows, `(N,)` uint64.

    Compression, other sizes, and changes of brightness and contrast turn few bits. The hash of a mirrored
    image is that of `grids.flip(2)`.

    >>> import torch
    >>> difference_hashes(torch.arange(9.0).expand(1, 8, 9)) == 2**64 - 1  # brighter from left to right
    array([ True])
    """
    rises = (grids[:, :, 1:] > grids[:, :, :-1]).flatten(1).numpy()  # (N, 64)
    return np.packbits(rises, axis=1, bitorder="little").view("<u8")[:, 0]


def telling(grids: Tensor) -> np.ndarray:
    """Return which grids `(N, 8, 9)` have enough differences for a hash that means something, `(N,)` bool.

    All images of one colour have the same hash, and the hash of a nearly plain one is noise.
    """
    return ((grids.diff(dim=2).abs() > STEP).flatten(1).sum(1) >= FEWEST).numpy()


def nearest_hashes(queries: np.ndarray, base: np.ndarray, bound: int) -> tuple[np.ndarray, np.ndarray]:
    """Find for each hash the nearest one of a base that differs in at most `bound` bits.

    Two such hashes are equal in at least one of `bound + 1` bands of bits, so only hashes that share a band
    are compared.

    Args:
        queries: `(Q,)` uint64.
        base: `(B,)` uint64.
        bound: Most bits that differ, 0 to 63.

    Returns:
        Its index in the base, `(Q,)` int64, -1 for none, the first of equally near ones; and the number of
        bits that differ, `(Q,)` int64, 64 for none.
    """
    if not len(queries) or not len(base):
        return np.full(len(queries), -1), np.full(len(queries), BITS)
    own, back = np.unique(queries, return_inverse=True)  # many equal hashes are compared once
    others, first = np.unique(base, return_index=True)
    best = np.full(len(own), BITS * len(base), np.int64)  # bits * len(base) + index
    edges = [BITS * band // (bound + 1) for band in range(bound + 2)]
    for low, high in pairwise(edges):
        mask = np.uint64(2 ** (high - low) - 1)
        wanted, held = (own >> np.uint64(low)) & mask, (others >> np.uint64(low)) & mask
        order = held.argsort(kind="stable")
        start = np.searchsorted(held, wanted, "left", sorter=order)
        count = np.searchsorted(held, wanted, "right", sorter=order) - start
        ends = count.cumsum()
        cuts = np.searchsorted(ends, np.arange(PAIRS, ends[-1], PAIRS))
        for begin, end in zip([0, *cuts], [*cuts, len(own)], strict=True):
            number = count[begin:end]
            query = np.repeat(np.arange(begin, end), number)
            place = np.arange(number.sum()) - np.repeat(number.cumsum() - number, number)
            other = order[np.repeat(start[begin:end], number) + place]
            bits = np.bitwise_count(own[query] ^ others[other]).astype(np.int64)
            near = bits <= bound
            np.minimum.at(best, query[near], bits[near] * len(base) + first[other[near]])
    bits, index = np.divmod(best[back], len(base))
    return np.where(bits <= bound, index, -1), np.minimum(bits, BITS)


def correlations(grids: Tensor, others: Tensor) -> Tensor:
    """Return the correlation of the cells of each pair of grids `(N, 8, 9)`, `(N,)` from -1 to 1."""
    one, other = ((each - each.mean((1, 2), keepdim=True)).flatten(1) for each in (grids, others))
    return F.cosine_similarity(one, other, eps=1e-12)
