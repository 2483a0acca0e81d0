"""Effective rank against numpy and closed forms, and its invariances."""

import numpy as np
import pytest
import torch

from ssl_lightning.core.seeding import generator
from ssl_lightning.ops.rank import dead_channels, effective_rank


@pytest.mark.parametrize("shape", [(50, 8), (8, 50)])
def test_the_formula_in_numpy(shape: tuple[int, int]) -> None:
    x = torch.randn(shape, generator=generator("rank"))
    values = np.linalg.svd(x.double().numpy(), compute_uv=False)
    share = values / values.sum() + 1e-7
    assert effective_rank(x).item() == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-9)


def test_closed_forms() -> None:
    assert effective_rank(3 * torch.eye(7)).item() == pytest.approx(7, rel=1e-5)
    one = torch.randn(40, 1, generator=generator("a")) * torch.randn(1, 16, generator=generator("b"))
    assert effective_rank(one).item() == pytest.approx(1, abs=1e-3)
    assert effective_rank(torch.ones(9, 1)).item() == 1.0
    # singular values 2, 1, 1: shares 1/2, 1/4, 1/4, entropy 1.5 bits
    assert effective_rank(torch.diag(torch.tensor([2.0, 1.0, 1.0]))).item() == pytest.approx(2**1.5, rel=1e-5)


def test_features_of_a_collapsed_backbone_have_no_rank_to_speak_of() -> None:
    assert 1 <= effective_rank(torch.zeros(20, 30)).item() < 1.001


def test_rotations_scale_and_order_do_not_matter() -> None:
    x = torch.randn(30, 6, generator=generator("x")).double()
    turn = torch.linalg.qr(torch.randn(6, 6, generator=generator("q")).double()).Q
    for same in (x @ turn, 5 * x, x.flip(0)):
        assert effective_rank(same).item() == pytest.approx(effective_rank(x).item(), rel=1e-9)


def test_dead_are_the_features_that_never_change() -> None:
    x = torch.randn(50, 6, generator=generator("dead"))
    x[:, 1], x[:, 4] = 0, -3e4
    x[:, 5] = 1 + 1e-7 * x[:, 5]  # rounding does not count as variation
    assert dead_channels(x).tolist() == [False, True, False, False, True, True]
    assert dead_channels(1e-20 * x).tolist() == dead_channels(x).tolist()  # small is not dead
    assert dead_channels(x.bfloat16()).tolist() == dead_channels(x).tolist()
