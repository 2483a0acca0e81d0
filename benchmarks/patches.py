"""Time the corruption of a jigsaw: batched gathers against one image at a time, as loaders usually do it.

    python benchmarks/patches.py

Both cut nine tiles of 64 px out of each image of 255 px, with random gaps and shifted channels, make some
images grey, and standardise every tile. Prints milliseconds per batch and their ratio. Runs with the settings
of the memory allocator that every training run has.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import time
from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as tv

from ssl_lightning.launch import ALLOCATOR
from ssl_lightning.ops.patches import cut_tiles, draw_corners, shift_channels
from ssl_lightning.ops.tile_grid import TileGrid, jigsaw_grid
from ssl_lightning.ops.tile_guards import grey_scale, standardise_tiles
from ssl_lightning.seeding import generator

GREY, SHIFT = 0.3, 2


def batched(images: Tensor, grid: TileGrid, stream: torch.Generator) -> Tensor:
    """What `task=jigsaw` does: `(B, C, H, W)` floats in [0, 1] to tiles `(B, 9, C, t, t)`."""
    last = grid.image_size - grid.tile
    corners = shift_channels(draw_corners(grid, len(images), stream), images.shape[1], SHIFT, last, stream)
    tiles = grey_scale(cut_tiles(images, corners, grid.tile), GREY, stream, inplace=True)
    return standardise_tiles(tiles, inplace=True)


def one_by_one(images: list[Image.Image], grid: TileGrid) -> Tensor:
    """The same with PIL and torchvision, tile by tile."""
    return torch.stack([torch.stack(tiles_of(image, grid)) for image in images])


def tiles_of(image: Image.Image, grid: TileGrid) -> list[Tensor]:
    """Cut and standardise the nine tiles of one image."""
    if random.random() < GREY:
        image = tv.to_grayscale(image, num_output_channels=3)
    tiles, last = [], grid.image_size - grid.tile
    for row in range(grid.side):
        for column in range(grid.side):
            y, x = (grid.pitch * place + random.randint(0, grid.play) for place in (row, column))
            channels = []
            for channel in image.split():
                top = min(max(y + random.randint(-SHIFT, SHIFT), 0), last)
                left = min(max(x + random.randint(-SHIFT, SHIFT), 0), last)
                channels.append(tv.crop(channel, top, left, grid.tile, grid.tile))
            tile = tv.to_tensor(Image.merge("RGB", channels))  # (3, t, t)
            mean, std = tile.mean((1, 2)), tile.std((1, 2)).clamp(min=1 / 255)
            tiles.append(tv.normalize(tile, mean.tolist(), std.tolist()))
    return tiles


def median_ms(work: Callable[[], object], repeats: int) -> float:
    """Median milliseconds of a call, after one that warms up."""
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times[1:])


def main() -> None:
    """Run both and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--image-size", type=int, default=255, help="pixels")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    stream = generator("benchmark")
    shape = (options.batch_size, 3, options.image_size, options.image_size)
    pixels = torch.randint(256, shape, dtype=torch.uint8, generator=stream)
    pictures = [tv.to_pil_image(image) for image in pixels]
    images = pixels / 255
    grid = jigsaw_grid(options.image_size)
    ours = median_ms(lambda: batched(images, grid, stream), options.repeats)
    theirs = median_ms(lambda: one_by_one(pictures, grid), options.repeats)
    print(f"{len(images)} images of {options.image_size} px, {torch.get_num_threads()} threads")
    print(f"batched {ours:.1f} ms, one by one {theirs:.1f} ms: {theirs / ours:.1f} times faster")


if __name__ == "__main__":
    if not ALLOCATOR.keys() <= os.environ.keys():  # read by the C library as the process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], ALLOCATOR | os.environ)
    main()
