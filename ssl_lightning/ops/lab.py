"""CIE Lab (lightness and two opponent colours) of sRGB under D65 (CIE 15:2004, IEC 61966-2-1)."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

# Linear RGB to XYZ (Rec. 709 primaries), and XYZ of D65 white; digits as in kornia and scikit-image
TO_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
WHITE = (0.95047, 1.0, 1.08883)
# (f(X), f(Y), f(Z)) to (L + 16, a, b)
TO_LAB = ((0.0, 116.0, 0.0), (500.0, -500.0, 0.0), (0.0, 200.0, -200.0))
DARK_RGB = 0.04045  # sRGB is linear up to here and a power above
DARK_XYZ = (6 / 29) ** 3  # f is linear up to here and the cube root above


def rgb_to_lab(images: Tensor) -> Tensor:
    """Convert sRGB to Lab, in full precision even under autocast: bfloat16 has 3 digits, Lab needs 4.

    The conversion is part of every training step. Kornia's is not used: it takes three times as long on a
    CPU, is off by up to 3 units under autocast, and copies constants to the GPU in each call.

    Args:
        images: `(..., 3, H, W)` uint8, or floats in [0, 1].

    Returns:
        The same shape, float32 (float64 for float64): L in 0..100, a in -87..99 (green to red), b in -108..95
        (blue to yellow); a and b are 0 for grey.
    """
    if images.dtype == torch.uint8:
        shades = torch.arange(256, dtype=torch.float64, device=images.device) / 255
        values = _linear(shades).float().index_select(0, images.flatten().int()).view(images.shape)
    else:
        values = _linear(_full(images))
    to_xyz, to_lab = _matrices(values.dtype, values.device)
    with torch.autocast(images.device.type, enabled=False):
        xyz = to_xyz @ values.flatten(-2)  # (..., 3, H * W), 1 for white
        lab = to_lab @ _compressed(xyz)
    lab[..., 0, :] -= 16
    return lab.view(images.shape)


@cache
def _matrices(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the matrices linear RGB -> XYZ / white and f(XYZ / white) -> Lab, `(3, 3)` each.

    They are cached because copying them to a GPU forces a synchronisation.
    """
    with torch.inference_mode(False):  # training uses them too
        to_xyz, white, to_lab = (torch.tensor(rows, dtype=dtype) for rows in (TO_XYZ, WHITE, TO_LAB))
        return (to_xyz / white[:, None]).to(device), to_lab.to(device)


def _linear(values: Tensor) -> Tensor:
    """Convert sRGB values in [0, 1] to linear light in [0, 1]."""
    bright = values.clamp(min=DARK_RGB).add_(0.055).div_(1.055).log2_().mul_(2.4).exp2_()
    # the two pieces meet, so the sum of both, each clamped to its part, is exact; `where` takes twice as long
    return bright.add_(values.clamp(max=DARK_RGB).sub_(DARK_RGB), alpha=1 / 12.92)


def _compressed(xyz: Tensor) -> Tensor:
    """Apply the f of CIE Lab; `pow` takes twice as long as log2 and exp2."""
    bright = xyz.clamp(min=DARK_XYZ).log2_().div_(3).exp2_()
    return bright.add_(xyz.clamp(max=DARK_XYZ).sub_(DARK_XYZ), alpha=(29 / 6) ** 2 / 3)


def lab_to_rgb(lab: Tensor) -> Tensor:
    """Convert Lab `(..., 3, H, W)` to sRGB with kornia; colours outside sRGB are clipped to [0, 1]."""
    from kornia import color  # takes a second, and most runs draw no colours

    with torch.autocast(lab.device.type, enabled=False):
        return color.lab_to_rgb(_full(lab), clip=True)


def _full(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
