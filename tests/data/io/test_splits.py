"""Fixed draws: stratified by class, and the same in every run."""

from __future__ import annotations

import pytest
import torch

from ssl_lightning.data.io.splits import complement, stratified


def test_each_class_has_its_share():
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)[torch.randperm(100)]
    drawn = stratified(labels, 10, "x")
    assert labels[drawn].bincount().tolist() == [5, 3, 2]
    assert drawn.tolist() == sorted(set(drawn.tolist()))


@pytest.mark.parametrize("count", [0, 1, 7, 10])
def test_shares_that_do_not_divide_still_add_up(count):
    labels = torch.arange(10) % 3
    drawn = stratified(labels, count, "x")
    assert len(drawn) == count
    assert (labels[drawn].bincount(minlength=3) - labels.bincount() * count / 10).abs().max() < 1


def test_a_class_keeps_its_last_image_if_others_suffice():
    labels = torch.tensor([0] * 3 + [1, 2, 3, 4, 5, 6])
    drawn = stratified(labels, 2, "x", spare=1)
    assert labels[drawn].tolist() == [0, 0]
    assert len(stratified(labels, 3, "x", spare=1)) == 3  # only two can be spared
    large = torch.arange(100) % 4
    assert torch.equal(stratified(large, 10, "x", spare=1), stratified(large, 10, "x"))


def test_the_draw_depends_on_its_name_alone():
    labels = torch.arange(100) % 4
    first = stratified(labels, 20, "x")
    torch.manual_seed(7)
    assert torch.equal(first, stratified(labels, 20, "x"))
    assert not torch.equal(first, stratified(labels, 20, "y"))


def test_more_than_there_are_is_refused():
    with pytest.raises(ValueError, match="5 images were requested; there are 4"):
        stratified(torch.zeros(4), 5, "x")


def test_complement():
    assert complement(torch.tensor([3, 0]), 5).tolist() == [1, 2, 4]
