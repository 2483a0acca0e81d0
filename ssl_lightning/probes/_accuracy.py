"""Figures of a classifier by the labels of the test images: top-1, balanced accuracy, average precision."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
from torch import Tensor

from ssl_lightning.artifacts.answers import Answers, short_digest
from ssl_lightning.artifacts.records import BALANCED, Protocol, Record
from ssl_lightning.ops.average_precision import mean_average_precision
from ssl_lightning.ops.knn import balanced_accuracy, right_in_topk, topk_accuracy

Scored = tuple[Tensor, Tensor]  # scores (N, K); labels (N,), or (N, K) of 1, 0 and -1
OF_BALANCED = ("standard_error", "majority")  # entries that only a balanced accuracy has in its protocol
_deciding: ContextVar[Tensor | None] = ContextVar("labels that decide the metrics", default=None)
UNEQUAL = 1.5  # times the images of the smallest class that the largest one has at most, if classes are equal


@contextmanager
def metrics_decided_by(labels: Tensor) -> Iterator[None]:
    """Let `metrics_of` answer for the labels of all folds, whatever the labels of one fold."""
    token = _deciding.set(labels)
    try:
        yield
    finally:
        _deciding.reset(token)


def metrics_of(labels: Tensor) -> tuple[str, ...]:
    """Return the metrics for the test labels; balanced accuracy is one of them if classes are unequal.

    Args:
        labels: `(N,)` classes, or `(N, K)` of 1, 0 and -1.
    """
    decided = _deciding.get()
    labels = labels if decided is None else decided
    if labels.ndim == 2:
        return ("map",)
    sizes = labels.unique(return_counts=True)[1]
    return ("top1", BALANCED) if sizes.max() > UNEQUAL * sizes.min() else ("top1",)


def records_of(
    stage: str, protocol: Protocol, test: Scored, heldout: Scored | None, more: tuple[str, ...] = ()
) -> list[Record]:
    """Return a record for each metric of the test labels.

    Args:
        stage: Name of the stage.
        protocol: Protocol of the records, without `heldout`.
        test: Scores and labels of the test images.
        heldout: The same of the held-out images; None without them.
        more: Further metrics, such as "top5".
    """
    return [
        Record(
            stage,
            metric,
            figure_of(metric, *test),
            len(test[1]),
            protocol
            | {"heldout": None if heldout is None else figure_of(metric, *heldout)}
            | details(metric, *test),
            answers=answers_of(metric, *test),
        )
        for metric in (*metrics_of(test[1]), *more)
    ]


def judging(records: Sequence[Record]) -> Record:
    """Return the record that judges a classifier: the balanced accuracy if there is one, else the first."""
    return next((record for record in records if record.metric == BALANCED), records[0])


def answers_of(metric: str, scores: Tensor, labels: Tensor) -> Answers | None:
    """Return which images an accuracy counts as right; None for another metric."""
    if metric == "map":
        return None
    k = 1 if metric == BALANCED else int(metric.removeprefix("top"))
    right = np.packbits(right_in_topk(scores, labels, k).cpu().numpy()).tobytes()
    classes = labels.cpu().numpy().astype("<i4").tobytes()
    return Answers(right, classes, short_digest(classes))


def check_loss(loss: Tensor, probe: str) -> None:
    """Raise ValueError if the loss of a probe that trains is not finite."""
    if not loss.isfinite():
        raise ValueError(f"the loss of probe {probe} is {loss.item()}; lower probe.{probe}.lr")


def figure_of(metric: str, scores: Tensor, labels: Tensor) -> float:
    """Return a figure in [0, 1] of scores `(N, K)` for labels as for `metrics_of`."""
    if metric == "map":
        return float(mean_average_precision(scores, labels))
    if metric == BALANCED:
        return float(balanced_accuracy(scores, labels)[0])
    return float(topk_accuracy(scores, labels, int(metric.removeprefix("top"))))


def details(metric: str, scores: Tensor, labels: Tensor) -> dict[str, Any]:
    """Return protocol entries of a balanced accuracy: its standard error, and the share of the largest class.

    Other metrics have none.
    """
    if metric != BALANCED:
        return {}
    values = float(balanced_accuracy(scores, labels)[1]), majority(labels)
    return dict(zip(OF_BALANCED, values, strict=True))


def majority(labels: Tensor) -> float:
    """Return the share of the largest class, the top-1 of always answering it."""
    return int(labels.bincount().max()) / len(labels)
