"""Weighted nearest neighbours by cosine (Wu et al. 2018, sec. 3.4; used by DINO, Caron et al. 2021)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_SIMILARITIES = 2**26  # elements at once (256 MiB in float32)


def knn_scores(
    queries: Tensor,
    bank: Tensor,
    bank_labels: Tensor,
    num_classes: int,
    ks: Sequence[int],
    *,
    temperature: float = 0.07,
    batch_size: int = 256,
    advance: Callable[[int], None] | None = None,
) -> Tensor:
    """Score classes by a vote of the k most similar samples, weighted by `exp(cosine / temperature)`.

    Args:
        queries: `(Q, D)` floats; only their direction matters.
        bank: `(N, D)` floats.
        bank_labels: `(N,)` int64 in 0..K-1.
        num_classes: K.
        ks: Numbers of neighbours, each in 1..N; one search serves all.
        temperature: Above 0.
        batch_size: Queries per matrix product. The bank is searched in blocks, so that memory holds at most
            `MAX_SIMILARITIES` similarities and a copy of one block, and the `max(ks)` nearest of each query.
        advance: Called during the search with numbers of finished queries, which add up to Q.

    Returns:
        `(len(ks), Q, K)` shares of the vote: at least 0, summing to 1 over the classes.

    Raises:
        ValueError: A k is below 1 or above N, or the temperature is not above 0.
    """
    if not ks or min(ks) < 1 or max(ks) > len(bank):
        raise ValueError(
            f"ks are {list(ks)}; each must lie in 1..{len(bank)}, the number of samples in the bank"
        )
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0")
    scores = queries.new_zeros(len(ks), len(queries), num_classes)
    nearest, indices = _nearest(queries, bank, max(ks), batch_size, advance)
    for first in range(0, len(queries), batch_size):
        similarity = nearest[first : first + batch_size]  # (B, k), nearest first
        # subtracting the nearest keeps the shares and prevents overflow at low temperatures
        weight = ((similarity - similarity[:, :1]) / temperature).exp_()
        voted = bank_labels[indices[first : first + batch_size]]
        for row, k in enumerate(ks):
            scores[row, first : first + len(weight)].scatter_add_(1, voted[:, :k], weight[:, :k])
    return scores / scores.sum(2, keepdim=True)


def _nearest(
    queries: Tensor, bank: Tensor, k: int, batch_size: int, advance: Callable[[int], None] | None
) -> tuple[Tensor, Tensor]:
    """Return cosine and place in the bank of the k nearest samples of each query, `(Q, k)`, nearest first."""
    found: tuple[Tensor, Tensor] | None = None
    rows = max(1, MAX_SIMILARITIES // batch_size)
    # one buffer for all batches: allocating so much memory again takes as long as the product
    buffer = queries.new_empty(min(batch_size, len(queries)), min(rows, len(bank)))
    starts = range(0, len(bank), rows)
    for number, start in enumerate(starts):
        block = F.normalize(bank[start : start + rows], dim=1)
        here = (
            queries.new_empty(len(queries), min(k, len(block))),
            bank.new_empty(len(queries), min(k, len(block)), dtype=torch.int64),
        )
        for first in range(0, len(queries), batch_size):
            batch = F.normalize(queries[first : first + batch_size], dim=1)
            similarities = torch.mm(batch, block.T, out=buffer[: len(batch), : len(block)])
            top = similarities.topk(min(k, len(block)), dim=1)
            here[0][first : first + len(batch)], here[1][first : first + len(batch)] = (
                top.values,
                top.indices + start,
            )
            if advance is not None:  # a block of the bank is a share of the work for a query
                done = [len(batch) * blocks // len(starts) for blocks in (number, number + 1)]
                advance(done[1] - done[0])
        if found is not None:
            both, places = (torch.cat(pair, 1) for pair in zip(found, here, strict=True))
            values, order = both.topk(min(k, both.shape[1]), dim=1)
            here = values, places.gather(1, order)
        found = here
    assert found is not None
    return found


def topk_accuracy(scores: Tensor, labels: Tensor, k: int = 1) -> Tensor:
    """Compute the share of samples whose class is among the k best scores.

    Args:
        scores: `(..., N, K)`.
        labels: `(N,)` int64 in 0..K-1.
        k: In 1..K.

    Returns:
        `(...)` float64 in [0, 1]; float32 would round large counts.

    Raises:
        ValueError: k is below 1 or above K.
    """
    return right_in_topk(scores, labels, k).double().mean(-1)


def right_in_topk(scores: Tensor, labels: Tensor, k: int) -> Tensor:
    """Tell for each sample whether its class is among the k best scores, `(..., N)`; see `topk_accuracy`."""
    if not 1 <= k <= scores.shape[-1]:
        raise ValueError(f"k is {k}; allowed are 1 to {scores.shape[-1]}, all classes")
    best = scores.topk(k, dim=-1).indices  # (..., N, k)
    return (best == labels[:, None]).any(-1)


def balanced_accuracy(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the mean over classes of the accuracy on their samples, and its standard error.

    Classes without a sample do not count.

    Args:
        scores: `(N, K)`.
        labels: `(N,)` int64 in 0..K-1; at least one.

    Returns:
        The mean of p_c in [0, 1], and the root of the sum of p_c (1 - p_c) / n_c over the number of classes;
        scalars, float64.
    """
    classes = scores.shape[1]
    right = right_in_topk(scores, labels, 1).double()
    sizes = labels.bincount(minlength=classes)
    present = sizes > 0
    sizes = sizes[present]
    p = right.new_zeros(classes).index_add_(0, labels, right)[present] / sizes
    return p.mean(), (p * (1 - p) / sizes).sum().sqrt() / len(p)
