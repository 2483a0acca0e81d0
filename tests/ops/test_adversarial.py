"""Adversarial losses against their definition."""

import math

import pytest
import torch

from ssl_lightning.ops.adversarial import LOSSES, discriminator_scores, generator_loss, gradient_penalty


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


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_hinge_and_least_squares_by_looking_at_every_logit(smoothing: float) -> None:
    real, fake = 2 * torch.randn(2, 7, 1, generator=torch.Generator().manual_seed(0))
    reals, fakes = real.flatten().tolist(), fake.flatten().tolist()
    assert generator_loss(fake, "hinge").item() == pytest.approx(-sum(fakes) / 7, rel=1e-5)
    scores = discriminator_scores(real, fake, smoothing, "hinge")
    on_real = sum((1 - smoothing) * max(0, 1 - x) + smoothing * max(0, 1 + x) for x in reals) / 7
    on_fake = sum(max(0, 1 + x) for x in fakes) / 7
    assert scores["disc_loss"].item() == pytest.approx((on_real + on_fake) / 2, rel=1e-5)
    assert scores["disc_acc_real"].item() == pytest.approx(sum(x > 0 for x in reals) / 7)
    assert scores["disc_acc_fake"].item() == pytest.approx(sum(x < 0 for x in fakes) / 7)
    assert generator_loss(fake, "least_squares").item() == pytest.approx(
        sum((x - 1) ** 2 for x in fakes) / 7, rel=1e-5
    )
    scores = discriminator_scores(real, fake, smoothing, "least_squares")
    squares = sum((x - 1 + smoothing) ** 2 for x in reals) / 7 + sum(x * x for x in fakes) / 7
    assert scores["disc_loss"].item() == pytest.approx(squares / 2, rel=1e-5)
    threshold = (1 - smoothing) / 2
    assert scores["disc_acc_real"].item() == pytest.approx(sum(x > threshold for x in reals) / 7)
    assert scores["disc_acc_fake"].item() == pytest.approx(sum(x < threshold for x in fakes) / 7)


@pytest.mark.parametrize("kind", LOSSES)
def test_the_gradient_separates_and_the_generator_crosses_over(kind: str) -> None:
    real, fake = torch.zeros(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    discriminator_scores(real, fake, 0.0, kind)["disc_loss"].backward()
    assert real.grad is not None
    assert fake.grad is not None
    assert (real.grad < 0).all()  # a step raises the logits of real pictures
    assert (fake.grad >= 0).all()
    assert (fake.grad > 0).any() != (kind == "least_squares")
    (moved,) = torch.autograd.grad(generator_loss(fake, kind), fake)
    assert (moved < 0).all()


def test_the_penalty_is_the_squared_gradient_of_each_picture() -> None:
    weight = torch.randn(3 * 4 * 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    pictures = torch.randn(5, 3, 4, 4, requires_grad=True)
    linear = gradient_penalty(pictures.flatten(1) @ weight, pictures)
    assert linear.item() == pytest.approx(weight.square().sum().item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(linear, weight)
    torch.testing.assert_close(gradient, 2 * weight.detach())
    squares = pictures.flatten(1).square().sum(1)  # a logit of |x|^2 has the gradient 2 x
    expected = 4 * squares.mean().item()
    assert gradient_penalty(squares, pictures).item() == pytest.approx(expected, rel=1e-5)


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
