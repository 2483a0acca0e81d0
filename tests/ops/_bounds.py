"""How far apart two answers of a solver may lie, by its own stopping rule, on any processor."""

from __future__ import annotations

import torch
from torch import Tensor


def svm_gradients(x: Tensor, signs: Tensor, costs: Tensor, tol: float = 1e-9) -> Tensor:
    """Length of the gradient at which `SVMSolver` stops.

    Args:
        x: `(N, D)`.
        signs: `(M, N)`, as `SVMSolver.fit` takes them.
        costs: `(M, N)`.
        tol: Of the solver.

    Returns:
        `(M,)`, with a thousandth on top for the rounding of the gradient that the solver measured.
    """
    return 1.001 * tol * (2 * (costs * signs) @ x).norm(dim=1).clamp_min(1)


def assert_same_svms(
    found: Tensor, expected: Tensor, x: Tensor, signs: Tensor, costs: Tensor, tol: float = 1e-9
) -> None:
    """Check that weights `(M, D)` of the same machines lie no farther apart than the solver promises.

    The penalty `|w|^2 / 2` bends the objective by 1 in every direction. The distance of any weights from the
    minimum is therefore at most the length of the gradient there, and two answers lie twice that apart.
    """
    apart = (found - expected).norm(dim=1)
    allowed = 2 * svm_gradients(x, signs, costs, tol)
    assert (apart <= allowed).all(), f"{apart.tolist()} apart, allowed are {allowed.tolist()}"


def logistic_distance(x: Tensor, labels: Tensor, theta: Tensor, l2: float, tol: float) -> float:
    """Distance from the minimum at which `fit_logistic` may stop: one Newton step.

    The gradient has `K * (D + 1)` entries up to `tol`; the smallest curvature at the answer divides its
    length. A shift of all biases, which changes no answer, has no curvature and does not count.

    Args:
        x: `(N, D)` float64.
        labels: `(N,)`.
        theta: `(K, D + 1)` weights and, last, biases.
        l2: Strength of the penalty.
        tol: Of the solver.
    """

    def objective(flat: Tensor) -> Tensor:
        weight, bias = flat.view_as(theta).tensor_split([-1], 1)
        loss = torch.nn.functional.cross_entropy(x @ weight.T + bias[:, 0], labels)
        return loss + l2 / 2 * weight.square().sum()

    hessian = torch.func.hessian(objective)(theta.flatten())
    curvature = torch.linalg.eigvalsh(hessian)[1]  # [0] is that of the shift
    return theta.numel() ** 0.5 * tol / float(curvature)
