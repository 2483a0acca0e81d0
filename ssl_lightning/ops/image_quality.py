"""Metrics of restored images against the originals."""

from __future__ import annotations

from torch import Tensor


def masked_mse(images: Tensor, originals: Tensor, mask: Tensor) -> Tensor:
    """Compute the mean squared error of each image over the pixels of a mask: `(B,)`.

    Args:
        images: `(B, C, H, W)` floats.
        originals: The same shape.
        mask: `(B, 1, H, W)` bool, or weights of the pixels; not all 0 in any image.
    """
    weight = mask.float().expand_as(images)
    return ((images - originals).square() * weight).sum((1, 2, 3)) / weight.sum((1, 2, 3))


def psnr(mse: Tensor) -> Tensor:
    """Convert a mean squared error to PSNR in dB, for a peak of 1; at most 100.

    >>> import torch
    >>> psnr(torch.tensor([0.01, 0.0])).tolist()
    [20.0, 100.0]
    """
    return -10 * mse.clamp(min=1e-10).log10()
