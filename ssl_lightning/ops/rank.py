"""How many directions features vary in, and which of them do not vary at all: collapse, without labels."""

from __future__ import annotations

import torch
from torch import Tensor

CONSTANT = 1e-5  # relative to the largest value: above what rounding in float32 leaves


def effective_rank(x: Tensor, eps: float = 1e-7) -> Tensor:
    """Exponential of the entropy of the singular values, RankMe (Garrido et al. 2023, eq. 1-2).

    Args:
        x: `(N, D)` floats, as they are: not centred, not scaled.
        eps: Added to each share of the singular values, as there.

    Returns:
        `()` float64: 1 for features along one direction, min(N, D) for equally strong ones.

    >>> round(float(effective_rank(torch.eye(4))), 3)
    4.0
    """
    values = torch.linalg.svdvals(x.double())
    share = values / values.sum().clamp_min(torch.finfo(torch.float64).tiny) + eps
    return torch.exp(-(share * share.log()).sum()).clamp_min(1)  # eps may push it a hair below


def dead_channels(x: Tensor) -> Tensor:
    """Which features are the same for all samples, such as those of a ReLU that never lets anything pass.

    Args:
        x: `(N, D)` floats, N at least 1.

    Returns:
        `(D,)` bool.

    >>> dead_channels(torch.tensor([[0.0, 0.5, 3.0], [0.0, 0.5, 4.0]])).tolist()
    [True, True, False]
    """
    low, high = x.amin(0), x.amax(0)
    return high - low <= CONSTANT * torch.maximum(low.abs(), high.abs())
