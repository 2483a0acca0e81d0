"""Colour as a class: bins of the ab plane, soft targets, rebalancing, and the way back to a colour.

Zhang, Isola, Efros 2016, sections 2.1 to 2.3. Colours and bins are in Lab units, (a, b) in this order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_lightning.ops.lab import rgb_to_lab

# What the authors' list has beyond the rule of `gamut_bins`, which yields the other 309 of its 313 bins
AUTHORS_GRID, AUTHORS_MORE = 10, ((40, 90), (100, -90), (100, -10), (100, 0))
EXTENT = 112  # sRGB lies within -87..99 and -108..95
CELLS = 4  # cells of the table of candidates along a grid step


def gamut_bins(grid: int = AUTHORS_GRID) -> Tensor:
    """Centres of the bins: the points of a square grid in and around the gamut of sRGB.

    A grid point is a bin if one of the four grid squares of which it is a corner holds an 8-bit sRGB colour.
    At grid 10 these are 309 points, all of them among the authors' 313 (`pts_in_hull.npy`). Their other
    four, up to 3 units further from any colour, are added by name: grid 10 is exactly the authors'. Other
    grids follow the rule alone: 1053 bins at 5, 101 at 20.

    Args:
        grid: Distance of two neighbours.

    Returns:
        `(Q, 2)` float32, in rising order of a, then b.

    Raises:
        ValueError: `grid` is out of range.
    """
    if not 5 <= grid <= 60:
        raise ValueError(f"grid is {grid}; allowed are 5 to 60 units of Lab")
    # the six faces of the RGB cube are enough: every line of constant ab through the cube leaves by one
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
    """For each small cell of the ab plane, the bins that can be among the nearest of a colour in it.

    Exact, by the triangle inequality: a bin that is one of the k nearest of any point of the cell is no
    further from the cell's centre than the k-th nearest of the centre is, plus the cell's diagonal.

    Args:
        bins: `(Q, 2)`, as of `gamut_bins`.
        grid: The distance of two neighbours.
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
        ab: `(N, 2)` colours of sRGB, or means of such.
        bins: `(Q, 2)` centres.
        candidates: `(n, n, M)`, as of `candidate_table` for these bins and as many neighbours.
        neighbours: k.
        sigma: Deviation of the Gaussian.

    Returns:
        `(N, k)` int64 numbers of the bins, the nearest first, and `(N, k)` weights that sum to 1.
    """
    count = len(candidates)
    a, b = ((ab + EXTENT) * (count / (2 * EXTENT))).long().clamp(0, count - 1).unbind(1)
    near = candidates[a, b]  # (N, M)
    squared = (ab[:, None] - bins[near]).square().sum(2)  # (N, M)
    squared, place = squared.topk(neighbours, largest=False)
    return near.gather(1, place), (squared / (-2 * sigma**2)).softmax(1)


def smooth_prior(counts: Tensor, bins: Tensor, sigma: float = 5.0) -> Tensor:
    """Turn counts of the bins into a prior, smoothed by a Gaussian in the ab plane (sec. 2.2).

    Each bin gives its share away to all bins in proportion to the Gaussian, so that the sum stays 1.

    Args:
        counts: `(Q,)` colours seen, not all 0.
        bins: `(Q, 2)` centres.
        sigma: Deviation of the Gaussian.

    Returns:
        `(Q,)` float64 probabilities.
    """
    kernel = (torch.cdist(bins.double(), bins.double()).square() / (-2 * sigma**2)).softmax(1)
    return counts.double() / counts.sum() @ kernel


def rebalancing_weights(prior: Tensor, strength: float = 0.5) -> Tensor:
    """Weights that make rare colours count: 1 / ((1 - lambda) p + lambda / Q), of expectation 1 (eq. 4).

    Args:
        prior: `(Q,)` probabilities p.
        strength: What the paper calls lambda, the share of the uniform distribution, above 0, to 1: 1 weighs
            all bins equally; 0 would give a bin that was never seen no finite weight.

    Raises:
        ValueError: `strength` is out of range.
    """
    if not 0 < strength <= 1:
        raise ValueError(f"strength is {strength}; allowed are above 0, to 1")
    weights = 1 / ((1 - strength) * prior + strength / len(prior))
    return weights / (prior * weights).sum()


def annealed_mean(logits: Tensor, bins: Tensor, temperature: float = 0.38) -> Tensor:
    """Decode logits `(N, Q)` to colours `(N, 2)`: the mean of the sharpened distribution (eq. 5).

    Temperature 1 gives the mean, which is grey where the network is unsure; towards 0 the mode, which is
    vivid but spotted.
    """
    with torch.autocast(logits.device.type, enabled=False):
        return (logits.float() / temperature).softmax(1) @ bins
