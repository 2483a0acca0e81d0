"""Masks and weights against counted pixels."""

import itertools
import math

import pytest
import torch

from ssl_lightning.core.seeding import generator
from ssl_lightning.ops.masks import block_masks, border_weights, centre_mask, fill, region_masks, square_masks


@pytest.mark.parametrize(("size", "hole", "begin"), [(32, 16, 8), (33, 16, 8), (32, 9, 11), (8, 7, 0)])
def test_the_centre_is_a_square_in_the_middle(size: int, hole: int, begin: int) -> None:
    mask = centre_mask(3, size, hole)
    assert mask.shape == (3, 1, size, size)
    assert mask.flatten(1).sum(1).tolist() == [hole * hole] * 3
    rows, columns = mask[1, 0].nonzero().unbind(1)
    assert (rows.min(), rows.max()) == (columns.min(), columns.max()) == (begin, begin + hole - 1)


def test_a_square_is_at_any_place_alike() -> None:
    masks = square_masks(4000, 6, 4, torch.Generator().manual_seed(0))
    rows, columns = masks.any(3)[:, 0], masks.any(2)[:, 0]  # (B, 6) each
    assert torch.equal(masks[:, 0], rows[:, :, None] & columns[:, None, :])
    for side in (rows, columns):
        assert (side.sum(1) == 4).all()
        begins = side.int().argmax(1).bincount(minlength=3)
        assert len(begins) == 3
        assert (begins - 4000 / 3).abs().max() < 200
    with pytest.raises(ValueError, match="hole is 7 px; allowed are 1 to 6"):
        square_masks(1, 6, 7, torch.Generator())


def test_blocks_are_four_squares() -> None:
    size, hole, batch = 20, 11, 60
    mask = block_masks(batch, size, hole, generator(0))
    corner = torch.randint(size - 5 + 1, (2, batch, 4, 1), generator=generator(0))
    expected = torch.zeros(batch, 1, size, size, dtype=torch.bool)
    for image in range(batch):
        for block in range(4):
            y, x = corner[:, image, block, 0].tolist()
            expected[image, 0, y : y + 5, x : x + 5] = True
    assert torch.equal(mask, expected)
    area = mask.flatten(1).sum(1)
    assert area.min() >= 25
    assert area.max() <= 100 <= hole * hole
    many = block_masks(3000, size, hole, generator(1))
    assert many.any(0).all()  # all positions, with the corners


def test_regions_have_the_area_of_the_hole_and_are_smooth() -> None:
    mask = region_masks(50, 32, 16, generator(1))
    assert mask.flatten(1).sum(1).tolist() == [256] * 50  # a quarter of 1024

    def border(m: torch.Tensor) -> float:
        return float((m[..., 1:] != m[..., :-1]).sum() + (m[..., 1:, :] != m[..., :-1, :]).sum()) / len(m)

    scattered = mask.flatten(1)[:, torch.randperm(1024)].view_as(mask)
    assert border(mask) < border(scattered) / 4
    assert len({tuple(m.flatten().tolist()) for m in mask}) == 50


def test_regions_by_interpolating_every_pixel() -> None:
    size, hole = 10, 5
    mask = region_masks(6, size, hole, generator(1))
    stream = generator(1)
    noise, place = torch.rand(6, 1, 4, 4, generator=stream), torch.rand(6, 2, 1, generator=stream)

    def weight(distance: float) -> float:
        """Keys' cubic kernel with a = -0.75, as torch has it."""
        d = abs(distance)
        return 1.25 * d**3 - 2.25 * d**2 + 1 if d <= 1 else -0.75 * (d**3 - 5 * d**2 + 8 * d - 4)

    for image in range(6):
        smooth = torch.zeros(size, size)
        for y, x in itertools.product(range(size), repeat=2):
            v, u = y * 4 / size + place[image, 1].item(), x * 4 / size + place[image, 0].item()
            for i, j in itertools.product(range(-1, 3), repeat=2):
                cell = noise[image, 0, (math.floor(v) + i) % 4, (math.floor(u) + j) % 4]  # repeats itself
                smooth[y, x] += cell * weight(v % 1 - i) * weight(u % 1 - j)
        lowest = smooth.flatten().argsort()[: hole * hole]
        assert sorted(lowest.tolist()) == mask[image].flatten().nonzero().flatten().tolist()


@pytest.mark.parametrize(("size", "hole"), [(32, 16), (15, 6), (3, 2)])
def test_regions_remove_every_pixel_equally_often(size: int, hole: int) -> None:
    count, share = 8000, hole**2 / size**2
    mean = region_masks(count, size, hole, generator(5)).float().mean((0, 1))
    # the largest of 1,024 deviations stays below 4.5 standard errors with a probability of 99 %
    assert (mean - share).abs().max() < 4.5 * math.sqrt(share * (1 - share) / count)


def test_fill_leaves_what_is_visible() -> None:
    images, mask = torch.rand(2, 3, 8, 8), centre_mask(2, 8, 4)
    colour = torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)
    filled = fill(images, mask, colour)
    for channel in range(3):
        assert (filled[:, channel][mask[:, 0]] == colour[0, channel]).all()
        assert torch.equal(filled[:, channel][~mask[:, 0]], images[:, channel][~mask[:, 0]])


@pytest.mark.parametrize("overlap", [0, 1, 3])
def test_weights_by_looking_around_every_pixel(overlap: int) -> None:
    size = 14
    mask = torch.cat([block_masks(4, size, 6, generator(2)), region_masks(4, size, 5, generator(3))])
    weights = border_weights(mask, overlap, 10.0)
    for image in range(8):
        for y in range(size):
            for x in range(size):
                around = mask[image, 0, max(0, y - overlap) : y + overlap + 1,
                              max(0, x - overlap) : x + overlap + 1]  # fmt: skip
                expected = 1.0 if mask[image, 0, y, x] else 10.0 * bool(around.any())
                assert weights[image, 0, y, x] == expected


def test_the_band_of_the_paper() -> None:
    weights = border_weights(centre_mask(1, 128, 64), 4)
    assert int((weights == 10).sum()) == 72**2 - 64**2
    assert int((weights == 1).sum()) == 64**2
