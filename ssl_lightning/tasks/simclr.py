"""SimCLR: tell the two views of an image from all other images (Chen, Kornblith, Norouzi, Hinton 2020)."""

from __future__ import annotations

from typing import Any

import torch
from lightly.models.modules.heads import SimCLRProjectionHead
from torch import Tensor, nn

from ssl_lightning.core.image_spec import ImageSpec
from ssl_lightning.ops.contrastive import nt_xent
from ssl_lightning.tasks._views import ViewTask


class SimCLR(ViewTask):
    """Tell the two views of an image from the views of all other images of the batch.

    The more images a batch has, the harder the task; 128 and more are usual. Several processes compare the
    images of all of them.

    Args:
        backbone: The backbone.
        spec: Shape and statistics of the images.
        temperature: Divides the cosine similarities (paper: 0.5 for CIFAR-10, 0.1 for ImageNet).
        embedding: Size of an embedding (paper: 128).
        **base: The keywords of `ViewTask`, for the views, and of `PretextTask`.

    Raises:
        ValueError: A number is out of range.
    """

    def __init__(
        self,
        backbone: nn.Module,
        spec: ImageSpec | None = None,
        *,
        temperature: float = 0.5,
        embedding: int = 128,
        **base: Any,
    ) -> None:
        super().__init__(backbone, embedding=embedding, **base)
        if temperature <= 0:
            raise ValueError(f"task.temperature is {temperature}; it must be above 0")
        self.temperature = temperature
        if spec is not None:
            self.build(spec)

    def projector(self, channels: int) -> nn.Module:
        return SimCLRProjectionHead(channels, self.hidden, self.embedding)

    def step(self, images: Tensor, labels: Tensor, stream: torch.Generator) -> dict[str, Tensor]:
        place = self.place(images)
        embedded = self.embed(self.views(images, place, stream))  # (2, B, D)
        everyone = self.everyone(embedded, place)  # (2, N, D)
        loss, accuracy = nt_xent(embedded, everyone, place.first, self.temperature)
        return {"loss": loss, "acc": accuracy}
