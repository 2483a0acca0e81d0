"""Rotations by multiples of 90 degrees, without interpolation (Gidaris, Singh, Komodakis 2018, sec. 3)."""

from __future__ import annotations

import torch
from torch import Tensor

NUM_ROTATIONS = 4


def rotate_four(images: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate every image by all four angles.

    Args:
        images: `(B, C, H, H)` of any dtype, in either memory format.

    Returns:
        Copies `(4B, C, H, H)` in the memory format of the input: all images at 0 degrees, then at 90, 180 and
        270 (counter-clockwise). Classes `(4B,)`, int64 in 0..3.

    Raises:
        ValueError: The images are not square, so that their copies do not fit in one batch.

    >>> rotate_four(torch.tensor([[[[1, 2], [3, 4]]]]))[0][:, 0].tolist()
    [[[1, 2], [3, 4]], [[2, 4], [1, 3]], [[4, 3], [2, 1]], [[3, 1], [4, 2]]]
    """
    _require_square(images)
    batch, channels, height, width = images.shape
    channels_last = images.is_contiguous(memory_format=torch.channels_last)
    copies = torch.empty(
        (NUM_ROTATIONS * batch, channels, height, width),
        dtype=images.dtype,
        device=images.device,
        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
    )
    for turns, part in enumerate(copies.chunk(NUM_ROTATIONS)):
        part.copy_(torch.rot90(images, turns, (2, 3)))  # flips and transposes only
    classes = torch.arange(NUM_ROTATIONS, device=images.device).repeat_interleave(batch)
    return copies, classes


def rotate_one(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rotate each image by one random angle (VISSL's variant, `copies=1`).

    Args:
        images: `(B, C, H, H)`.
        generator: Draws the angles; on the device of the images.

    Returns:
        Rotated images `(B, C, H, H)` and their classes `(B,)`, int64 in 0..3.
    """
    _require_square(images)
    shape = (images.shape[0],)
    classes = torch.randint(NUM_ROTATIONS, shape, generator=generator, device=images.device)
    rotated = images
    for turns in range(1, NUM_ROTATIONS):
        chosen = (classes == turns).view(-1, 1, 1, 1)
        rotated = torch.where(chosen, torch.rot90(images, turns, (2, 3)), rotated)
    return rotated, classes


def _require_square(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[2] != images.shape[3]:
        raise ValueError(f"images are {tuple(images.shape)}; rotation needs square images (B, C, H, H)")
