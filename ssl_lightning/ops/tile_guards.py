"""Guards against shortcuts: they remove cues that solve a patch task without recognising objects."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# Tiles are `(B, n, C, t, t)` floats. Every draw is one tensor operation for the batch. With `inplace` the
# result overwrites the tiles, which are a copy of the images: new memory costs as much as the arithmetic.

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601: weights of R, G, B in a grey value
GREEN_MAGENTA = (-1.0, 2.0, -1.0)  # axis in RGB along which lenses shift colours (Doersch et al. 2015)


def standardise_tiles(tiles: Tensor, smallest: float = 1 / 255, *, inplace: bool = False) -> Tensor:
    """Give every channel of every tile mean 0 and standard deviation 1 (Noroozi, Favaro 2016, sec. 4.2).

    Without it, slow changes of brightness over the image reveal the position of a tile.

    Args:
        tiles: `(..., t, t)` floats, of any range.
        smallest: Lower bound for the deviation, so that flat tiles do not become noise. The default is one
            grey level in [0, 1].
        inplace: Whether to overwrite the tiles.
    """
    pixels = tiles.shape[-2] * tiles.shape[-1]
    mean = tiles.mean((-2, -1), keepdim=True)
    centred = tiles.sub_(mean) if inplace else tiles - mean
    # not torch.var_mean: 40 times slower than a norm on a CPU
    norm = torch.linalg.vector_norm(centred.flatten(-2), dim=-1)[..., None, None]
    return centred.mul_(norm.div_(pixels**0.5).clamp_(min=smallest).reciprocal_())


def grey_scale(
    tiles: Tensor, probability: float, generator: torch.Generator, *, inplace: bool = False
) -> Tensor:
    """Make all tiles of some images grey, so that colour alone cannot solve the task.

    Args:
        tiles: `(B, ..., C, t, t)`; returned unchanged if C is not 3.
        probability: Probability that an image becomes grey, in [0, 1] (Noroozi, Favaro: 0.3; Kolesnikov et
            al.: 0.66).
        generator: Draws the images.
        inplace: Whether to overwrite the tiles.
    """
    if tiles.shape[-3] != len(LUMA) or probability == 0:
        return tiles
    chosen = torch.rand(len(tiles), generator=generator, device=tiles.device) < probability
    return _change(tiles if inplace else tiles.clone(), chosen, _grey)


def _grey(tiles: Tensor) -> Tensor:
    red, green, blue = tiles.unbind(-3)
    grey = (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])
    return grey.unsqueeze(-3).expand_as(tiles)


def _change(items: Tensor, chosen: Tensor, change: Callable[..., Tensor], *given: Tensor) -> Tensor:
    """Replace the items `(N, ...)` selected by the mask `(N,)` with `change(items, *given)`.

    A CPU computes only these. A GPU computes all, since counting the chosen forces a synchronisation.
    """
    if items.device.type != "cpu":
        where = chosen.view(-1, *[1] * (items.ndim - 1))
        return items.copy_(torch.where(where, change(items, *given), items))
    rows = chosen.nonzero()[:, 0]
    return items.index_copy_(0, rows, change(*(values.index_select(0, rows) for values in (items, *given))))


def drop_colours(tiles: Tensor, generator: torch.Generator, noise: float = 0.01) -> Tensor:
    """Keep one channel of each tile and fill the others with noise (Doersch et al. 2015, sec. 3.1).

    Args:
        tiles: `(B, n, C, t, t)`, normalised; returned unchanged if C is 1.
        generator: Draws the kept channel and the noise.
        noise: Standard deviation of the noise over the standard deviation of the kept channel.
    """
    channels = tiles.shape[2]
    if channels == 1:
        return tiles
    kept = torch.randint(channels, tiles.shape[:2], generator=generator, device=tiles.device)
    stays = F.one_hot(kept, channels).bool()[..., None, None]  # (B, n, C, 1, 1)
    deviation = torch.where(stays, tiles.std((3, 4), correction=0, keepdim=True), 0).sum(2, keepdim=True)
    filling = torch.randn(tiles.shape, generator=generator, device=tiles.device, dtype=tiles.dtype)
    return torch.where(stays, tiles, filling * (noise * deviation))


def colour_projection(channels: int) -> Tensor:
    """Return the matrix `(C, C)` that removes a pixel's green-magenta part (Doersch et al. 2015, sec. 3.1).

    Args:
        channels: C; if it is not 3, the matrix is the identity.
    """
    matrix = torch.eye(channels)
    if channels != len(GREEN_MAGENTA):
        return matrix
    axis = torch.tensor(GREEN_MAGENTA)
    return matrix - torch.outer(axis, axis) / axis.dot(axis)


def mix_colours(tiles: Tensor, matrix: Tensor, offset: Tensor | None = None) -> Tensor:
    """Map the colours of every pixel linearly by a 1x1 convolution, which is fast for channels-last tiles.

    Args:
        tiles: `(B, n, C, t, t)` floats.
        matrix: `(C, C)` floats; a pixel x becomes `matrix @ x`.
        offset: Added afterwards, `(C,)` floats; None adds nothing.

    Returns:
        The same shape, type and memory format.
    """
    offset = None if offset is None else offset.to(tiles.dtype)
    with torch.autocast(tiles.device.type, enabled=False):  # pixels in bf16 would lose the last bits
        mixed = F.conv2d(tiles.flatten(0, 1), matrix.to(tiles.dtype)[..., None, None], offset)
    return mixed.unflatten(0, tiles.shape[:2])


def resampling_table(tile: int, smallest: int) -> Tensor:
    """Tabulate the matrices that shrink a row of a tile and enlarge it again.

    Both steps are linear and act equally on rows and columns: a tile X resampled through k pixels is
    `M X M^T`. One table serves a batch in which every tile has its own k.

    Args:
        tile: Size t in pixels.
        smallest: Smallest intermediate size, in 1..t.

    Returns:
        `(t - smallest + 1, t, t)` floats: M for k = smallest, ..., t; the last is the identity.

    Raises:
        ValueError: `smallest` is out of range.
    """
    if not 1 <= smallest <= tile:
        raise ValueError(f"smallest is {smallest}; allowed are 1 to {tile}, the size of a tile in pixels")
    unit = torch.eye(tile)[None, None]  # (1, 1, t, t): each column is one pixel of a row
    table = []
    for size in range(smallest, tile + 1):
        small = F.interpolate(unit, (size, tile), mode="bilinear", antialias=True)
        table.append(F.interpolate(small, (tile, tile), mode="bilinear")[0, 0])
    return torch.stack(table)


def resample_tiles(
    tiles: Tensor, table: Tensor, probability: float, generator: torch.Generator, *, inplace: bool = False
) -> Tensor:
    """Shrink some tiles to a random size and enlarge them again, so that sharpness is not a cue.

    Args:
        tiles: `(B, n, C, t, t)` floats.
        table: From `resampling_table`; sizes are drawn uniformly from it.
        probability: Probability that a tile is resampled, in [0, 1].
        generator: Draws the tiles and their sizes.
        inplace: Whether to overwrite the tiles.
    """
    shape, device = tiles.shape[:2], tiles.device
    row = torch.randint(len(table), shape, generator=generator, device=device)
    chosen = torch.rand(shape, generator=generator, device=device) < probability
    flat = (tiles if inplace else tiles.clone()).flatten(0, 1)  # (B * n, C, t, t)
    exact = torch.promote_types(tiles.dtype, table.dtype)

    def resampled(some: Tensor, rows: Tensor) -> Tensor:
        matrix = table[rows].unsqueeze(1).to(exact)  # (N, 1, t, t)
        return (matrix @ some.to(exact) @ matrix.mT).to(some.dtype)

    with torch.autocast(device.type, enabled=False):  # pixels in bf16 would lose the last bits
        return _change(flat, chosen.flatten(), resampled, row.flatten()).unflatten(0, shape)
