"""Fixed draws of images, for held-out images, label budgets and folds."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_lightning.core.seeding import generator

FOLDS = 5  # of every cross-validation over images


def stratified(labels: Tensor, count: int, stream: str, *, least: int = 0, spare: int = 0) -> Tensor:
    """Draw `count` images, stratified by class; the draw is the same in every run.

    Shares are rounded by largest remainder. Draws of one stream are nested within each class.

    Args:
        labels: (N,) int64, the class of each image; or (N, K) of 1, 0 and -1, see `rarest_class`.
        count: Size of the draw, 0 to N.
        stream: Name of the draw.
        least: Images of each class in the draw, if `count` suffices for all classes; fewer if it has fewer.
        spare: Images of each class that the draw leaves out, if the other images suffice.

    Returns:
        Sorted indices (count,) int64.
    """
    if not 0 <= count <= len(labels):
        raise ValueError(f"{count} images were requested; there are {len(labels)}")
    labels = rarest_class(labels) if labels.ndim == 2 else labels
    classes, sizes = labels.unique(return_counts=True)
    share = sizes.double() * count / max(len(labels), 1)
    take = share.floor().long()
    rest = count - int(take.sum())
    # Stable, so that equal remainders go to the lower label on every machine
    take[(share - take).argsort(descending=True, stable=True)[:rest]] += 1
    low = sizes.clamp(max=least)
    high = torch.maximum(sizes - spare, low)
    if int(low.sum()) <= count <= int(high.sum()):
        while ((take < low) | (take > high)).any():  # from the class with the most above its bound
            take[torch.where(take > high, len(labels), take - low).argmax()] -= 1
            take[torch.where(take < low, len(labels), high - take).argmax()] += 1
    order = torch.randperm(len(labels), generator=generator("fixed", stream))
    ordered = labels[order]
    drawn = [order[ordered == c][:n] for c, n in zip(classes, take.tolist(), strict=True)]
    return torch.cat(drawn).sort().values if drawn else order[:0]


def draw_folds(labels: Tensor, folds: int) -> Tensor:
    """Assign images to folds, stratified by class; the draw is the same in every run.

    Sizes of the folds differ by at most one image, and so do the images of a class in them.

    Args:
        labels: `(N,)` int64.
        folds: Number of folds; N if there are fewer images.

    Returns:
        `(N,)` int64 in 0..folds-1.
    """
    order = torch.randperm(len(labels), generator=generator("fixed", "folds")).to(labels.device)
    order = order[labels[order].argsort(stable=True)]
    part = torch.empty_like(labels)
    part[order] = torch.arange(len(labels), device=labels.device) % min(folds, len(labels))
    return part


def rarest_class(labels: Tensor) -> Tensor:
    """Return the rarest class of each multi-label image: the one of its classes with the fewest images.

    A draw stratified by these classes includes the rare ones.

    Args:
        labels: (N, K), 1 if an image has a class.

    Returns:
        (N,) int64 in 0..K-1; K for images without a class.

    >>> rarest_class(torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, -1]])).tolist()
    [1, 0, 3]
    """
    present = labels == 1
    sizes = present.sum(0)
    sizes = torch.where(present, sizes, len(labels) + 1)  # (N, K)
    return torch.where(present.any(1), sizes.argmin(1), labels.shape[1])


def complement(indices: Tensor, size: int) -> Tensor:
    """Return the numbers of 0..size-1 that are not in `indices`, sorted."""
    keep = torch.ones(size, dtype=torch.bool)
    keep[indices] = False
    return keep.nonzero().squeeze(1)
