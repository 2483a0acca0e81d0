"""Photometric changes of images, each by its own parameter: colours, blur, solarisation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_lightning.ops.tile_guards import LUMA

THRESHOLD = 0.5  # solarised images are inverted from here


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply each image `(N, C, H, W)` in [0, 1] by its factor `(N,)`, and clip to [0, 1]."""
    return (images * _each(factor, images)).clamp_(0, 1)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Scale the distance of each image `(N, C, H, W)` from its mean grey by a factor `(N,)`, and clip."""
    return _blend(images, _grey(images).mean((2, 3), keepdim=True), factor)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Scale the distance of each pixel of `(N, 3, H, W)` from its grey by a factor `(N,)`, and clip."""
    return _blend(images, _grey(images), factor)


def adjust_hue(images: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue of each image in HSV.

    Args:
        images: `(N, 3, H, W)` in [0, 1].
        turn: `(N,)`, share of the colour circle in -0.5..0.5.

    Returns:
        The same shape and type.
    """
    red, green, blue = images.unbind(1)  # (N, H, W)
    value, lowest = images.amax(1), images.amin(1)
    chroma = value - lowest
    scale = chroma.clamp(min=torch.finfo(images.dtype).tiny)  # grey has no hue; any does
    hue = torch.where(
        value == red,
        (green - blue) / scale,
        torch.where(value == green, 2 + (blue - red) / scale, 4 + (red - green) / scale),
    )  # -1..5, of 6
    hue = hue + 6 * _each(turn, images)[:, 0]
    # closed form of HSV to RGB: a channel falls from the value by the chroma, depending on its distance from
    # the opposite hue on the circle of 6; 3, 1 and -1 stand for red, green and blue
    places = torch.arange(3, -2, -2, device=images.device).view(3, 1, 1)
    x = hue[:, None] + places  # (N, 3, H, W)
    falls = (2 - x.sub_(x.div(6).round_(), alpha=6).abs_()).clamp_(0, 1)
    return torch.addcmul(value[:, None], falls, chroma[:, None], value=-1).clamp_(0, 1)


def gaussian_blur(images: Tensor, sigma: Tensor, size: int) -> Tensor:
    """Blur each image by its own Gaussian, with reflected borders, as torchvision does.

    Args:
        images: `(N, C, H, W)` floats.
        sigma: Deviation in pixels `(N,)`; 0 does not blur.
        size: Odd size of the kernel in pixels; half of it, rounded down, must be below H and W.

    Returns:
        The same shape and type.
    """
    count, channels, height, width = images.shape
    if not images.numel():
        return images
    half = size // 2
    at = torch.arange(-half, half + 1, device=images.device, dtype=images.dtype)
    kernel = (-0.5 * (at / sigma.to(images.dtype).clamp(min=1e-3)[:, None]).square()).exp()
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)[:, None]  # (N C, 1, size)
    padded = F.pad(images, (half, half, half, half), mode="reflect").flatten(0, 1)[None]
    with torch.autocast(images.device.type, enabled=False):  # pixels in bf16 would lose the last bits
        rows = F.conv2d(padded, kernel[:, :, :, None], groups=count * channels)
        blurred = F.conv2d(rows, kernel[:, :, None, :], groups=count * channels)
    return blurred.view(count, channels, height, width)


def kernel_size(image_size: int) -> int:
    """Return the odd size of the kernel of the blur near a tenth of the image size, at least 3 (SimCLR).

    >>> kernel_size(32), kernel_size(96), kernel_size(224)
    (3, 9, 23)
    """
    return max(3, image_size // 10 | 1)


def solarise(images: Tensor, chosen: Tensor) -> Tensor:
    """Invert the values from 0.5 on in the chosen `(N,)` images `(N, C, H, W)` in [0, 1]."""
    return torch.where(_each(chosen, images, chosen.dtype) & (images >= THRESHOLD), 1 - images, images)


def _grey(images: Tensor) -> Tensor:
    """Return the grey values `(N, 1, H, W)`: the luma of three channels, the mean of another number."""
    if images.shape[1] != len(LUMA):
        return images.mean(1, keepdim=True)
    red, green, blue = images.split(1, 1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """Return `other + factor * (images - other)`, clipped to [0, 1]; exactly `images` for a factor of 1."""
    return torch.lerp(other, images, _each(factor, images)).clamp_(0, 1)


def _each(values: Tensor, images: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Shape one value per image `(N,)` for arithmetic with `(N, C, H, W)`."""
    return values.to(dtype or images.dtype).view(-1, 1, 1, 1)
