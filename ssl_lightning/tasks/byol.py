"""BYOL: predict the embedding that a slower network gives to another view (Grill et al. 2020)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from lightly.models.modules.heads import BYOLPredictionHead, BYOLProjectionHead
from torch import Tensor, nn

from ssl_lightning.core.image_spec import ImageSpec
from ssl_lightning.tasks._momentum import MomentumTask


class BYOL(MomentumTask):
    """Predict, from one view of an image, the embedding of its other view by a slower copy of the network.

    No other image is needed for contrast. The predictor keeps the features from collapsing. Every network
    takes one view after the other, so that its batch norms see one view of each image, as in the paper.

    Args:
        backbone: The backbone.
        spec: Shape and statistics of the images.
        predictor: Whether there is a predictor; without it the features collapse.
        embedding: Size of an embedding (paper: 256).
        **base: The keywords of `MomentumTask` (in the paper `hidden` is 4096), of `ViewTask`, for the views,
            and of `PretextTask`.

    Raises:
        ValueError: A number is out of range.
    """

    def __init__(
        self,
        backbone: nn.Module,
        spec: ImageSpec | None = None,
        *,
        predictor: bool = True,
        embedding: int = 128,
        **base: Any,
    ) -> None:
        super().__init__(backbone, embedding=embedding, **base)
        self._predicts = predictor
        if spec is not None:
            self.build(spec)

    def build(self, spec: ImageSpec) -> None:
        super().build(spec)
        self.predictor: nn.Module = nn.Identity()
        if self._predicts:
            self.predictor = BYOLPredictionHead(self.embedding, self.hidden, self.embedding)

    def projector(self, channels: int) -> nn.Module:
        return BYOLProjectionHead(channels, self.hidden, self.embedding)

    def step(self, images: Tensor, labels: Tensor, stream: torch.Generator) -> dict[str, Tensor]:
        views = self.views(images, self.place(images), stream).split(1)  # two of (1, B, C, H, W)
        predicted = torch.stack([self.predictor(self.embed(view)[0]).float() for view in views])  # (2, B, D)
        wanted = torch.cat([self.embed_by_target(view) for view in reversed(views)])  # (2, B, D)
        distances = 2 - 2 * F.cosine_similarity(predicted, wanted, dim=2)
        return {"loss": distances.mean(1).sum()}
