"""Multinomial logistic regression on the device: full batch, several penalties at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

HISTORY = 10  # pairs that L-BFGS remembers
MAX_TRIALS = 20  # steps of one line search; needing more means that rounding hides progress
MAX_LOGITS = 2**28  # elements that are kept (1 GiB in float32); further strengths follow in turn
BATCH_LOGITS = 2**26  # elements at once where one strength has more than MAX_LOGITS


@dataclass(frozen=True)
class LogisticFit:
    """Classifiers for R strengths of the penalty; fits of F parts have the shape (R, F, ...).

    Args:
        weight: `(R, K, D)`.
        bias: `(R, K)`.
        loss: `(R,)` value of the penalised objective, in nats.
        gradient: `(R,)` largest absolute entry of its gradient.
        iterations: `(R,)` int64.
        converged: `(R,)` bool: the gradient is within the tolerance.
    """

    weight: Tensor
    bias: Tensor
    loss: Tensor
    gradient: Tensor
    iterations: Tensor
    converged: Tensor


def fit_logistic(
    x: Tensor,
    labels: Tensor,
    num_classes: int,
    l2: Sequence[float],
    *,
    max_iter: int = 200,
    tol: float = 1e-4,
    init: tuple[Tensor, Tensor] | None = None,
    moments: Tensor | None = None,
    parts: Tensor | None = None,
) -> LogisticFit:
    """Fit one classifier per strength of the penalty.

    The objective is `mean cross-entropy + l2 / 2 * |weight|^2` (the bias is not penalised). It equals
    scikit-learn's `LogisticRegression` with `C = 1 / (N * l2)`.

    Besides x, memory holds a few GiB for any number of samples and classes. If the logits do not fit, every
    step computes them again in batches of samples, with the same number of products.

    All strengths are solved side by side. Reading the features bounds the cost of products with them, so five
    strengths cost as much as one (18,000 x 512 x 10 classes on two cores: 13 ms for 10 and for 50 columns).

    Args:
        x: `(N, D)` float features, preferably standardised; the fit runs in their dtype.
        labels: `(N,)` int64 in 0..K-1.
        num_classes: K.
        l2: R strengths above 0, in any order.
        max_iter: Upper bound for the iterations of L-BFGS; 0 evaluates the start.
        tol: The fit stops if no entry of the gradient is larger in absolute value (as in scikit-learn).
        init: Weight `(K, D)` and bias `(K,)` to start from; None: zeros.
        moments: `second_moments` of x, or of most of x: they only set the first direction.
        parts: `(F, N)` bool, the samples of F separate fits, such as the training sets of a cross-validation.
            All are solved side by side too. None: one fit to all samples.

    Raises:
        ValueError: Shapes do not match, there are no samples (in a part), a strength is not above 0, or
            `num_classes` is below 2.
    """
    if x.ndim != 2 or labels.shape != x.shape[:1] or not len(x):
        raise ValueError(
            f"x is {tuple(x.shape)} and labels {tuple(labels.shape)}; they must be (N, D) and (N,), N > 0"
        )
    if not l2 or min(l2) <= 0:
        raise ValueError(f"l2 is {list(l2)}; at least one strength is needed, all above 0")
    if num_classes < 2:
        raise ValueError(f"num_classes is {num_classes}; a classifier needs at least 2")
    if parts is not None and (parts.shape[1:] != x.shape[:1] or not parts.any(1).all()):
        raise ValueError(f"parts is {tuple(parts.shape)}; it must be (F, {len(x)}), each with a sample")
    weight = None if parts is None else parts.to(x.dtype) / parts.sum(1, keepdim=True)  # (F, N)
    fits = 1 if weight is None else len(weight)
    start = x.new_zeros(num_classes, x.shape[1] + 1)
    if init is not None:
        start = torch.cat([init[0], init[1][:, None]], 1).to(start)
    start = start.expand(fits, -1, -1)  # (F, K, D + 1)
    gram = second_moments(x) if moments is None else moments
    together = max(1, MAX_LOGITS // (num_classes * len(x) * fits))
    solved = []
    for first in range(0, len(l2), together):
        penalty = x.new_tensor(l2[first : first + together])
        theta = start.repeat(len(penalty), 1, 1)  # (R * F, K, D + 1)
        solved.append(_lbfgs(x, labels, penalty, gram, theta, max_iter, tol, weight))
        start = solved[-1][0][-fits:]  # warm start: similar strengths have similar solutions
    columns = [torch.cat(column) for column in zip(*solved, strict=True)]
    if parts is not None:
        columns = [column.unflatten(0, (len(l2), fits)) for column in columns]
    theta, loss, gradient, iterations = columns
    return LogisticFit(theta[..., :-1], theta[..., -1], loss, gradient, iterations, gradient <= tol)


def cross_entropy_residual(
    logits: Tensor, labels: Tensor, weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Compute mean cross-entropy and its gradient with respect to the logits, in closed form.

    Args:
        logits: `(R, K, N)`: with samples innermost, reductions over classes are vectorised over samples (4
            times as fast as with ten classes innermost).
        labels: `(N,)` int64 in 0..K-1.
        weight: `(R, N)` weights of the samples, at least 0 with sum 1; None weighs all alike.

    Returns:
        Loss `(R,)` in nats, and `(softmax - one-hot) * weight`, `(R, K, N)`.
    """
    index = labels.expand(len(logits), 1, -1)  # (R, 1, N)
    top = logits.amax(1, keepdim=True)
    residual = (logits - top).exp_()
    total = residual.sum(1, keepdim=True)
    loss = total.log() + top - logits.gather(1, index)  # (R, 1, N)
    residual.div_(total)
    residual.scatter_add_(1, index, residual.new_full((), -1.0).expand(index.shape))
    if weight is None:
        return loss.mean((1, 2)), residual.div_(logits.shape[2])
    return (loss[:, 0] * weight).sum(1), residual.mul_(weight[:, None])


def _lbfgs(
    x: Tensor,
    labels: Tensor,
    l2: Tensor,
    gram: Tensor,
    theta: Tensor,
    max_iter: int,
    tol: float,
    weight: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Minimise from theta `(R * F, K, D + 1)`, bias last; return theta, loss, largest gradient, iterations.

    The F fits of a strength follow each other; `weight` is `(F, N)`, or None for one fit of all samples.

    L-BFGS (Nocedal & Wright 2006, alg. 7.4) starts from the exact inverse Hessian at zero weights. Its only
    expensive part is the Gram matrix of the features. Convolutional features are strongly correlated: without
    this start, weak penalties need hundreds of iterations instead of tens.
    """
    penalty = torch.ones_like(theta[:1]) * l2[:, None, None]  # (R, K, D + 1)
    penalty[..., -1] = 0
    curvature = _inverse(gram / theta.shape[1], penalty[:, 0])  # (R, D + 1, D + 1), shared by the F fits
    fits = len(theta) // len(l2)
    penalty = penalty.repeat_interleave(fits, 0)
    weight = None if weight is None else weight.repeat(len(l2), 1)  # (R * F, N)
    pairs: list[tuple[Tensor, Tensor, Tensor]] = []
    few = theta.shape[0] * theta.shape[1] * len(x) <= MAX_LOGITS
    samples = (_KeptLogits if few else _Batches)(x, labels, penalty, weight)
    loss, gradient = samples.start(theta)
    active = gradient.abs().amax((1, 2)) > tol
    iterations = torch.zeros_like(active, dtype=torch.int64)
    noise = 8 * torch.finfo(x.dtype).eps
    for _ in range(max_iter):
        if not active.any():
            break
        direction = -_inverse_hessian(gradient, curvature, pairs)
        slope = _dot(gradient, direction)
        samples.aim(direction)
        step = active.to(x.dtype)[:, None, None]
        for _ in range(MAX_TRIALS):
            new_theta = theta + step * direction
            new_loss, new_gradient = samples.move(step, new_theta)
            new_slope = _dot(new_gradient, direction)
            # judged mainly by the slope, since rounding hides small differences of the loss
            accepted = (new_slope <= -0.5 * slope) & (new_loss <= loss + noise * loss.abs())
            if accepted[active].all():
                break
            secant = (slope / (slope - new_slope)).nan_to_num(0.5).clamp(0.1, 0.7)[:, None, None]
            step = torch.where(accepted[:, None, None], step, step * secant)
        active &= accepted
        keep = active[:, None, None]
        s = torch.where(keep, new_theta - theta, 0.0)
        y = torch.where(keep, new_gradient - gradient, 0.0)
        pairs = [*pairs[1 - HISTORY :], (s, y, _dot(s, y))]
        theta, gradient = torch.where(keep, new_theta, theta), torch.where(keep, new_gradient, gradient)
        loss = torch.where(active, new_loss, loss)
        samples.keep(keep)
        iterations += active
        active = active & (gradient.abs().amax((1, 2)) > tol)
    return theta, loss, gradient.abs().amax((1, 2)), iterations


class _KeptLogits:
    """Objective that keeps the logits of all samples `(R, K, N)`.

    They are linear in the step, so a line search computes no products with the features to move.
    """

    def __init__(self, x: Tensor, labels: Tensor, penalty: Tensor, weight: Tensor | None) -> None:
        self.x, self.labels, self.penalty, self.weight = x, labels, penalty, weight

    def start(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return loss and gradient at the first point."""
        self.logits = _product(theta, self.x)
        return _objective(self.logits, self.labels, self.x, theta, self.penalty, self.weight)

    def aim(self, direction: Tensor) -> None:
        """Take the direction of the next moves."""
        self.moved = _product(direction, self.x)

    def move(self, step: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return loss and gradient at `theta`, a step along the direction."""
        self.new = self.logits + step * self.moved
        return _objective(self.new, self.labels, self.x, theta, self.penalty, self.weight)

    def keep(self, kept: Tensor) -> None:
        """Take the last move as the new point for the fits in `kept`, `(R, 1, 1)` bool."""
        self.logits = torch.where(kept, self.new, self.logits)


class _Batches(_KeptLogits):
    """Objective that computes the logits in batches of samples and keeps none."""

    def start(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        decay = self.penalty * theta
        loss, gradient = 0.5 * _dot(decay, theta), decay
        none = torch.zeros_like(theta[:1])  # the penalty counts once, not in each batch
        for rows in torch.arange(len(self.x)).split(max(1, BATCH_LOGITS // theta[..., 0].numel())):
            here = slice(int(rows[0]), int(rows[-1]) + 1)
            x, labels = self.x[here], self.labels[here]
            weight = None if self.weight is None else self.weight[:, here]
            part = _objective(_product(theta, x), labels, x, theta, none, weight)
            share = 1 if weight is not None else len(x) / len(self.x)
            loss, gradient = loss + share * part[0], gradient + share * part[1]
        return loss, gradient

    def aim(self, direction: Tensor) -> None:
        """Need no products: `move` computes the logits at its point."""

    def move(self, step: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        return self.start(theta)

    def keep(self, kept: Tensor) -> None:
        """Keep nothing."""


def _objective(
    logits: Tensor, labels: Tensor, x: Tensor, theta: Tensor, penalty: Tensor, weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Compute the penalised loss `(R,)` and its gradient `(R, K, D + 1)`."""
    loss, residual = cross_entropy_residual(logits, labels, weight)
    by_weight = (residual.flatten(0, 1) @ x).unflatten(0, residual.shape[:2])
    gradient = torch.cat([by_weight, residual.sum(2, keepdim=True)], 2)
    decay = penalty * theta
    return loss + 0.5 * _dot(decay, theta), gradient + decay


def _product(theta: Tensor, x: Tensor) -> Tensor:
    """Compute logits `(R, K, N)` of parameters `(R, K, D + 1)`, for all strengths in one product."""
    flat = theta.flatten(0, 1)
    # features @ parameters and a copy: faster than parameters @ features transposed
    return torch.addmm(flat[:, -1], x, flat[:, :-1].T).T.contiguous().unflatten(0, theta.shape[:2])


def _inverse_hessian(gradient: Tensor, start: Tensor, pairs: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Run the two-loop recursion for all fits, from the inverse Hessian `start`, `(R, D + 1, D + 1)`.

    Pairs without curvature (sy = 0) are ignored.
    """
    q, alphas = gradient, []
    for s, y, sy in reversed(pairs):
        alphas.append(torch.where(sy > 0, _dot(s, q) / sy, 0.0)[:, None, None])
        q = q - alphas[-1] * y
    r = _times(q, start)
    if pairs:  # scale to the latest curvature, as L-BFGS does with the identity
        _, y, sy = pairs[-1]
        scale = sy / _dot(y, _times(y, start))
        r = r * torch.where(sy > 0, scale, 1.0)[:, None, None]
    for (s, y, sy), alpha in zip(pairs, reversed(alphas), strict=True):
        beta = torch.where(sy > 0, _dot(y, r) / sy, 0.0)[:, None, None]
        r = r + (alpha - beta) * s
    return r


def _times(theta: Tensor, matrices: Tensor) -> Tensor:
    """Multiply `(R * F, K, D + 1)` with `(R, D + 1, D + 1)`: the F fits of a strength share its matrix."""
    return (theta.reshape(len(matrices), -1, theta.shape[2]) @ matrices).view_as(theta)


def second_moments(x: Tensor) -> Tensor:
    """Compute second moments `(D + 1, D + 1)` of the features and of the bias's constant feature 1."""
    total = x.sum(0)[:, None]
    moments = torch.cat(
        [torch.cat([x.T @ x, total], 1), torch.cat([total.T, total.new_full((1, 1), len(x))], 1)]
    )
    return moments / len(x)


def _inverse(curvature: Tensor, penalty: Tensor) -> Tensor:
    """Invert the curvature plus each penalty `(R, D + 1)`: `(R, D + 1, D + 1)`.

    The inverse is explicit because every iteration multiplies with it twice: 15 times as fast as solving with
    the factor.
    """
    # The shift keeps the matrix definite despite rounding; the start of L-BFGS need not be exact
    shift = 8 * torch.finfo(curvature.dtype).eps * curvature.diagonal().sum()
    return torch.cholesky_inverse(torch.linalg.cholesky(curvature + torch.diag_embed(penalty + shift)))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((1, 2))
