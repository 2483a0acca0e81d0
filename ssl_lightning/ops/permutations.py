"""The fixed set of orders that a jigsaw is shuffled by (Noroozi, Favaro 2016, sec. 3.4 and algorithm 1)."""

from __future__ import annotations

import itertools
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
EXHAUSTIVE = 9  # up to so many tiles every order is a candidate: 9! is 362,880
MOST_TILES = 255  # numbers of tiles are kept in bytes, and so are distances
SAMPLED = 200_000  # candidates beyond that
VERSION = 1  # part of the name of a cached file: raise it with every change of the choice


@dataclass(frozen=True)
class PermutationSet:
    """Orders that are far from each other, and how far.

    Args:
        orders: `(P, n)` int64; place i of order k shows tile `orders[k, i]`.
        identity: Class of the order that shuffles nothing; None where the set does not hold it.
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
    """Choose orders one by one, each as far as possible from those chosen before; always the same ones.

    The first is the identity. Candidates are all n! orders for up to 9 tiles, and beyond that a fixed
    sample of 200,000. Ties go to the better by the other method, then to the first in lexicographic order.

    Args:
        tiles: n, from 2 to 255.
        size: P, number of orders, at least 2 and at most the number of candidates.
        method: "minimum" makes the smallest distance to the chosen orders as large as possible, "mean"
            their mean distance, which is the paper's.
        cache_dir: Folder in which the set is kept for the next time; None keeps nothing. One that cannot
            be written to is ignored: the choice takes a second or two.

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
    apart = hamming(chosen)[np.triu_indices(size, 1)]
    (identity,) = np.nonzero((chosen == np.arange(tiles)).all(1))
    return PermutationSet(
        torch.from_numpy(chosen.astype(np.int64)),
        int(identity[0]) if len(identity) else None,
        int(apart.min()),
        float(apart.mean()),
    )


def hamming(orders: np.ndarray) -> np.ndarray:
    """Count the places in which two orders differ: `(P, n)` to `(P, P)`.

    >>> hamming(np.array([[0, 1, 2], [1, 0, 2]])).tolist()
    [[0, 2], [2, 0]]
    """
    total = np.zeros((len(orders), len(orders)), np.int64)
    for place in orders.T:
        total += place[:, None] != place[None]
    return total


def _candidates(tiles: int, size: int) -> np.ndarray:
    """Orders to choose from, (N, n) uint8 in lexicographic order, so that the identity is the first."""
    if tiles <= EXHAUSTIVE:
        return np.array(list(itertools.permutations(range(tiles))), dtype=np.uint8)
    # collisions are rare (below 3 % at n = 10), and a tenth more makes up for them
    draws = torch.rand(SAMPLED * 11 // 10, tiles, generator=generator("permutations", tiles))
    drawn = draws.argsort(dim=1, stable=True).numpy().astype(np.uint8)
    drawn[0] = np.arange(tiles)
    return np.unique(drawn, axis=0)[:SAMPLED]


def _choose(candidates: np.ndarray, size: int, method: str) -> np.ndarray:
    """Pick `size` rows greedily; (P, n) uint8."""
    places = np.ascontiguousarray(candidates.T)  # (n, N): each place is compared in one sweep
    nearest = np.full(len(candidates), len(places), dtype=np.int64)
    total = np.zeros(len(candidates), dtype=np.int64)
    chosen = [0]
    while len(chosen) < size:
        newest = chosen[-1]
        distance = (places != places[:, newest, None]).sum(0, dtype=np.uint8)
        np.minimum(nearest, distance, out=nearest)
        total += distance
        # one number that orders by the first criterion, then by the second; 0 for what is chosen already
        if method == "minimum":
            rank = nearest * (len(places) * size) + total
        else:
            rank = total * (len(places) + 1) + nearest
        rank[nearest == 0] = -1
        chosen.append(int(rank.argmax()))  # numpy promises the first of equals
    return candidates[chosen]


def _read(path: Path | None, tiles: int, size: int) -> np.ndarray | None:
    """Load a cached set; None where there is none, or not a whole one."""
    chosen = read_array(path)
    if chosen is None:
        return None
    whole = (
        chosen.shape == (size, tiles)
        and (np.sort(chosen, axis=1) == np.arange(tiles)).all()
        and len(np.unique(chosen, axis=0)) == size
    )
    return chosen if whole else None
