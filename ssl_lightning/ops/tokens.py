"""Images as tokens: patches, and random draws of the tokens that stay visible."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Masking(NamedTuple):
    """Visible and hidden tokens of each image.

    Attributes:
        keep: Numbers of the visible tokens, `(B, M)` int64, in random order.
        restore: `(B, T)` int64; place of each token in the sequence of visible, then hidden tokens.
        hidden: `(B, T)` bool, true where a token is hidden.
    """

    keep: Tensor
    restore: Tensor
    hidden: Tensor


def draw_masking(batch: int, tokens: int, visible: int, stream: torch.Generator) -> Masking:
    """Draw the visible tokens of each image; all choices are equally likely.

    Args:
        batch: B.
        tokens: T, tokens of an image.
        visible: M of them stay visible, 1 to T.
        stream: Source of the draws, on the device of the result.
    """
    order = torch.rand(batch, tokens, generator=stream, device=stream.device).argsort(1)
    restore = order.argsort(1)
    return Masking(order[:, :visible], restore, restore >= visible)


def to_patches(images: Tensor, size: int) -> Tensor:
    """Cut images `(B, C, H, W)` into patches row by row: `(B, T, C * size * size)`.

    >>> to_patches(torch.arange(16.0).view(1, 1, 4, 4), 2)[0, 1].tolist()
    [2.0, 3.0, 6.0, 7.0]
    """
    patches = images.unflatten(3, (-1, size)).unflatten(2, (-1, size))  # (B, C, rows, s, columns, s)
    return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def from_patches(patches: Tensor, channels: int, size: int) -> Tensor:
    """Join the patches of square images, `(B, T, C * size * size)`: `(B, C, H, W)`."""
    side = round(patches.shape[1] ** 0.5)
    parts = patches.unflatten(1, (side, side)).unflatten(3, (channels, size, size))
    return parts.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
