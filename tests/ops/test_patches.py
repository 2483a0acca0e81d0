"""Tiles against slices in loops, and round trips to the original pixels."""

import pytest
import torch

from ssl_lightning.core.seeding import generator
from ssl_lightning.ops.patches import (
    cut_tiles,
    draw_corners,
    draw_neighbours,
    permute_tiles,
    place_tiles,
    regular_corners,
    shift_channels,
)
from ssl_lightning.ops.permutations import permutation_set
from ssl_lightning.ops.tile_grid import jigsaw_grid, neighbour_grid

GRIDS = [
    jigsaw_grid(255),
    jigsaw_grid(64),
    jigsaw_grid(32),
    jigsaw_grid(32, gap=False),
    jigsaw_grid(40, side=4, tile=7),
    neighbour_grid(64),
    neighbour_grid(32),
    neighbour_grid(60, tile=12, gap=7, jitter=2),
    neighbour_grid(32, gap=0),
]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_tiles_never_overlap_and_never_leave_the_image(grid) -> None:
    batch = 300
    corners = draw_corners(grid, batch, generator(0))
    assert corners.shape == (batch, grid.count, 2)
    assert corners.dtype == torch.int64
    covered = torch.zeros(batch, grid.image_size, grid.image_size, dtype=torch.int64)
    for image, places in enumerate(corners.tolist()):
        for y, x in places:
            assert 0 <= y <= grid.image_size - grid.tile
            assert 0 <= x <= grid.image_size - grid.tile
            covered[image, y : y + grid.tile, x : x + grid.tile] += 1
    assert covered.max() == 1
    # the draw is uniform over the complete range in both directions, not a constant
    steps = torch.cartesian_prod(torch.arange(grid.side), torch.arange(grid.side)) * grid.pitch
    offsets = (corners - steps).flatten(0, 1)
    assert offsets.min(0).values.tolist() == [0, 0]
    assert offsets.max(0).values.tolist() == [grid.image_size - grid.extent + grid.play] * 2


def test_each_tile_has_a_gap_of_its_own() -> None:
    grid = jigsaw_grid(255)
    steps = torch.cartesian_prod(torch.arange(3), torch.arange(3)) * 85
    offsets = draw_corners(grid, 4000, generator(1)) - steps  # 0..21, for there is no slack
    counts = offsets.flatten().bincount(minlength=22)
    assert len(counts) == 22
    assert (counts / counts.sum() * 22 - 1).abs().max() < 0.1
    correlations = torch.corrcoef(offsets.flatten(1).T.float()) - torch.eye(18)
    assert correlations.abs().max() < 0.08


def test_the_regular_places_are_the_middle_of_the_draws() -> None:
    for grid in GRIDS:
        mean = draw_corners(grid, 3000, generator(2)).double().mean(0)
        assert (regular_corners(grid) - mean).abs().max() < 1.1  # rounded down twice


@pytest.mark.parametrize("layout", ["dense", "channels last", "part of a batch", "neither"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_cut_against_slices(dtype: torch.dtype, layout: str) -> None:
    images = torch.randint(256, (7, 3, 33, 66), generator=generator(3)).to(dtype)
    if layout == "neither":
        images = images[2:, :, :, ::2]
    else:
        order = torch.channels_last if layout == "channels last" else torch.contiguous_format
        images = images[..., :33].contiguous(memory_format=order)
        images = images[2:] if layout == "part of a batch" else images[:5]
    grid = jigsaw_grid(33)
    corners = draw_corners(grid, 5, generator(4))
    tiles = cut_tiles(images, corners, grid.tile)
    moved = shift_channels(corners, 3, 2, 33 - grid.tile, generator(5))
    shifted = cut_tiles(images, moved, grid.tile)
    assert tiles.shape == shifted.shape == (5, 9, 3, 9, 9)
    assert tiles.dtype == dtype
    for places, cut in ((corners, tiles), (moved, shifted)):
        floats = cut_tiles(images, places, grid.tile, torch.float64)
        assert floats.dtype == torch.float64
        assert torch.equal(floats, cut.double())
        assert cut.is_contiguous()
        assert floats.is_contiguous()
        for wanted in (dtype, torch.float64):
            whole = cut_tiles(images, places, grid.tile, wanted, channels_last=True)
            assert torch.equal(whole, cut.to(wanted))
            assert whole.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    for image in range(5):
        for tile in range(9):
            y, x = corners[image, tile].tolist()
            assert torch.equal(tiles[image, tile], images[image, :, y : y + 9, x : x + 9])
            for channel in range(3):
                y, x = moved[image, tile, channel].tolist()
                assert torch.equal(
                    shifted[image, tile, channel], images[image, channel, y : y + 9, x : x + 9]
                )


def test_channels_move_by_up_to_the_shift_and_stay_in_the_image() -> None:
    corners = draw_corners(jigsaw_grid(64), 500, generator(6))
    moved = shift_channels(corners, 3, 2, 48, generator(7))
    assert moved.shape == (500, 9, 3, 2)
    steps = moved - corners[:, :, None]
    assert steps.unique().tolist() == [-2, -1, 0, 1, 2]
    assert (moved.min(), moved.max()) == (0, 48)
    # each channel has its own draw
    assert (steps[:, :, 0] == steps[:, :, 1]).float().mean() < 0.4
    assert torch.equal(shift_channels(corners, 3, 0, 48, generator(7)), corners[:, :, None].expand_as(moved))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_tiles_permuted_and_back_are_the_original_pixels(grid) -> None:
    images = torch.rand(4, 3, grid.image_size, grid.image_size, generator=generator(8))
    corners = draw_corners(grid, 4, generator(9))
    tiles = cut_tiles(images, corners, grid.tile)
    orders = permutation_set(grid.count, 6, method="mean").orders[
        torch.tensor([[1, 5], [2, 0], [3, 3], [4, 1]])
    ]
    shuffled = permute_tiles(tiles, orders)
    assert shuffled.shape == (4, 2, grid.count, 3, grid.tile, grid.tile)
    for image in range(4):
        for number in range(2):
            for place in range(grid.count):
                assert torch.equal(shuffled[image, number, place], tiles[image, orders[image, number, place]])
    inverse = orders.argsort(-1)
    for number in range(2):
        back = permute_tiles(shuffled[:, number], inverse[:, number, None])[:, 0]
        assert torch.equal(back, tiles)
        whole = place_tiles(back, corners, grid.image_size, background=-1.0)
        covered = whole != -1
        assert covered.sum() == tiles.numel()
        assert torch.equal(whole[covered], images[covered])


def test_the_gradient_is_the_sum_over_orders() -> None:
    tiles = torch.randn(64, 9, 128, generator=generator(12)).requires_grad_()
    orders = permutation_set(9, 512).orders.view(64, 8, 9)
    upstream = torch.randn(64, 8, 9, 128, generator=generator(13))
    expected = torch.zeros(64, 9, 128, dtype=torch.float64)
    for number in range(8):
        for place in range(9):
            expected[torch.arange(64), orders[:, number, place]] += upstream[:, number, place].double()
    permute_tiles(tiles, orders).backward(upstream)
    torch.testing.assert_close(tiles.grad.double(), expected, atol=1e-5, rtol=1e-5)


def test_neighbours_are_different_and_all_alike() -> None:
    places = draw_neighbours(2000, 3, generator(10))
    assert places.shape == (2000, 3)
    assert all(len(set(row)) == 3 for row in places.tolist())
    counts = places.flatten().bincount()
    assert len(counts) == 8
    assert (counts / 750 - 1).abs().max() < 0.12
    every = draw_neighbours(5, 8, generator(11)).sort(1).values
    assert torch.equal(every, torch.arange(8).expand(5, -1))


def test_equal_streams_give_equal_draws() -> None:
    grid = jigsaw_grid(64)
    draws = {
        "corners": lambda stream: draw_corners(grid, 8, stream),
        "channels": lambda stream: shift_channels(torch.full((8, 9, 2), 9), 3, 2, 48, stream),
        "neighbours": lambda stream: draw_neighbours(8, 4, stream),
    }
    for name, draw in draws.items():
        first, again, other = (draw(generator("stream", number)) for number in (0, 0, 1))
        assert torch.equal(first, again), name
        assert not torch.equal(first, other), name
