"""NT-Xent and InfoNCE against lightly's loss, naive loops and closed forms."""

import math

import pytest
import torch
from lightly.loss import NTXentLoss

from ssl_lightning.core.seeding import generator
from ssl_lightning.ops.contrastive import info_nce, nt_xent


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_value_and_gradient_are_those_of_lightly(temperature: float) -> None:
    own, theirs = (
        torch.randn(2, 12, 5, dtype=torch.float64, generator=generator(0), requires_grad=True) for _ in "ab"
    )
    loss, _ = nt_xent(own, own, 0, temperature)
    expected = NTXentLoss(temperature)(*theirs)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(own.grad, theirs.grad)


def test_the_parts_of_several_processes_average_to_the_whole() -> None:
    everyone = torch.randn(2, 10, 4, generator=generator(1))
    whole, accuracy = nt_xent(everyone, everyone, 0, 0.5)
    parts = [nt_xent(everyone[:, first : first + 5], everyone, first, 0.5) for first in (0, 5)]
    torch.testing.assert_close(torch.stack([part[0] for part in parts]).mean(), whole)
    torch.testing.assert_close(torch.stack([part[1] for part in parts]).mean(), accuracy)


@pytest.mark.parametrize("count", [1, 2, 9])
def test_equal_embeddings_give_the_logarithm_of_the_number_of_others(count: int) -> None:
    same = torch.ones(2, count, 3)
    loss, _ = nt_xent(same, same, 0, 0.5)
    assert loss.item() == pytest.approx(math.log(2 * count - 1), abs=1e-6)


def test_orthogonal_images_with_equal_views() -> None:
    views = torch.eye(6).expand(2, 6, 6)
    loss, accuracy = nt_xent(views, views, 0, 0.5)
    assert loss.item() == pytest.approx(math.log(1 + 10 * math.exp(-2)), rel=1e-6)
    assert accuracy.item() == 1


def test_the_size_of_an_embedding_does_not_count_and_autocast_keeps_full_precision() -> None:
    views = torch.randn(2, 8, 16, generator=generator(2))
    expected, _ = nt_xent(views, views, 0, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = nt_xent(7 * views, 7 * views, 0, 0.1)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_info_nce_is_a_naive_loop(temperature: float) -> None:
    queries, keys = torch.randn(2, 9, 5, dtype=torch.float64, generator=generator(3))
    loss, hits = 0.0, 0
    for place in range(4):  # the own images are 3, 4, 5 and 6
        query = queries[3 + place]
        cosines = [float(query @ key / (query.norm() * key.norm())) for key in keys]
        shares = [math.exp(cosine / temperature) for cosine in cosines]
        loss -= math.log(shares[3 + place] / sum(shares)) / 4
        hits += max(cosines) == cosines[3 + place]
    found, accuracy = info_nce(queries[3:7], keys, 3, temperature)
    assert found.item() == pytest.approx(loss)
    assert accuracy.item() == hits / 4


def test_info_nce_of_equal_and_of_orthogonal_keys() -> None:
    loss, _ = info_nce(torch.ones(4, 3), torch.ones(7, 3), 2, 0.1)
    assert loss.item() == pytest.approx(math.log(7), rel=1e-6)
    loss, accuracy = info_nce(torch.eye(6)[2:4], torch.eye(6), 2, 0.5)
    assert loss.item() == pytest.approx(math.log(1 + 5 * math.exp(-2)), rel=1e-6)
    assert accuracy.item() == 1
