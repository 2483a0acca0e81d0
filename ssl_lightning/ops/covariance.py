"""Covariance of the numbers of embeddings (VICReg: Bardes, Ponce, LeCun 2022, eq. 4)."""

from __future__ import annotations

from torch import Tensor


def covariance_penalty(embedded: Tensor) -> Tensor:
    """Sum the squared covariances of different numbers of embeddings `(N, D)`, N > 1, over D.

    Lightly's covariance loss selects them by a mask, which waits for the device and cannot be recorded in a
    CUDA graph. The values are the same.
    """
    count, dims = embedded.shape
    centred = embedded - embedded.mean(0)
    squares = (centred.T @ centred / (count - 1)).square()  # (D, D)
    return (squares.sum() - squares.diagonal().sum()) / dims
