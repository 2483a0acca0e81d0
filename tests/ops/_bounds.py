"""Bounds for the distance of two solutions of a solver, derived from its stopping rule."""

from __future__ import annotations

import torch
from torch import Tensor


def svm_gradients(x: Tensor, signs: Tensor, costs: Tensor, tol: float = 1e-9) -> Tensor:
    """Return the length of the gradient at which `SVMSolver` stops.

    Args:
        x: `(N, D)`.
        signs: `(M, N)`, see `SVMSolver.fit`.
        costs: `(M, N)`.
        tol: Tolerance of the solver.

    Returns:
        `(M,)`, plus 0.1 % for the rounding of the gradient in the solver.
    """
    return 1.001 * tol * (2 * (costs * signs) @ x).norm(dim=1).clamp_min(1)


def assert_same_svms(
    found: Tensor, expected: Tensor, x: Tensor, signs: Tensor, costs: Tensor, tol: float = 1e-9
) -> None:
    """Check that two weights `(M, D)` of the same machines are as close as the solver guarantees.

    The penalty `|w|^2 / 2` bends the objective by 1 in every direction. The distance of any weights from the
    minimum is therefore at most the length of the gradient there; two solutions differ by at most twice that.
    """
    apart = (found - expected).norm(dim=1)
    allowed = 2 * svm_gradients(x, signs, costs, tol)
    assert (apart <= allowed).all(), f"{apart.tolist()} apart, allowed are {allowed.tolist()}"


def logistic_distance(x: Tensor, labels: Tensor, theta: Tensor, l2: float, tol: float) -> float:
    """Return the distance from the minimum at which `fit_logistic` may stop: one Newton step.

    The gradient has `K * (D + 1)` entries up to `tol`; its length is divided by the smallest curvature at
    the solution. A common shift of all biases changes nothing, has no curvature and does not count.

    Args:
        x: `(N, D)` float64.
        labels: `(N,)`.
        theta: `(K, D + 1)` weights and, last, biases.
        l2: Strength of the penalty.
        tol: Tolerance of the solver.
    """

    def objective(flat: Tensor) -> Tensor:
        weight, bias = flat.view_as(theta).tensor_split([-1], 1)
        loss = torch.nn.functional.cross_entropy(x @ weight.T + bias[:, 0], labels)
        return loss + l2 / 2 * weight.square().sum()

    hessian = torch.func.hessian(objective)(theta.flatten())
    curvature = torch.linalg.eigvalsh(hessian)[1]  # [0] belongs to the shift
    return theta.numel() ** 0.5 * tol / float(curvature)
