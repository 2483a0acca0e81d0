"""Folds of a cross-validation: stratified, even, and the same in every run."""

import pytest
import torch

from ssl_lightning.core.seeding import generator
from ssl_lightning.data.io.splits import draw_folds
from ssl_lightning.probes._folds import out_of_fold, training_parts


@pytest.mark.parametrize("sizes", [(20, 7, 1), (5, 5), (1, 1), (400, 3)])
def test_folds_and_their_classes_are_even(sizes: tuple[int, ...]) -> None:
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate(sizes)])
    labels = labels[torch.randperm(len(labels), generator=generator("mixed"))]
    part = draw_folds(labels, 5)
    folds = min(5, len(labels))
    assert part.unique().tolist() == list(range(folds))
    for rows in (torch.ones_like(labels).bool(), *(labels == c for c in range(len(sizes)))):
        counts = part[rows].bincount(minlength=folds)
        assert counts.max() - counts.min() <= 1
    assert torch.equal(part, draw_folds(labels, 5))


def test_images_of_a_class_are_drawn_not_taken_in_turn() -> None:
    assert not torch.equal(draw_folds(torch.zeros(20).long(), 5), torch.arange(20) % 5)


def test_each_image_gets_the_score_of_its_fold() -> None:
    part = torch.tensor([1, 0, 2, 0, 1])
    values = torch.arange(5.0)
    scores = out_of_fold(part, lambda fold, rows: (10 * fold + values[rows])[None, :, None])
    assert scores.flatten().tolist() == [10.0, 1.0, 22.0, 3.0, 14.0]
    assert training_parts(part).tolist() == [[p != f for p in part.tolist()] for f in range(3)]
