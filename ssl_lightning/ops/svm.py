"""Linear support vector machines with squared hinge loss, solved in the primal by Newton's method.

Each minimises `|w|^2 / 2 + sum_i c_i max(0, 1 - y_i <w, x_i>)^2`, which is scikit-learn's `LinearSVC` (a bias
is a column of ones, penalised as there). The objective is made of quadratics, so that a step which leaves the
samples within the margin the same ends at the very minimum, after five to twenty steps (Keerthi & DeCoste
2005; Chapelle 2007).

Machines on the same features, one a class and part of a cross-validation, are solved together. The features
are turned onto their principal axes first, where the Hessian of every machine is nearly diagonal: conjugate
gradients then find a step in some ten products with it, and it is never made.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ARMIJO = 1e-4  # share of the promised decrease that a step must bring
MAX_HALVINGS = 40  # of a step; more means that rounding hides any progress
MAX_PRODUCTS = 200  # of conjugate gradients in one step; the next one goes on from there
AT_ONCE = 2**24  # machines times samples: what is kept of each takes 128 MB


@dataclass(frozen=True)
class SVMFit:
    """Solutions.

    Args:
        weight: `(M, D)`.
        iterations: `(M,)` Newton steps taken.
        converged: `(M,)` whether the gradient is within the tolerance.
    """

    weight: Tensor
    iterations: Tensor
    converged: Tensor


class SVMSolver:
    """What all machines on some features share.

    Args:
        x: `(N, D)` float64.
    """

    def __init__(self, x: Tensor) -> None:
        # of few samples the weights lie in the span: solved with as many numbers
        span = torch.linalg.qr(x.T).Q if len(x) < x.shape[1] else None  # (D, N)
        inner = x if span is None else x @ span
        self._scale, axes = torch.linalg.eigh(inner.T @ inner)  # (R,), (R, R)
        self._axes = axes if span is None else span @ axes  # (D, R)
        self._x = inner @ axes  # (N, R)

    @property
    def at_once(self) -> int:
        """How many machines `fit` may be given in one call with little memory."""
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
            costs: `(M, N)` float64, c of each sample, at least 0; one with 0 is not looked at.
            init: `(M, D)` to start from; None for 0.
            max_iter: Newton steps at most.
            tol: Length of the gradient that counts as 0, relative to the one at w = 0.
        """
        weight = costs.new_zeros(len(costs), len(self._scale))  # (M, R)
        if init is not None:
            weight = init @ self._axes
        start = (2 * (costs * signs) @ self._x).norm(dim=1).clamp_min(1)  # (M,)
        iterations = torch.zeros(len(signs), dtype=torch.int64)
        converged = torch.zeros(len(signs), dtype=torch.bool)
        at_work = torch.arange(len(signs))  # those that are not solved yet
        for iteration in range(max_iter + 1):
            y, c, w = signs[at_work], costs[at_work], weight[at_work]
            slack = 1 - y * (w @ self._x.T)  # above 0 within the margin; anew: no rounding adds up
            gradient = w - 2 * (c * y * slack.clamp_min(0)) @ self._x
            norm, bound = gradient.norm(dim=1), tol * start[at_work]
            converged[at_work] = norm <= bound
            left = (norm > bound).nonzero()[:, 0]
            if len(left) == 0 or iteration == max_iter:
                break
            at_work, y, c, w, slack, gradient, norm, bound = (
                each[left] for each in (at_work, y, c, w, slack, gradient, norm, bound)
            )
            # roughly at first, when the samples within the margin still change
            wanted = norm * (norm / start[at_work]).sqrt().clamp_max(0.1)
            step = self._newton_step(gradient, 2 * c * (slack > 0), torch.maximum(wanted, bound / 4))
            length = _line_search(w, step, slack, y * (step @ self._x.T), c, (gradient * step).sum(1))
            weight[at_work] = w + length[:, None] * step
            iterations[at_work] += 1
            at_work = at_work[length > 0]
            if len(at_work) == 0:
                break
        return SVMFit(weight @ self._axes.T, iterations, converged)

    def _newton_step(self, gradient: Tensor, curvature: Tensor, wanted: Tensor) -> Tensor:
        """Solve `(I + X^T diag(curvature) X) step = -gradient` until what is left is as short as `wanted`."""
        diagonal = 1 + curvature.mean(1, keepdim=True) * self._scale  # (M, R), as if all weighed the same
        step, rest = torch.zeros_like(gradient), -gradient
        along = rest / diagonal
        product = (rest * along).sum(1)
        for _ in range(MAX_PRODUCTS):
            unsolved = rest.norm(dim=1) > wanted
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


def _line_search(
    weight: Tensor, step: Tensor, slack: Tensor, change: Tensor, costs: Tensor, slope: Tensor
) -> Tensor:
    """Halve each step until its objective falls as it should: lengths `(M,)`, 0 where it never does."""

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
