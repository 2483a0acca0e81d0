"""Adversarial losses (Goodfellow et al. 2014), in fp32 from logits."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LOSSES = ("non_saturating", "hinge", "least_squares")


def generator_loss(fake: Tensor, kind: str = "non_saturating") -> Tensor:
    """Compute the loss of the generator.

    - "non_saturating": -log D(fake); unlike log(1 - D(fake)), its gradient stays large if the discriminator
      is sure.
    - "hinge": -logit (Lim and Ye 2017; Miyato et al. 2018).
    - "least_squares": (logit - 1)^2 (Mao et al. 2017, with targets 0 and 1).

    Args:
        fake: Logits of D for generated pictures, of any shape.
        kind: One of `LOSSES`.

    >>> generator_loss(torch.zeros(2))  # log 2
    tensor(0.6931)
    """
    fake = fake.float()
    if kind == "hinge":
        return -fake.mean()
    if kind == "least_squares":
        return (fake - 1).square().mean()
    return F.softplus(-fake).mean()


def discriminator_scores(
    real: Tensor, fake: Tensor, label_smoothing: float, kind: str = "non_saturating"
) -> dict[str, Tensor]:
    """Compute the discriminator's mean loss, and its accuracy on real and on fake pictures.

    The decision threshold is the logit of a discriminator that cannot tell them apart. Label smoothing moves
    it, except for "hinge", whose best logits are 1 and -1 (threshold 0). An accuracy of one half on both
    kinds means that the discriminator is fooled.

    Args:
        real: Logits of D for real pictures.
        fake: Logits of D for generated pictures.
        label_smoothing: The target of real pictures is 1 minus this (Salimans et al. 2016, one-sided): they
            count as fake with this weight.
        kind: One of `LOSSES`.
    """
    real, fake = real.float(), fake.float()
    if kind == "hinge":
        on_real = (1 - label_smoothing) * F.relu(1 - real) + label_smoothing * F.relu(1 + real)
        on_fake, undecided = F.relu(1 + fake), 0.0
    elif kind == "least_squares":
        on_real, on_fake = (real - (1 - label_smoothing)).square(), fake.square()
        undecided = (1 - label_smoothing) / 2
    else:
        target = torch.full_like(real, 1 - label_smoothing)
        on_real = F.binary_cross_entropy_with_logits(real, target, reduction="none")
        on_fake = F.softplus(fake)  # -log(1 - D(fake))
        undecided = math.log((1 - label_smoothing) / (1 + label_smoothing))  # logit of (1 - smoothing) / 2
    return {
        "disc_loss": (on_real.mean() + on_fake.mean()) / 2,
        "disc_acc_real": (real > undecided).float().mean(),
        "disc_acc_fake": (fake < undecided).float().mean(),
    }


def gradient_penalty(logits: Tensor, pictures: Tensor) -> Tensor:
    """Compute R1: the mean squared norm of the gradient of each picture's logit (Mescheder et al. 2018).

    Its own gradient reaches the weights of the discriminator, by a second backward pass.

    Args:
        logits: Logits of D, one per picture, with their graph.
        pictures: `(N, C, h, w)` real pictures that require a gradient.
    """
    (gradient,) = torch.autograd.grad(logits.float().sum(), pictures, create_graph=True)
    return gradient.float().square().sum((1, 2, 3)).mean()
