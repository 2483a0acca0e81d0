"""Holes in images (context encoder: Pathak et al. 2016, sec. 3.3), and where their filling counts.

A mask is `(B, 1, S, S)` bool: True where pixels are removed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

NUM_BLOCKS = 4


def centre_mask(batch: int, image_size: int, hole: int, device: torch.device | str = "cpu") -> Tensor:
    """Remove a square of `hole` px in the middle; an odd rest is one pixel larger below and to the right.

    Raises:
        ValueError: The hole does not fit the image.
    """
    _check_hole(hole, image_size, 1)
    begin = (image_size - hole) // 2
    mask = torch.zeros(batch, 1, image_size, image_size, dtype=torch.bool, device=device)
    mask[..., begin : begin + hole, begin : begin + hole] = True
    return mask


def block_masks(batch: int, image_size: int, hole: int, generator: torch.Generator) -> Tensor:
    """Remove four squares of half the side of the hole, anywhere and overlapping: at most its area.

    Args:
        batch: B.
        image_size: S.
        hole: Side of the square that has the area that they have at most, at least 2.
        generator: Draws the places; the mask is on its device.

    Raises:
        ValueError: The hole is below 2, or does not fit the image.
    """
    _check_hole(hole, image_size, 2)
    side, device = hole // 2, generator.device
    shape = (2, batch, NUM_BLOCKS, 1)
    corner = torch.randint(image_size - side + 1, shape, generator=generator, device=device)
    at = torch.arange(image_size, device=device)
    rows, columns = (corner <= at) & (at < corner + side)  # each (B, blocks, S)
    return (rows[..., :, None] & columns[..., None, :]).any(1, keepdim=True)


def region_masks(batch: int, image_size: int, hole: int, generator: torch.Generator) -> Tensor:
    """Remove smooth random regions with as many pixels as a square hole: the low parts of enlarged noise.

    Args:
        batch: B.
        image_size: S.
        hole: Side of the square of the same area; half the image for the paper's quarter.
        generator: Draws the noise; the mask is on its device.

    Raises:
        ValueError: The hole has more pixels than the image, or none.
    """
    _check_hole(hole, image_size, 1)
    cells = min(
        4, image_size
    )  # the authors: 0.06 cells a pixel, 7.7 in 128 px; fewer keep blobs above a pixel
    noise = torch.rand(batch, 1, cells, cells, generator=generator, device=generator.device)
    smooth = F.interpolate(noise, (image_size, image_size), mode="bicubic", align_corners=False)
    rank = smooth.flatten(1).argsort(dim=1, stable=True).argsort(dim=1)  # (B, S * S): 0 for the lowest pixel
    return (rank < hole * hole).view_as(smooth)


def fill(images: Tensor, mask: Tensor, colour: Tensor) -> Tensor:
    """Paint what is removed in one colour, `(1, C, 1, 1)`."""
    return torch.where(mask, colour.to(images.dtype), images)


def border_weights(mask: Tensor, overlap: int, weight: float = 10.0) -> Tensor:
    """Weigh pixels for the loss: 1 in the hole, `weight` in a band around it that is visible, 0 elsewhere.

    A filling that also has to match the band cannot break off at the hole's border (sec. 4).

    Args:
        mask: `(B, 1, S, S)`.
        overlap: Width of the band in pixels, 0 for none; it ends at the border of the image.
        weight: Of a pixel of the band (paper: 10).

    Returns:
        `(B, 1, S, S)` float32.
    """
    hole = mask.float()
    grown = F.max_pool2d(hole, 2 * overlap + 1, stride=1, padding=overlap)
    return hole + weight * (grown - hole)


def _check_hole(hole: int, image_size: int, smallest: int) -> None:
    if not smallest <= hole <= image_size:
        raise ValueError(f"hole is {hole} px; allowed are {smallest} to {image_size}, the size of the image")
