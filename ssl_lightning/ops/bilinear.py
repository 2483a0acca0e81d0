"""Bilinear resizing with a deterministic gradient, on a GPU too."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_bilinear(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize like `F.interpolate(mode="bilinear", align_corners=False)`, by two matrix products.

    On a GPU, the gradient of `F.interpolate` sums in an undefined order.

    Args:
        maps: `(B, C, h, w)` floats.
        size: Height and width of the result.

    Returns:
        `(B, C, *size)`; `maps` itself if it has that size.

    Raises:
        ValueError: The maps are not floats, or a size is below 1.
    """
    if not maps.is_floating_point():
        raise ValueError(f"maps are {maps.dtype}; bilinear weights need floats")
    if min(size) < 1:
        raise ValueError(f"size is {tuple(size)}; allowed is 1 or more")
    if maps.shape[2:] == size:
        return maps
    down, across = (_weights(n, m, maps) for n, m in zip(maps.shape[2:], size, strict=True))
    return torch.matmul(down, torch.matmul(maps, across.T))


def _weights(inputs: int, outputs: int, like: Tensor) -> Tensor:
    """Compute the weights `(outputs, inputs)` of the input cells in each output cell, along one side."""
    # float64 maps need float64 weights
    exact = torch.float64 if like.dtype == torch.float64 else torch.float32
    unit = torch.eye(inputs, dtype=exact)[:, None]  # (inputs, 1, inputs)
    weights = F.interpolate(unit, outputs, mode="linear", align_corners=False)[:, 0].T
    return weights.to(like, non_blocking=True)
