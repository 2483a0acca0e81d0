"""Effective rank of features: in how many directions they vary, without labels."""

from __future__ import annotations

import torch
from torch import Tensor


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
