"""Adversarial losses (Goodfellow et al. 2014), in fp32 from logits."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def generator_loss(fake: Tensor) -> Tensor:
    """Compute -log D(fake); unlike log(1 - D(fake)), its gradient stays large if the discriminator is sure.

    Args:
        fake: Logits of D for generated pictures, of any shape.

    >>> generator_loss(torch.zeros(2))  # log 2
    tensor(0.6931)
    """
    return F.softplus(-fake.float()).mean()


def discriminator_scores(real: Tensor, fake: Tensor, label_smoothing: float) -> dict[str, Tensor]:
    """Compute the discriminator's mean cross-entropy, and its accuracy on real and on fake pictures.

    The decision threshold is the logit of a discriminator that cannot tell them apart. Label smoothing moves
    it away from 0. An accuracy of one half on both kinds means that the discriminator is fooled.

    Args:
        real: Logits of D for real pictures.
        fake: Logits of D for generated pictures.
        label_smoothing: The target of real pictures is 1 minus this (Salimans et al. 2016, one-sided).
    """
    real, fake = real.float(), fake.float()
    target = torch.full_like(real, 1 - label_smoothing)
    on_real = F.binary_cross_entropy_with_logits(real, target)
    on_fake = F.softplus(fake).mean()  # -log(1 - D(fake))
    undecided = math.log((1 - label_smoothing) / (1 + label_smoothing))  # the logit of (1 - smoothing) / 2
    return {
        "disc_loss": (on_real + on_fake) / 2,
        "disc_acc_real": (real > undecided).float().mean(),
        "disc_acc_fake": (fake < undecided).float().mean(),
    }
