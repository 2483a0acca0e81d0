"""Contrastive losses: between two views (NT-Xent: Chen et al. 2020, eq. 1), and from queries to keys."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def nt_xent(own: Tensor, everyone: Tensor, first: int, temperature: float) -> tuple[Tensor, Tensor]:
    """Tell the other view of an image from the views of all other images, by cosine similarity.

    Lightly's NTXentLoss selects similarities by a mask, which waits for the device and cannot be recorded in
    a CUDA graph. The values are the same.

    Args:
        own: Embeddings `(2, B, D)` of both views of the images of this process.
        everyone: Embeddings `(2, N, D)` of the images of all processes, `own` among them.
        first: Place of the first own image among the N.
        temperature: Divides the similarities.

    Returns:
        The mean cross-entropy over the 2 B views, and the share of views whose most similar view is the other
        view of the same image. Both are computed in full precision, under autocast too.
    """
    total = everyone.shape[1]
    with torch.autocast(own.device.type, enabled=False):
        rows, columns = (F.normalize(_full(x).flatten(0, 1), dim=1) for x in (own, everyone))
        logits = rows @ columns.T / temperature  # (2B, 2N)
        place = torch.arange(first, first + own.shape[1], device=own.device)
        itself, other = torch.cat([place, place + total]), torch.cat([place + total, place])  # (2B,) each
        at = torch.arange(2 * total, device=own.device)
        logits = logits.masked_fill(itself[:, None] == at, float("-inf"))
        loss = F.cross_entropy(logits, other)
    return loss, (logits.argmax(1) == other).float().mean()


def info_nce(queries: Tensor, keys: Tensor, first: int, temperature: float) -> tuple[Tensor, Tensor]:
    """Find the key of the same image among the keys of all images, by cosine similarity (InfoNCE).

    Args:
        queries: Embeddings `(B, D)` of the images of this process.
        keys: Embeddings `(N, D)` of the images of all processes.
        first: Place of the first own image among the N.
        temperature: Divides the similarities.

    Returns:
        The mean cross-entropy over the queries, and the share of queries whose most similar key is the one of
        the same image. Both are computed in full precision, under autocast too.
    """
    with torch.autocast(queries.device.type, enabled=False):
        rows, columns = (F.normalize(_full(x), dim=1) for x in (queries, keys))
        logits = rows @ columns.T / temperature  # (B, N)
        place = torch.arange(first, first + len(queries), device=queries.device)
        loss = F.cross_entropy(logits, place)
    return loss, (logits.argmax(1) == place).float().mean()


def _full(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
