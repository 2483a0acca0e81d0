"""The losses of two networks against each other (Goodfellow et al. 2014), in fp32 from logits."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def generator_loss(fake: Tensor) -> Tensor:
    """-log D(fake), not log(1 - D(fake)): its gradient does not vanish when the discriminator is sure.

    Args:
        fake: Logits of D for what the generator made, of any shape.

    >>> generator_loss(torch.zeros(2))  # log 2
    tensor(0.6931)
    """
    return F.softplus(-fake.float()).mean()


def discriminator_scores(real: Tensor, fake: Tensor, label_smoothing: float) -> dict[str, Tensor]:
    """Mean cross-entropy of both kinds, and the share of each that is known for what it is.

    The share is counted from where a discriminator that knows nothing ends up, which the smoothing moves
    away from a logit of 0: one half of both kinds means that it is fooled.

    Args:
        real: Logits of D for real pictures.
        fake: Logits for those that the generator made.
        label_smoothing: Real ones count as real by 1 minus this (Salimans et al. 2016, one-sided).
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
