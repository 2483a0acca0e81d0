"""Nearest-neighbour votes against scikit-learn and values by hand."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from ssl_lightning.core.seeding import generator
from ssl_lightning.ops import knn
from ssl_lightning.ops.knn import knn_scores, topk_accuracy

K = 5


def data() -> tuple[Tensor, Tensor, Tensor]:
    stream = generator("knn")
    bank, labels = torch.randn(120, 8, generator=stream).double(), torch.randint(K, (120,), generator=stream)
    return torch.randn(37, 8, generator=stream).double(), bank, labels


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_shares_are_scikit_learns(temperature: float) -> None:
    queries, bank, labels = data()
    ks = [20, 1, 7]
    scores = knn_scores(queries, bank, labels, K, ks, temperature=temperature, batch_size=10)
    for row, k in enumerate(ks):
        model = KNeighborsClassifier(
            k, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / temperature)
        )
        expected = model.fit(bank.numpy(), labels.numpy()).predict_proba(queries.numpy())
        np.testing.assert_allclose(scores[row].numpy(), expected, atol=1e-9)


def test_a_vote_by_hand() -> None:
    bank = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]])
    scores = knn_scores(
        torch.tensor([[5.0, 0.0]]), bank, torch.tensor([0, 1, 1]), 2, [1, 2, 3], temperature=1
    )
    e = torch.e
    shares = [0.0, 1 / (e + 1), (1 + 1 / e) / (e + 1 + 1 / e)]  # cosines 1, 0, -1
    torch.testing.assert_close(scores[:, 0, 1], torch.tensor(shares))


def test_lengths_and_batches_do_not_matter() -> None:
    queries, bank, labels = data()
    scores = knn_scores(queries, bank, labels, K, [9])
    lengths = torch.rand(120, 1, generator=generator("lengths")).double() + 0.1
    torch.testing.assert_close(knn_scores(queries * 1e3, bank * lengths, labels, K, [9]), scores)
    torch.testing.assert_close(knn_scores(queries, bank, labels, K, [9], batch_size=1), scores)


@pytest.mark.parametrize("rows", [1, 7, 50, 119])
def test_blocks_of_the_bank_do_not_matter(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    queries, bank, labels = data()
    ks = [1, 20, 60, 120]  # more than a block holds, and all
    expected = knn_scores(queries, bank, labels, K, ks, batch_size=10)
    monkeypatch.setattr(knn, "MAX_SIMILARITIES", 10 * rows)
    torch.testing.assert_close(knn_scores(queries, bank, labels, K, ks, batch_size=10), expected)


@pytest.mark.parametrize("rows", [7, 50, 120])
def test_progress_counts_each_query_once(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """Count a block of the bank as a share of its queries, so that the count grows with the work."""
    queries, bank, labels = data()
    monkeypatch.setattr(knn, "MAX_SIMILARITIES", 10 * rows)
    counts: list[int] = []
    knn_scores(queries, bank, labels, K, [3], batch_size=10, advance=counts.append)
    blocks = -(-len(bank) // rows)
    assert sum(counts) == len(queries)
    assert len(counts) == 4 * blocks
    for block in range(1, blocks + 1):
        assert sum(counts[: 4 * block]) == pytest.approx(len(queries) * block / blocks, abs=4)


def test_no_queries_have_no_scores() -> None:
    _, bank, labels = data()
    assert knn_scores(bank[:0], bank, labels, K, [3, 5]).shape == (2, 0, K)


def test_low_temperature_is_the_nearest_neighbour_without_overflow() -> None:
    queries, bank, labels = (t.float() if t.is_floating_point() else t for t in data())
    cold = knn_scores(queries, bank, labels, K, [50], temperature=1e-4)
    assert cold.isfinite().all()
    nearest = knn_scores(queries, bank, labels, K, [1])
    assert torch.equal(cold.argmax(2), nearest.argmax(2))


def test_a_zero_vector_still_gets_shares() -> None:
    _, bank, labels = data()
    scores = knn_scores(torch.zeros(1, 8).double(), bank, labels, K, [len(bank)])
    torch.testing.assert_close(scores[0, 0], torch.bincount(labels, minlength=K).double() / len(bank))


def test_topk_accuracy_counts() -> None:
    scores = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [0.4, 0.35, 0.25]])
    labels = torch.tensor([0, 1, 2])
    assert [float(topk_accuracy(scores, labels, k)) for k in (1, 2, 3)] == [1 / 3, 2 / 3, 1.0]
    assert topk_accuracy(scores.expand(4, 3, 3), labels).shape == (4,)


@pytest.mark.parametrize(
    ("ks", "temperature", "match"),
    [([], 0.07, "ks are"), ([0], 0.07, "ks are"), ([121], 0.07, r"\[121\].*120"), ([1], 0.0, "temperature")],
)
def test_bad_values_are_refused(ks: list[int], temperature: float, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        knn_scores(*data(), K, ks, temperature=temperature)
