"""Measures of collapse without labels: effective rank and dead channels of features."""

from __future__ import annotations

import torch
from torch import Tensor

CONSTANT = 1e-5  # relative to the largest value, above the rounding of float32


def effective_rank(x: Tensor, eps: float = 1e-7) -> Tensor:
    """Compute RankMe, the exponential entropy of the singular values (Garrido et al. 2023, eq. 1-2).

    Args:
        x: `(N, D)` floats, neither centred nor scaled.
        eps: Added to each share of the singular values, as in the paper.

    Returns:
        `()` float64: 1 for features along one direction, min(N, D) for equally strong directions.

    >>> round(float(effective_rank(torch.eye(4))), 3)
    4.0
    """
    values = torch.linalg.svdvals(x.double())
    share = values / values.sum().clamp_min(torch.finfo(torch.float64).tiny) + eps
    return torch.exp(-(share * share.log()).sum()).clamp_min(1)  # eps may push it slightly below


def dead_channels(x: Tensor) -> Tensor:
    """Find the features that are equal for all samples, such as the output of a dead ReLU.

    Args:
        x: `(N, D)` floats, N at least 1.

    Returns:
        `(D,)` bool.

    >>> dead_channels(torch.tensor([[0.0, 0.5, 3.0], [0.0, 0.5, 4.0]])).tolist()
    [True, True, False]
    """
    low, high = x.amin(0), x.amax(0)
    return high - low <= CONSTANT * torch.maximum(low.abs(), high.abs())
