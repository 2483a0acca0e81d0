"""CIE Lab: lightness and two opponent colours, of sRGB under D65, by kornia."""

from __future__ import annotations

import torch
from kornia.color import lab_to_rgb as _lab_to_rgb
from kornia.color import rgb_to_lab as _rgb_to_lab
from torch import Tensor


def rgb_to_lab(images: Tensor) -> Tensor:
    """Turn sRGB into Lab, in full precision even under autocast: bfloat16 has 3 digits, Lab needs 4.

    Args:
        images: `(..., 3, H, W)` floats in [0, 1].

    Returns:
        The same shape, float32 (float64 stays): L in 0..100, a in -87..99 (green to red), b in -108..95
        (blue to yellow); both are 0 for grey.
    """
    with torch.autocast(images.device.type, enabled=False):
        return _rgb_to_lab(_full(images))


def lab_to_rgb(lab: Tensor) -> Tensor:
    """Turn Lab `(..., 3, H, W)` into sRGB; colours that sRGB lacks are clipped to [0, 1]."""
    with torch.autocast(lab.device.type, enabled=False):
        return _lab_to_rgb(_full(lab), clip=True)


def _full(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
