"""VICReg: equal views, varied and uncorrelated embeddings (Bardes, Ponce, LeCun 2022)."""

from __future__ import annotations

from typing import Any

import torch
from lightly.loss.vicreg_loss import invariance_loss, variance_loss
from lightly.models.modules.heads import VICRegProjectionHead
from torch import Tensor, nn

from ssl_lightning.core.image_spec import ImageSpec
from ssl_lightning.ops.covariance import covariance_penalty
from ssl_lightning.tasks._views import ViewTask, two_or_more


class VICReg(ViewTask):
    """Make the embeddings of two views equal, while their numbers vary over the images and are uncorrelated.

    Args:
        backbone: The backbone.
        spec: Shape and statistics of the images.
        invariance: Weight of the squared distance of the views (paper: 25).
        variance: Weight of the term that keeps the deviation of every number at 1 or more (paper: 25).
        covariance: Weight of the squared covariances of different numbers (paper: 1).
        **base: The keywords of `ViewTask` (in the paper `hidden` and `embedding` are 8192), and of
            `PretextTask`.

    Raises:
        ValueError: A number is out of range.
    """

    smallest_embedding = 2
    default_optimizer = (torch.optim.AdamW, {"lr": 0.002, "weight_decay": 0.05})

    def __init__(
        self,
        backbone: nn.Module,
        spec: ImageSpec | None = None,
        *,
        invariance: float = 25.0,
        variance: float = 25.0,
        covariance: float = 1.0,
        **base: Any,
    ) -> None:
        super().__init__(backbone, **base)
        weights = {"invariance": invariance, "variance": variance, "covariance": covariance}
        for name, weight in weights.items():
            if weight < 0:
                raise ValueError(f"task.{name} is {weight}; allowed are 0 and above")
        self.weights = weights
        if spec is not None:
            self.build(spec)

    def projector(self, channels: int) -> nn.Module:
        return VICRegProjectionHead(channels, self.hidden, self.embedding)

    def step(self, images: Tensor, labels: Tensor, stream: torch.Generator) -> dict[str, Tensor]:
        place = self.place(images)
        first, second = two_or_more(self.everyone(self.embed(self.views(images, place, stream)), place))
        with torch.autocast(images.device.type, enabled=False):  # statistics need full precision
            terms = {
                "invariance": invariance_loss(first, second),
                "variance": (variance_loss(first) + variance_loss(second)) / 2,
                "covariance": covariance_penalty(first) + covariance_penalty(second),
            }
            loss = torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()
        return {"loss": loss, **terms}
