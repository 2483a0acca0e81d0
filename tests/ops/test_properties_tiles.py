"""Properties of tile ops for all sizes, types and layouts: grids, cutting, ordering, guards."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from ssl_lightning.ops.patches import (
    cut_tiles,
    draw_corners,
    draw_neighbours,
    permute_tiles,
    place_tiles,
    regular_corners,
    shift_channels,
)
from ssl_lightning.ops.permutations import hamming, permutation_set
from ssl_lightning.ops.tile_grid import TileGrid, default_tile, jigsaw_grid, neighbour_grid
from ssl_lightning.ops.tile_guards import (
    colour_projection,
    drop_colours,
    grey_scale,
    mix_colours,
    resample_tiles,
    resampling_table,
    standardise_tiles,
)
from tests.ops._drawn import (
    ALL,
    FLOATS,
    LAYOUTS,
    SEEDS,
    TOLERANCE,
    close,
    drawn,
    generator,
    laid_out,
    pictures,
    tensors,
    unchanged,
    values,
)

MAYBE = st.none() | st.integers(-2, 20)


def made(make: Any) -> TileGrid | None:
    """Make a grid, or None if its size is refused by an error that names the key."""
    try:
        return make()
    except ValueError as error:
        said = str(error)
    assert said.startswith("task.")
    return None


def fits(grid: TileGrid) -> None:
    assert grid.count == grid.side**2
    assert grid.tile >= 1
    assert grid.play >= 0
    assert grid.play + grid.tile <= grid.pitch  # no two overlap
    last = (grid.side - 1) * grid.pitch + grid.play + grid.tile
    assert last == grid.extent <= grid.image_size


@pytest.mark.slow
@drawn(300)
@given(st.integers(1, 60), st.integers(-1, 8), MAYBE, MAYBE, st.booleans())
def test_jigsaw_grid(size: int, side: int, cell: int | None, tile: int | None, gap: bool) -> None:
    grid = made(lambda: jigsaw_grid(size, side=side, cell=cell, tile=tile, gap=gap))
    largest = size // side if side > 0 else 0
    cells = largest if cell is None else cell
    tiles = default_tile(cells) if tile is None else tile
    possible = 2 <= side <= size and 1 <= cells <= largest and 1 <= tiles <= cells
    assert (grid is not None) == possible
    if grid is not None:
        fits(grid)
        assert (grid.side, grid.tile) == (side, tiles)
        assert grid.play == (cells - tiles if gap else 0)


@pytest.mark.slow
@drawn(300)
@given(st.integers(1, 60), MAYBE, MAYBE, MAYBE)
def test_neighbour_grid(size: int, tile: int | None, gap: int | None, jitter: int | None) -> None:
    grid = made(lambda: neighbour_grid(size, tile=tile, gap=gap, jitter=jitter))
    if grid is not None:
        fits(grid)
        assert grid.side == 3
        assert tile in (None, grid.tile)
        assert gap in (None, grid.pitch - grid.tile)
        assert jitter in (None, grid.play // 2)
    elif tile is gap is jitter is None:
        assert size < 3


@pytest.mark.slow
@drawn(200)
@given(*[st.integers(-1, 12)] * 5)
def test_tile_grids_that_cannot_be_are_refused(
    size: int, side: int, tile: int, pitch: int, play: int
) -> None:
    possible = side >= 2 and tile >= 1 and 0 <= play <= pitch - tile
    possible = possible and (side - 1) * pitch + play + tile <= size
    if possible:
        fits(TileGrid(size, side, tile, pitch, play))
    else:
        with pytest.raises(ValueError, match="TileGrid"):
            TileGrid(size, side, tile, pitch, play)


@drawn(100)
@given(st.integers(1, 500))
def test_default_tile(cell: int) -> None:
    assert default_tile(cell) == math.ceil(0.75 * cell)
    assert 1 <= default_tile(cell) <= cell


GRIDS = st.tuples(
    st.integers(2, 4), st.integers(1, 5), st.integers(0, 3), st.integers(0, 3), st.integers(0, 4)
)


def grid_of(numbers: tuple[int, ...]) -> TileGrid:
    """Make a grid from side, tile, play, extra space between tiles, and extra space around them."""
    side, tile, play, more, around = numbers
    pitch = tile + play + more
    return TileGrid((side - 1) * pitch + play + tile + around, side, tile, pitch, play)


@pytest.mark.slow
@drawn()
@given(GRIDS, st.integers(0, 4), SEEDS)
def test_corners(numbers: tuple[int, ...], batch: int, seed: int) -> None:
    grid = grid_of(numbers)
    corners = draw_corners(grid, batch, generator(seed))
    assert (corners.dtype, corners.shape) == (torch.int64, (batch, grid.count, 2))
    regular = regular_corners(grid)
    for places in [*corners, regular]:
        covered = torch.zeros(grid.image_size, grid.image_size, dtype=torch.int64)
        for y, x in places.tolist():
            assert min(y, x) >= 0
            assert max(y, x) <= grid.image_size - grid.tile
            covered[y : y + grid.tile, x : x + grid.tile] += 1
        assert covered.max() == 1
    steps = regular.view(grid.side, grid.side, 2)
    assert (steps.diff(dim=0) == torch.tensor([grid.pitch, 0])).all()
    assert (steps.diff(dim=1) == torch.tensor([0, grid.pitch])).all()


@drawn()
@given(st.integers(0, 5), st.integers(1, 8), SEEDS)
def test_draw_neighbours(batch: int, pairs: int, seed: int) -> None:
    drawn_places = draw_neighbours(batch, pairs, generator(seed))
    assert (drawn_places.dtype, drawn_places.shape) == (torch.int64, (batch, pairs))
    for row in drawn_places.tolist():
        assert len(set(row)) == pairs
        assert set(row) <= set(range(8))


@pytest.mark.parametrize("pairs", [0, 9])
def test_there_are_eight_neighbours(pairs: int) -> None:
    with pytest.raises(ValueError, match=f"pairs is {pairs}; allowed are 1 to 8"):
        draw_neighbours(2, pairs, generator(0))


@st.composite
def cuts(draw: Any) -> tuple[Tensor, Tensor, int]:
    """Draw images, corners (for all channels or for each), and the size of a tile."""
    images = draw(pictures(dtypes=(*ALL, torch.bool), size=(1, 9)))
    batch, channels, height, width = images.shape
    tile = draw(st.integers(1, min(height, width)))
    shape = (batch, draw(st.integers(0, 4)), *([channels] if draw(st.booleans()) else []))
    seed = draw(SEEDS)
    rows = torch.randint(height - tile + 1, shape, generator=generator(seed))
    columns = torch.randint(width - tile + 1, shape, generator=generator(seed + 1))
    return images, torch.stack([rows, columns], -1), tile


@pytest.mark.slow
@drawn(150)
@given(cuts())
def test_cut_tiles(case: tuple[Tensor, Tensor, int]) -> None:
    images, corners, tile = case
    with unchanged(images, corners):
        found = cut_tiles(images, corners, tile)
    batch, channels = images.shape[:2]
    count = corners.shape[1]
    assert (found.dtype, found.shape) == (images.dtype, (batch, count, channels, tile, tile))
    for b, n, c in itertools.product(range(batch), range(count), range(channels)):
        y, x = (corners[b, n] if corners.ndim == 3 else corners[b, n, c]).tolist()
        assert torch.equal(found[b, n, c], images[b, c, y : y + tile, x : x + tile])


@pytest.mark.slow
@drawn(30)
@given(pictures(size=(1, 5), batch=(1, 2)), st.integers(-1, 9))
def test_tiles_larger_than_the_image_are_refused(images: Tensor, tile: int) -> None:
    assume(not 1 <= tile <= min(images.shape[2:]))
    with pytest.raises(ValueError, match=f"tile is {tile} px; allowed are 1 to"):
        cut_tiles(images, torch.zeros(len(images), 1, 2, dtype=torch.int64), tile)


@pytest.mark.slow
@drawn()
@given(GRIDS, st.integers(0, 3), st.integers(1, 3), st.sampled_from(ALL), SEEDS)
def test_tiles_go_back_where_they_were(
    numbers: tuple[int, ...], batch: int, channels: int, dtype: Any, seed: int
) -> None:
    grid = grid_of(numbers)
    size = grid.image_size
    images = values((batch, channels, size, size), seed, dtype)
    corners = draw_corners(grid, batch, generator(seed))
    tiles = cut_tiles(images, corners, grid.tile)
    order = torch.randperm(grid.count, generator=generator(seed))
    with unchanged(tiles, corners):
        back = place_tiles(tiles[:, order], corners[:, order], size, 1.0)
    assert back.dtype == dtype
    expected = torch.ones_like(images)
    for image, places in enumerate(corners.tolist()):
        for y, x in places:
            window = (image, slice(None), slice(y, y + grid.tile), slice(x, x + grid.tile))
            expected[window] = images[window]
    assert torch.equal(back, expected)
    assert torch.equal(cut_tiles(back, corners, grid.tile), tiles)


@pytest.mark.slow
@drawn()
@given(st.integers(0, 3), st.integers(0, 4), st.integers(1, 4), st.integers(0, 5), st.integers(0, 6), SEEDS)
def test_shift_channels(batch: int, count: int, channels: int, shift: int, last: int, seed: int) -> None:
    corners = torch.randint(last + 1, (batch, count, 2), generator=generator(seed))
    with unchanged(corners):
        moved = shift_channels(corners, channels, shift, last, generator(seed))
    assert (moved.dtype, moved.shape) == (torch.int64, (batch, count, channels, 2))
    apart = (moved - corners[:, :, None]).abs()
    assert not moved.numel() or (moved.min() >= 0 and moved.max() <= last and apart.max() <= shift)


@pytest.mark.slow
@drawn()
@given(
    tensors(st.tuples(st.integers(0, 3), st.integers(1, 5), st.integers(1, 3), st.integers(1, 3)), ALL),
    st.integers(1, 4),
    SEEDS,
)
def test_permute_tiles(tiles: Tensor, many: int, seed: int) -> None:
    batch, count = tiles.shape[:2]
    orders = torch.rand(batch, many, count, generator=generator(seed)).argsort(-1)
    with unchanged(tiles, orders):
        found = permute_tiles(tiles, orders)
    assert (found.dtype, found.shape) == (tiles.dtype, (batch, many, *tiles.shape[1:]))
    for b, p, n in itertools.product(range(batch), range(many), range(count)):
        assert torch.equal(found[b, p, n], tiles[b, orders[b, p, n]])
    for p in range(many):
        undone = permute_tiles(found[:, p], orders[:, p : p + 1].argsort(-1))[:, 0]
        assert torch.equal(undone, tiles)
    if tiles.dtype == torch.float64:
        tiles = tiles.detach().requires_grad_()
        permute_tiles(tiles, orders).sum().backward()
        assert (tiles.grad == many).all()


# --- the set of orders ---


@pytest.mark.slow
@drawn(40)
@given(st.integers(2, 5), st.integers(2, 24), st.sampled_from(["minimum", "mean"]))
def test_permutation_set(tiles: int, size: int, method: str) -> None:
    available = math.factorial(tiles)
    if size > available:
        with pytest.raises(ValueError, match=f"size is {size}; allowed are 2 to {available}"):
            permutation_set(tiles, size, method=method)
        return
    found = permutation_set(tiles, size, method=method)
    rows = [tuple(row) for row in found.orders.tolist()]
    assert found.orders.dtype == torch.int64
    assert len(set(rows)) == size
    assert all(sorted(row) == list(range(tiles)) for row in rows)
    assert found.identity == 0
    apart = [
        sum(a != b for a, b in zip(one, other, strict=True)) for one, other in itertools.combinations(rows, 2)
    ]
    assert found.minimum == min(apart)
    assert found.mean == pytest.approx(np.mean(apart))
    fewer = permutation_set(tiles, max(2, size // 2), method=method)
    assert torch.equal(found.orders[: len(fewer.orders)], fewer.orders)  # chosen one by one
    for step in range(1, size):  # no remaining order is farther from the orders before it
        key = min if method == "minimum" else sum
        distance = {
            order: key(sum(a != b for a, b in zip(order, row, strict=True)) for row in rows[:step])
            for order in itertools.permutations(range(tiles))
            if order not in rows[:step]
        }
        assert distance[rows[step]] == max(distance.values())


@pytest.mark.parametrize("tiles", [-1, 0, 1, 256, 1000])
def test_impossible_numbers_of_tiles_are_refused(tiles: int) -> None:
    with pytest.raises(ValueError, match=f"tiles is {tiles}; allowed are 2 to 255"):
        permutation_set(tiles, 2)


@drawn()
@given(st.integers(0, 6), st.integers(1, 6), SEEDS)
def test_hamming(count: int, tiles: int, seed: int) -> None:
    orders = np.random.default_rng(seed).integers(0, 4, (count, tiles))
    found = hamming(orders)
    for i, j in itertools.product(range(count), repeat=2):
        assert found[i, j] == (orders[i] != orders[j]).sum()


# --- guards ---


@st.composite
def tile_batches(draw: Any, channels: tuple[int, int] = (1, 4)) -> Tensor:
    """Draw tiles `(B, n, C, t, t)`, floats."""
    side = draw(st.integers(1, 6))
    shape = (draw(st.integers(0, 3)), draw(st.integers(1, 4)), draw(st.integers(*channels)), side, side)
    x = values(shape, draw(SEEDS), draw(st.sampled_from(FLOATS)))
    return laid_out(x, draw(st.sampled_from(LAYOUTS)))


@pytest.mark.slow
@drawn()
@given(tile_batches(), st.floats(1e-3, 0.2), st.booleans())
def test_standardise_tiles(tiles: Tensor, smallest: float, inplace: bool) -> None:
    given_tiles = tiles.clone().as_strided(tiles.shape, tiles.clone().stride()) if inplace else tiles
    x = tiles.double()
    if inplace:
        found = standardise_tiles(given_tiles, smallest, inplace=True)
        assert found.data_ptr() == given_tiles.data_ptr()
    else:
        with unchanged(tiles):
            found = standardise_tiles(tiles, smallest)
    assert (found.dtype, found.shape) == (tiles.dtype, tiles.shape)
    deviation = x.std((-2, -1), correction=0, keepdim=True)
    expected = (x - x.mean((-2, -1), keepdim=True)) / deviation.clamp(min=smallest)
    # the remaining mean over the deviation is as exact as the type
    off = (found.double() - expected).abs() * deviation.clamp(min=smallest)
    assert not off.numel() or off.max() <= {torch.bfloat16: 0.02}.get(tiles.dtype, 1e-5)


@pytest.mark.slow
@drawn()
@given(tile_batches(), st.floats(0, 1), st.booleans(), SEEDS)
def test_grey_scale(tiles: Tensor, probability: float, inplace: bool, seed: int) -> None:
    before = tiles.clone()
    if inplace:
        found = grey_scale(tiles, probability, generator(seed), inplace=True)
        assert found.data_ptr() == tiles.data_ptr()
    else:
        with unchanged(tiles):
            found = grey_scale(tiles, probability, generator(seed))
    assert (found.dtype, found.shape) == (before.dtype, before.shape)
    if tiles.shape[2] != 3 or probability == 0:
        assert torch.equal(found, before)
        return
    chosen = torch.rand(len(before), generator=generator(seed)) < probability
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64).view(3, 1, 1)
    for image, grey in enumerate(chosen.tolist()):
        if grey:
            expected = (before[image].double() * weights).sum(1, keepdim=True).expand_as(before[image])
            close(found[image], expected, before.dtype)
        else:
            assert torch.equal(found[image], before[image])


@pytest.mark.slow
@drawn()
@given(tile_batches(), st.floats(0, 0.1), SEEDS)
def test_drop_colours(tiles: Tensor, noise: float, seed: int) -> None:
    with unchanged(tiles):
        found = drop_colours(tiles, generator(seed), noise)
    assert (found.dtype, found.shape) == (tiles.dtype, tiles.shape)
    channels = tiles.shape[2]
    if channels == 1:
        assert torch.equal(found, tiles)
        return
    kept = torch.randint(channels, tiles.shape[:2], generator=generator(seed))
    for b, n in itertools.product(*map(range, tiles.shape[:2])):
        stays = int(kept[b, n])
        assert torch.equal(found[b, n, stays], tiles[b, n, stays])
        deviation = tiles[b, n, stays].double().std(correction=0)
        others = torch.cat([found[b, n, :stays], found[b, n, stays + 1 :]]).double()
        assert others.abs().max() <= 7 * noise * deviation + 1e-6


@drawn()
@given(st.integers(1, 6), SEEDS)
def test_colour_projection(channels: int, seed: int) -> None:
    matrix = colour_projection(channels)
    if channels != 3:
        assert torch.equal(matrix, torch.eye(channels))
        return
    axis, pixel = torch.tensor([-1.0, 2.0, -1.0]), values((3,), seed)
    close(matrix @ pixel, pixel - axis * (axis @ pixel) / 6)
    close(matrix @ matrix, matrix)  # idempotent
    close(matrix @ torch.ones(3), torch.ones(3))  # grey stays


@pytest.mark.slow
@drawn()
@given(tile_batches(), SEEDS, st.booleans())
def test_mix_colours(tiles: Tensor, seed: int, moved: bool) -> None:
    channels = tiles.shape[2]
    matrix = values((channels, channels), seed, tiles.dtype)
    offset = values((channels,), seed + 1, tiles.dtype) if moved else None
    with unchanged(tiles, matrix):
        found = mix_colours(tiles, matrix, offset)
    assert (found.dtype, found.shape) == (tiles.dtype, tiles.shape)
    expected = torch.einsum("dc,bnchw->bndhw", matrix.double(), tiles.double())
    if offset is not None:
        expected += offset.double().view(-1, 1, 1)
    close(found, expected, tiles.dtype, 4)


@pytest.mark.slow
@drawn(40)
@given(st.integers(1, 12).flatmap(lambda tile: st.tuples(st.just(tile), st.integers(1, tile))))
def test_resampling_table(sizes: tuple[int, int]) -> None:
    tile, smallest = sizes
    table = resampling_table(tile, smallest)
    assert table.shape == (tile - smallest + 1, tile, tile)
    close(table.sum(2), torch.ones(table.shape[:2]))  # a flat row stays flat
    assert torch.allclose(table[-1], torch.eye(tile), atol=1e-6)
    row = values((1, 1, tile, tile), tile)
    for number, size in enumerate(range(smallest, tile + 1)):
        small = F.interpolate(row, (size, size), mode="bilinear", antialias=True)
        through = F.interpolate(small, (tile, tile), mode="bilinear")
        close(table[number] @ row[0, 0] @ table[number].T, through[0, 0])


@drawn(30)
@given(st.integers(0, 6), st.integers(-2, 9))
def test_impossible_resamplings_are_refused(tile: int, smallest: int) -> None:
    assume(not 1 <= smallest <= tile)
    with pytest.raises(ValueError, match=f"smallest is {smallest}; allowed are 1 to {tile}"):
        resampling_table(tile, smallest)


@pytest.mark.slow
@drawn()
@given(tile_batches(), st.integers(1, 6), st.floats(0, 1), SEEDS)
def test_resample_tiles(tiles: Tensor, smallest: int, probability: float, seed: int) -> None:
    side = tiles.shape[-1]
    table = resampling_table(side, min(smallest, side))
    with unchanged(tiles, table):
        found = resample_tiles(tiles, table, probability, generator(seed))
    assert (found.dtype, found.shape) == (tiles.dtype, tiles.shape)
    draws = generator(seed)
    row = torch.randint(len(table), tiles.shape[:2], generator=draws)
    chosen = torch.rand(tiles.shape[:2], generator=draws) < probability
    for b, n in itertools.product(*map(range, tiles.shape[:2])):
        matrix = table[row[b, n] if chosen[b, n] else -1].double()
        expected = matrix @ tiles[b, n].double() @ matrix.T
        torch.testing.assert_close(
            found[b, n].double(), expected, rtol=0, atol=max(TOLERANCE[tiles.dtype] / 10, 1e-6)
        )
