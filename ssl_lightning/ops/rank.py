"""Measures of collapse without labels: effective ranks, slope of the spectrum, dead channels."""

from __future__ import annotations

import torch
from torch import Tensor

CONSTANT = 1e-5  # relative to the largest value, above the rounding of float32
ROUNDING = 1e-12  # squared relative rounding of float32 features, with a margin
TINY = torch.finfo(torch.float64).tiny


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
    return _exponential_entropy(torch.linalg.svdvals(x.double()), eps)


def lidar(x: Tensor, delta: float = 1e-4, eps: float = 1e-7) -> Tensor:
    """Compute LiDAR, the effective rank of linear discriminants between images (Thilak et al. 2023).

    Each image is a class, and its augmented views are the samples of the class. A direction counts if it
    tells images apart beyond the scatter of their views.

    Args:
        x: `(n, q, D)` floats, q views of each of n images; q is at least 2.
        delta: Added to the variances within classes, as in the paper.
        eps: Added to each share of the eigenvalues, as in the paper.

    Returns:
        `()` float64: from 1 to min(n - 1, D).

    Raises:
        ValueError: There are fewer than two images or views.

    >>> turned = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    >>> round(float(lidar(torch.stack([turned, turned], 1))), 3)  # four images, two equal views of each
    2.0
    """
    if x.ndim != 3 or min(x.shape[:2]) < 2:
        raise ValueError(f"views have shape {tuple(x.shape)}; LiDAR takes (n, q, D) with n and q at least 2")
    x = x.double()
    centres = x.mean(1)  # (n, D)
    inner = (x - centres[:, None]).flatten(0, 1)  # (n q, D)
    between = centres - centres.mean(0)
    between = between * (between.square().sum() > ROUNDING * centres.square().sum())  # not rounding alone
    within = inner.T @ inner / len(inner)
    within.diagonal().add_(delta)
    # the singular values of between W^(-1/2) are those of between L^(-T), for W = L L^T
    whitened = torch.linalg.solve_triangular(torch.linalg.cholesky(within), between.T, upper=False)  # (D, n)
    return _exponential_entropy(torch.linalg.svdvals(whitened).square(), eps)


def spectral_slope(x: Tensor) -> Tensor:
    """Compute alpha-ReQ, the decay of the covariance's eigenvalues (Agrawal et al. 2022).

    The slope of the logarithm of the eigenvalue over that of its number, fitted by least squares to all
    eigenvalues above rounding. Weights of one over the number give each octave equal weight, else the small
    eigenvalues alone would decide.

    Args:
        x: `(N, D)` floats, not centred.

    Returns:
        `()` float64, 0 or more: 0 for equal variances, 1 for a variance of 1/i in direction i, more if few
        directions carry the variance. NaN with fewer than three eigenvalues.

    >>> waves = torch.eye(64).double() * torch.arange(1, 65).double() ** -0.5
    >>> round(float(spectral_slope(torch.cat([waves, -waves]))), 3)
    1.0
    """
    x = x.double()
    centred = x - x.mean(0)
    scatter = centred.T @ centred if len(x) > x.shape[1] else centred @ centred.T
    values = torch.linalg.eigvalsh(scatter).flip(0)  # proportional to those of the covariance, descending
    values = values[values > torch.maximum(CONSTANT**2 * values[0], ROUNDING * x.square().sum())]
    if len(values) < 3:
        return torch.tensor(torch.nan, dtype=torch.float64)
    number = torch.arange(1, len(values) + 1, dtype=torch.float64, device=x.device)
    weight = 1 / number / (1 / number).sum()
    log_number, log_value = number.log(), values.log()
    log_number = log_number - (weight * log_number).sum()
    return -(weight * log_number * log_value).sum() / (weight * log_number.square()).sum()


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


def _exponential_entropy(values: Tensor, eps: float) -> Tensor:
    """Return the number of values that count, `()`: the exponential of the entropy of their shares."""
    share = values / values.sum().clamp_min(TINY) + eps
    return torch.exp(-(share * share.log()).sum()).clamp_min(1)  # eps may push it slightly below
