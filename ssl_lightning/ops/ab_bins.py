"""Colours as classes: bins of the ab plane, soft targets, rebalancing, and decoding to colours."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_lightning.ops.lab import rgb_to_lab

# Zhang, Isola, Efros 2016, sections 2.1 to 2.3. Colours and bins are in Lab units, (a, b) in this order

# The four bins of the authors' list that the rule of `gamut_bins` does not give; it gives the other 309
AUTHORS_GRID, AUTHORS_MORE = 10, ((40, 90), (100, -90), (100, -10), (100, 0))
EXTENT = 112  # sRGB lies within -87..99 and -108..95
CELLS = 4  # cells of the candidate table per grid step, along each axis


def gamut_bins(grid: int = AUTHORS_GRID) -> Tensor:
    """Compute the centres of the bins: points of a square grid in and around the gamut of sRGB.

    A grid point is a bin if one of the four grid squares around it holds an 8-bit sRGB colour. At grid 10
    these are 309 points, all among the authors' 313 (`pts_in_hull.npy`). The other four, up to 3 units
    further from any colour, are added explicitly: grid 10 equals the authors' list. Other grids follow
    the rule alone: 1053 bins at 5, 101 at 20.

    Args:
        grid: Distance between neighbours, 5 to 60.

    Returns:
        `(Q, 2)` float32, in rising order of a, then b.

    Raises:
        ValueError: `grid` is out of range.
    """
    if not 5 <= grid <= 60:
        raise ValueError(f"grid is {grid}; allowed are 5 to 60 units of Lab")
    # the six faces of the RGB cube are enough: every line of constant ab through the cube leaves through one
    shade = torch.arange(256, dtype=torch.float64) / 255
    one, other = (axis.flatten() for axis in torch.meshgrid(shade, shade, indexing="ij"))
    first, last = torch.zeros_like(one), torch.ones_like(one)
    faces = [torch.stack([end, one, other]) for end in (first, last)]
    rgb = torch.cat([face.roll(turn, 0) for face in faces for turn in range(3)], 1)  # (3, colours)
    a, b = (rgb_to_lab(rgb[:, None])[1:, 0] / grid).floor().long()
    squares = torch.unique((a + EXTENT) * 2 * EXTENT + b + EXTENT)  # one number each: faster than pairs
    lowest = torch.stack([squares // (2 * EXTENT), squares % (2 * EXTENT)], 1) - EXTENT  # (squares, 2)
    corners = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
    points = (lowest[:, None] + corners).flatten(0, 1) * grid
    if grid == AUTHORS_GRID:
        points = torch.cat([points, torch.tensor(AUTHORS_MORE)])
    return points.unique(dim=0).float()


def candidate_table(bins: Tensor, grid: int, neighbours: int) -> Tensor:
    """Tabulate, for each small cell of the ab plane, the bins that can be nearest neighbours of its colours.

    The table is exact by the triangle inequality. If a bin is among the k nearest of any point of a cell, its
    distance to the cell's centre is at most the k-th smallest such distance plus the cell's diagonal.

    Args:
        bins: `(Q, 2)`, see `gamut_bins`.
        grid: Distance between neighbouring bins.
        neighbours: k, in 1..Q.

    Returns:
        `(n, n, M)` int64, M >= k different bins for each cell of an n x n grid over -112..112.

    Raises:
        ValueError: `neighbours` is out of range.
    """
    if not 1 <= neighbours <= len(bins):
        raise ValueError(f"neighbours is {neighbours}; allowed are 1 to {len(bins)}, all bins")
    count = -(-2 * EXTENT * CELLS // grid)
    step = 2 * EXTENT / count
    middle = (torch.arange(count) + 0.5) * step - EXTENT
    centres = torch.stack(torch.meshgrid(middle, middle, indexing="ij"), -1).flatten(0, 1)
    distance, order = torch.cdist(centres, bins).sort(1)  # (n * n, Q)
    within = distance <= distance[:, neighbours - 1 : neighbours] + step * 2**0.5 + 1e-3
    return order[:, : int(within.sum(1).max())].view(count, count, -1)


def soft_encode(
    ab: Tensor, bins: Tensor, candidates: Tensor, *, neighbours: int = 5, sigma: float = 5.0
) -> tuple[Tensor, Tensor]:
    """Spread each colour over its nearest bins, weighted by a Gaussian of the distance (sec. 2.1).

    Args:
        ab: `(N, 2)` colours of sRGB, or means of them.
        bins: `(Q, 2)` centres.
        candidates: `(n, n, M)`, from `candidate_table` for these bins and at least k neighbours.
        neighbours: k.
        sigma: Standard deviation of the Gaussian.

    Returns:
        Indices of the bins `(N, k)` int64, nearest first, and weights `(N, k)` that sum to 1.
    """
    count = len(candidates)
    a, b = ((ab + EXTENT) * (count / (2 * EXTENT))).long().clamp(0, count - 1).unbind(1)
    near = candidates[a, b]  # (N, M)
    squared = (ab[:, None] - bins[near]).square().sum(2)  # (N, M)
    squared, place = squared.topk(neighbours, largest=False)
    return near.gather(1, place), (squared / (-2 * sigma**2)).softmax(1)


def smooth_prior(counts: Tensor, bins: Tensor, sigma: float = 5.0) -> Tensor:
    """Turn counts of the bins into a prior, smoothed by a Gaussian in the ab plane (sec. 2.2).

    Each bin spreads its share over all bins in proportion to the Gaussian, so that the sum stays 1.

    Args:
        counts: `(Q,)` number of colours, not all 0.
        bins: `(Q, 2)` centres.
        sigma: Standard deviation of the Gaussian.

    Returns:
        `(Q,)` float64 probabilities.
    """
    kernel = (torch.cdist(bins.double(), bins.double()).square() / (-2 * sigma**2)).softmax(1)
    return counts.double() / counts.sum() @ kernel


def rebalancing_weights(prior: Tensor, strength: float = 0.5) -> Tensor:
    """Compute weights that favour rare colours: 1 / ((1 - lambda) p + lambda / Q), with mean 1 (eq. 4).

    Args:
        prior: `(Q,)` probabilities p.
        strength: Share lambda of the uniform distribution, in (0, 1]. 1 weighs all bins equally; 0 would give
            a bin without colours an infinite weight.

    Raises:
        ValueError: `strength` is out of range.
    """
    if not 0 < strength <= 1:
        raise ValueError(f"strength is {strength}; allowed are above 0, to 1")
    weights = 1 / ((1 - strength) * prior + strength / len(prior))
    return weights / (prior * weights).sum()


def annealed_mean(logits: Tensor, bins: Tensor, temperature: float = 0.38) -> Tensor:
    """Decode logits `(N, Q)` to colours `(N, 2)`: the mean of the sharpened distribution (eq. 5).

    Temperature 1 gives the mean, which is grey where the network is unsure. Temperatures near 0 give the
    mode, which is vivid but spotty.
    """
    with torch.autocast(logits.device.type, enabled=False):
        return (logits.float() / temperature).softmax(1) @ bins
