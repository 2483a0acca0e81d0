"""Benchmark of batched pretext ops against one image at a time with PIL, torchvision, scikit-image."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterable

import numpy as np
import torch
from PIL import Image
from skimage.color import rgb2lab
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import functional as tv

from ssl_lightning.bench.build import device, in_new_process, ratio, time_in_turns
from ssl_lightning.core.seeding import generator
from ssl_lightning.ops.lab import rgb_to_lab
from ssl_lightning.ops.patches import cut_tiles, draw_corners, shift_channels
from ssl_lightning.ops.rotation import rotate_four
from ssl_lightning.ops.tile_grid import CENTRE, TileGrid, jigsaw_grid
from ssl_lightning.ops.tile_guards import colour_projection, grey_scale, mix_colours, standardise_tiles
from ssl_lightning.ops.views import Strengths, draw_views, make_views
from ssl_lightning.tasks._pixels import to_float

GREY, SHIFT = 0.3, 2
PROCESSES = 5
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
Pair = tuple[Callable[[], object], Callable[[], object]]


def ops_against_loops(batch_size: int, repeats: int) -> list[dict[str, object]]:
    """Time each op both ways on generated images, in milliseconds per batch.

    The batched ops run on the GPU, if any, with the images already there, as in training. Figures are medians
    over processes: memory placement makes an op up to 1.4 times as fast in some processes.
    """
    processes = [in_new_process(all_both_ways, batch_size, repeats) for _ in range(PROCESSES)]
    rows: list[dict[str, object]] = []
    for (name, size, _), times in zip(cases(), zip(*processes, strict=True), strict=True):
        ours, theirs = (1000 * statistics.median(each) for each in zip(*times, strict=True))
        found = {"op": name, "images": batch_size, "pixels": size, "ms": ours, "one_by_one_ms": theirs}
        rows.append(found | ratio("times", [one_by_one / batched for batched, one_by_one in times]))
    return rows


def cases() -> list[tuple[str, int, Callable[..., Pair]]]:
    """Return name, image size in pixels, and maker of each op."""
    return [
        ("jigsaw tiles", 255, jigsaw),
        ("context patches", 255, context),
        ("context pairs", 255, context_of_pairs),
        ("rotation", 32, rotation),
        ("Lab", 64, lab),
        ("views", 32, views),
    ]


def all_both_ways(batch_size: int, repeats: int) -> list[list[float]]:
    """Return the seconds of `both_ways` of each op."""
    return [both_ways(make, batch_size, size, repeats) for _, size, make in cases()]


def both_ways(make: Callable[..., Pair], batch_size: int, size: int, repeats: int) -> list[float]:
    """Return median seconds of a batch at once and one by one; the two take turns."""
    shape = (batch_size, 3, size, size)
    pixels = torch.randint(256, shape, dtype=torch.uint8, generator=generator("bench"))
    pictures = [tv.to_pil_image(image) for image in pixels]
    pixels = pixels.contiguous(memory_format=torch.channels_last)  # as from loaders
    return time_in_turns(make(pixels.to(device()), pictures), repeats)


def jigsaw(pixels: Tensor, pictures: list[Image.Image]) -> Pair:
    """Make nine tiles as in `task=jigsaw`: random gaps, shifted channels, some grey, standardised."""
    grid, stream = jigsaw_grid(pixels.shape[-1]), generator("bench", "jigsaw", device=pixels.device)

    def batched() -> Tensor:
        last = grid.image_size - grid.tile
        corners = shift_channels(draw_corners(grid, len(pixels), stream), 3, SHIFT, last, stream)
        tiles = grey_scale(cut_tiles(pixels, corners, grid.tile, torch.float32), GREY, stream, inplace=True)
        return standardise_tiles(tiles, smallest=1.0, inplace=True)

    def one_by_one() -> Tensor:
        return torch.stack([torch.stack(jigsaw_tiles(picture, grid)) for picture in pictures])

    return batched, one_by_one


def jigsaw_tiles(picture: Image.Image, grid: TileGrid) -> list[Tensor]:
    """Cut and standardise the nine tiles of one picture."""
    if random.random() < GREY:
        picture = tv.to_grayscale(picture, num_output_channels=3)
    tiles, last = [], grid.image_size - grid.tile
    for y, x in corners_of(grid):
        channels = []
        for channel in picture.split():
            top = min(max(y + random.randint(-SHIFT, SHIFT), 0), last)
            left = min(max(x + random.randint(-SHIFT, SHIFT), 0), last)
            channels.append(tv.crop(channel, top, left, grid.tile, grid.tile))
        tile = tv.to_tensor(Image.merge("RGB", channels))  # (3, t, t)
        mean, std = tile.mean((1, 2)), tile.std((1, 2)).clamp(min=1 / 255)
        tiles.append(tv.normalize(tile, mean.tolist(), std.tolist()))
    return tiles


def context(pixels: Tensor, pictures: list[Image.Image]) -> Pair:
    """Cut a centre and its eight neighbours once for all pairs, without green-magenta, normalised."""
    grid, stream = jigsaw_grid(pixels.shape[-1]), generator("bench", "context", device=pixels.device)
    mean, std = (torch.tensor(values, device=pixels.device) for values in (MEAN, STD))
    matrix, offset = colour_projection(3).to(pixels.device) / (255 * std[:, None]), -mean / std

    def batched() -> Tensor:
        corners = draw_corners(grid, len(pixels), stream)
        patches = cut_tiles(pixels, corners, grid.tile, torch.float32, channels_last=True)
        return mix_colours(patches, matrix, offset)

    def one_by_one() -> Tensor:
        return torch.stack([torch.stack(context_patches(picture, grid, range(9))) for picture in pictures])

    return batched, one_by_one


def context_of_pairs(pixels: Tensor, pictures: list[Image.Image]) -> Pair:
    """Compare `context` with a data set of pairs `(2, 3, t, t)` that cuts each pair separately."""
    grid = jigsaw_grid(pixels.shape[-1])
    batched, _ = context(pixels, pictures)

    def one_by_one() -> Tensor:
        places = [place for place in range(9) if place != CENTRE]
        pairs = [
            [torch.stack(context_patches(picture, grid, (CENTRE, place))) for place in places]
            for picture in pictures
        ]
        return torch.stack([torch.stack(each) for each in pairs])

    return batched, one_by_one


def context_patches(picture: Image.Image, grid: TileGrid, places: Iterable[int]) -> list[Tensor]:
    """Cut some of the nine patches of one picture."""
    corners = corners_of(grid)
    crops = [tv.crop(picture, *corners[place], grid.tile, grid.tile) for place in places]
    return [tv.normalize(without_magenta(tv.to_tensor(crop)), MEAN, STD) for crop in crops]


def without_magenta(tile: Tensor) -> Tensor:
    """Remove the green-magenta part of every pixel `(3, t, t)`."""
    red, green, blue = tile
    magenta = (red + blue - 2 * green) / 6
    return torch.stack([red - magenta, green + 2 * magenta, blue - magenta])


def corners_of(grid: TileGrid) -> list[tuple[int, int]]:
    """Draw the upper left corner of each tile, row by row."""
    return [
        (grid.pitch * row + random.randint(0, grid.play), grid.pitch * column + random.randint(0, grid.play))
        for row in range(grid.side)
        for column in range(grid.side)
    ]


def rotation(pixels: Tensor, pictures: list[Image.Image]) -> Pair:
    """Make the four rotated copies of every image."""

    def one_by_one() -> Tensor:
        copies = [[tv.to_tensor(picture.rotate(90 * turns)) for turns in range(4)] for picture in pictures]
        return torch.stack([torch.stack(each) for each in copies])

    return lambda: rotate_four(to_float(pixels)), one_by_one


def lab(pixels: Tensor, pictures: list[Image.Image]) -> Pair:
    """Convert RGB to Lab; one by one with scikit-image."""
    arrays = [np.asarray(picture) for picture in pictures]
    return (
        lambda: rgb_to_lab(pixels),
        lambda: torch.stack([torch.from_numpy(rgb2lab(array)).permute(2, 0, 1) for array in arrays]),
    )


def views(pixels: Tensor, pictures: list[Image.Image]) -> Pair:
    """Make one random view of every image as in `task=simclr`; one by one by torchvision on PIL pictures."""
    strengths, stream = Strengths(), generator("bench", "views", device=pixels.device)
    size = pixels.shape[-1]
    amounts = strengths.brightness, strengths.contrast, strengths.saturation, strengths.hue
    one = transforms.Compose(
        [
            transforms.RandomResizedCrop(size, tuple(strengths.crop_scale)),
            transforms.RandomHorizontalFlip(strengths.flip),
            transforms.RandomApply([transforms.ColorJitter(*amounts)], strengths.jitter),
            transforms.RandomGrayscale(strengths.grey),
            transforms.ToTensor(),
        ]
    )

    def batched() -> Tensor:
        return make_views(pixels, draw_views(len(pixels), size, size, strengths, stream))

    return batched, lambda: torch.stack([one(picture) for picture in pictures])
