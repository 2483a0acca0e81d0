"""Fixed draws of images: which are held out, which labels a probe may see."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_lightning.core.seeding import generator


def stratified(labels: Tensor, count: int, stream: str) -> Tensor:
    """Draw `count` of the images so that each class has its share, the same draw in every run.

    Shares are rounded by largest remainder. Draws of one stream are nested within each class.

    Args:
        labels: (N,) int64; equal labels are one class. Or (N, K) of 1, 0 and -1, see `rarest`.
        count: How many, 0 to N.
        stream: Names the draw.

    Returns:
        Sorted indices (count,) int64.
    """
    if not 0 <= count <= len(labels):
        raise ValueError(f"{count} images were asked for; there are {len(labels)}")
    labels = rarest(labels) if labels.ndim == 2 else labels
    classes, sizes = labels.unique(return_counts=True)
    share = sizes.double() * count / max(len(labels), 1)
    take = share.floor().long()
    rest = count - int(take.sum())
    # Stable, so that equal remainders go to the lower label on every machine
    take[(share - take).argsort(descending=True, stable=True)[:rest]] += 1
    order = torch.randperm(len(labels), generator=generator("fixed", stream))
    ordered = labels[order]
    drawn = [order[ordered == c][:n] for c, n in zip(classes, take.tolist(), strict=True)]
    return torch.cat(drawn).sort().values if drawn else order[:0]


def rarest(labels: Tensor) -> Tensor:
    """One class for each image that may be of several: of its classes the one with the fewest images.

    So a draw that gives each its share leaves none of the rare ones out.

    Args:
        labels: (N, K), 1 where an image is of a class.

    Returns:
        (N,) int64 in 0..K-1; K for images of no class.

    >>> rarest(torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, -1]])).tolist()
    [1, 0, 3]
    """
    present = labels == 1
    sizes = present.sum(0)
    sizes = torch.where(present, sizes, len(labels) + 1)  # (N, K)
    return torch.where(present.any(1), sizes.argmin(1), labels.shape[1])


def complement(indices: Tensor, size: int) -> Tensor:
    """Return those of 0..size-1 that are not in `indices`, sorted."""
    keep = torch.ones(size, dtype=torch.bool)
    keep[indices] = False
    return keep.nonzero().squeeze(1)
