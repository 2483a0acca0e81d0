"""Bins of the ab plane against the authors' list, brute force and closed forms; round trips."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from skimage.color import rgb2lab

from ssl_lightning.ops.ab_bins import (
    AUTHORS_MORE,
    annealed_mean,
    candidate_table,
    gamut_bins,
    rebalancing_weights,
    smooth_prior,
    soft_encode,
)

# For each a of the authors' pts_in_hull.npy the smallest and the largest b; all b between are bins
AUTHORS = {
    -90: (50, 90), -80: (20, 90), -70: (0, 90), -60: (-20, 90), -50: (-30, 100), -40: (-40, 100),
    -30: (-50, 100), -20: (-50, 100), -10: (-60, 100), 0: (-70, 100), 10: (-80, 90), 20: (-80, 90),
    30: (-90, 90), 40: (-100, 90), 50: (-100, 80), 60: (-110, 80), 70: (-110, 80), 80: (-110, 70),
    90: (-110, 70), 100: (-90, 0),
}  # fmt: skip


def colours(count: int = 4000) -> torch.Tensor:
    """Compute ab `(count, 2)` of random 8-bit colours with scikit-image."""
    rgb = np.random.default_rng(0).integers(0, 256, (count, 3)) / 255
    return torch.from_numpy(rgb2lab(rgb)[:, 1:]).float()


def test_grid_10_gives_the_313_bins_of_the_authors() -> None:
    expected = [(a, b) for a, (low, high) in AUTHORS.items() for b in range(low, high + 1, 10)]
    assert len(expected) == 313
    assert [tuple(row) for row in gamut_bins(10).long().tolist()] == expected


@pytest.mark.parametrize(("grid", "count"), [(5, 1053), (10, 313), (20, 101)])
def test_every_bin_is_beside_the_gamut_and_every_colour_between_bins(grid: int, count: int) -> None:
    bins = gamut_bins(grid)
    assert len(bins) == count
    assert torch.equal(bins % grid, torch.zeros_like(bins))
    shade = np.linspace(0, 1, 52)  # every fifth of 256
    ab = torch.from_numpy(rgb2lab(np.stack(np.meshgrid(shade, shade, shade), -1).reshape(-1, 3))[:, 1:])
    gaps = torch.from_numpy(cKDTree(ab).query(bins, p=math.inf)[0])  # Chebyshev, to the gamut
    more = (bins[:, None] == torch.tensor(AUTHORS_MORE)).all(2).any(1) if grid == 10 else gaps < 0
    assert gaps[~more].max() < grid + 1  # 1: the colours between the points of the coarse cube
    assert gaps[more].numel() == (4 if grid == 10 else 0)
    present = {tuple(row) for row in bins.long().tolist()}
    for low in {tuple(row) for row in ((ab / grid).floor() * grid).long().tolist()}:
        assert {(low[0] + i, low[1] + j) for i in (0, grid) for j in (0, grid)} <= present


@pytest.mark.parametrize(("grid", "neighbours"), [(10, 5), (10, 1), (10, 10), (20, 3)])
def test_soft_encoding_is_that_of_a_loop_over_all_bins(grid: int, neighbours: int) -> None:
    bins = gamut_bins(grid)
    ab = torch.cat([colours(300), torch.tensor([[0.0, 0.0], [98.2, -60.8], [-86.2, 83.2], [79.2, -107.9]])])
    table = candidate_table(bins, grid, neighbours)
    index, weight = soft_encode(ab, bins, table, neighbours=neighbours, sigma=5.0)
    assert index.shape == weight.shape == (304, neighbours)
    torch.testing.assert_close(weight.sum(1), torch.ones(304))
    for row, (a, b) in enumerate(ab.tolist()):
        far = sorted((math.hypot(a - x, b - y), n) for n, (x, y) in enumerate(bins.tolist()))[:neighbours]
        expected = [math.exp(-(d**2) / (2 * 5.0**2)) for d, _ in far]
        found = (bins[index[row]] - ab[row]).norm(dim=1)
        torch.testing.assert_close(found, torch.tensor([d for d, _ in far]), atol=1e-4, rtol=0)
        torch.testing.assert_close(weight[row], torch.tensor(expected) / sum(expected), atol=1e-4, rtol=0)
        assert len(set(index[row].tolist())) == neighbours


def test_a_colour_out_of_the_table_goes_to_its_border() -> None:
    bins = gamut_bins(10)
    index, weight = soft_encode(torch.tensor([[900.0, -900.0]]), bins, candidate_table(bins, 10, 5))
    assert index.min() >= 0
    assert weight.isfinite().all()


def test_what_is_encoded_is_decoded_to_about_the_same() -> None:
    bins, ab = gamut_bins(10), colours()
    index, weight = soft_encode(ab, bins, candidate_table(bins, 10, 5))
    logits = torch.full((len(ab), len(bins)), -torch.inf).scatter_(1, index, weight.log())
    for temperature, worst in ((1.0, 1.0), (0.38, 3.0)):
        error = (annealed_mean(logits, bins, temperature) - ab).norm(dim=1)
        assert error.max() < worst, temperature  # grid 10: the nearest bin alone is up to 7.1 away


def test_annealing_goes_from_the_mean_to_the_mode() -> None:
    bins = gamut_bins(10)
    logits = torch.randn(4, 313, generator=torch.Generator().manual_seed(0)) * 3
    probability = logits.double().softmax(1)
    sharpened = probability ** (1 / 0.38)
    expected = (sharpened / sharpened.sum(1, keepdim=True)) @ bins.double()
    torch.testing.assert_close(annealed_mean(logits, bins).double(), expected, atol=1e-3, rtol=1e-4)
    mean = probability @ bins.double()
    torch.testing.assert_close(annealed_mean(logits, bins, 1.0).double(), mean, atol=1e-3, rtol=1e-4)
    assert torch.equal(annealed_mean(logits, bins, 1e-4), bins[logits.argmax(1)])


def test_smoothing_spreads_as_a_loop_does_and_keeps_the_sum() -> None:
    bins = gamut_bins(20)
    counts = torch.randint(0, 50, (len(bins),), generator=torch.Generator().manual_seed(0))
    expected = [0.0] * len(bins)
    for share, source in zip((counts / counts.sum()).tolist(), bins.tolist(), strict=True):
        kernel = [math.exp(-(math.dist(source, to) ** 2) / (2 * 8.0**2)) for to in bins.tolist()]
        for number, value in enumerate(kernel):
            expected[number] += share * value / sum(kernel)
    smooth = smooth_prior(counts, bins, 8.0)
    torch.testing.assert_close(smooth, torch.tensor(expected).double(), rtol=1e-5, atol=1e-9)
    assert smooth.sum().item() == pytest.approx(1)


def test_rebalancing_weights_have_expectation_1() -> None:
    prior = torch.rand(313, generator=torch.Generator().manual_seed(0)).double() ** 4
    prior /= prior.sum()
    for strength in (0.01, 0.5, 1.0):
        weights = rebalancing_weights(prior, strength)
        assert (prior * weights).sum().item() == pytest.approx(1)
        mixed = (1 - strength) * prior + strength / 313
        torch.testing.assert_close(
            weights * mixed, (weights * mixed)[:1].expand(313)
        )  # in inverse proportion
    torch.testing.assert_close(rebalancing_weights(prior, 1.0), torch.ones(313).double())


@pytest.mark.parametrize("grid", [4, 61])
def test_other_grids_are_refused(grid: int) -> None:
    with pytest.raises(ValueError, match=f"grid is {grid}; allowed are 5 to 60"):
        gamut_bins(grid)
