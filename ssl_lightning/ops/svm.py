"""Linear support vector machines with squared hinge loss, solved in the primal by Newton's method."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

ARMIJO = 1e-4  # share of the predicted decrease that a step must reach
MAX_HALVINGS = 40  # of one step; needing more means that rounding hides progress
MAX_PRODUCTS = 200  # of conjugate gradients in one Newton step
AT_ONCE = 2**24  # machines times samples; each (M, N) tensor then takes 128 MB
KEPT = 2**28  # elements of features that are kept in float64 (2 GiB)
BLOCK = 2**22  # elements of further features that are converted at once (32 MiB)


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


class Samples:
    """Samples `(N, D)` for products in float64; if there are many, each product converts them block by block.

    Args:
        parts: Tensors `(n, D)` of any floating-point type, one after the other. They are not copied, unless
            they are on a GPU.
        unit: Whether each sample is scaled to length 1.
        bias: Whether they have one more feature, which is 1; D counts it.
    """

    def __init__(self, *parts: Tensor, unit: bool = False, bias: bool = False) -> None:
        self._parts, self._bias = [part.cpu() for part in parts], bias
        self.dims = parts[0].shape[1] + bias
        self._factor = torch.ones(len(self), dtype=torch.float64)
        if unit:
            for here, rows in self._blocks():
                self._factor[here] = 1 / rows.norm(dim=1).clamp_min(1e-12)
        if len(self) * self.dims <= KEPT:
            self._parts = [torch.cat(self._parts).double().mul_(self._factor[:, None])]
            self._factor.fill_(1)

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def dense(self) -> Tensor:
        """Return all of them, `(N, D)` float64 on the CPU."""
        return torch.cat([self._complete(here, rows) for here, rows in self._blocks()])

    def score_blocks(self, weight: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield the rows of each block and its products `(M, n)` with weights `(M, D)` float64."""
        for here, rows in self._blocks(AT_ONCE // max(1, len(weight))):
            yield here, self._products(weight, here, rows)

    def scores(self, weight: Tensor) -> Tensor:
        """Return the products `(M, N)` with weights `(M, D)` float64."""
        return torch.cat([products for _, products in self.score_blocks(weight)], 1)

    def sums(self, factors: Tensor) -> Tensor:
        """Return the sums `(M, D)` of the samples, each times its factor of `(M, N)` float64."""
        total = factors.new_zeros(len(factors), self.dims)
        for here, rows in self._blocks():
            self._add(factors[:, here], here, rows, total)
        return total

    def curved(self, weight: Tensor, curvature: Tensor) -> Tensor:
        """Return `sums(scores(weight) * curvature)`, `(M, D)`, in one pass over the samples."""
        total = torch.zeros_like(weight)
        for here, rows in self._blocks():
            self._add(self._products(weight, here, rows) * curvature[:, here], here, rows, total)
        return total

    def gram(self) -> Tensor:
        """Return the sum `(D, D)` of the outer products of each sample with itself."""
        total = torch.zeros(self.dims, self.dims, dtype=torch.float64)
        for here, rows in self._blocks(BLOCK // self.dims):
            complete = self._complete(here, rows)
            total += complete.T @ complete
        return total

    def _products(self, weight: Tensor, here: slice, rows: Tensor) -> Tensor:
        slopes = weight[:, :-1] if self._bias else weight
        products = (slopes @ rows.T) * self._factor[here]
        return products + weight[:, -1:] if self._bias else products

    def _add(self, factors: Tensor, here: slice, rows: Tensor, total: Tensor) -> None:
        total[:, : rows.shape[1]] += (factors * self._factor[here]) @ rows
        if self._bias:
            total[:, -1] += factors.sum(1)

    def _complete(self, here: slice, rows: Tensor) -> Tensor:
        scaled = rows * self._factor[here, None]
        return torch.cat([scaled, scaled.new_ones(len(rows), 1)], 1) if self._bias else scaled

    def _blocks(self, most: int | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Yield blocks of at most so many samples in float64, not scaled yet; use each before the next."""
        begin = 0
        for part in self._parts:
            ready = part.dtype == torch.float64
            size = max(1, min(most or len(part), len(part) if ready else BLOCK // self.dims))
            space = None if ready else torch.empty(size, part.shape[1], dtype=torch.float64)
            for rows in part.split(size):
                here = slice(begin, begin + len(rows))
                yield here, rows if space is None else space[: len(rows)].copy_(rows)
                begin = here.stop


class SVMSolver:
    """Solver for machines on the same features, of which it keeps no copy.

    Each machine minimises `|w|^2 / 2 + sum_i c_i max(0, 1 - y_i <w, x_i>)^2`, the objective of scikit-learn's
    `LinearSVC` (the bias is a constant feature and is penalised, as there). The objective is piecewise
    quadratic: a Newton step that does not change the set of samples within the margin reaches the minimum
    exactly. This takes five to twenty steps (Keerthi & DeCoste 2005; Chapelle 2007).

    Machines (one per class and fold of a cross-validation) are solved together. Their weights are solved
    for along the principal axes of the features, where the Hessian of every machine is nearly diagonal.
    Conjugate gradients then find a step in about ten products with the Hessian, which is never formed.

    Args:
        x: N samples of D features.
    """

    def __init__(self, x: Samples) -> None:
        self._x, span = x, None
        if len(x) < x.dims:  # the weights lie in the span of the samples: solve for N numbers
            rows = x.dense()
            span = torch.linalg.qr(rows.T).Q  # (D, N)
            self._x = Samples(rows @ span)
        self._scale, self._axes = torch.linalg.eigh(self._x.gram())  # (R,), (R, R)
        self._back = self._axes if span is None else span @ self._axes  # (D, R)

    def _scores(self, weight: Tensor) -> Tensor:
        """Return the products `(M, N)` of weights `(M, R)` with the samples."""
        return self._x.scores(weight @ self._axes.T)

    def _sums(self, factors: Tensor) -> Tensor:
        """Return the sums `(M, R)` of the samples, each times its factor of `(M, N)`."""
        return self._x.sums(factors) @ self._axes

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
            weight = init @ self._back
        start = (2 * self._sums(costs * signs)).norm(dim=1).clamp_min(1)  # (M,)
        iterations = torch.zeros(len(signs), dtype=torch.int64)
        converged = torch.zeros(len(signs), dtype=torch.bool)
        active = torch.arange(len(signs))  # machines that are not solved yet
        for iteration in range(max_iter + 1):
            y, c, w = signs[active], costs[active], weight[active]
            # above 0 within the margin; computed from w each time, so that rounding does not accumulate
            slack = 1 - y * self._scores(w)
            gradient = w - 2 * self._sums(c * y * slack.clamp_min(0))
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
            length = _line_search(w, step, slack, y * self._scores(step), c, (gradient * step).sum(1))
            weight[active] = w + length[:, None] * step
            iterations[active] += 1
            active = active[length > 0]
            if len(active) == 0:
                break
        return SVMFit(weight @ self._back.T, iterations, converged)

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
            bent = along + self._x.curved(along @ self._axes.T, curvature) @ self._axes
            length = torch.where(unsolved, product / (along * bent).sum(1), 0)[:, None]
            step += length * along
            rest -= length * bent
            turned = rest / diagonal
            before, product = product, (rest * turned).sum(1)
            along = turned + torch.where(unsolved, product / before, 0)[:, None] * along
        return step


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
