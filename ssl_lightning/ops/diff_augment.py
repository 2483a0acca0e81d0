"""Augmentations of both kinds of pictures before a discriminator (DiffAugment: Zhao et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

AUGMENTATIONS = ("colour", "translation", "cutout")
SHIFT, HOLE = 0.125, 0.5  # largest shift and side of the hole, as shares of the picture


def diff_augment(
    pictures: Sequence[Tensor], kinds: Sequence[str], stream: torch.Generator
) -> tuple[Tensor, ...]:
    """Augment batches in the same way, so that gradients pass through.

    The pictures at the same place of all batches share their draws.

    - "colour": a random brightness, saturation and contrast.
    - "translation": a shift by up to an eighth of the picture; what enters is 0, the mean colour.
    - "cutout": a square of half the side turns 0; it may reach over the border.

    Args:
        pictures: Batches `(N, C, H, W)` of equal shape, normalised.
        kinds: Some of `AUGMENTATIONS`, applied in the order of that tuple.
        stream: Draws on its device, which is that of the pictures.
    """
    x = torch.stack(list(pictures))  # (V, N, C, H, W)
    count, height, width = x.shape[1], *x.shape[3:]
    device = stream.device

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, 1, generator=stream, device=device)

    def integers(low: int, high: int) -> Tensor:
        return torch.randint(low, high + 1, (count, 1), generator=stream, device=device)

    if "colour" in kinds:
        x = x + uniform(-0.5, 0.5)
        grey = x.mean(2, keepdim=True)
        x = grey + (x - grey) * uniform(0, 2)
        mean = x.mean((2, 3, 4), keepdim=True)
        x = mean + (x - mean) * uniform(0.5, 1.5)
    rows, columns = (torch.arange(size, device=device) for size in (height, width))
    if "translation" in kinds:
        for axis, places in ((3, rows), (4, columns)):
            most = int(len(places) * SHIFT + 0.5)
            source = places + integers(-most, most)  # (N, H) or (N, W)
            inside = (source >= 0) & (source < len(places))
            at, kept = (_along(each, axis) for each in (source.clamp(0, len(places) - 1), inside))
            x = torch.where(kept, x.gather(axis, at.expand(x.shape)), 0.0)
    if "cutout" in kinds:
        hidden = []
        for places in (rows, columns):
            side = int(len(places) * HOLE + 0.5)
            begin = integers(-(side // 2), len(places) - 1 - side // 2)  # the middle is at any pixel
            hidden.append((begin <= places) & (places < begin + side))
        hole = hidden[0][:, None, :, None] & hidden[1][:, None, None, :]  # (N, 1, H, W)
        x = torch.where(hole, 0.0, x)
    return x.unbind()


def _along(values: Tensor, axis: int) -> Tensor:
    """View `(N, size)` as `(1, N, 1, H or 1, 1 or W)`."""
    shape = [1, len(values), 1, 1, 1]
    shape[axis] = values.shape[1]
    return values.view(shape)
