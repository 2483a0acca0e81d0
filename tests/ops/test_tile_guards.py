"""Guards on tiles, against PIL, torch's interpolation, and loops."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from ssl_lightning.core.seeding import generator
from ssl_lightning.ops.tile_guards import (
    _change,
    colour_projection,
    drop_colours,
    grey_scale,
    mix_colours,
    resample_tiles,
    resampling_table,
    standardise_tiles,
)


def tiles(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=generator("tiles"))


def test_standardised_tiles_have_mean_0_and_deviation_1() -> None:
    # brightness and contrast that differ from tile to tile
    x = tiles(4, 9, 3, 8, 8) * torch.linspace(0.05, 0.5, 9).view(9, 1, 1, 1) + torch.linspace(0, 0.5, 4).view(
        4, 1, 1, 1, 1
    )
    y = standardise_tiles(x).double()
    assert y.mean((3, 4)).abs().max() < 1e-5
    assert (y.std((3, 4), correction=0) - 1).abs().max() < 1e-4
    # only an affine map of each channel of each tile
    torch.testing.assert_close(standardise_tiles(3 * x + 1), y.float(), rtol=1e-3, atol=1e-4)
    for image, tile, channel in ((0, 0, 0), (3, 8, 2), (1, 4, 1)):
        assert (
            np.corrcoef(x[image, tile, channel].flatten(), y[image, tile, channel].flatten())[0, 1] > 0.9999
        )


def test_flat_tiles_stay_flat() -> None:
    noise = 0.5 + 1e-4 * tiles(1, 1, 1, 8, 8)
    assert standardise_tiles(torch.full((1, 1, 1, 8, 8), 0.3)).abs().max() < 1e-4
    assert standardise_tiles(noise).abs().max() < 0.05  # not scaled up to 1


def test_the_given_tiles_are_left_as_they_are() -> None:
    x = tiles(4, 9, 3, 8, 8)
    table, before = resampling_table(8, 4), x.clone()
    standardise_tiles(x)
    grey_scale(x, 1.0, generator(0))
    drop_colours(x, generator(0))
    mix_colours(x, colour_projection(3))
    resample_tiles(x, table, 1.0, generator(0))
    assert torch.equal(x, before)


def test_in_place_is_the_same() -> None:
    table = resampling_table(8, 4)
    for guard in (
        standardise_tiles,
        lambda x, **how: grey_scale(x, 0.5, generator(0), **how),
        lambda x, **how: resample_tiles(x, table, 0.5, generator(0), **how),
    ):
        x = tiles(4, 9, 3, 8, 8)
        expected = guard(x)
        assert guard(x, inplace=True).data_ptr() == x.data_ptr()
        assert torch.equal(x, expected)


def test_grey_against_pil() -> None:
    x = torch.randint(256, (2, 1, 3, 8, 8), generator=generator(1)).float() / 255
    grey = grey_scale(x, 1.0, generator(0))
    assert torch.equal(grey[:, :, :1].expand_as(grey), grey)
    for image in range(2):
        pixels = (x[image, 0] * 255).byte().permute(1, 2, 0).numpy()
        expected = np.asarray(Image.fromarray(pixels).convert("L"))
        assert np.abs(grey[image, 0, 0].numpy() * 255 - expected).max() <= 1


def test_grey_takes_whole_images_at_its_rate() -> None:
    x = tiles(4000, 2, 3, 2, 2)
    y = grey_scale(x, 0.3, generator(2))
    same = (x == y).flatten(1).all(1)
    grey = (y[:, :, :1] == y).flatten(1).all(1)
    assert torch.equal(same, ~grey)  # every image is either untouched or grey all over
    assert grey.float().mean().item() == pytest.approx(0.3, abs=0.03)
    assert torch.equal(grey_scale(x, 0.0, generator(2)), x)
    assert torch.equal(grey_scale(x[:, :, :1], 1.0, generator(2)), x[:, :, :1])


def test_dropping_leaves_one_informative_channel() -> None:
    x = standardise_tiles(tiles(200, 9, 3, 8, 8)) * torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)
    y = drop_colours(x, generator(3))
    kept = (x == y).all(-1).all(-1)  # (B, n, C)
    assert (kept.sum(2) == 1).all()
    shares = kept.float().mean((0, 1))
    assert (shares - 1 / 3).abs().max() < 0.04  # each tile has its own draw
    assert (kept[:, 0] != kept[:, 1]).any()
    stays = x.std((3, 4), correction=0)[kept]  # (B * n,): 1, 2 or 3
    noise = y[~kept].view(1800, 2, 8, 8)
    assert (noise.std((2, 3)) / stays[:, None]).mean().item() == pytest.approx(0.01, rel=0.02)
    # the filling does not depend on the original channels
    correlation = F.cosine_similarity(noise.flatten(), x[~kept].flatten(), dim=0)
    assert correlation.abs() < 0.01


def test_dropping_leaves_grey_images_alone() -> None:
    x = tiles(2, 3, 1, 4, 4)
    assert torch.equal(drop_colours(x, generator(4)), x)
    assert torch.equal(colour_projection(1), torch.eye(1))


def test_projection_removes_green_against_magenta_and_no_more() -> None:
    x = tiles(2, 3, 3, 4, 4)
    y = mix_colours(x, colour_projection(3))
    axis = torch.tensor([-1.0, 2.0, -1.0])
    matrix = torch.eye(3) - torch.outer(axis, axis) / 6
    for image in range(2):
        for tile in range(3):
            for row in range(4):
                torch.testing.assert_close(
                    y[image, tile, :, row].T, x[image, tile, :, row].T @ matrix.T, atol=1e-6, rtol=0
                )
    assert torch.einsum("c,bnchw->bnhw", axis, y).abs().max() < 1e-6
    torch.testing.assert_close(mix_colours(y, colour_projection(3)), y)
    grey = x[:, :, :1].expand_as(x)
    torch.testing.assert_close(mix_colours(grey, colour_projection(3)), grey)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("last", [False, True])
def test_mixed_colours_keep_the_memory_format(channels: int, last: bool) -> None:
    x = tiles(2, 9, channels, 8, 8)
    if last:
        x = x.movedim(2, -1).contiguous().movedim(-1, 2)
    matrix, offset = torch.rand(channels, channels), torch.rand(channels)
    found = mix_colours(x, matrix, offset)
    expected = torch.einsum("dc,bnchw->bndhw", matrix, x) + offset.view(-1, 1, 1)
    torch.testing.assert_close(found, expected)
    assert found.flatten(0, 1).is_contiguous(memory_format=torch.channels_last) == (last or channels == 1)


@pytest.mark.parametrize(("size", "smallest"), [(8, 4), (16, 4), (13, 1)])
def test_resampling_against_interpolate(size: int, smallest: int) -> None:
    x = tiles(1, 2, 3, size, size)[0]
    table = resampling_table(size, smallest)
    assert table.shape == (size - smallest + 1, size, size)
    for row, between in enumerate(range(smallest, size + 1)):
        small = F.interpolate(x, (between, between), mode="bilinear", antialias=True)
        expected = F.interpolate(small, (size, size), mode="bilinear")
        torch.testing.assert_close(table[row] @ x @ table[row].T, expected, atol=1e-5, rtol=0)


def test_resampling_takes_tiles_at_its_rate_and_every_size() -> None:
    x = tiles(500, 4, 1, 8, 8)
    table = resampling_table(8, 4)
    y = resample_tiles(x, table, 0.5, generator(5))
    every = torch.einsum("kij,bncjl,kml->kbncim", table, x, table)  # each tile through each size
    fits = (every - y).abs().amax((3, 4, 5)) < 1e-5  # (5, B, n)
    assert (fits.sum(0) == 1).all()
    shares = fits.float().mean((1, 2))
    assert shares[:-1] == pytest.approx([0.1] * 4, abs=0.03)
    assert shares[-1].item() == pytest.approx(0.6, abs=0.04)  # not chosen, or chosen at full size
    torch.testing.assert_close(resample_tiles(x, table, 0.0, generator(5)), x)


def test_mixed_precision_does_not_touch_pixels() -> None:
    x, table = tiles(8, 9, 3, 8, 8), resampling_table(8, 4)
    for guard in (
        standardise_tiles,
        lambda x: mix_colours(x, colour_projection(3), torch.ones(3)),
        lambda x: grey_scale(x, 0.5, generator(6)),
        lambda x: drop_colours(x, generator(6)),
        lambda x: resample_tiles(x, table, 0.5, generator(6)),
    ):
        with torch.autocast("cpu", torch.bfloat16):
            mixed = guard(x)
        assert torch.equal(mixed, guard(x))


def test_choosing_beforehand_is_choosing_afterwards() -> None:
    """A CPU computes only the chosen items, a GPU all; the results are equal."""
    x, factor = tiles(20, 3, 4), torch.arange(20.0)
    chosen = torch.rand(20, generator=generator(7)) < 0.4
    meta = _change(
        x.to("meta"), chosen.to("meta"), lambda some, by: some * by[:, None, None], factor.to("meta")
    )
    assert meta.shape == x.shape
    expected = torch.where(chosen[:, None, None], x * factor[:, None, None], x)
    assert torch.equal(
        _change(x.clone(), chosen, lambda some, by: some * by[:, None, None], factor), expected
    )
    none = torch.zeros(20, dtype=torch.bool)
    assert torch.equal(_change(x.clone(), none, lambda some: some * 0), x)


@pytest.mark.gpu
def test_a_gpu_changes_the_same() -> None:
    x, factor = tiles(20, 3, 4), torch.arange(20.0)
    chosen = torch.rand(20, generator=generator(7)) < 0.4
    expected = _change(x.clone(), chosen, lambda some, by: some * by[:, None, None], factor)
    given = (x.cuda(), chosen.cuda(), lambda some, by: some * by[:, None, None], factor.cuda())
    torch.testing.assert_close(_change(*given).cpu(), expected)


@pytest.mark.parametrize("smallest", [0, 9])
def test_sizes_out_of_range_are_refused(smallest: int) -> None:
    with pytest.raises(ValueError, match=f"smallest is {smallest}; allowed are 1 to 8"):
        resampling_table(8, smallest)


def test_equal_streams_give_equal_draws() -> None:
    x, table = tiles(32, 9, 3, 8, 8), resampling_table(8, 4)
    draws = {
        "grey": lambda stream: grey_scale(x, 0.5, stream),
        "dropping": lambda stream: drop_colours(x, stream),
        "resampling": lambda stream: resample_tiles(x, table, 0.5, stream),
    }
    for name, draw in draws.items():
        first, again, other = (draw(generator("stream", number)) for number in (0, 0, 1))
        assert torch.equal(first, again), name
        assert not torch.equal(first, other), name
