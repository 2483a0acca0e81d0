"""Rotation as the second task of a discriminator (SS-GAN: Chen et al. 2019, sec. 3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_lightning.networks.discriminator import frozen, unrecorded
from ssl_lightning.ops.rotation import rotate_one


class RotationOfPictures(nn.Module):
    """Losses of a head on the discriminator's maps that tells four rotations apart.

    The discriminator learns on real pictures, the generator on its own ones, so that both work together.
    Each picture has one random angle, while the authors rotate a quarter of the batch by all four. Only
    upright real pictures enter the statistics of batch norm.

    Args:
        head: Maps stage maps to logits `(N, 4)`.
    """

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def of_discriminator(
        self, loss: Tensor, weight: float, discriminator: nn.Module, shown: Tensor, stream: torch.Generator
    ) -> dict[str, Tensor]:
        """Add the rotation loss on real pictures to a loss of the discriminator.

        Args:
            loss: The loss without it.
            weight: Weight of the rotation loss.
            discriminator: Maps pictures to stage maps.
            shown: Real pictures `(N, C, h, h)`.
            stream: Draws the angles.

        Returns:
            The sum "disc_loss", and the accuracy "disc_rotation_acc".
        """
        pictures, angles = rotate_one(shown.detach(), stream)
        with unrecorded(discriminator):
            logits = self.head(discriminator(pictures)).float()  # (N, 4)
        accuracy = (logits.argmax(1) == angles).float().mean()
        return {"disc_loss": loss + weight * F.cross_entropy(logits, angles), "disc_rotation_acc": accuracy}

    def of_generator(
        self, loss: Tensor, weight: float, discriminator: nn.Module, made: Tensor, stream: torch.Generator
    ) -> dict[str, Tensor]:
        """Add the rotation loss on generated pictures to a loss of the generator.

        Args:
            loss, weight, discriminator, stream: As above.
            made: Generated pictures `(N, C, h, h)` with their graph.

        Returns:
            The sum "loss", and the rotation loss "adversarial_rotation".
        """
        pictures, angles = rotate_one(made, stream)
        with frozen(discriminator, self.head), unrecorded(discriminator, self.head):
            rotation = F.cross_entropy(self.head(discriminator(pictures)).float(), angles)
        return {"loss": loss + weight * rotation, "adversarial_rotation": rotation}
