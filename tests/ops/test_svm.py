"""Linear SVMs against scikit-learn and optimality conditions; samples with cost 0 have no effect."""

import numpy as np
import pytest
import torch
from sklearn.svm import LinearSVC
from torch import Tensor

from ssl_lightning.core.seeding import generator
from ssl_lightning.ops import svm
from ssl_lightning.ops.svm import Samples, SVMFit, SVMSolver
from tests.ops._bounds import assert_same_svms, svm_gradients


def data(n: int = 200, dims: int = 12, shift: float = 0.5) -> tuple[Tensor, Tensor]:
    stream = generator("svm", n, dims)
    signs = torch.where(torch.rand(n, generator=stream) < 0.2, 1.0, -1.0).double()
    x = torch.randn(n, dims, generator=stream).double() + shift * signs[:, None] / dims**0.5
    return torch.cat([x, x.new_ones(n, 1)], 1), signs


def fit_one(x: Tensor, signs: Tensor, costs: Tensor, init: Tensor | None = None, **options: int) -> SVMFit:
    start = None if init is None else init[None]
    found = SVMSolver(Samples(x)).fit(signs[None], costs[None], init=start, **options)
    return SVMFit(found.weight[0], found.iterations[0], found.converged[0])


# 300 features exceed the samples; liblinear does not solve the last case
@pytest.mark.parametrize(("dims", "cost"), [(12, 1e-3), (12, 1.0), (12, 1e3), (300, 1e-3), (300, 1.0)])
def test_weights_are_scikit_learns(dims: int, cost: float) -> None:
    x, signs = data(dims=dims)
    found = fit_one(x, signs, cost * torch.where(signs > 0, 2.0, 1.0).double())
    model = LinearSVC(C=cost, class_weight={1: 2, -1: 1}, dual=False, tol=1e-10, max_iter=100_000)
    model.fit(x[:, :-1].numpy(), signs.numpy())
    np.testing.assert_allclose(found.weight[:-1], model.coef_[0], rtol=1e-4, atol=1e-6)
    assert found.weight[-1].item() == pytest.approx(model.intercept_[0], rel=1e-4)
    assert found.converged
    assert found.iterations < 20


@pytest.mark.parametrize("shift", [0.5, 8.0])  # overlapping and separable
def test_the_gradient_of_the_objective_is_zero(shift: float) -> None:
    x, signs = data(80, 30, shift)
    costs = 5 * torch.rand(80, generator=generator("costs")).double()
    weight = fit_one(x, signs, costs).weight.requires_grad_()
    objective = weight.square().sum() / 2 + (costs * (1 - signs * (x @ weight)).clamp_min(0).square()).sum()
    (gradient,) = torch.autograd.grad(objective, weight)
    assert gradient.norm() <= svm_gradients(x, signs[None], costs[None])


def test_samples_without_cost_are_not_there() -> None:
    x, signs = data()
    costs = torch.where(torch.arange(200) < 150, 2.0, 0.0).double()
    expected = fit_one(x[:150], signs[:150], costs[:150]).weight
    assert_same_svms(fit_one(x, signs, costs).weight[None], expected[None], x, signs[None], costs[None])


def test_the_start_does_not_change_the_end() -> None:
    x, signs = data()
    costs = torch.ones(200).double()
    expected = fit_one(x, signs, costs)
    for scale in (0.1, 100.0):
        init = scale * torch.randn(13, generator=generator("init")).double()
        found = fit_one(x, signs, costs, init=init)
        assert_same_svms(found.weight[None], expected.weight[None], x, signs[None], costs[None])
    assert fit_one(x, signs, costs, init=expected.weight).iterations == 0


@pytest.mark.parametrize("dims", [12, 300])  # fewer and more than samples
def test_a_bias_is_a_column_of_ones_also_in_blocks(dims: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, signs = data(dims=dims)
    costs = torch.ones(200).double()
    expected = fit_one(x, signs, costs).weight[None]
    for kept, block in ((svm.KEPT, svm.BLOCK), (0, svm.BLOCK), (0, 7 * dims), (0, 1)):
        monkeypatch.setattr(svm, "KEPT", kept)
        monkeypatch.setattr(svm, "BLOCK", block)
        parts = Samples(*x[:, :-1].split(90), bias=True)
        found = SVMSolver(parts).fit(signs[None], costs[None]).weight
        assert_same_svms(found, expected, x, signs[None], costs[None])


@pytest.mark.parametrize("kept", [svm.KEPT, 0])
def test_samples_are_scaled_to_length_1_in_float64(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(svm, "KEPT", kept)
    monkeypatch.setattr(svm, "BLOCK", 20)
    x = torch.randn(9, 4, generator=generator("unit"))
    found = Samples(x[:6], x[6:], unit=True, bias=True)
    expected = x.double() / x.double().square().sum(1, keepdim=True).sqrt()
    expected = torch.cat([expected, torch.ones(9, 1).double()], 1)
    assert (len(found), found.dims) == (9, 5)
    weight, factors = (torch.randn(2, n, generator=generator("unit", n)).double() for n in (5, 9))
    for mine, theirs in (
        (found.dense(), expected),
        (found.scores(weight), weight @ expected.T),
        (found.sums(factors), factors @ expected),
        (found.curved(weight, factors), (weight @ expected.T * factors) @ expected),
        (found.gram(), expected.T @ expected),
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-13, atol=1e-13)
    assert found.scores(weight[:0]).shape == (0, 9)  # every class may be without an image of its own


def test_too_few_steps_are_said() -> None:
    x, signs = data()
    found = fit_one(x, signs, torch.full((200,), 100.0).double(), max_iter=1)
    assert (found.converged.item(), found.iterations.item()) == (False, 1)


def test_machines_solved_together_are_those_solved_alone() -> None:
    x, _ = data(200, 30)
    stream = generator("together")
    signs = torch.where(torch.rand(7, 200, generator=stream) < 0.3, 1.0, -1.0).double()
    signs[6] = x[:, 0].sign()  # reported without an error
    costs = torch.rand(7, 200, generator=stream).double() * torch.logspace(-3, 3, 7).double()[:, None]
    together = SVMSolver(Samples(x)).fit(signs, costs)
    assert together.converged.all()
    assert together.iterations.unique().numel() > 1  # some finish earlier
    alone = torch.stack([fit_one(x, *each).weight for each in zip(signs, costs, strict=True)])
    assert_same_svms(together.weight, alone, x, signs, costs)
