"""Barlow Twins: the correlation of the embeddings of two views is the identity (Zbontar et al. 2021)."""

from __future__ import annotations

from typing import Any

import torch
from lightly.loss.barlow_twins_loss import BarlowTwinsLoss
from lightly.models.modules.heads import BarlowTwinsProjectionHead
from torch import Tensor, nn

from ssl_lightning.core.image_spec import ImageSpec
from ssl_lightning.tasks._views import ViewTask, two_or_more


class BarlowTwins(ViewTask):
    """Make the correlation matrix of the embeddings of two views the identity.

    Its diagonal compares the views of an image; the rest keeps two numbers of an embedding from telling the
    same. No other image is needed for contrast, so that small batches work too.

    Args:
        backbone: The backbone.
        spec: Shape and statistics of the images.
        off_diagonal: Weight of the squared correlations beside the diagonal (paper: 0.005).
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
        off_diagonal: float = 0.005,
        **base: Any,
    ) -> None:
        super().__init__(backbone, **base)
        if off_diagonal < 0:
            raise ValueError(f"task.off_diagonal is {off_diagonal}; allowed are 0 and above")
        self.score = BarlowTwinsLoss(off_diagonal)
        if spec is not None:
            self.build(spec)

    def projector(self, channels: int) -> nn.Module:
        return BarlowTwinsProjectionHead(channels, self.hidden, self.embedding)

    def step(self, images: Tensor, labels: Tensor, stream: torch.Generator) -> dict[str, Tensor]:
        place = self.place(images)
        first, second = two_or_more(self.everyone(self.embed(self.views(images, place, stream)), place))
        with torch.autocast(images.device.type, enabled=False):  # statistics need full precision
            return {"loss": self.score(first, second)}
