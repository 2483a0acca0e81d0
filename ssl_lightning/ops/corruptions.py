"""Corruptions of photographs, to test how robust features are (after Hendrycks, Dietterich 2019)."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as vision

from ssl_lightning.core.seeding import generator

FIELDS = 64  # different fields of noise


def _gaussian_noise(images: Tensor) -> Tensor:
    """Add noise of deviation 0.08. An image's field follows from its pixels, whatever its batch is."""
    place = (255 * images).round().long().sum((1, 2, 3)) % FIELDS
    return images + 0.08 * _noise_fields(images.shape[1:]).to(images.device)[place]


@lru_cache(maxsize=1)
def _noise_fields(shape: torch.Size) -> Tensor:
    """Return `(FIELDS, *shape)` normal numbers, the same on every call."""
    return torch.randn(FIELDS, *shape, generator=generator("corruption", "gaussian_noise"))


def _gaussian_blur(images: Tensor) -> Tensor:
    """Blur with a deviation of 2 % of the shorter side."""
    sigma = 0.02 * min(images.shape[-2:])
    return vision.gaussian_blur(images, [2 * round(3 * sigma) + 1] * 2, [sigma] * 2)


def _brightness(images: Tensor) -> Tensor:
    """Add 0.15 to all channels."""
    return images + 0.15


def _contrast(images: Tensor) -> Tensor:
    """Scale the distances of the pixels to the mean of their channel by 0.4."""
    mean = images.mean((2, 3), keepdim=True)
    return mean + 0.4 * (images - mean)


def _pixelate(images: Tensor) -> Tensor:
    """Average cells of 2 x 2 pixels; the last row or column of an odd size is a cell of its own."""
    height, width = images.shape[-2:]
    small = F.avg_pool2d(images, 2, ceil_mode=True)
    return small.repeat_interleave(2, 2).repeat_interleave(2, 3)[..., :height, :width]


CORRUPTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gaussian_noise": _gaussian_noise,
    "gaussian_blur": _gaussian_blur,
    "brightness": _brightness,
    "contrast": _contrast,
    "pixelate": _pixelate,
}


def corrupt(images: Tensor, name: str) -> Tensor:
    """Corrupt photographs; every image is corrupted by itself.

    Args:
        images: `(B, C, H, W)` uint8.
        name: A name in `CORRUPTIONS`.

    Returns:
        `(B, C, H, W)` uint8.
    """
    return CORRUPTIONS[name](images.float() / 255).clamp_(0, 1).mul_(255).round_().byte()
