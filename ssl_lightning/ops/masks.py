"""Masks of holes in images, and loss weights (context encoder: Pathak et al. 2016, sec. 3.3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# A mask is `(B, 1, S, S)` bool: True where pixels are removed

NUM_BLOCKS = 4


def centre_mask(batch: int, image_size: int, hole: int, device: torch.device | str = "cpu") -> Tensor:
    """Remove a square of `hole` px in the middle; an odd margin is one pixel larger at the bottom and right.

    Raises:
        ValueError: The hole does not fit the image.
    """
    _check_hole(hole, image_size, 1)
    begin = (image_size - hole) // 2
    mask = torch.zeros(batch, 1, image_size, image_size, dtype=torch.bool, device=device)
    mask[..., begin : begin + hole, begin : begin + hole] = True
    return mask


def square_masks(batch: int, image_size: int, hole: int, generator: torch.Generator) -> Tensor:
    """Remove one square of `hole` px at a random place of each image.

    Args:
        batch: B.
        image_size: S.
        hole: Side of the square, 1 to S.
        generator: Draws the positions; the mask is on its device.

    Raises:
        ValueError: The hole is below 1, or does not fit the image.
    """
    _check_hole(hole, image_size, 1)
    return _squares(batch, image_size, hole, 1, generator)


def block_masks(batch: int, image_size: int, hole: int, generator: torch.Generator) -> Tensor:
    """Remove four random squares of half the hole's side, which may overlap.

    Args:
        batch: B.
        image_size: S.
        hole: Side of a square whose area bounds theirs, 2 to S.
        generator: Draws the positions; the mask is on its device.

    Raises:
        ValueError: The hole is below 2, or does not fit the image.
    """
    _check_hole(hole, image_size, 2)
    return _squares(batch, image_size, hole // 2, NUM_BLOCKS, generator)


def region_masks(batch: int, image_size: int, hole: int, generator: torch.Generator) -> Tensor:
    """Remove smooth random regions with the area of a square hole: the lowest pixels of enlarged noise.

    The noise repeats itself and lies at a random place, so each pixel is removed equally often. A region that
    leaves the image on one side goes on at the other.

    Args:
        batch: B.
        image_size: S.
        hole: Side of the square of the same area; S / 2 removes a quarter, as in the paper.
        generator: Draws the noise and its place; the mask is on its device.

    Raises:
        ValueError: The hole is below 1, or does not fit the image.
    """
    _check_hole(hole, image_size, 1)
    device = generator.device
    # the authors have 0.06 cells per pixel, 7.7 in 128 px; in small images so many would make tiny blobs
    cells = min(4, image_size)
    noise = torch.rand(batch, 1, cells, cells, generator=generator, device=device)
    place = torch.rand(batch, 2, 1, generator=generator, device=device)  # in cells; x and y
    around = torch.arange(-1, cells + 3, device=device) % cells  # what bicubic interpolation reads
    at = 1 + place + torch.arange(image_size, device=device) * (cells / image_size)  # (B, 2, S), in `around`
    x, y = (2 * at / (cells + 3) - 1).unbind(1)
    shape = (batch, image_size, image_size)
    grid = torch.stack([x[:, None, :].expand(shape), y[:, :, None].expand(shape)], -1)
    smooth = F.grid_sample(noise[:, :, around[:, None], around], grid, mode="bicubic", align_corners=True)
    rank = smooth.flatten(1).argsort(dim=1, stable=True).argsort(dim=1)  # (B, S * S): 0 for the lowest pixel
    return (rank < hole * hole).view_as(smooth)


def fill(images: Tensor, mask: Tensor, colour: Tensor) -> Tensor:
    """Paint removed pixels in one colour, `(1, C, 1, 1)`."""
    return torch.where(mask, colour.to(images.dtype), images)


def border_weights(mask: Tensor, overlap: int, weight: float = 10.0) -> Tensor:
    """Weigh pixels for the loss: 1 in the hole, `weight` in a visible band around it, 0 elsewhere.

    The band makes predictions continue across the hole's border (sec. 4).

    Args:
        mask: `(B, 1, S, S)`.
        overlap: Width of the band in pixels, 0 for none; it ends at the border of the image.
        weight: Weight of pixels in the band (paper: 10).

    Returns:
        `(B, 1, S, S)` float32.
    """
    hole = mask.float()
    grown = F.max_pool2d(hole, 2 * overlap + 1, stride=1, padding=overlap)
    return hole + weight * (grown - hole)


def _check_hole(hole: int, image_size: int, smallest: int) -> None:
    if not smallest <= hole <= image_size:
        raise ValueError(f"hole is {hole} px; allowed are {smallest} to {image_size}, the size of the image")


def _squares(batch: int, image_size: int, side: int, count: int, generator: torch.Generator) -> Tensor:
    shape = (2, batch, count, 1)
    corner = torch.randint(image_size - side + 1, shape, generator=generator, device=generator.device)
    at = torch.arange(image_size, device=generator.device)
    rows, columns = (corner <= at) & (at < corner + side)  # each (B, count, S)
    return (rows[..., :, None] & columns[..., None, :]).any(1, keepdim=True)
