"""Adversarial losses against their definition."""

import math

import pytest
import torch

from ssl_lightning.ops.adversarial import discriminator_scores, generator_loss


def test_losses_are_those_of_the_probabilities() -> None:
    real, fake = torch.randn(2, 7, 1, generator=torch.Generator().manual_seed(0))
    p_real, p_fake = ([1 / (1 + math.exp(-x)) for x in logits.flatten().tolist()] for logits in (real, fake))
    assert generator_loss(fake).item() == pytest.approx(sum(-math.log(p) for p in p_fake) / 7, rel=1e-5)
    scores = discriminator_scores(real, fake, 0.2)
    on_real = sum(-0.8 * math.log(p) - 0.2 * math.log(1 - p) for p in p_real) / 7
    on_fake = sum(-math.log(1 - p) for p in p_fake) / 7
    assert scores["disc_loss"].item() == pytest.approx((on_real + on_fake) / 2, rel=1e-5)
    assert scores["disc_acc_real"].item() == pytest.approx(sum(p > 0.4 for p in p_real) / 7)
    assert scores["disc_acc_fake"].item() == pytest.approx(sum(p < 0.4 for p in p_fake) / 7)


def test_who_cannot_tell_them_apart_is_undecided() -> None:
    """The constant logit with the smallest loss is the threshold of the accuracies."""
    constants = torch.linspace(-1, 1, 2001)
    losses = [discriminator_scores(x[None], x[None], 0.2)["disc_loss"].item() for x in constants]
    best = constants[losses.index(min(losses))]
    just_above = discriminator_scores(best[None] + 2e-3, best[None] + 2e-3, 0.2)
    just_below = discriminator_scores(best[None] - 2e-3, best[None] - 2e-3, 0.2)
    assert (just_above["disc_acc_real"], just_above["disc_acc_fake"]) == (1, 0)
    assert (just_below["disc_acc_real"], just_below["disc_acc_fake"]) == (0, 1)


def test_logits_in_bf16_and_far_out_stay_finite() -> None:
    far = torch.tensor([-300.0, 300.0], dtype=torch.bfloat16)
    assert generator_loss(far).item() == pytest.approx(150, rel=0.01)
    assert discriminator_scores(far, far, 0.1)["disc_loss"].isfinite()
