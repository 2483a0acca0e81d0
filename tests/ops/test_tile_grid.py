"""Tile grids: the papers' sizes, and refusal of grids that overlap or leave the image."""

import pytest

from ssl_lightning.ops.tile_grid import AROUND, NEIGHBOURS, TileGrid, jigsaw_grid, neighbour_grid


@pytest.mark.parametrize(("size", "cell", "tile"), [(255, 85, 64), (96, 32, 24), (64, 21, 16), (32, 10, 8)])
def test_rules(size: int, cell: int, tile: int) -> None:
    grid = jigsaw_grid(size)
    assert (grid.tile, grid.pitch, grid.play, grid.count) == (tile, cell, cell - tile, 9)
    pair = neighbour_grid(size)
    gap = cell - tile
    assert (pair.tile, pair.pitch, pair.play) == (tile, tile + gap, 2 * (gap // 2))


def test_without_a_gap_tiles_touch() -> None:
    assert jigsaw_grid(255, gap=False) == TileGrid(255, 3, 64, 64, 0)
    assert neighbour_grid(255, gap=0) == TileGrid(255, 3, 64, 64, 0)


def test_keys_override_the_rules() -> None:
    assert jigsaw_grid(64, side=4, cell=12, tile=10) == TileGrid(64, 4, 10, 12, 2)
    assert neighbour_grid(400, tile=96, gap=48, jitter=7) == TileGrid(400, 3, 96, 144, 14)  # Doersch et al.


@pytest.mark.parametrize("size", range(9, 70))
def test_every_size_has_a_grid(size: int) -> None:
    for grid in (jigsaw_grid(size), neighbour_grid(size), jigsaw_grid(size, side=2)):
        assert grid.extent <= size
        assert grid.pitch - grid.play >= grid.tile


def test_names_of_the_places() -> None:
    rows, columns = ("top", "", "bottom"), ("left", "", "right")
    for name, index in zip(NEIGHBOURS, AROUND, strict=True):
        assert name == f"{rows[index // 3]} {columns[index % 3]}".strip()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: jigsaw_grid(32, side=1), "task.grid is 1"),
        (lambda: jigsaw_grid(2), "task.grid is 3; .*data.image_size=2"),
        (
            lambda: jigsaw_grid(32, cell=11),
            r"task.cell is 11 px; allowed are 1 to 10.*image_size to 33 or more",
        ),
        (lambda: jigsaw_grid(32, cell=0), "task.cell is 0 px; allowed are 1 to 10"),
        (
            lambda: jigsaw_grid(32, tile=11),
            "task.tile is 11 px; allowed are 1 to 10.*image_size to 33 or more",
        ),
        (lambda: jigsaw_grid(32, tile=0), "task.tile is 0 px"),
        (lambda: neighbour_grid(32, tile=0), "task.tile is 0 px and task.gap"),
        (lambda: neighbour_grid(32, gap=-1), "task.gap -1 px"),
        (lambda: neighbour_grid(32, jitter=2), "task.jitter is 2 px; allowed are 0 to 1, half of task.gap=2"),
        (lambda: neighbour_grid(32, jitter=-1), "task.jitter is -1 px"),
        (lambda: neighbour_grid(255, tile=96, gap=48, jitter=7), "need 398 px.*image_size is 255"),
        (lambda: TileGrid(32, 3, 8, 8, 1), "play <= pitch - tile"),
        (lambda: TileGrid(32, 3, 8, 12, 1), "need 33 px"),
    ],
)
def test_bad_values_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
