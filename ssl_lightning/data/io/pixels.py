"""Pixels (N, H, W, C) uint8 from arrays of any layout, floats, and PIL images."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ssl_lightning.core.image_spec import CHANNELS
from ssl_lightning.data.io.eight_bit import Facts, eight_bit, examine, pillow_channels, rescale
from ssl_lightning.data.io.folders import as_tensor
from ssl_lightning.data.io.sources import RESIZE_CHUNK

DECISIVE = (1, 3)  # numbers of channels that decide a layout, before 4
LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue in grey (ITU-R BT.601)


def to_pixels(values: Tensor, name: str, value_range: tuple[float, float] | None = None) -> Tensor:
    """Convert images to pixels.

    Args:
        values: (N, H, W, C); uint8, or floats in [0, 1]. With a `value_range` also other integers and floats.
        name: Name of the argument, for messages.
        value_range: Values that become 0 and 255, except of uint8; None for 0 and 1.

    Returns:
        (N, H, W, C) uint8; the same memory if it already has this form.

    Raises:
        ValueError: The type is another one, or a value is out of range.

    >>> to_pixels(torch.tensor([0, 0.2, 1]).view(1, 1, 1, 3), "source").tolist()
    [[[[0, 51, 255]]]]
    """
    if values.dtype == torch.uint8:
        return values.contiguous()
    if value_range is None and not values.is_floating_point():
        numbers = values.numpy()
        low, high = (int(numbers.min()), int(numbers.max())) if numbers.size else (0, 1)
        raise ValueError(
            f"{name} has pixels of {values.dtype} from {low} to {high}; allowed are uint8, and floats in [0, "
            f"1]; others need value_range, such as value_range=({low}, {max(high, low + 1)})"
        )
    pixels = torch.empty(values.shape, dtype=torch.uint8)
    for part, target in zip(values.split(RESIZE_CHUNK), pixels.split(RESIZE_CHUNK), strict=True):
        if value_range is None:
            target.copy_(_float_to_bytes(part, name))
        else:
            target.copy_(torch.from_numpy(rescale(_finite(part, name).numpy(), value_range)))
    return pixels


def image_pixels(
    image: Any,
    name: str,
    channels: int | None = None,
    value_range: tuple[float, float] | None = None,
    seen: list[Facts] | None = None,
) -> Tensor:
    """Convert one image to pixels (H, W, C) uint8.

    Args:
        image: A PIL image; or an array or a tensor (H, W), (H, W, C) or (C, H, W), as in `channels_last`.
        name: Name of the image, for messages.
        channels: 4 keeps all channels of a PIL image; else it becomes grey or RGB by its mode.
        value_range: See `to_pixels`, and `eight_bit` for PIL images.
        seen: List to which the facts of a PIL image are added.

    Raises:
        ValueError: See `channels_last`, `to_pixels` and `eight_bit`; or it is another object.
    """
    if isinstance(image, Image.Image):
        wanted = 4 if channels == 4 else pillow_channels(image.mode)
        try:
            if seen is None:
                picture = eight_bit(image, wanted, value_range)
            else:
                picture, facts = examine(image, wanted, value_range)
                seen.append(facts)
            return as_tensor(picture).permute(1, 2, 0)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
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
    return to_pixels(channels_last(as_plain_tensor(image[None], name), name), name, value_range)[0]


def channels_last(images: Tensor, name: str) -> Tensor:
    """Return images (N, H, W), (N, H, W, C) or (N, C, H, W) as a view (N, H, W, C).

    Raises:
        ValueError: C is not 1, 3 or 4, or the layout is ambiguous.
    """
    shape = tuple(images.shape)
    if images.ndim == 5:
        raise ValueError(
            f"{name} has shape {shape}, as videos have; give their frames, as "
            f"{name}.reshape(-1, *{name}.shape[2:])"
        )
    if images.ndim == 3:
        return images[..., None]
    first, last = (images.ndim == 4 and shape[axis] in DECISIVE for axis in (1, 3))
    if not first and not last:
        first, last = (images.ndim == 4 and shape[axis] in CHANNELS for axis in (1, 3))
    if first and last:
        raise ValueError(
            f"{name} has shape {shape}, so axis 1 or axis 3 could be the channels; images must have more "
            "than 3 pixels a side"
        )
    if not first and not last:
        raise ValueError(
            f"{name} has shape {shape}; allowed are (N, H, W), (N, H, W, C) and (N, C, H, W) with 1, 3 or 4 "
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


def with_channels(images: Tensor, channels: int, name: str = "the source") -> Tensor:
    """Turn images (N, H, W, C) uint8, grey or RGB, into grey (channels 1) or RGB (channels 3).

    Raises:
        ValueError: The images or the result have 4 channels, and the other has not.
    """
    held = images.shape[3]
    if held == channels:
        return images
    if 4 in (held, channels):
        raise ValueError(
            f"{name} has images of {held} channels, and channels is {channels}; give images of {channels}, "
            f"or channels={held}"
        )
    if channels == 3:
        return images.expand(-1, -1, -1, 3).contiguous()
    weights = torch.tensor(LUMA)
    grey = [(part.float() @ weights).round().byte() for part in images.split(RESIZE_CHUNK)]
    return torch.cat(grey)[..., None]


def _finite(values: Tensor, name: str) -> Tensor:
    if not values.is_floating_point():
        return values
    if not values.isfinite().all():
        raise ValueError(f"{name} has pixels that are not finite")
    return values.float()


def _float_to_bytes(values: Tensor, name: str) -> Tensor:
    low, high = (float(value) for value in values.aminmax())
    if not (low >= 0 and high <= 1):  # NaN fails too
        remedy = "divide by 255" if low >= 0 and high <= 255 else "undo a normalisation as x * std + mean"
        raise ValueError(f"{name} has floats from {low:.3g} to {high:.3g}; allowed is [0, 1], so {remedy}")
    return values.float().mul(255).round_().byte()
