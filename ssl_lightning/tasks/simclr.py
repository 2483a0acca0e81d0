"""SimCLR: tell the two views of an image from all other images (Chen, Kornblith, Norouzi, Hinton 2020)."""

from __future__ import annotations

from typing import Any

import torch
from lightly.models.modules.heads import SimCLRProjectionHead
from torch import Tensor, nn

from ssl_lightning.core.image_spec import ImageSpec
from ssl_lightning.networks.heads import PooledHead
from ssl_lightning.ops.contrastive import nt_xent
from ssl_lightning.tasks._views import TwoViewTask


class SimCLR(TwoViewTask):
    """Tell the two views of an image from the views of all other images of the batch.

    The more images a batch has, the harder the task; 128 and more are usual. Several processes compare the
    images of all of them.

    Args:
        backbone: The backbone.
        spec: Shape and statistics of the images.
        temperature: Divides the cosine similarities (paper: 0.5 for CIFAR-10, 0.1 for ImageNet).
        hidden: Units of the hidden layer of the projection head.
        embedding: Size of an embedding (paper: 128).
        **base: The keywords of `TwoViewTask`, for the views, and of `PretextTask`.

    Raises:
        ValueError: A number is out of range.
    """

    def __init__(
        self,
        backbone: nn.Module,
        spec: ImageSpec | None = None,
        *,
        temperature: float = 0.5,
        hidden: int = 512,
        embedding: int = 128,
        **base: Any,
    ) -> None:
        super().__init__(backbone, **base)
        if temperature <= 0:
            raise ValueError(f"task.temperature is {temperature}; it must be above 0")
        if hidden < 1 or embedding < 1:
            raise ValueError(f"task.hidden is {hidden} and task.embedding {embedding}; both must be above 0")
        self.temperature = temperature
        self._widths = (hidden, embedding)
        if spec is not None:
            self.build(spec)

    def build(self, spec: ImageSpec) -> None:
        super().build(spec)
        info: Any = self.backbone.feature_info
        self.head = PooledHead(SimCLRProjectionHead(info.channels()[-1], *self._widths))

    def step(self, images: Tensor, labels: Tensor, stream: torch.Generator) -> dict[str, Tensor]:
        place = self.place(images)
        embedded = self.embed(self.views(images, place, stream))  # (2, B, D)
        everyone = self.everyone(embedded, place)  # (2, N, D)
        loss, accuracy = nt_xent(embedded, everyone, place.first, self.temperature)
        return {"loss": loss, "acc": accuracy}
