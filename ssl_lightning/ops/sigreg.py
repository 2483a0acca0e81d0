"""Distance of embeddings from a normal distribution by random slices (SIGReg: Balestriero, LeCun 2025)."""

from __future__ import annotations

import torch
from torch import Tensor

KNOTS, LARGEST = 17, 3.0  # frequencies of the paper: 0..3


def draw_slices(count: int, dims: int, generator: torch.Generator) -> Tensor:
    """Draw random directions: `(dims, count)`, columns of length 1."""
    slices = torch.randn(dims, count, generator=generator, device=generator.device)
    return slices / slices.norm(dim=0)


def epps_pulley(embedded: Tensor, slices: Tensor) -> Tensor:
    """Test whether projections of embeddings are standard normal, by their characteristic function.

    The statistic is N times the integral of `|E exp(i t x) - exp(-t^2 / 2)|^2 exp(-t^2 / 2)` over t from -3
    to 3, by the trapezoidal rule (Epps, Pulley 1983). Lightly's SIGReg draws the slices from the global
    stream, and waits for the device in every step of several processes. The values are the same.

    Args:
        embedded: `(..., N, D)`.
        slices: `(D, S)`, columns of length 1.

    Returns:
        The mean of the statistic over all slices and leading dimensions.
    """
    t = torch.linspace(0, LARGEST, KNOTS, device=embedded.device, dtype=embedded.dtype)
    normal = (-t.square() / 2).exp()  # (T,)
    weights = 2 * torch.full_like(t, LARGEST / (KNOTS - 1)) * normal  # the integrand is even
    weights = torch.cat([weights[:1] / 2, weights[1:-1], weights[-1:] / 2])
    angles = (embedded @ slices).unsqueeze(-1) * t  # (..., N, S, T)
    errors = (angles.cos().mean(-3) - normal).square() + angles.sin().mean(-3).square()  # (..., S, T)
    return embedded.shape[-2] * (errors @ weights).mean()
