"""Projection head that compares embeddings with prototypes (DINO: Caron et al. 2021)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from lightly.models.modules.heads import ProjectionHead
from torch import Tensor, nn


class PrototypeHead(nn.Module):
    """Three linear layers with GELU, then cosines with prototypes (DINO: Caron et al. 2021, app. C).

    Lightly's DINOProjectionHead computes the same, but its weight norm does not let it be copied.

    Args:
        channels: Size of a feature.
        hidden: Units of the two hidden layers.
        embedding: Size of a prototype.
        prototypes: K, number of prototypes.
        batch_norm: Whether the hidden layers have batch norm.
    """

    def __init__(self, channels: int, hidden: int, embedding: int, prototypes: int, batch_norm: bool) -> None:
        super().__init__()
        sizes = [(channels, hidden), (hidden, hidden)]
        norms = [nn.BatchNorm1d(hidden) if batch_norm else None for _ in sizes]
        inner = [(*size, norm, nn.GELU()) for size, norm in zip(sizes, norms, strict=True)]
        self.network = ProjectionHead([*inner, (hidden, embedding, None, None)])
        self.prototypes = CosineLinear(embedding, prototypes)
        for layer in self.network.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Map `(N, channels)` to cosines `(N, K)` float32."""
        return self.prototypes(self.network(features))


class CosineLinear(nn.Linear):
    """Cosines of inputs with the rows of a weight, in full precision: a loss divides them by 0.04 or so.

    Args:
        inputs: Size of an input.
        outputs: Number of rows.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N, inputs)` to cosines `(N, outputs)` float32."""
        with torch.autocast(x.device.type, enabled=False):
            rows, columns = F.normalize(x.float(), dim=1), F.normalize(self.weight.float(), dim=1)
            return F.linear(rows, columns)
