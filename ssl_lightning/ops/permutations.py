"""Fixed set of permutations that shuffle a jigsaw (Noroozi, Favaro 2016, sec. 3.4 and algorithm 1)."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ssl_lightning.core.seeding import generator
from ssl_lightning.ops.array_cache import read_array, write_array

METHODS = ("minimum", "mean")
EXHAUSTIVE = 9  # up to this number of tiles every order is a candidate: 9! is 362,880
MOST_TILES = 255  # indices of tiles and distances are stored in bytes
SAMPLED = 200_000  # candidates for more tiles than EXHAUSTIVE
VERSION = 1  # part of a cached file's name: raise it when the choice changes


@dataclass(frozen=True)
class PermutationSet:
    """Orders that differ strongly from each other, and their distances.

    Args:
        orders: `(P, n)` int64; position i of order k shows tile `orders[k, i]`.
        identity: Index of the identity in `orders`; None if the set does not contain it.
        minimum: Smallest Hamming distance of two orders, in 2..n.
        mean: Mean Hamming distance over all pairs, in 2..n.
    """

    orders: Tensor
    identity: int | None
    minimum: int
    mean: float

    def __str__(self) -> str:
        size, tiles = self.orders.shape
        place = "none of them" if self.identity is None else f"number {self.identity}"
        return (
            f"{size} orders of {tiles} tiles, Hamming distance at least {self.minimum} and {self.mean:.3f} "
            f"in the mean; the identity is {place}"
        )


def permutation_set(
    tiles: int, size: int, *, method: str = "minimum", cache_dir: str | os.PathLike[str] | None = None
) -> PermutationSet:
    """Choose orders greedily, each as far as possible from the orders chosen before; deterministic.

    The first is the identity. Candidates are all n! orders for up to 9 tiles, and a fixed sample of 200,000
    for more. The other method breaks ties, then the lexicographic order.

    Args:
        tiles: n, from 2 to 255.
        size: P, number of orders, at least 2 and at most the number of candidates.
        method: "minimum" maximises the smallest distance to the chosen orders, "mean" the mean distance, as
            in the paper.
        cache_dir: Folder that caches the set; None does not cache. A read-only folder is ignored: the choice
            takes a second or two.

    Raises:
        ValueError: A number is out of range, or the method is unknown.
    """
    available = math.factorial(tiles) if 0 < tiles <= EXHAUSTIVE else SAMPLED
    if not 2 <= tiles <= MOST_TILES:
        raise ValueError(f"tiles is {tiles}; allowed are 2 to {MOST_TILES}")
    if not 2 <= size <= available:
        raise ValueError(f"size is {size}; allowed are 2 to {available:,} orders of {tiles} tiles")
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; allowed are {', '.join(METHODS)}")
    path = None
    if cache_dir is not None:
        folder = Path(cache_dir).expanduser() / "permutations"
        path = folder / f"{tiles}-{size}-{method}-v{VERSION}.npy"
    chosen = _read(path, tiles, size)
    if chosen is None:
        chosen = _choose(_candidates(tiles, size), size, method)
        write_array(path, chosen)
    distances = hamming(chosen)[np.triu_indices(size, 1)]
    (identity,) = np.nonzero((chosen == np.arange(tiles)).all(1))
    return PermutationSet(
        torch.from_numpy(chosen.astype(np.int64)),
        int(identity[0]) if len(identity) else None,
        int(distances.min()),
        float(distances.mean()),
    )


def hamming(orders: np.ndarray) -> np.ndarray:
    """Count the positions at which two orders differ: `(P, n)` to `(P, P)`.

    >>> hamming(np.array([[0, 1, 2], [1, 0, 2]])).tolist()
    [[0, 2], [2, 0]]
    """
    total = np.zeros((len(orders), len(orders)), np.int64)
    for place in orders.T:
        total += place[:, None] != place[None]
    return total


def _candidates(tiles: int, size: int) -> np.ndarray:
    """Return the orders to choose from, `(N, n)` uint8 in lexicographic order; the identity is the first."""
    if tiles <= EXHAUSTIVE:
        return _every_order(tiles)
    # a tenth more draws replace duplicates, which are rare (below 3 % at n = 10)
    draws = torch.rand(SAMPLED * 11 // 10, tiles, generator=generator("permutations", tiles))
    drawn = draws.argsort(dim=1, stable=True).numpy().astype(np.uint8)
    drawn[0] = np.arange(tiles)
    return np.unique(drawn, axis=0)[:SAMPLED]


def _every_order(tiles: int) -> np.ndarray:
    """Return all orders, `(n!, n)` uint8 in lexicographic order, like `itertools.permutations` but faster.

    >>> _every_order(3).tolist()
    [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]]
    """
    orders = np.zeros((1, 1), np.uint8)
    for count in range(2, tiles + 1):  # each number once as the first, before the orders of the others
        others = np.concatenate([orders + (orders >= first) for first in range(count)])
        orders = np.column_stack([np.repeat(np.arange(count, dtype=np.uint8), len(orders)), others])
    return orders


def _choose(candidates: np.ndarray, size: int, method: str) -> np.ndarray:
    """Pick `size` rows greedily, `(P, n)` uint8."""
    places = np.ascontiguousarray(candidates.T)  # (n, N): each position is compared in one sweep
    nearest = np.full(len(candidates), len(places), dtype=np.uint8)  # 0 for chosen orders
    total = np.zeros(len(candidates), dtype=np.int64)
    chosen = [0]
    while len(chosen) < size:
        distance = np.zeros_like(nearest)
        for place in places:  # bytes only: half the time of one comparison of all positions
            distance += place != place[chosen[-1]]
        np.minimum(nearest, distance, out=nearest)
        total += distance
        first = nearest if method == "minimum" else np.where(nearest > 0, total, 0)
        second = total if method == "minimum" else nearest
        # argmax returns the first of equal values
        chosen.append(int(np.where(first == first.max(), second, 0).argmax()))
    return candidates[chosen]


def _read(path: Path | None, tiles: int, size: int) -> np.ndarray | None:
    """Load a cached set; None if it is missing or damaged."""
    chosen = read_array(path)
    if chosen is None:
        return None
    valid = (
        chosen.shape == (size, tiles)
        and (np.sort(chosen, axis=1) == np.arange(tiles)).all()
        and len(np.unique(chosen, axis=0)) == size
    )
    return chosen if valid else None
