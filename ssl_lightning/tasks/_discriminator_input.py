"""Instance noise and augmentations on the input of a discriminator."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ssl_lightning.ops.diff_augment import AUGMENTATIONS, diff_augment


class DiscriminatorInput:
    """Changes real and generated pictures alike before a discriminator sees them.

    Args:
        noise: Deviation of the instance noise at the start of a run, in normalised units.
        augmentations: Names of augmentations, as in `ops.diff_augment`.

    Raises:
        ValueError: A number or a name is out of range.
    """

    def __init__(self, noise: float, augmentations: Sequence[str]) -> None:
        if noise < 0:
            raise ValueError(f"task.instance_noise is {noise}; it must be at least 0")
        if not set(augmentations) <= set(AUGMENTATIONS):
            raise ValueError(
                f"task.discriminator_augment is {list(augmentations)}; allowed are some of "
                f"{', '.join(AUGMENTATIONS)}, or [] for none"
            )
        self.noise, self.augmentations = noise, tuple(augmentations)
        self.deviation: float | Tensor = noise  # of this step

    def fade(self, done: float, recorded_on: torch.device | None) -> None:
        """Set the noise of a step: it falls linearly to 0 over a run.

        Args:
            done: Steps done, as a share of the run.
            recorded_on: Device of the CUDA graph that makes the step, which reads the deviation from one
                tensor every time; None without a graph.
        """
        deviation = self.noise * (1 - done)
        if recorded_on is None:
            self.deviation = deviation
            return
        if not isinstance(self.deviation, Tensor):
            self.deviation = torch.zeros((), device=recorded_on)
        self.deviation.fill_(deviation)

    def __call__(self, real: Tensor, fake: Tensor, stream: torch.Generator) -> tuple[Tensor, Tensor]:
        """Change `(N, C, h, w)` pictures. Both kinds get the same noise: their maps stay comparable."""
        if self.noise:
            noise = self.deviation * torch.randn(real.shape, generator=stream, device=real.device)
            real, fake = real + noise, fake + noise
        if self.augmentations:
            real, fake = diff_augment((real, fake), self.augmentations, stream)
        return real, fake
