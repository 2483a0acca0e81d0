"""Bicubic resampling as in image libraries (Keys 1981, a = -0.5, antialiased)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_bicubic(images: Tensor, size: int) -> Tensor:
    """Resize square images; when shrinking, a wider kernel prevents aliasing.

    Args:
        images: `(B, C, S, S)` floats.
        size: Height and width of the result.

    Returns:
        `(B, C, size, size)` float32; values may slightly exceed the range of the input.

    Raises:
        ValueError: `size` is below 1.
    """
    if size < 1:
        raise ValueError(f"size is {size}; allowed is 1 or more")
    with torch.autocast(images.device.type, enabled=False):
        return F.interpolate(
            images.float(), (size, size), mode="bicubic", antialias=True, align_corners=False
        )
