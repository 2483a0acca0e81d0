"""Effective ranks, spectral slope and dead channels against numpy and closed forms, and their invariances."""

import numpy as np
import pytest
import torch

from ssl_lightning.core.seeding import generator
from ssl_lightning.ops.rank import dead_channels, effective_rank, lidar, spectral_slope


@pytest.mark.parametrize("shape", [(50, 8), (8, 50)])
def test_the_formula_in_numpy(shape: tuple[int, int]) -> None:
    x = torch.randn(shape, generator=generator("rank"))
    values = np.linalg.svd(x.double().numpy(), compute_uv=False)
    share = values / values.sum() + 1e-7
    assert effective_rank(x).item() == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-9)


def test_closed_forms() -> None:
    assert effective_rank(3 * torch.eye(7)).item() == pytest.approx(7, rel=1e-5)
    one = torch.randn(40, 1, generator=generator("a")) * torch.randn(1, 16, generator=generator("b"))
    assert effective_rank(one).item() == pytest.approx(1, abs=1e-3)
    assert effective_rank(torch.ones(9, 1)).item() == 1.0
    # singular values 2, 1, 1: shares 1/2, 1/4, 1/4, entropy 1.5 bits
    assert effective_rank(torch.diag(torch.tensor([2.0, 1.0, 1.0]))).item() == pytest.approx(2**1.5, rel=1e-5)


def test_features_of_a_collapsed_backbone_have_no_rank_to_speak_of() -> None:
    assert 1 <= effective_rank(torch.zeros(20, 30)).item() < 1.001


def test_rotations_scale_and_order_do_not_matter() -> None:
    x = torch.randn(30, 6, generator=generator("x")).double()
    turn = torch.linalg.qr(torch.randn(6, 6, generator=generator("q")).double()).Q
    for same in (x @ turn, 5 * x, x.flip(0)):
        assert effective_rank(same).item() == pytest.approx(effective_rank(x).item(), rel=1e-9)


def test_dead_are_the_features_that_never_change() -> None:
    x = torch.randn(50, 6, generator=generator("dead"))
    x[:, 1], x[:, 4] = 0, -3e4
    x[:, 5] = 1 + 1e-7 * x[:, 5]  # rounding does not count as variation
    assert dead_channels(x).tolist() == [False, True, False, False, True, True]
    assert dead_channels(1e-20 * x).tolist() == dead_channels(x).tolist()  # small is not dead
    assert dead_channels(x.bfloat16()).tolist() == dead_channels(x).tolist()


def spectrum(values: np.ndarray, samples: int = 200, seed: str = "spectrum") -> torch.Tensor:
    """Return centred features `(samples, D)` whose covariance has these eigenvalues, in turned directions."""
    left = torch.randn(samples, len(values), generator=generator(seed)).double()
    left = torch.linalg.qr(left - left.mean(0)).Q  # columns of mean 0
    turn = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator(seed, 1)).double()).Q
    return left * torch.from_numpy(values).sqrt() @ turn.T


@pytest.mark.parametrize("slope", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("dims", [3, 60])
def test_a_power_law_has_its_slope(slope: float, dims: int) -> None:
    x = spectrum(np.arange(1, dims + 1) ** -slope)
    for same in (x, 7 * x + 3, x.flip(0), torch.cat([x, 0 * x[:, :1]], 1)):
        assert spectral_slope(same).item() == pytest.approx(slope, abs=1e-6)
    assert spectral_slope(x.float()).item() == pytest.approx(slope, abs=1e-3)


def test_a_slope_is_numpys_weighted_fit() -> None:
    for shape in ((300, 12), (9, 40)):
        x = torch.randn(shape, generator=generator("fit")) * torch.rand(shape[1], generator=generator("s"))
        values = np.linalg.eigvalsh(np.cov(x.double().numpy().T))[::-1][: min(shape[0] - 1, shape[1])]
        number = np.arange(1, len(values) + 1)
        fitted = np.polyfit(np.log(number), np.log(values), 1, w=number**-0.5)  # it squares its weights
        assert spectral_slope(x).item() == pytest.approx(-fitted[0], rel=1e-6)


def test_constant_features_have_no_slope() -> None:
    for x in (torch.zeros(20, 5), torch.full((20, 5), 0.1), torch.randn(20, 1, generator=generator(1))):
        assert spectral_slope(x).isnan()


def naive_lidar(x: np.ndarray, delta: float) -> float:
    """Compute the definition with loops and a matrix square root."""
    n, q, dims = x.shape
    centres = [sum(views) / q for views in x]
    mean = sum(centres) / n
    between = sum(np.outer(c - mean, c - mean) for c in centres) / n
    within = sum(np.outer(v - c, v - c) for c, views in zip(centres, x, strict=True) for v in views) / (n * q)
    values, vectors = np.linalg.eigh(within + delta * np.eye(dims))
    root = vectors @ np.diag(values**-0.5) @ vectors.T
    found = np.linalg.eigvalsh(root @ between @ root).clip(0)
    share = found / found.sum() + 1e-7
    return float(np.exp(-(share * np.log(share)).sum()))


@pytest.mark.parametrize("shape", [(40, 5, 6), (40, 2, 6), (12, 3, 20)])
def test_lidar_is_the_definition(shape: tuple[int, int, int]) -> None:
    centres = 2 * torch.randn(shape[0], 1, shape[2], generator=generator("centres"))
    x = (centres + torch.randn(shape, generator=generator("views"))) * torch.arange(1, shape[2] + 1)
    # the definition keeps D eigenvalues, min(n, D) of them above 0, and each adds eps: 20 * 1e-7 * log(1e7)
    assert lidar(x).item() == pytest.approx(naive_lidar(x.double().numpy(), 1e-4), rel=1e-4)


def test_lidar_counts_the_directions_that_tell_images_apart() -> None:
    corners = torch.cat([torch.eye(6), -torch.eye(6)])[:, None].expand(-1, 4, -1)
    assert lidar(corners).item() == pytest.approx(6, rel=1e-5)
    one_line = torch.linspace(-1, 1, 9)[:, None, None] * torch.ones(1, 3, 5)
    assert lidar(one_line).item() == pytest.approx(1, abs=1e-4)
    # 100 directions scatter between views only: they add nothing but chance, and RankMe counts them all
    signs = torch.where(torch.rand(500, 20, 100, generator=generator("signs")) < 0.5, -1.0, 1.0)
    noisy = torch.cat([corners.repeat(42, 5, 1)[:500] * 50, signs], 2)
    assert lidar(noisy).item() == pytest.approx(6, abs=0.5)
    assert effective_rank(noisy.flatten(0, 1)).item() > 30


def test_lidar_ignores_linear_maps_offsets_and_order() -> None:
    x = torch.randn(30, 4, 6, generator=generator("x")).double()
    x = x + 3 * torch.randn(30, 1, 6, generator=generator("y"))
    found = lidar(x, delta=0.0).item()
    mixed = torch.randn(6, 6, generator=generator("m")).double()  # its condition number bounds the rounding
    for same in (x @ mixed, 5 * x + 2, x.flip(0), x.flip(1)):
        assert lidar(same, delta=0.0).item() == pytest.approx(found, rel=1e-7)


def test_features_without_any_variation_have_a_lidar_of_one() -> None:
    for value in (0.0, 0.1, 1.0):
        assert 1 <= lidar(torch.full((10, 3, 4), value)).item() < 1.001


@pytest.mark.parametrize("shape", [(1, 3, 4), (5, 1, 4), (5, 4)])
def test_lidar_needs_images_and_views(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"takes \(n, q, D\) with n and q at least 2"):
        lidar(torch.zeros(shape))
