"""Grids of tiles in an image, derived from its size."""

from __future__ import annotations

from dataclasses import dataclass

NEIGHBOURS = ("top left", "top", "top right", "left", "right", "bottom left", "bottom", "bottom right")
AROUND = (0, 1, 2, 3, 5, 6, 7, 8)  # tiles of a 3 x 3 grid around the centre, in the order of NEIGHBOURS
CENTRE = 4


@dataclass(frozen=True)
class TileGrid:
    """Grid of tiles: tile (r, c) lies at origin + pitch * (r, c) + a draw of 0..play in each direction.

    Tiles sit on a square grid, numbered row by row. Lengths are in pixels.

    Args:
        image_size: Height and width of the images in pixels.
        side: Tiles along an edge of the grid.
        tile: Height and width of a tile.
        pitch: Distance between the corners of neighbouring tiles with equal draws.
        play: Range of the draw; at most pitch - tile, so that no two tiles overlap.

    Raises:
        ValueError: Tiles could overlap or leave the image.
    """

    image_size: int
    side: int
    tile: int
    pitch: int
    play: int

    def __post_init__(self) -> None:
        if self.side < 2 or self.tile < 1 or not 0 <= self.play <= self.pitch - self.tile:
            raise ValueError(f"{self}: allowed are side >= 2, tile >= 1 and 0 <= play <= pitch - tile")
        if self.extent > self.image_size:
            raise ValueError(f"{self}: the tiles need {self.extent} px, more than the image has")

    @property
    def count(self) -> int:
        """Number of tiles n."""
        return self.side**2

    @property
    def extent(self) -> int:
        """Height and width of the area that tiles may cover."""
        return (self.side - 1) * self.pitch + self.play + self.tile


def default_tile(cell: int) -> int:
    """Return the tile size for a cell: three quarters, rounded up (Noroozi, Favaro 2016, sec. 4.2: 64 of 85).

    >>> [default_tile(cell) for cell in (85, 32, 21, 10)]
    [64, 24, 16, 8]
    """
    return -(-3 * cell // 4)


def jigsaw_grid(
    image_size: int, *, side: int = 3, cell: int | None = None, tile: int | None = None, gap: bool = True
) -> TileGrid:
    """Lay out a jigsaw (Noroozi, Favaro 2016): each tile lies anywhere in its cell, so edges do not continue.

    Args:
        image_size: Height and width of the images in pixels.
        side: Cells along an edge, at least 2.
        cell: Size of a cell; None: image_size // side. The grid moves randomly within the rest of the image.
        tile: Size of a tile; None: see `default_tile`.
        gap: False shrinks the cells to the tiles: neighbours touch, and their edges continue.

    Raises:
        ValueError: The cells do not fit the image, or the tile does not fit its cell.
    """
    if not 2 <= side <= image_size:
        raise ValueError(
            f"task.grid is {side}; allowed are 2 to {image_size} tiles along an edge "
            f"(data.image_size={image_size})"
        )
    largest = image_size // side
    cell = largest if cell is None else cell
    if not 1 <= cell <= largest:
        raise ValueError(
            f"task.cell is {cell} px; allowed are 1 to {largest}, so that {side} cells fit "
            f"data.image_size={image_size}; set task.cell to null, "
            f"or data.image_size to {max(side, side * cell)} or more"
        )
    tile = default_tile(cell) if tile is None else tile
    if not 1 <= tile <= cell:
        raise ValueError(
            f"task.tile is {tile} px; allowed are 1 to {cell}, the size of its cell; "
            f"set task.tile to null, or data.image_size to {max(side, side * tile)} or more"
        )
    return TileGrid(image_size, side, tile, *((cell, cell - tile) if gap else (tile, 0)))


def neighbour_grid(
    image_size: int, *, tile: int | None = None, gap: int | None = None, jitter: int | None = None
) -> TileGrid:
    """Lay out a patch and its eight neighbours (Doersch, Gupta, Efros 2015, sec. 3.1).

    The paper has patches of 96 px, gap 48 and jitter 7.

    Args:
        image_size: Height and width of the images in pixels.
        tile: Size of a patch; None: `default_tile` of a third of the image.
        gap: Pixels between neighbours before the jitter; None: a third of the image minus the patch.
        jitter: Largest shift of a patch in each direction, in pixels; None: half the gap, rounded down.

    Raises:
        ValueError: Patches could overlap or leave the image.
    """
    cell = image_size // 3
    tile = default_tile(cell) if tile is None else tile
    gap = max(0, cell - tile) if gap is None else gap
    jitter = gap // 2 if jitter is None else jitter
    if tile < 1 or gap < 0:
        raise ValueError(f"task.tile is {tile} px and task.gap {gap} px; allowed are tile >= 1 and gap >= 0")
    if not 0 <= jitter <= gap // 2:
        raise ValueError(
            f"task.jitter is {jitter} px; allowed are 0 to {gap // 2}, half of task.gap={gap}, so that "
            "patches do not overlap; set task.jitter to null, or task.gap to twice the jitter"
        )
    extent = 3 * tile + 2 * gap + 2 * jitter
    if extent > image_size:
        raise ValueError(
            f"task.tile={tile}, task.gap={gap} and task.jitter={jitter} need {extent} px (3 tiles, 2 gaps, "
            f"the jitter on both sides); data.image_size is {image_size}: make the patches smaller, or the "
            f"images {extent} px or more"
        )
    return TileGrid(image_size, 3, tile, tile + gap, 2 * jitter)
