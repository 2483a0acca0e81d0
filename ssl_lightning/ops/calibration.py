"""Calibration of a classifier: do its probabilities say how often it is right?"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BINS = 15  # as in Guo et al. 2017


def negative_log_likelihood(scores: Tensor, labels: Tensor) -> Tensor:
    """Return the mean negative log-likelihood in nats.

    Args:
        scores: `(N, K)` logits.
        labels: `(N,)` int64 in 0..K-1.
    """
    return F.cross_entropy(scores.double(), labels)


def expected_calibration_error(scores: Tensor, labels: Tensor, bins: int = BINS) -> Tensor:
    """Return the mean distance of confidence and accuracy over bins of confidence (Guo et al. 2017, sec. 2).

    Args:
        scores: `(N, K)` logits.
        labels: `(N,)` int64 in 0..K-1.
        bins: Number of bins of equal width.

    Returns:
        In [0, 1]; bins count by their images. It is above 0 for a perfect classifier too, by chance, and
        more so with few images.

    >>> float(expected_calibration_error(torch.zeros(4, 2), torch.tensor([0, 0, 1, 1])))
    0.0
    """
    confidence, answer = scores.double().softmax(1).max(1)
    place = (confidence * bins).long().clamp_(max=bins - 1)
    gap = torch.zeros(bins, dtype=torch.float64, device=scores.device)
    return gap.index_add_(0, place, (answer == labels).double() - confidence).abs_().sum() / len(labels)
