"""Average precision against scikit-learn, a naive loop and values by hand; ignored labels."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor

from ssl_lightning.core.seeding import generator
from ssl_lightning.ops.average_precision import average_precision, mean_average_precision


def ranked(n: int = 60, classes: int = 5, levels: int = 1000) -> tuple[Tensor, Tensor]:
    draw = generator("ap", n, classes, levels)
    scores = torch.randint(levels, (n, classes), generator=draw).float()  # few levels: many ties
    return scores, torch.randint(-1, 2, (n, classes), generator=draw)


@pytest.mark.parametrize("levels", [1000, 7])
def test_plain_steps_are_scikit_learns(levels: int) -> None:
    scores, labels = ranked(levels=levels)
    found = average_precision(scores, labels, envelope=False)
    for k, value in enumerate(found.tolist()):
        counted = labels[:, k] >= 0
        expected = average_precision_score(labels[counted, k].numpy(), scores[counted, k].numpy())
        assert value == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("levels", [1000, 7])
def test_the_envelope_is_the_best_precision_to_the_right(levels: int) -> None:
    scores, labels = ranked(levels=levels)
    for k, value in enumerate(average_precision(scores, labels).tolist()):
        counted = labels[:, k] >= 0
        s, y = scores[counted, k].numpy(), labels[counted, k].numpy()
        points = []  # (recall, precision) at every threshold
        for threshold in sorted(set(s.tolist()), reverse=True):
            answered = s >= threshold
            points.append((y[answered].sum() / y.sum(), y[answered].mean()))
        area, before = 0.0, 0.0
        for recall, _ in points:
            area += (recall - before) * max(p for r, p in points if r >= recall)
            before = recall
        assert value == pytest.approx(area, abs=1e-12)


def test_by_hand() -> None:
    # ranks of the positives are 1, 4 and 5 of 5: precisions 1, 2/4, 3/5
    scores, labels = torch.tensor([[5.0], [4], [3], [2], [1]]), torch.tensor([[1], [0], [0], [1], [1]])
    assert average_precision(scores, labels, envelope=False).item() == pytest.approx((1 + 1 / 2 + 3 / 5) / 3)
    assert average_precision(scores, labels).item() == pytest.approx((1 + 3 / 5 + 3 / 5) / 3)


def test_a_perfect_ranking_scores_one_and_the_order_of_equals_does_not_matter() -> None:
    _, labels = ranked()
    assert average_precision(labels.float(), labels).tolist() == [1.0] * 5
    flat = torch.zeros(labels.shape)
    shares = [(column == 1).sum() / (column >= 0).sum() for column in labels.T]
    np.testing.assert_allclose(average_precision(flat, labels), shares)


def test_ignored_labels_count_nowhere() -> None:
    scores, labels = ranked()
    more_scores = torch.cat([scores, torch.full((9, 5), 1e6), torch.full((9, 5), -1e6)])
    more_labels = torch.cat([labels, torch.full((18, 5), -1)])
    assert torch.equal(average_precision(more_scores, more_labels), average_precision(scores, labels))


def test_the_mean_leaves_out_classes_that_nothing_shows() -> None:
    scores, labels = ranked()
    labels[:, 2] = 0
    each = average_precision(scores, labels)
    assert each[2].isnan()
    assert mean_average_precision(scores, labels).item() == pytest.approx(each[[0, 1, 3, 4]].mean().item())
    with pytest.raises(ValueError, match="none of the 60 images shows any of the 5 classes"):
        mean_average_precision(scores, torch.zeros_like(labels))
