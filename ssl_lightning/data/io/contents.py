"""Checks of a sample of images: pictures of one colour, equal pictures, and grey ones."""

from __future__ import annotations

import hashlib

from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

NOTED = 0.05  # share of odd images above which a warning gives their number
GREY_SPREAD = 2.0  # largest mean difference of the channels of a grey picture, in grey levels


def check_contents(images: Tensor) -> None:
    """Check that a sample of the pretraining images shows something.

    Args:
        images: (n, C, H, W) uint8. A warning gives the number of pictures of one colour, and of equal ones.

    Raises:
        ValueError: All pixels of all images are equal.
    """
    flat = int(flat_images(images).sum())
    if (images == images[:1, :, :1, :1]).all():
        raise ValueError(
            f"all pixels of {len(images)} sampled pretraining images have the value "
            f"{images[0, :, 0, 0].tolist()}, so there is nothing to learn; check the files, and "
            "data.value_range if they have more than 8 bits"
        )
    if flat > NOTED * len(images):
        rank_zero_warn(
            f"{flat} of {len(images)} sampled pretraining images have one colour each; they teach nothing, "
            "and any network restores them, with a PSNR of up to 100 dB that raises the mean"
        )
    different = len({hashlib.blake2b(each.contiguous().numpy()).digest() for each in images})
    if different <= len(images) / 2:
        rank_zero_warn(
            f"only {different} of {len(images)} sampled pretraining images are different; held-out images "
            "may be training images too"
        )


def flat_images(images: Tensor) -> Tensor:
    """Return which images (n, C, H, W) have one colour only, (n,) bool.

    >>> import torch
    >>> flat_images(torch.tensor([[[[7, 7]]], [[[7, 8]]]])).tolist()
    [True, False]
    """
    pixels = images.flatten(2)
    return (pixels.amin(2) == pixels.amax(2)).all(1)


def grey_images(images: Tensor) -> Tensor:
    """Return which RGB images (n, 3, H, W) uint8 are grey, but for the noise of a compression, (n,) bool."""
    spread = images.amax(1) - images.amin(1)  # (n, H, W)
    return spread.flatten(1).float().mean(1) <= GREY_SPREAD
