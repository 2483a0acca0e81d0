"""Rotation prediction (RotNet: Gidaris, Singh, Komodakis 2018)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_lightning.core.image_spec import ImageSpec
from ssl_lightning.networks.heads import PooledClassifier
from ssl_lightning.ops.rotation import NUM_ROTATIONS, rotate_four, rotate_one
from ssl_lightning.tasks.base import Panel, PretextTask


class Rotation(PretextTask):
    """Predict the rotation of an image, a multiple of 90 degrees.

    Args:
        backbone: The backbone.
        spec: Shape and statistics of the images.
        copies: 4 puts all four rotations of every image into the batch, as the paper does (sec. 3.2), so
            the backbone sees 4 B images. 1 draws one rotation per image (VISSL).
        **base: The keywords of `PretextTask`.

    Raises:
        ValueError: `copies` is neither 4 nor 1.
    """

    recordable = True
    chance = 1 / NUM_ROTATIONS

    def __init__(
        self, backbone: nn.Module, spec: ImageSpec | None = None, *, copies: int = 4, **base: Any
    ) -> None:
        super().__init__(backbone, **base)
        if copies not in (1, NUM_ROTATIONS):
            raise ValueError(
                f"task.copies is {copies}; allowed are 4 (all rotations of each image) and 1 (one drawn)"
            )
        self.views_per_image = copies
        if spec is not None:
            self.build(spec)

    def build(self, spec: ImageSpec) -> None:
        super().build(spec)
        self.head = PooledClassifier(self.backbone, NUM_ROTATIONS)

    def step(self, images: Tensor, labels: Tensor, stream: torch.Generator) -> dict[str, Tensor]:
        x = self.normalise(images)
        # (4B, C, H, W), (4B,)
        x, angle = rotate_four(x) if self.views_per_image == 4 else rotate_one(x, stream)
        logits = self.head(self.backbone(x))  # (4B, 4)
        return {
            "loss": F.cross_entropy(logits, angle),
            "acc": (logits.argmax(1) == angle).float().mean(),
        }

    def panel(self, images: Tensor) -> Panel:
        rotated, angle = rotate_four(images)
        probability = self.head(self.backbone(self.normalise(rotated))).softmax(1)
        confidence, answer = probability.max(1)

        def by_image(flat: Tensor) -> Any:
            return flat.unflatten(0, (NUM_ROTATIONS, -1)).transpose(0, 1)  # (4B, ...) -> (B, 4, ...)

        text = [
            [f"{90 * a}°, {c:.2f}" for a, c in zip(row_a, row_c, strict=True)]
            for row_a, row_c in zip(by_image(answer).tolist(), by_image(confidence).tolist(), strict=True)
        ]
        columns = [f"rotated by {90 * turns}°" for turns in range(NUM_ROTATIONS)]
        return Panel(by_image(rotated), columns, text, by_image(answer == angle).tolist())
