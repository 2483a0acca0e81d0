"""Pixels (N, H, W, C) uint8 from arrays of any layout, floats, and PIL images."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ssl_lightning.data.io.folders import as_tensor, eight_bit
from ssl_lightning.data.io.sources import RESIZE_CHUNK

CHANNELS = (1, 3)
LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue in grey (ITU-R BT.601)
GREY_MODES = ("1", "L", "LA", "La", "I", "F")  # of Pillow, besides I;16 and its like


def to_pixels(values: Tensor, name: str) -> Tensor:
    """Convert images to pixels.

    Args:
        values: (N, H, W, C); uint8, or floats in [0, 1].
        name: Name of the argument, for messages.

    Returns:
        (N, H, W, C) uint8; the same memory if it already has this form.

    Raises:
        ValueError: The type is another one, or a value is out of range.

    >>> to_pixels(torch.tensor([0, 0.2, 1]).view(1, 1, 1, 3), "source").tolist()
    [[[[0, 51, 255]]]]
    """
    if values.dtype == torch.uint8:
        return values.contiguous()
    if not values.is_floating_point():
        raise ValueError(f"{name} has pixels of {values.dtype}; allowed are uint8, and floats in [0, 1]")
    pixels = torch.empty(values.shape, dtype=torch.uint8)
    for part, target in zip(values.split(RESIZE_CHUNK), pixels.split(RESIZE_CHUNK), strict=True):
        target.copy_(_float_to_bytes(part, name))
    return pixels


def image_pixels(image: Any, name: str) -> Tensor:
    """Convert one image to pixels (H, W, C) uint8.

    Args:
        image: A PIL image; or an array or a tensor (H, W), (H, W, C) or (C, H, W), as in `channels_last`.
        name: Name of the image, for messages.

    Raises:
        ValueError: See `channels_last` and `to_pixels`; or it is another object.
    """
    if isinstance(image, Image.Image):
        return as_tensor(eight_bit(image, pillow_channels(image.mode))).permute(1, 2, 0)
    if not isinstance(image, (np.ndarray, Tensor)):
        raise ValueError(
            f"{name} is of type {type(image).__name__}; allowed are PIL images, arrays and tensors, each "
            "alone, as (image, label), or in a dict with the key image or img"
        )
    if image.ndim not in (2, 3):
        raise ValueError(
            f"{name} has shape {tuple(image.shape)}; allowed are (H, W), (H, W, C) and (C, H, W), so give "
            "single frames of a video"
        )
    return to_pixels(channels_last(as_plain_tensor(image[None], name), name), name)[0]


def channels_last(images: Tensor, name: str) -> Tensor:
    """Return images (N, H, W), (N, H, W, C) or (N, C, H, W) as a view (N, H, W, C).

    Raises:
        ValueError: C is neither 1 nor 3, or the layout is ambiguous.
    """
    shape = tuple(images.shape)
    if images.ndim == 5:
        raise ValueError(
            f"{name} has shape {shape}, as videos have; give their frames, as "
            f"{name}.reshape(-1, *{name}.shape[2:])"
        )
    if images.ndim == 3:
        return images[..., None]
    first, last = (images.ndim == 4 and shape[axis] in CHANNELS for axis in (1, 3))
    if first and last:
        raise ValueError(
            f"{name} has shape {shape}, so axis 1 or axis 3 could be the channels; images must have more "
            "than 3 pixels a side"
        )
    if not first and not last:
        raise ValueError(
            f"{name} has shape {shape}; allowed are (N, H, W), (N, H, W, C) and (N, C, H, W) with 1 or 3 "
            "channels C"
        )
    return images.permute(0, 2, 3, 1) if first else images


def as_plain_tensor(values: np.ndarray | Tensor, name: str) -> Tensor:
    """Return an array or a tensor as a tensor in the machine's memory, without a copy where possible.

    Raises:
        ValueError: Torch has no such type of values.
    """
    if isinstance(values, Tensor):
        return values.detach().cpu()
    if any(stride < 0 for stride in values.strides):  # a flipped view, which torch lacks
        values = values.copy()
    try:
        with warnings.catch_warnings():  # read-only memory, such as a mapped file, is never written to
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            return torch.from_numpy(values)
    except TypeError:
        raise ValueError(
            f"{name} has values of {values.dtype}; allowed are uint8, and floats in [0, 1]"
        ) from None


def pillow_channels(mode: str) -> int:
    """Return the channels of a Pillow mode: 1 for grey, 3 for the others."""
    return 1 if mode in GREY_MODES or mode.startswith("I;") else 3


def with_channels(images: Tensor, channels: int) -> Tensor:
    """Turn images (N, H, W, C) uint8, grey or RGB, into grey (channels 1) or RGB (channels 3)."""
    if images.shape[3] == channels:
        return images
    if channels == 3:
        return images.expand(-1, -1, -1, 3).contiguous()
    weights = torch.tensor(LUMA)
    grey = [(part.float() @ weights).round().byte() for part in images.split(RESIZE_CHUNK)]
    return torch.cat(grey)[..., None]


def _float_to_bytes(values: Tensor, name: str) -> Tensor:
    low, high = (float(value) for value in values.aminmax())
    if not (low >= 0 and high <= 1):  # NaN fails too
        remedy = "divide by 255" if low >= 0 and high <= 255 else "undo a normalisation as x * std + mean"
        raise ValueError(f"{name} has floats from {low:.3g} to {high:.3g}; allowed is [0, 1], so {remedy}")
    return values.float().mul(255).round_().byte()
