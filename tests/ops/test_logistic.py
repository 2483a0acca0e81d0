"""Logistic regression against scikit-learn, autograd and closed forms."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from ssl_lightning.core.seeding import generator
from ssl_lightning.ops import logistic
from ssl_lightning.ops.logistic import LogisticFit, cross_entropy_residual, fit_logistic
from tests.ops._bounds import logistic_distance

N, D, K = 400, 12, 4
STRENGTHS = (1e-1, 1e-2, 1e-3)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Use one thread: such small products only wait for threads, above all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def problem(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Make overlapping classes with correlated features of unequal scales and nonzero mean."""
    stream = generator("logistic")
    labels = torch.randint(K, (N,), generator=stream)
    x = torch.randn(K, D, generator=stream)[labels] + 1.5 * torch.randn(N, D, generator=stream)
    mixing = torch.randn(D, D, generator=stream)
    return (x @ mixing / D**0.5 + 1).to(dtype), labels


def objective(x: Tensor, labels: Tensor, weight: Tensor, bias: Tensor, l2: float) -> Tensor:
    return torch.nn.functional.cross_entropy(x @ weight.T + bias, labels) + l2 / 2 * weight.square().sum()


def apart(x: Tensor, labels: Tensor, fit: LogisticFit, tol: float) -> list[float]:
    """Bound the distance of two solutions of each strength that both stopped at `tol`."""
    return [
        2 * logistic_distance(x, labels, torch.cat([fit.weight[r], fit.bias[r][:, None]], 1), l2, tol)
        for r, l2 in enumerate(STRENGTHS)
    ]


def assert_within(found: Tensor, expected: Tensor, allowed: list[float]) -> None:
    """Check the distance of weights `(R, K, D)`."""
    distance = (found - expected).flatten(1).norm(dim=1).tolist()
    assert all(d <= a for d, a in zip(distance, allowed, strict=True)), (distance, allowed)


def test_solutions_are_scikit_learns() -> None:
    x, labels = problem()
    fit = fit_logistic(x, labels, K, STRENGTHS, tol=1e-10)
    assert fit.converged.all()
    longest = float(x.norm(dim=1).max()) + 1  # lower bound for a sample with the 1 of the bias
    for r, (l2, far) in enumerate(zip(STRENGTHS, apart(x, labels, fit, 1e-10), strict=True)):
        model = LogisticRegression(C=1 / (N * l2), solver="newton-cg", tol=1e-12, max_iter=1000)
        model.fit(x.numpy(), labels.numpy())
        np.testing.assert_allclose(fit.weight[r].numpy(), model.coef_, atol=far, rtol=0)
        bias = fit.bias[r] - fit.bias[r].mean()  # a shift common to all classes changes nothing
        np.testing.assert_allclose(bias, model.intercept_ - model.intercept_.mean(), atol=far, rtol=0)
        probability = (x @ fit.weight[r].T + fit.bias[r]).softmax(1)  # changes less than the logits
        np.testing.assert_allclose(probability, model.predict_proba(x.numpy()), atol=far * longest, rtol=0)


def test_gradient_is_zero_at_the_solution_by_autograd() -> None:
    x, labels = problem()
    fit = fit_logistic(x, labels, K, STRENGTHS, tol=1e-9)
    for r, l2 in enumerate(STRENGTHS):
        weight, bias = fit.weight[r].clone().requires_grad_(), fit.bias[r].clone().requires_grad_()
        loss = objective(x, labels, weight, bias, l2)
        gradients = torch.autograd.grad(loss, (weight, bias))
        assert max(float(g.abs().max()) for g in gradients) <= 2e-9
        assert loss.item() == pytest.approx(float(fit.loss[r]), abs=1e-12)


def test_float32_converges_to_the_same() -> None:
    single = fit_logistic(*problem(torch.float32), K, STRENGTHS, tol=1e-5)
    double = fit_logistic(*problem(), K, STRENGTHS, tol=1e-10)
    assert single.converged.all()
    torch.testing.assert_close(single.loss.double(), double.loss, rtol=1e-5, atol=1e-6)


def test_zero_weights_cost_log_k() -> None:
    fit = fit_logistic(*problem(), K, [1.0], max_iter=0)
    assert float(fit.loss) == pytest.approx(math.log(K), abs=1e-12)
    assert not fit.converged.any()
    assert not fit.weight.any()


def test_residual_is_the_gradient_of_the_loss() -> None:
    labels = torch.tensor([0, 2, 1, 2])
    logits = torch.randn(2, 3, 4, dtype=torch.float64, generator=generator("logits")) * 5
    loss, residual = cross_entropy_residual(logits, labels)
    for r in range(2):
        row = logits[r].T.clone().requires_grad_()
        expected = torch.nn.functional.cross_entropy(row, labels)
        torch.testing.assert_close(loss[r], expected.detach())
        torch.testing.assert_close(residual[r].T, torch.autograd.grad(expected, row)[0])


def test_huge_logits_stay_finite() -> None:
    loss, residual = cross_entropy_residual(torch.tensor([[[3e4], [-3e4]]]), torch.tensor([1]))
    assert loss.tolist() == [6e4]
    assert residual.tolist() == [[[1.0], [-1.0]]]


def test_order_and_mean_of_the_samples_do_not_matter() -> None:
    x, labels = problem()
    fit = fit_logistic(x, labels, K, STRENGTHS, tol=1e-9)
    order = torch.randperm(N, generator=generator("order"))
    shuffled = fit_logistic(x[order], labels[order], K, STRENGTHS, tol=1e-9)
    assert_within(shuffled.weight, fit.weight, apart(x, labels, fit, 1e-9))
    middle = x - x.mean(0)
    centred = fit_logistic(middle, labels, K, STRENGTHS, tol=1e-9)  # the free bias absorbs it
    allowed = map(max, apart(x, labels, fit, 1e-9), apart(middle, labels, centred, 1e-9))
    assert_within(centred.weight, fit.weight, list(allowed))


def test_strengths_do_not_see_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = problem()
    together = fit_logistic(x, labels, K, STRENGTHS, tol=1e-10)
    allowed = apart(x, labels, together, 1e-10)
    alone = torch.cat([fit_logistic(x, labels, K, [l2], tol=1e-10).weight for l2 in STRENGTHS])
    assert_within(alone, together.weight, allowed)
    monkeypatch.setattr(logistic, "MAX_LOGITS", K * N)  # one at a time, each from the previous solution
    in_turn = fit_logistic(x, labels, K, STRENGTHS, tol=1e-10)
    assert_within(in_turn.weight, together.weight, allowed)


@pytest.mark.parametrize("rows", [150, N])  # three batches, the last one smaller, and one
def test_batches_of_samples_reach_the_same_solution(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    x, labels = problem()
    parts = (torch.arange(N) % 3) != torch.arange(3)[:, None]
    kept = fit_logistic(x, labels, K, STRENGTHS, tol=1e-10)
    kept_parts = fit_logistic(x, labels, K, STRENGTHS, tol=1e-10, parts=parts)
    monkeypatch.setattr(logistic, "MAX_LOGITS", 1)
    monkeypatch.setattr(logistic, "BATCH_LOGITS", K * rows)
    fit = fit_logistic(x, labels, K, STRENGTHS, tol=1e-10)
    assert fit.converged.all()
    torch.testing.assert_close(fit.loss, kept.loss, rtol=0, atol=1e-12)
    assert_within(fit.weight, kept.weight, apart(x, labels, kept, 1e-10))
    in_parts = fit_logistic(x, labels, K, STRENGTHS, tol=1e-10, parts=parts)
    assert in_parts.converged.all()
    torch.testing.assert_close(in_parts.loss, kept_parts.loss, rtol=0, atol=1e-12)


def test_warm_start_at_the_solution_takes_no_iteration() -> None:
    x, labels = problem()
    fit = fit_logistic(x, labels, K, [0.01], tol=1e-8)
    again = fit_logistic(x, labels, K, [0.01], tol=1e-8, init=(fit.weight[0], fit.bias[0]))
    assert int(fit.iterations) > 0
    assert int(again.iterations) == 0
    assert again.converged.all()


def test_separable_classes_constant_features_and_an_absent_class() -> None:
    labels = torch.arange(60) % 3
    x = torch.eye(3)[labels].repeat(1, 2)  # every feature twice: a singular Gram matrix
    x = torch.cat([x, torch.zeros(60, 1)], 1)
    fit = fit_logistic(x, labels, 4, [1e-3, 1e-5], tol=1e-5)
    assert fit.converged.all()
    assert ((x @ fit.weight.mT + fit.bias[:, None]).argmax(2) == labels).all()
    assert not fit.weight[..., -1].any()


def test_no_convergence_is_said() -> None:
    fit = fit_logistic(*problem(), K, [1e-5], max_iter=2, tol=1e-9)
    assert fit.iterations.tolist() == [2]
    assert fit.converged.tolist() == [False]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"l2": []}, "l2 is"),
        ({"l2": [0.1, 0.0]}, "l2 is"),
        ({"num_classes": 1}, "num_classes is 1"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, "x is"),
        ({"x": torch.zeros(0, D), "labels": torch.zeros(0, dtype=torch.int64)}, "x is"),
    ],
)
def test_bad_values_are_refused(change: dict, match: str) -> None:
    x, labels = problem()
    with pytest.raises(ValueError, match=match):
        fit_logistic(**{"x": x, "labels": labels, "num_classes": K, "l2": [0.1]} | change)


def test_parts_are_solved_as_if_each_were_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = problem()
    part = torch.arange(N) % 3
    parts = part != torch.arange(3)[:, None]  # (F, N)
    fit = fit_logistic(x, labels, K, STRENGTHS, tol=1e-10, parts=parts)
    assert fit.weight.shape == (len(STRENGTHS), 3, K, D)
    assert fit.converged.all()
    monkeypatch.setattr(logistic, "MAX_LOGITS", K * N * len(parts))
    in_turn = fit_logistic(x, labels, K, STRENGTHS, tol=1e-10, parts=parts)
    for fold, rows in enumerate(parts):
        alone = fit_logistic(x[rows], labels[rows], K, STRENGTHS, tol=1e-10)
        torch.testing.assert_close(fit.loss[:, fold], alone.loss, rtol=0, atol=1e-12)
        allowed = apart(x[rows], labels[rows], alone, 1e-10)
        assert_within(fit.weight[:, fold], alone.weight, allowed)
        assert_within(in_turn.weight[:, fold], alone.weight, allowed)


def test_parts_without_samples_are_refused() -> None:
    with pytest.raises(ValueError, match=r"parts is \(2, 400\); it must be \(F, 400\), each with a sample"):
        fit_logistic(*problem(), K, [1.0], parts=torch.arange(2)[:, None].expand(2, N) == 1)
