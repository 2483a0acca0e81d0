"""Heads: what turns the stage maps of a trunk into an answer."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class PooledClassifier(nn.Module):
    """Global average pooling of the last stage map, then one linear layer.

    Args:
        backbone: The trunk whose last stage is classified; only its `feature_info` is read.
        num_classes: Number of answers.
    """

    def __init__(self, backbone: Any, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(backbone.feature_info.channels()[-1], num_classes)

    def forward(self, stages: list[Tensor]) -> Tensor:
        """Map stage maps, the last `(B, D, H, W)`, to logits `(B, num_classes)`."""
        return self.linear(stages[-1].mean((2, 3)))
