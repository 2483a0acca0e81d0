"""Average precision per class, the metric of multi-label data sets."""

from __future__ import annotations

import torch
from torch import Tensor


def average_precision(scores: Tensor, labels: Tensor, *, envelope: bool = True) -> Tensor:
    """Compute the area under the precision-recall curve of each class.

    Images of equal score form one group, so that their order does not matter.

    Args:
        scores: `(N, K)` floats, higher for likelier classes.
        labels: `(N, K)` ints: 1 present, 0 absent, -1 ignored.
        envelope: True takes for each recall the best precision at that recall or above, as PASCAL VOC does
            since 2010 and Goyal et al. 2019 do on VOC 2007. False takes the plain steps, as in scikit-learn.

    Returns:
        `(K,)` float64 in [0, 1]; nan for a class without images.

    >>> average_precision(torch.tensor([[3.0], [2.0], [1.0]]), torch.tensor([[1], [0], [1]])).tolist()
    [0.8333333333333333]
    """
    return torch.stack([_one_class(s, y, envelope) for s, y in zip(scores.T, labels.T, strict=True)])


def _one_class(scores: Tensor, labels: Tensor, envelope: bool) -> Tensor:
    counted = labels >= 0
    ranked, order = scores[counted].sort(descending=True)
    present = labels[counted][order] == 1
    if not present.any():
        return torch.full((), torch.nan, dtype=torch.float64, device=scores.device)
    hits = present.cumsum(0).double()  # cumulative sum of integers: exact in any order, on a GPU too
    taken = torch.arange(1, len(hits) + 1, device=scores.device)
    last = torch.cat([ranked[1:] != ranked[:-1], hits.new_ones(1, dtype=torch.bool)])  # of each score
    hits, taken = hits[last], taken[last]
    precision = hits / taken
    if envelope:
        precision = precision.flip(0).cummax(0).values.flip(0)
    # steps of recall in counts, divided once at the end: a perfect ranking gives exactly 1
    return (precision * hits.diff(prepend=hits.new_zeros(1))).sum() / hits[-1]


def mean_average_precision(scores: Tensor, labels: Tensor) -> Tensor:
    """Average `average_precision` over the classes that have images, float64 `()`.

    Raises:
        ValueError: No class has images.
    """
    each = average_precision(scores, labels)
    if each.isnan().all():
        raise ValueError(f"none of the {len(labels)} images shows any of the {labels.shape[1]} classes")
    return each.nanmean()
