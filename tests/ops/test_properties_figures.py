"""Properties of metrics and fits for all sizes, types and layouts: neighbours, precision, rank, fits."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, example, given
from hypothesis import strategies as st
from torch import Tensor

from ssl_lightning.ops.array_cache import read_array, write_array
from ssl_lightning.ops.average_precision import average_precision, mean_average_precision
from ssl_lightning.ops.calibration import expected_calibration_error, negative_log_likelihood
from ssl_lightning.ops.contrastive import info_nce, nt_xent
from ssl_lightning.ops.covariance import covariance_penalty
from ssl_lightning.ops.knn import balanced_accuracy, knn_scores, topk_accuracy
from ssl_lightning.ops.logistic import cross_entropy_residual, fit_logistic, second_moments
from ssl_lightning.ops.rank import dead_channels, effective_rank
from ssl_lightning.ops.svm import Samples, SVMSolver
from ssl_lightning.ops.voc_ap import eleven_points, first_of_each, voc_ap
from tests.ops._bounds import assert_same_svms, svm_gradients
from tests.ops._drawn import (
    ALL,
    FLOATS,
    LAYOUTS,
    SEEDS,
    close,
    drawn,
    generator,
    laid_out,
    tensors,
    unchanged,
    values,
)

TYPES, LAID = st.sampled_from(FLOATS), st.sampled_from(LAYOUTS)


def features(count: int, dims: int, seed: int, dtype: torch.dtype, layout: str) -> Tensor:
    return laid_out((2 * values((count, dims), seed, torch.float64) - 1).to(dtype), layout)


def labels_of(count: int, classes: int, seed: int) -> Tensor:
    return torch.randint(classes, (count,), generator=generator(seed))


# --- nearest neighbours ---


@pytest.mark.slow
@drawn()
@given(
    st.integers(0, 7), st.integers(1, 9), st.integers(1, 5), st.integers(1, 4), st.floats(0.02, 2),
    st.integers(1, 8), TYPES, LAID, SEEDS,
)  # fmt: skip
def test_knn_scores(
    count: int, size: int, dims: int, classes: int, temperature: float, batch: int, dtype: Any, layout: str,
    seed: int,
) -> None:  # fmt: skip
    queries, bank = (features(n, dims, seed + n, dtype, layout) for n in (count, size))
    labels = labels_of(size, classes, seed)
    ks = sorted({1, (size + 1) // 2, size})
    with unchanged(queries, bank, labels):
        found = knn_scores(queries, bank, labels, classes, ks, temperature=temperature, batch_size=batch)
    assert (found.dtype, found.shape) == (dtype, (len(ks), count, classes))
    close(found.sum(2), torch.ones(len(ks), count), dtype)
    assert not count or found.min() >= 0
    whole = knn_scores(queries, bank, labels, classes, ks, temperature=temperature)
    close(found, whole, dtype)
    if dtype != torch.float64 or dims == 1:
        return  # rounding or a tie decides which of two neighbours is nearer
    cosine = F.normalize(queries, dim=1) @ F.normalize(bank, dim=1).T
    for row, query in itertools.product(range(len(ks)), range(count)):
        votes = torch.zeros(classes, dtype=torch.float64)
        for at in cosine[query].argsort(descending=True)[: ks[row]].tolist():
            votes[labels[at]] += torch.exp((cosine[query, at] - cosine[query].max()) / temperature)
        close(found[row, query], votes / votes.sum())
    order = torch.randperm(size, generator=generator(seed))
    again = knn_scores(3 * queries, 5 * bank[order], labels[order], classes, ks, temperature=temperature)
    close(again, found)


@pytest.mark.slow
@drawn(30)
@given(st.lists(st.integers(-2, 9), max_size=3), st.integers(1, 5), st.floats(-1, 1))
def test_impossible_neighbours_are_refused(ks: list[int], size: int, temperature: float) -> None:
    assume(not ks or min(ks) < 1 or max(ks) > size or temperature <= 0)
    with pytest.raises(ValueError, match=r"each must lie in|temperature is"):
        knn_scores(
            torch.rand(2, 3), torch.rand(size, 3), torch.zeros(size).long(), 2, ks, temperature=temperature
        )


@pytest.mark.slow
@drawn()
@given(st.integers(1, 9), st.integers(1, 5), st.integers(1, 5), TYPES, LAID, SEEDS)
def test_topk_accuracy(count: int, classes: int, k: int, dtype: Any, layout: str, seed: int) -> None:
    scores = laid_out(torch.rand(2, count, classes, generator=generator(seed)).argsort(-1).to(dtype), layout)
    labels = labels_of(count, classes, seed)
    if k > classes:
        with pytest.raises(ValueError, match=f"k is {k}; allowed are 1 to {classes}"):
            topk_accuracy(scores, labels, k)
        return
    with unchanged(scores, labels):
        found = topk_accuracy(scores, labels, k)
    assert (found.dtype, found.shape) == (torch.float64, (2,))
    for part, figure in zip(scores.tolist(), found.tolist(), strict=True):
        ranks = [sum(other > row[y] for other in row) for row, y in zip(part, labels.tolist(), strict=True)]
        assert figure == pytest.approx(np.mean([rank < k for rank in ranks]))


@pytest.mark.slow
@drawn()
@given(st.integers(1, 30), st.integers(1, 5), TYPES, LAID, SEEDS)
def test_balanced_accuracy(count: int, classes: int, dtype: Any, layout: str, seed: int) -> None:
    scores = laid_out(torch.rand(count, classes, generator=generator(seed)).argsort(-1).to(dtype), layout)
    labels = labels_of(count, classes, seed)
    with unchanged(scores, labels):
        value, error = balanced_accuracy(scores, labels)
    right = [row.index(max(row)) == y for row, y in zip(scores.tolist(), labels.tolist(), strict=True)]
    parts = [[hit for hit, y in zip(right, labels.tolist(), strict=True) if y == c] for c in range(classes)]
    shares = [(np.mean(part), len(part)) for part in parts if part]
    assert float(value) == pytest.approx(np.mean([p for p, _ in shares]))
    variance = sum(p * (1 - p) / n for p, n in shares) / len(shares) ** 2
    assert float(error) == pytest.approx(np.sqrt(variance))


# --- precision ---


def precision_by_hand(scores: list[float], labels: list[int], envelope: bool) -> float:
    """Compute average precision threshold by threshold, with equal scores in one group."""
    kept = [(s, y) for s, y in zip(scores, labels, strict=True) if y >= 0]
    positives = sum(y for _, y in kept)
    if not positives:
        return float("nan")
    points = []
    for threshold in sorted({s for s, _ in kept}, reverse=True):
        above = [y for s, y in kept if s >= threshold]
        points.append((sum(above) / positives, sum(above) / len(above)))
    total = last = 0.0
    for number, (recall, precision) in enumerate(points):
        if envelope:
            precision = max(p for _, p in points[number:])
        total += (recall - last) * precision
        last = recall
    return total


@pytest.mark.slow
@drawn(100)
@given(
    st.integers(0, 12), st.integers(1, 3), st.integers(2, 9), st.booleans(),
    st.sampled_from((*FLOATS, torch.int64)), LAID, SEEDS,
)  # fmt: skip
def test_average_precision(
    count: int, classes: int, levels: int, envelope: bool, dtype: Any, layout: str, seed: int
) -> None:
    scores = torch.randint(levels, (count, classes), generator=generator(seed)).to(dtype)  # many are equal
    labels = torch.randint(-1, 2, (count, classes), generator=generator(seed + 1))
    scores = laid_out(scores, layout)
    with unchanged(scores, labels):
        found = average_precision(scores, labels, envelope=envelope)
    assert (found.dtype, found.shape) == (torch.float64, (classes,))
    expected = [
        precision_by_hand(s, y, envelope) for s, y in zip(scores.T.tolist(), labels.T.tolist(), strict=True)
    ]
    np.testing.assert_allclose(found, expected)
    order = torch.randperm(count, generator=generator(seed))
    np.testing.assert_allclose(average_precision(scores[order], labels[order], envelope=envelope), expected)
    np.testing.assert_allclose(average_precision(3 * scores + 1, labels, envelope=envelope), expected)
    if found.isnan().all():
        with pytest.raises(ValueError, match="none of the"):
            mean_average_precision(scores, labels)
    elif envelope:
        assert float(mean_average_precision(scores, labels)) == pytest.approx(np.nanmean(expected))


@pytest.mark.slow
@drawn(100)
@given(st.lists(st.booleans(), max_size=12), st.integers(0, 5))
def test_eleven_points(hits: list[bool], missed: int) -> None:
    positives = sum(hits) + missed
    found = eleven_points(torch.tensor(hits, dtype=torch.bool), positives)
    assert found.dtype == torch.float64
    if not positives:
        assert found.isnan()
        return
    best = []
    for tenths in range(11):
        points = [(sum(hits[: n + 1]), sum(hits[: n + 1]) / (n + 1)) for n in range(len(hits))]
        best.append(max((p for right, p in points if 10 * right >= tenths * positives), default=0.0))
    assert float(found) == pytest.approx(np.mean(best))


@pytest.mark.slow
@drawn(100)
@given(st.lists(st.integers(-3, 3), max_size=12))
def test_first_of_each(numbers: list[int]) -> None:
    expected = [number not in numbers[:at] for at, number in enumerate(numbers)]
    assert first_of_each(torch.tensor(numbers, dtype=torch.int64)).tolist() == expected


def boxes_of(count: int, seed: int, dtype: Any = torch.float64) -> Tensor:
    corners = torch.randint(0, 9, (count, 2, 2), generator=generator(seed)).sort(1).values
    return corners.flatten(1).to(dtype)  # left, top, right, bottom; some are empty


def overlap_by_hand(first: Tensor, second: Tensor) -> float:
    """Count the shared cells of two integer boxes over the cells of their union."""
    a, b = (
        set(itertools.product(range(left, right), range(top, bottom)))
        for left, top, right, bottom in (box.int().tolist() for box in (first, second))
    )
    return len(a & b) / max(1, len(a | b))


def voc_by_hand(detections: Any, truth: Any, label: int, iou: float) -> float:
    """Run the development kit's loop over the detections of one class, from the highest score down."""
    listed = [
        (score, image, box)
        for image, found in enumerate(detections)
        for score, box, y in zip(
            found["scores"].tolist(), found["boxes"], found["labels"].tolist(), strict=True
        )
        if int(y) == label
    ]
    listed.sort(key=lambda each: -float(each[0]))  # stable
    taken: set[tuple[int, int]] = set()
    hits = []
    for _, image, box in listed:
        there = truth[image]
        wanted = [n for n, y in enumerate(there["labels"].tolist()) if y == label]
        overlaps = [overlap_by_hand(box, there["boxes"][n]) for n in wanted]
        if not wanted or max(overlaps) < iou:
            hits.append(False)
            continue
        best = wanted[int(np.argmax(overlaps))]
        if there["difficult"][best]:
            continue
        hits.append((image, best) not in taken)
        taken.add((image, best))
    positives = sum(
        int(y == label and not hard)
        for there in truth
        for y, hard in zip(there["labels"].tolist(), there["difficult"].tolist(), strict=True)
    )
    return float(eleven_points(torch.tensor(hits, dtype=torch.bool), positives))


@pytest.mark.slow
@drawn(80)
@given(st.integers(0, 4), st.integers(1, 3), st.floats(0.05, 1), SEEDS)
def test_voc_ap(images: int, classes: int, iou: float, seed: int) -> None:
    draw = np.random.default_rng(seed)
    detections, truth = [], []
    for image in range(images):
        n, m = draw.integers(0, 5, 2)
        detections.append(
            {
                "boxes": boxes_of(n, seed + image, torch.float32),
                "labels": torch.from_numpy(draw.integers(0, classes, n)),
                "scores": torch.from_numpy(draw.integers(0, 4, n) / 4),
            }
        )
        truth.append(
            {
                "boxes": boxes_of(m, seed + image + 1, torch.float32),
                "labels": torch.from_numpy(draw.integers(0, classes, m)),
                "difficult": torch.from_numpy(draw.integers(0, 3, m) == 0),
            }
        )
    found = voc_ap(detections, truth, classes, iou=iou)
    assert (found.dtype, found.shape) == (torch.float64, (classes,))
    expected = [voc_by_hand(detections, truth, label, iou) for label in range(classes)]
    np.testing.assert_allclose(found, expected)


@pytest.mark.parametrize("iou", [-1.0, 0.0, 1.01])
def test_impossible_overlaps_are_refused(iou: float) -> None:
    with pytest.raises(ValueError, match="iou is"):
        voc_ap([], [], 2, iou=iou)


# --- calibration ---


@pytest.mark.slow
@drawn()
@given(st.integers(1, 12), st.integers(1, 5), st.integers(1, 20), TYPES, LAID, SEEDS)
def test_calibration_against_loops(
    count: int, classes: int, bins: int, dtype: torch.dtype, layout: str, seed: int
) -> None:
    scores, labels = 3 * features(count, classes, seed, dtype, layout), labels_of(count, classes, seed)
    with unchanged(scores, labels):
        error = float(expected_calibration_error(scores, labels, bins))
        likelihood = float(negative_log_likelihood(scores, labels))
    shares = np.exp(scores.double().numpy())
    shares /= shares.sum(1, keepdims=True)
    assert likelihood == pytest.approx(-np.log(shares[np.arange(count), labels.numpy()]).mean(), abs=1e-9)
    gaps = np.zeros(bins)
    for row, label in zip(torch.from_numpy(shares), labels, strict=True):
        confidence, answer = row.max(0)
        gaps[min(int(float(confidence) * bins), bins - 1)] += float(answer == label) - float(confidence)
    assert error == pytest.approx(np.abs(gaps).sum() / count, abs=1e-9)


# --- rank ---


@pytest.mark.slow
@drawn()
@given(tensors(st.tuples(st.integers(1, 9), st.integers(1, 7)), ALL), SEEDS)
def test_effective_rank(x: Tensor, seed: int) -> None:
    with unchanged(x):
        found = float(effective_rank(x))
    singular = np.linalg.svd(x.double().numpy(), compute_uv=False)
    share = singular / max(singular.sum(), 1e-300) + 1e-7
    assert found == pytest.approx(max(1, np.exp(-(share * np.log(share)).sum())), rel=1e-6)
    assert 1 <= found <= min(x.shape) * (1 + 1e-4)
    turn = torch.linalg.qr(torch.randn(x.shape[1], x.shape[1], generator=generator(seed)).double()).Q
    order = torch.randperm(len(x), generator=generator(seed))
    for same in (x.double() @ turn, 7 * x.double(), x[order]):
        assert float(effective_rank(same)) == pytest.approx(found, rel=1e-6)


@pytest.mark.slow
@drawn()
@given(
    tensors(st.tuples(st.integers(1, 9), st.integers(1, 7)), (*FLOATS, torch.uint8)), st.floats(-9, 9), SEEDS
)
def test_dead_channels(x: Tensor, constant: float, seed: int) -> None:
    x = x.clone()
    fixed = torch.rand(x.shape[1], generator=generator(seed)) < 0.5
    x[:, fixed] = torch.tensor(constant).to(x.dtype)
    with unchanged(x):
        found = dead_channels(x)
    assert found.dtype == torch.bool
    assert found.tolist() == [len(set(column)) == 1 for column in x.T.tolist()]
    if x.is_floating_point():
        assert torch.equal(dead_channels(x / 1024), found)


# --- classifiers ---


@pytest.mark.slow
@drawn()
@given(st.integers(1, 3), st.integers(2, 5), st.integers(1, 8), st.sampled_from(FLOATS[:2]), LAID, SEEDS)
def test_cross_entropy_residual(
    strengths: int, classes: int, count: int, dtype: Any, layout: str, seed: int
) -> None:
    logits = laid_out(20 * values((strengths, classes, count), seed, dtype) - 10, layout)
    labels = labels_of(count, classes, seed)
    with unchanged(logits, labels):
        loss, residual = cross_entropy_residual(logits, labels)
    assert (loss.dtype, residual.dtype) == (dtype, dtype)
    wanted = logits.detach().double().requires_grad_()
    each = torch.stack([F.cross_entropy(part.T, labels) for part in wanted])
    each.sum().backward()
    close(loss, each.detach(), dtype, 20)
    close(residual, wanted.grad, dtype)  # type: ignore[arg-type]


@pytest.mark.slow
@drawn()
@given(st.integers(1, 9), st.integers(1, 5), st.sampled_from(FLOATS[:2]), LAID, SEEDS)
def test_second_moments(count: int, dims: int, dtype: Any, layout: str, seed: int) -> None:
    x = features(count, dims, seed, dtype, layout)
    with unchanged(x):
        found = second_moments(x)
    wide = torch.cat([x.double(), torch.ones(count, 1)], 1)
    close(found, torch.einsum("ni,nj->ij", wide, wide) / count, dtype)
    assert found.dtype == dtype


@pytest.mark.slow
@drawn(40)
@given(
    st.integers(1, 25), st.integers(1, 5), st.integers(2, 4), st.sampled_from(FLOATS[:2]), LAID,
    st.lists(st.floats(1e-3, 1), min_size=1, max_size=3), SEEDS,
)  # fmt: skip
def test_fit_logistic(
    count: int, dims: int, classes: int, dtype: Any, layout: str, l2: list[float], seed: int
) -> None:
    x, labels = features(count, dims, seed, dtype, layout), labels_of(count, classes, seed)
    with unchanged(x, labels):
        fit = fit_logistic(x, labels, classes, l2)
    assert fit.weight.shape == (len(l2), classes, dims)
    assert fit.weight.dtype == dtype
    assert fit.converged.all()
    for number, strength in enumerate(l2):  # convex: the only point with zero gradient is the minimum
        weight, bias = (each[number].double().requires_grad_() for each in (fit.weight, fit.bias))
        loss = F.cross_entropy(x.double() @ weight.T + bias, labels) + strength / 2 * weight.square().sum()
        loss.backward()
        close(fit.loss[number], loss.detach(), torch.float32)
        for gradient in (weight.grad, bias.grad):
            assert gradient.abs().max() <= 1.1e-4 + 1e-5  # type: ignore[union-attr]
    order = torch.randperm(count, generator=generator(seed))
    again = fit_logistic(x[order], labels[order], classes, l2[:1])
    torch.testing.assert_close(again.loss[0], fit.loss[0], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@drawn(30)
@given(st.integers(0, 3), st.integers(-1, 3), st.lists(st.floats(-1, 1), max_size=2), st.integers(-1, 1))
def test_impossible_fits_are_refused(count: int, classes: int, l2: list[float], longer: int) -> None:
    assume(count == 0 or classes < 2 or not l2 or min(l2) <= 0 or longer)
    assume(count + longer >= 0)
    with pytest.raises(ValueError, match=r"x is|l2 is|num_classes is"):
        fit_logistic(torch.rand(count, 3), torch.zeros(count + longer).long(), classes, l2)


@pytest.mark.slow
@drawn(40)
@given(st.integers(0, 30), st.integers(1, 5), st.floats(1e-3, 10), LAID, SEEDS)
def test_svm(count: int, dims: int, cost: float, layout: str, seed: int) -> None:
    x = features(count, dims, seed, torch.float64, layout)
    signs = 2.0 * labels_of(count, 2, seed).double() - 1
    costs = cost * (labels_of(count, 4, seed + 1) > 0).double()  # some are ignored
    with unchanged(x, signs, costs):
        fit = SVMSolver(Samples(x)).fit(torch.stack([signs, -signs]), costs.expand(2, -1))
    assert fit.converged.all()
    weight = fit.weight[0].clone().requires_grad_()
    hinge = (1 - signs * (x @ weight)).clamp(min=0).square()
    (weight.square().sum() / 2 + (costs * hinge).sum()).backward()
    problem = x, signs[None], costs[None]
    assert weight.grad.norm() <= svm_gradients(*problem)  # type: ignore[union-attr]
    assert_same_svms(fit.weight[1:], -fit.weight[:1], *problem)
    kept = costs > 0
    halves = (signs[kept].repeat(1, 2), costs[kept].repeat(1, 2) / 2)
    twice = SVMSolver(Samples(x[kept].repeat(2, 1))).fit(*halves).weight
    assert_same_svms(twice, fit.weight[:1], *problem)


# --- arrays on disk ---

NUMPY_TYPES = st.sampled_from(["u1", "<i8", ">f4", "<f8", "bool"])
SHAPES = st.lists(st.integers(0, 5), max_size=3)


@pytest.mark.slow
@drawn(60)
@given(SHAPES, NUMPY_TYPES, st.booleans(), SEEDS)
def test_arrays_come_back(
    tmp_path_factory: Any, shape: list[int], dtype: str, fortran: bool, seed: int
) -> None:
    array = (np.random.default_rng(seed).random(shape) * 9).astype(dtype)
    array = np.asfortranarray(array) if fortran else array
    path = tmp_path_factory.mktemp("cache") / "deep" / "a.npy"
    assert read_array(path) is None
    write_array(path, array)
    found = read_array(path)
    assert found is not None
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    assert np.array_equal(found, array)
    assert [each.name for each in path.parent.iterdir()] == ["a.npy"]  # no temporary file


@pytest.mark.slow
@drawn(200)
@given(st.binary(max_size=60), st.integers(0, 200), st.booleans())
@example(b"PK\x03\x04 no archive", 0, False)
@example(b"PK\x05\x06" + bytes(18), 0, False)
@example(b"\x80\x04N.", 0, False)  # a pickle
@example(b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }", 10, True)
def test_any_bytes_are_an_array_or_nothing(tmp_path_factory: Any, torn: bytes, at: int, within: bool) -> None:
    path: Path = tmp_path_factory.mktemp("cache") / "a.npy"
    write_array(path, np.arange(8.0))
    whole = path.read_bytes()
    path.write_bytes(whole[:at] + torn + whole[at + len(torn) :] if within else torn)
    found = read_array(path)
    assert found is None or isinstance(found, np.ndarray)


# --- losses of embeddings ---


@pytest.mark.slow
@drawn()
@given(st.integers(1, 6), st.integers(1, 5), st.floats(0.1, 2), TYPES, LAID, SEEDS, st.data())
def test_nt_xent(
    count: int, dims: int, temperature: float, dtype: Any, layout: str, seed: int, data: Any
) -> None:
    first = data.draw(st.integers(0, count - 1))
    end = data.draw(st.integers(first + 1, count))
    everyone = laid_out((values((2, count, dims), seed, torch.float64) - 0.5).to(dtype), layout)
    own = everyone[:, first:end]
    with unchanged(everyone):
        loss, accuracy = nt_xent(own, everyone, first, temperature)
    unit = F.normalize(everyone.double(), dim=2)
    terms, hits = [], []
    for view, image in itertools.product(range(2), range(first, end)):
        others = [(v, i) for v, i in itertools.product(range(2), range(count)) if (v, i) != (view, image)]
        scores = torch.stack([unit[view, image] @ unit[place] / temperature for place in others])
        truth = others.index((1 - view, image))
        terms.append(scores.logsumexp(0) - scores[truth])
        hits.append(float(scores[truth] >= scores.max() - 1e-4))
    close(loss, torch.stack(terms).mean(), torch.float32, scale=1 / temperature)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert float(accuracy) <= sum(hits) / len(hits) + 1e-6  # equal similarities may go to either


@pytest.mark.slow
@drawn()
@given(st.integers(1, 6), st.integers(1, 5), st.floats(0.1, 2), TYPES, LAID, SEEDS, st.data())
def test_info_nce(
    count: int, dims: int, temperature: float, dtype: Any, layout: str, seed: int, data: Any
) -> None:
    first = data.draw(st.integers(0, count - 1))
    end = data.draw(st.integers(first + 1, count))
    queries, keys = laid_out((values((2, count, dims), seed, torch.float64) - 0.5).to(dtype), layout)
    with unchanged(queries, keys):
        loss, accuracy = info_nce(queries[first:end], keys, first, temperature)
    rows, columns = (F.normalize(x.double(), dim=1) for x in (queries, keys))
    terms, hits = [], []
    for image in range(first, end):
        scores = torch.stack([rows[image] @ columns[other] / temperature for other in range(count)])
        terms.append(scores.logsumexp(0) - scores[image])
        hits.append(float(scores[image] >= scores.max() - 1e-4))
    close(loss, torch.stack(terms).mean(), torch.float32, scale=1 / temperature)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert float(accuracy) <= sum(hits) / len(hits) + 1e-6  # equal similarities may go to either


@pytest.mark.slow
@drawn()
@given(st.integers(2, 7), st.integers(1, 6), st.sampled_from((torch.float32, torch.float64)), LAID, SEEDS)
def test_covariance_penalty(count: int, dims: int, dtype: Any, layout: str, seed: int) -> None:
    x = features(count, dims, seed, dtype, layout)
    with unchanged(x):
        found = covariance_penalty(x)
    matrix = np.atleast_2d(np.cov(x.double().numpy(), rowvar=False))
    expected = (matrix**2).sum() - (np.diag(matrix) ** 2).sum()
    close(found, torch.tensor(expected / dims))
