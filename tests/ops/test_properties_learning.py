"""Property tests of ops around discriminators and of measures of features."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ssl_lightning.ops.adversarial import gradient_penalty
from ssl_lightning.ops.diff_augment import AUGMENTATIONS, diff_augment
from ssl_lightning.ops.distillation import distillation
from ssl_lightning.ops.knn import right_in_topk, topk_accuracy
from ssl_lightning.ops.masks import square_masks
from ssl_lightning.ops.rank import lidar, spectral_slope
from ssl_lightning.ops.sigreg import draw_slices, epps_pulley
from tests.ops._drawn import FLOATS, SEEDS, drawn, generator, pictures, tensors, unchanged, values

pytestmark = pytest.mark.slow


@drawn()
@given(st.integers(1, 12), st.integers(-1, 14), st.integers(1, 4), SEEDS)
def test_square_masks(size: int, hole: int, batch: int, seed: int) -> None:
    if not 1 <= hole <= size:
        with pytest.raises(ValueError, match="hole"):
            square_masks(batch, size, hole, generator(seed))
        return
    mask = square_masks(batch, size, hole, generator(seed))
    assert mask.sum((-2, -1)).flatten().tolist() == [hole * hole] * batch
    for each in mask.reshape(batch, size, size):
        rows, columns = each.any(1).nonzero().flatten(), each.any(0).nonzero().flatten()
        assert rows.tolist() == list(range(int(rows[0]), int(rows[0]) + hole))
        assert columns.tolist() == list(range(int(columns[0]), int(columns[0]) + hole))
    assert torch.equal(mask, square_masks(batch, size, hole, generator(seed)))


@drawn()
@given(
    pictures(dtypes=(torch.float32, torch.float64), batch=(1, 4)),
    st.lists(st.sampled_from(AUGMENTATIONS), unique=True),
    SEEDS,
)
def test_diff_augment(x: Tensor, kinds: list[str], seed: int) -> None:
    with unchanged(x):
        one, same, half = diff_augment([x, x, x / 2], kinds, generator(seed))
    assert (one.dtype, one.shape) == (x.dtype, x.shape)
    assert torch.equal(one, same)  # both kinds of pictures change alike
    if not kinds:
        assert torch.equal(one, x)
    if "colour" not in kinds:  # values move or vanish, and nothing else
        torch.testing.assert_close(half, one / 2, rtol=0, atol=0)
        assert set(one.unique().tolist()) <= {*x.unique().tolist(), 0.0}
    (alone,) = diff_augment([x[:1]], [], generator(seed))
    assert torch.equal(alone, x[:1])


@drawn()
@given(pictures(dtypes=(torch.float64,), batch=(1, 4)), SEEDS)
def test_gradient_penalty(x: Tensor, seed: int) -> None:
    weight = values(tuple(x.shape[1:]), seed, torch.float64).requires_grad_()
    real = x.clone().requires_grad_()
    logits = (real.square() * weight).sum((1, 2, 3))
    found = gradient_penalty(logits, real)
    gradients = 2 * x * weight.detach()
    expected = gradients.square().sum((1, 2, 3)).mean()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-9)
    found.backward()
    by_weight = 8 * (x.square() * weight.detach()).mean(0)
    torch.testing.assert_close(weight.grad, by_weight, rtol=1e-5, atol=1e-6)


@drawn()
@given(st.integers(1, 9), st.integers(1, 5), st.integers(0, 6), SEEDS)
def test_right_in_topk(count: int, classes: int, k: int, seed: int) -> None:
    scores = torch.rand(2, count, classes, generator=generator(seed))
    labels = torch.randint(classes, (count,), generator=generator(seed))
    if not 1 <= k <= classes:
        with pytest.raises(ValueError, match=f"k is {k}; allowed are 1 to {classes}"):
            right_in_topk(scores, labels, k)
        return
    with unchanged(scores, labels):
        right = right_in_topk(scores, labels, k)
    for part, row in zip(scores.tolist(), right.tolist(), strict=True):
        for each, label, hit in zip(part, labels.tolist(), row, strict=True):
            assert hit == (sum(other > each[label] for other in each) < k)
    torch.testing.assert_close(right.double().mean(-1), topk_accuracy(scores, labels, k))


@drawn()
@given(tensors(st.tuples(st.integers(3, 12), st.integers(3, 7)), FLOATS), SEEDS)
def test_spectral_slope(x: Tensor, seed: int) -> None:
    with unchanged(x):
        found = float(spectral_slope(x))
    variances = np.linalg.eigvalsh(np.cov(x.double().numpy().T))[::-1]
    kept = variances[variances > max(1e-10 * variances[0], 1e-12 * float(x.double().square().sum()) / len(x))]
    if len(kept) < 3:
        assert np.isnan(found)
        return
    number = np.arange(1, len(kept) + 1)
    slope = np.polyfit(np.log(number), np.log(kept), 1, w=number**-0.5)[0]  # numpy squares the weights
    assert found == pytest.approx(-slope, rel=1e-4, abs=1e-4)
    turn = torch.linalg.qr(torch.randn(x.shape[1], x.shape[1], generator=generator(seed)).double()).Q
    assert float(spectral_slope(4 * x.double() @ turn)) == pytest.approx(found, rel=1e-4, abs=1e-4)


@drawn()
@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 5), SEEDS)
def test_lidar(images: int, views: int, dims: int, seed: int) -> None:
    x = torch.randn(images, views, dims, generator=generator(seed), dtype=torch.float64)
    if images < 2 or views < 2:
        with pytest.raises(ValueError, match="n and q at least 2"):
            lidar(x)
        return
    with unchanged(x):
        found = float(lidar(x))
    assert 1 <= found <= min(images - 1, dims) * (1 + 1e-4)
    turn: Any = torch.linalg.qr(torch.randn(dims, dims, generator=generator(seed)).double()).Q
    order = torch.randperm(images, generator=generator(seed))
    for same in (x @ turn, x[order], x.flip(1), x + 3):
        assert float(lidar(same)) == pytest.approx(found, rel=1e-5)


@drawn()
@given(
    tensors(
        st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 5)), (torch.float32, torch.float64)
    ),
    st.integers(1, 4),
    SEEDS,
)
def test_epps_pulley(x: Tensor, count: int, seed: int) -> None:
    slices = draw_slices(count, x.shape[-1], generator(seed))
    torch.testing.assert_close(slices.norm(dim=0), torch.ones(count))
    slices = slices.to(x.dtype)
    with unchanged(x):
        found = epps_pulley(x, slices)
    assert (found.dtype, found.shape) == (x.dtype, ())
    assert 0 <= found <= 4 * 2.51 * x.shape[1]  # |difference|^2 <= 4, and the window integrates to 2.5
    each = [epps_pulley(view, one[:, None]) for view in x for one in slices.T]
    tolerance = 1e-4 if x.dtype == torch.float32 else 1e-9
    for same in (torch.stack(each).mean(), epps_pulley(-x, slices), epps_pulley(x.flip(1), slices)):
        torch.testing.assert_close(same, found, rtol=tolerance, atol=tolerance)


@drawn()
@given(
    tensors(
        st.tuples(st.integers(2, 5), st.integers(1, 6), st.integers(2, 9)), (torch.float32, torch.float64)
    ),
    st.integers(1, 2),
    st.sampled_from([0.04, 0.1, 1.0]),
    SEEDS,
)
def test_distillation(student: Tensor, count: int, temperature: float, seed: int) -> None:
    teacher = values((count, *student.shape[1:]), seed, student.dtype)
    sharp = torch.tensor(temperature, dtype=student.dtype)
    with unchanged(student, teacher):
        loss, entropy = distillation(student, teacher, 0.1, sharp)
    assert (loss.dtype, loss.shape, entropy.shape) == (student.dtype, (), ())
    assert 0 <= entropy <= np.log(student.shape[2]) + 1e-5
    pairs = [
        -((wanted / temperature).softmax(1) * (view / 0.1).log_softmax(1)).sum(1).mean()
        for t, wanted in enumerate(teacher)
        for v, view in enumerate(student)
        if v != t
    ]
    tolerance = 1e-4 if student.dtype == torch.float32 else 1e-9
    moved = distillation(student + 3, teacher - 2, 0.1, sharp)[0]  # the softmax ignores a common shift
    for same in (torch.stack(pairs).mean(), moved):
        torch.testing.assert_close(same, loss, rtol=tolerance, atol=tolerance)
    order = torch.randperm(student.shape[1], generator=generator(seed))
    permuted = distillation(student[:, order], teacher[:, order], 0.1, sharp)[0]
    torch.testing.assert_close(permuted, loss, rtol=tolerance, atol=tolerance)
