"""Linear support vector machines with squared hinge loss, solved in the primal by Newton's method."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ARMIJO = 1e-4  # share of the predicted decrease that a step must reach
MAX_HALVINGS = 40  # of one step; needing more means that rounding hides progress
MAX_PRODUCTS = 200  # of conjugate gradients in one Newton step
AT_ONCE = 2**24  # machines times samples; each (M, N) tensor then takes 128 MB
BLOCK = 2**26  # elements of features or scores at once (512 MB)


@dataclass(frozen=True)
class SVMFit:
    """Solutions of M machines.

    Args:
        weight: `(M, D)`.
        iterations: `(M,)` int64, number of Newton steps.
        converged: `(M,)` bool: the gradient is within the tolerance.
    """

    weight: Tensor
    iterations: Tensor
    converged: Tensor


class SVMSolver:
    """Solver for machines on the same features; it keeps a copy of them.

    Each machine minimises `|w|^2 / 2 + sum_i c_i max(0, 1 - y_i <w, x_i>)^2`, the objective of scikit-learn's
    `LinearSVC` (the bias is a constant feature and is penalised, as there). The objective is piecewise
    quadratic: a Newton step that does not change the set of samples within the margin reaches the minimum
    exactly. This takes five to twenty steps (Keerthi & DeCoste 2005; Chapelle 2007).

    Machines (one per class and fold of a cross-validation) are solved together. The features are first
    rotated to their principal axes, where the Hessian of every machine is nearly diagonal. Conjugate
    gradients then find a step in about ten products with the Hessian, which is never formed.

    Args:
        x: `(N, D)` float64.
        bias: Whether the features have one more column, of ones.
    """

    def __init__(self, x: Tensor, *, bias: bool = False) -> None:
        dims = x.shape[1] + bias
        # with N < D the weights lie in the span of the samples: solve for N numbers
        span = torch.linalg.qr(_with_ones(x, bias).T).Q if len(x) < dims else None  # (D, N)

        def inner(rows: Tensor) -> Tensor:
            rows = _with_ones(rows, bias)
            return rows if span is None else rows @ span

        rank = min(len(x), dims)
        gram, self._x = x.new_zeros(rank, rank), x.new_empty(len(x), rank)  # (R, R), (N, R)
        size = max(1, BLOCK // dims)
        for rows in x.split(size):
            part = inner(rows)
            gram += part.T @ part
        self._scale, axes = torch.linalg.eigh(gram)  # (R,), (R, R)
        self._axes = axes if span is None else span @ axes  # (D, R)
        for rows, turned in zip(x.split(size), self._x.split(size), strict=True):
            torch.mm(inner(rows), axes, out=turned)

    @property
    def at_once(self) -> int:
        """Number of machines that one call of `fit` solves within the memory bound."""
        return max(1, AT_ONCE // max(1, len(self._x)))

    def fit(
        self,
        signs: Tensor,
        costs: Tensor,
        *,
        init: Tensor | None = None,
        max_iter: int = 100,
        tol: float = 1e-9,
    ) -> SVMFit:
        """Fit machines.

        Args:
            signs: `(M, N)` float64, y of each sample, 1 or -1.
            costs: `(M, N)` float64, c of each sample, at least 0; samples with 0 are ignored.
            init: `(M, D)` weights to start from; None: zeros.
            max_iter: Upper bound for the Newton steps.
            tol: Length of the gradient that counts as 0, relative to its length at w = 0.
        """
        weight = costs.new_zeros(len(costs), len(self._scale))  # (M, R)
        if init is not None:
            weight = init @ self._axes
        start = (2 * (costs * signs) @ self._x).norm(dim=1).clamp_min(1)  # (M,)
        iterations = torch.zeros(len(signs), dtype=torch.int64)
        converged = torch.zeros(len(signs), dtype=torch.bool)
        active = torch.arange(len(signs))  # machines that are not solved yet
        for iteration in range(max_iter + 1):
            y, c, w = signs[active], costs[active], weight[active]
            # above 0 within the margin; computed from w each time, so that rounding does not accumulate
            slack = 1 - y * (w @ self._x.T)
            gradient = w - 2 * (c * y * slack.clamp_min(0)) @ self._x
            norm, bound = gradient.norm(dim=1), tol * start[active]
            converged[active] = norm <= bound
            left = (norm > bound).nonzero()[:, 0]
            if len(left) == 0 or iteration == max_iter:
                break
            active, y, c, w, slack, gradient, norm, bound = (
                each[left] for each in (active, y, c, w, slack, gradient, norm, bound)
            )
            # inexact at first, while the set of samples within the margin still changes
            tolerance = norm * (norm / start[active]).sqrt().clamp_max(0.1)
            step = self._newton_step(gradient, 2 * c * (slack > 0), torch.maximum(tolerance, bound / 4))
            length = _line_search(w, step, slack, y * (step @ self._x.T), c, (gradient * step).sum(1))
            weight[active] = w + length[:, None] * step
            iterations[active] += 1
            active = active[length > 0]
            if len(active) == 0:
                break
        return SVMFit(weight @ self._axes.T, iterations, converged)

    def _newton_step(self, gradient: Tensor, curvature: Tensor, tolerance: Tensor) -> Tensor:
        """Solve `(I + X^T diag(curvature) X) step = -gradient` to a residual norm of `tolerance`."""
        # (M, R), as if all samples had the mean curvature
        diagonal = 1 + curvature.mean(1, keepdim=True) * self._scale
        step, rest = torch.zeros_like(gradient), -gradient
        along = rest / diagonal
        product = (rest * along).sum(1)
        for _ in range(MAX_PRODUCTS):
            unsolved = rest.norm(dim=1) > tolerance
            if not unsolved.any():
                break
            bent = along + ((along @ self._x.T) * curvature) @ self._x
            length = torch.where(unsolved, product / (along * bent).sum(1), 0)[:, None]
            step += length * along
            rest -= length * bent
            turned = rest / diagonal
            before, product = product, (rest * turned).sum(1)
            along = turned + torch.where(unsolved, product / before, 0)[:, None] * along
        return step


def _with_ones(x: Tensor, wanted: bool) -> Tensor:
    """Append a column of ones to `(N, D)` features, if wanted."""
    return torch.cat([x, x.new_ones(len(x), 1)], 1) if wanted else x


def _line_search(
    weight: Tensor, step: Tensor, slack: Tensor, change: Tensor, costs: Tensor, slope: Tensor
) -> Tensor:
    """Halve each step until the objective falls enough: lengths `(M,)`, 0 if it never does."""

    def objective(length: Tensor) -> Tensor:
        hinge = (slack - length[:, None] * change).clamp_min(0)
        return (weight + length[:, None] * step).square().sum(1) / 2 + (costs * hinge.square()).sum(1)

    length = torch.ones_like(slope)
    before = objective(torch.zeros_like(slope))
    for _ in range(MAX_HALVINGS):
        enough = objective(length) <= before + ARMIJO * length * slope + 1e-15 * before.abs()
        if enough.all():
            return length
        length = torch.where(enough, length, length / 2)
    return torch.where(enough, length, 0)
