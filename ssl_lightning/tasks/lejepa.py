"""LeJEPA: equal embeddings of all views, normally distributed over the images (Balestriero, LeCun 2025)."""

from __future__ import annotations

from typing import Any

import torch
from lightly.loss.lejepa_loss import lejepa_invariance_loss
from lightly.models.modules.heads import LeJEPAProjectionHead
from torch import Tensor, nn

from ssl_lightning.core.image_spec import ImageSpec
from ssl_lightning.ops.sigreg import draw_slices, epps_pulley
from ssl_lightning.tasks._views import ViewTask


class LeJEPA(ViewTask):
    """Make the embeddings of the views of an image equal, and all embeddings standard normal.

    The second term (SIGReg) compares projections on random directions with a normal distribution. It keeps
    the features from collapsing, without a second network.

    Args:
        backbone: The backbone.
        spec: Shape and statistics of the images.
        views: Number of views of each image (paper: 2 large and 6 small ones).
        sigreg: Weight of the distance from a normal distribution, 0 to 1; the distance of the views from
            their mean gets the rest (paper: 0.05).
        slices: Number of random directions, drawn for each step (paper: 1024).
        embedding: Size of an embedding.
        **base: The keywords of `ViewTask` (in the paper `hidden` is 2048), and of `PretextTask`.

    Raises:
        ValueError: A number is out of range.
    """

    default_optimizer = (torch.optim.AdamW, {"lr": 0.002, "weight_decay": 0.05})

    def __init__(
        self,
        backbone: nn.Module,
        spec: ImageSpec | None = None,
        *,
        views: int = 2,
        sigreg: float = 0.05,
        slices: int = 256,
        embedding: int = 64,
        **base: Any,
    ) -> None:
        super().__init__(backbone, embedding=embedding, **base)
        if views < 2 or slices < 1:
            raise ValueError(f"task.views is {views} and task.slices {slices}; allowed: >= 2 and >= 1")
        if not 0 <= sigreg <= 1:
            raise ValueError(f"task.sigreg is {sigreg}; allowed are 0 to 1, a share of the loss")
        self.views_per_image, self.sigreg, self.slices = views, sigreg, slices
        if spec is not None:
            self.build(spec)

    def projector(self, channels: int) -> nn.Module:
        return LeJEPAProjectionHead(channels, self.hidden, self.embedding)

    def step(self, images: Tensor, labels: Tensor, stream: torch.Generator) -> dict[str, Tensor]:
        place = self.place(images)
        embedded = self.everyone(self.embed(self.views(images, place, stream)), place)  # (V, N, D)
        with torch.autocast(images.device.type, enabled=False):  # statistics need full precision
            invariance = lejepa_invariance_loss(all_proj=embedded, global_proj=embedded)
            sigreg = epps_pulley(embedded, draw_slices(self.slices, self.embedding, stream))
            loss = (1 - self.sigreg) * invariance + self.sigreg * sigreg
        return {"loss": loss, "invariance": invariance, "sigreg": sigreg}
