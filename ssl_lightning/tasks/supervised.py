"""Supervised control: the same backbone, trained with the labels of the pretraining images."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_lightning.core.image_spec import ImageSpec
from ssl_lightning.networks.heads import PooledClassifier
from ssl_lightning.tasks.base import Panel, PretextTask


class Supervised(PretextTask):
    """Predict the class of an image, as a reference for the pretext tasks.

    Args:
        backbone: The backbone.
        spec: Shape, statistics and classes of the images. If None, the classes are the `classes` of the data
            set of the training loader, else its labels, from one pass.
        **base: The keywords of `PretextTask`.

    Raises:
        ValueError: The data have no labels.
    """

    needs_labels = True
    recordable = True
    labels_seen = "those of the pretraining images"

    def __init__(self, backbone: nn.Module, spec: ImageSpec | None = None, **base: Any) -> None:
        super().__init__(backbone, **base)
        if spec is not None:
            self.build(spec)

    def build(self, spec: ImageSpec) -> None:
        super().build(spec)
        if spec.num_classes is None or not spec.pretrain_labels:
            raise ValueError(
                "task=supervised learns from labels, and the pretraining images have none that it may learn "
                "(with a cross-validation all labelled images are test images); choose data with labelled "
                "pretraining images and a test set, such as data.test_dir=FOLDER, or a pretext task"
            )
        self.class_names = spec.class_names or ()
        self.head = PooledClassifier(self.backbone, spec.num_classes)

    def step(self, images: Tensor, labels: Tensor, stream: torch.Generator) -> dict[str, Tensor]:
        logits = self.head(self.backbone(self.normalise(images)))  # (B, K)
        return {
            "loss": F.cross_entropy(logits, labels),
            "acc": (logits.argmax(1) == labels).float().mean(),
        }

    def panel(self, images: Tensor) -> Panel:
        probability = self.head(self.backbone(self.normalise(images))).softmax(1)
        confidence, answer = probability.max(1)
        text = [
            f"{self.class_names[a]}, {c:.2f}"
            for a, c in zip(answer.tolist(), confidence.tolist(), strict=True)
        ]
        return Panel(images[:, None], ["image and answer"], [[line] for line in text])
