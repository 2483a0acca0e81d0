"""Square tiles cut from images at random places (Noroozi, Favaro 2016; Doersch et al. 2015)."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_lightning.ops.tile_grid import NEIGHBOURS, TileGrid


def draw_corners(grid: TileGrid, batch: int, generator: torch.Generator) -> Tensor:
    """Draw the corners of the tiles of each image: `(B, n, 2)` int64, on the device of the generator.

    A corner is the upper left pixel (y, x) of a tile. Tiles are numbered row by row on their grid.
    """
    device = generator.device
    slack = grid.image_size - grid.extent
    origin = torch.randint(slack + 1, (batch, 1, 2), generator=generator, device=device)
    shift = torch.randint(grid.play + 1, (batch, grid.count, 2), generator=generator, device=device)
    return origin + grid.pitch * _cells(grid, device) + shift


def regular_corners(grid: TileGrid, device: torch.device | str = "cpu") -> Tensor:
    """Return the corners in the middle of the range of `draw_corners`: `(n, 2)` int64."""
    origin = (grid.image_size - grid.extent) // 2 + grid.play // 2
    return origin + grid.pitch * _cells(grid, device)


def _cells(grid: TileGrid, device: torch.device | str) -> Tensor:
    steps = torch.arange(grid.side, device=device)
    return torch.cartesian_prod(steps, steps)  # (n, 2): row, column


def draw_neighbours(batch: int, pairs: int, generator: torch.Generator) -> Tensor:
    """Draw distinct neighbours for each image: `(B, pairs)` int64 in 0..7, indices into `NEIGHBOURS`.

    Raises:
        ValueError: `pairs` is below 1 or above 8.
    """
    if not 1 <= pairs <= len(NEIGHBOURS):
        raise ValueError(f"pairs is {pairs}; allowed are 1 to {len(NEIGHBOURS)}, all neighbours")
    scores = torch.rand(batch, len(NEIGHBOURS), generator=generator, device=generator.device)
    return scores.argsort(dim=1)[:, :pairs]


def shift_channels(
    corners: Tensor, channels: int, shift: int, last: int, generator: torch.Generator
) -> Tensor:
    """Shift the channels of each tile against each other to hide chromatic aberration.

    Args:
        corners: `(B, n, 2)`.
        channels: C.
        shift: Each channel moves by -shift..shift pixels in each direction (Noroozi, Favaro: 2).
        last: Largest corner of a tile in the image (image size - tile); corners are clamped to 0..last.
        generator: Draws the shifts.

    Returns:
        Corners of the channels, `(B, n, C, 2)`.
    """
    size = (*corners.shape[:2], channels, 2)
    moves = torch.randint(-shift, shift + 1, size, generator=generator, device=corners.device)
    return (corners[:, :, None] + moves).clamp_(0, last)


def cut_tiles(
    images: Tensor,
    corners: Tensor,
    tile: int,
    dtype: torch.dtype | None = None,
    *,
    channels_last: bool = False,
) -> Tensor:
    """Cut tiles from images in one gather.

    Args:
        images: `(B, C, H, W)` of any dtype; uint8 takes a third of the time of floats.
        corners: `(B, n, 2)`, or `(B, n, C, 2)` with one for each channel.
        tile: Height and width t.
        dtype: Type of the tiles, with unchanged values; None: the type of the images.
        channels_last: Whether the tiles are channels-last in memory, as backbones prefer. Cutting them from
            channels-last images is several times as fast.

    Returns:
        `(B, n, C, t, t)`, dense in this order (or with C last) for any memory format of the images.

    Raises:
        ValueError: The tile is below 1 px or larger than the image.
    """
    batch, channels, height, width = images.shape
    if not 1 <= tile <= min(height, width):
        raise ValueError(f"tile is {tile} px; allowed are 1 to {min(height, width)}, the size of the image")
    dtype = dtype or images.dtype
    if not images.numel():  # as_strided needs memory to view
        return images.new_empty(batch, corners.shape[1], channels, tile, tile, dtype=dtype)
    # A channels-last image is one plane of pixels, others are C planes of single values
    pixelwise = not images.is_contiguous()
    images = images.contiguous(memory_format=torch.channels_last if pixelwise else torch.contiguous_format)
    planes, numbers = (1, channels) if pixelwise else (channels, 1)
    y, x = (corners[:, :, None] if corners.ndim == 3 else corners).unbind(-1)  # (B, n, C or 1)
    plane = torch.arange(batch * planes, device=images.device).view(batch, 1, planes)
    line = torch.arange(tile, device=images.device)
    begin = numbers * (((plane * height + y) * width + x)[..., None] + width * line)  # (B, n, planes, t)
    # A row of a tile is contiguous in memory. All pieces of this length form an overlapping view, from which
    # index_select copies complete rows in a third of the time of an index per pixel.
    length = tile * numbers
    pieces = images.as_strided((images.numel() - length + 1, length), (1, 1))
    tiles = pieces.index_select(0, begin.flatten()).view(*begin.shape, tile, numbers)
    if not pixelwise:
        tiles = tiles[..., 0]
    elif tiles.shape[2] == 1:
        tiles = tiles[:, :, 0].movedim(-1, 2)
    else:  # complete pixels at the corner of each channel: keep only that channel
        tiles = tiles.diagonal(dim1=2, dim2=-1).movedim(-1, 2)
    if channels_last:
        tiles = tiles.movedim(2, -1)
    if tiles.dtype == dtype:
        tiles = tiles.contiguous()
    else:
        tiles = tiles.to(dtype, memory_format=torch.contiguous_format)
    return tiles.movedim(-1, 2) if channels_last else tiles


def place_tiles(tiles: Tensor, corners: Tensor, image_size: int, background: float = 0.0) -> Tensor:
    """Paste tiles at their corners: the inverse of `cut_tiles` for tiles that do not overlap.

    Args:
        tiles: `(B, n, C, t, t)`.
        corners: `(B, n, 2)`.
        image_size: Height and width of the result.
        background: Value of pixels outside all tiles.

    Returns:
        `(B, C, image_size, image_size)`.
    """
    batch, _, channels, tile = tiles.shape[:4]
    canvas = tiles.new_full((batch, channels, image_size, image_size), background)
    within = torch.arange(tile, device=tiles.device)
    rows = (corners[..., 0, None] + within)[..., :, None]  # (B, n, t, 1)
    columns = (corners[..., 1, None] + within)[..., None, :]  # (B, n, 1, t)
    image = torch.arange(batch, device=tiles.device).view(-1, 1, 1, 1)
    canvas[image, :, rows, columns] = tiles.movedim(2, -1)
    return canvas


def permute_tiles(tiles: Tensor, orders: Tensor) -> Tensor:
    """Arrange the tiles of each image in several orders.

    Args:
        tiles: `(B, n, ...)`: pixels or embeddings.
        orders: `(B, P, n)` int64; position i shows tile `orders[..., i]`. `orders.argsort(-1)` inverts it.

    Returns:
        `(B, P, n, ...)`.
    """
    batch, count, places = orders.shape
    first = places * torch.arange(batch * count, device=tiles.device).view(batch, count, 1)
    # Expanding first makes the gradient deterministic, so that a resumed run ends bit-identical: no tile is
    # read twice, so no two threads add to one element. By rows, since the gradient of
    # `tiles[image, number, orders]` takes twice as long.
    copies = tiles[:, None].expand(-1, count, *tiles.shape[1:]).flatten(0, 2)
    return copies.index_select(0, (first + orders).flatten()).unflatten(0, orders.shape)
