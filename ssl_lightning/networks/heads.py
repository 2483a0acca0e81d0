"""Heads: what turns the stage maps of a backbone into an answer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class PooledClassifier(nn.Module):
    """Global average pooling of the last stage map, then one linear layer.

    Args:
        backbone: The backbone whose last stage is classified; only its `feature_info` is read.
        num_classes: Number of answers.
    """

    def __init__(self, backbone: Any, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(backbone.feature_info.channels()[-1], num_classes)

    def forward(self, stages: list[Tensor]) -> Tensor:
        """Map stage maps, the last `(B, D, H, W)`, to logits `(B, num_classes)`."""
        return self.linear(global_average(stages[-1]))


class TileEmbedding(nn.Module):
    """The last stage map of a tile in quarters, then a linear layer, batch norm and ReLU.

    Quarters keep what sits where within the tile, for maps of every size. Without the batch norm a jigsaw
    may not start to learn for many epochs.

    Args:
        backbone: The backbone whose last stage is embedded; only its `feature_info` is read.
        width: Numbers per tile.
    """

    def __init__(self, backbone: Any, width: int) -> None:
        super().__init__()
        channels = backbone.feature_info.channels()[-1]
        self.linear = nn.Linear(4 * channels, width, bias=False)
        self.norm = nn.BatchNorm1d(width)

    def forward(self, stages: list[Tensor]) -> Tensor:
        """Map stage maps, the last `(N, D, h, w)`, to embeddings `(N, width)`, at least 0."""
        quarters = _quarters(stages[-1])  # (N, D, 2, 2)
        return self.norm(self.linear(quarters.flatten(1))).relu_()


class SequenceClassifier(nn.Module):
    """Name the order of a sequence of embeddings: concatenate, one hidden layer, one linear layer.

    Args:
        length: Embeddings in a sequence.
        width: Numbers per embedding.
        hidden: Units of the hidden layer, with batch norm; 0 leaves it out.
        num_classes: Number of answers.
    """

    def __init__(self, length: int, width: int, hidden: int, num_classes: int) -> None:
        super().__init__()
        self.hidden = nn.Sequential()
        if hidden:
            self.hidden.append(nn.Linear(length * width, hidden, bias=False))
            self.hidden.extend([nn.BatchNorm1d(hidden), nn.ReLU(inplace=True)])
        self.linear = nn.Linear(hidden or length * width, num_classes)

    def forward(self, sequences: Tensor) -> Tensor:
        """Map `(N, length, width)` to logits `(N, num_classes)`."""
        return self.linear(self.hidden(sequences.flatten(1)))


def check_tile_size(backbone: Any, tile: int, image_size: int) -> None:
    """Refuse tiles that the backbone would shrink to less than one cell.

    Args:
        backbone: A backbone; its `feature_info` is read, and its `min_image_size` if it has one.
        tile: Height and width of a tile in pixels.
        image_size: Height and width of the images, for the message.

    Raises:
        ValueError: The tile is below the largest reduction of the backbone, or below its minimum.
    """
    stride = max(backbone.feature_info.reduction())
    smallest = max(stride, getattr(backbone, "min_image_size", stride))
    if tile < smallest:
        raise ValueError(
            f"the tiles are {tile} px (data.image_size is {image_size}), but the backbone has stride {stride} "
            f"and needs at least {smallest} px; raise data.image_size or task.tile, or choose a backbone "
            "with a smaller stride, such as convnet"
        )


def global_average(maps: Tensor) -> Tensor:
    """Average `(B, C, H, W)` over its cells: `(B, C)`.

    The gradient has the memory format of the maps. That of `maps.mean((2, 3))` is contiguous, and what comes
    before channels-last maps would work on two formats at once: 20 times as long for ReLU on a CPU.
    """
    if maps.is_contiguous(memory_format=torch.channels_last):
        return maps.permute(0, 2, 3, 1).mean((1, 2))
    return maps.mean((2, 3))


def _quarters(maps: Tensor) -> Tensor:
    """Average each quarter of `(N, D, h, w)`: `(N, D, 2, 2)`. Quarters of an odd size share its middle.

    As adaptive_avg_pool2d, whose gradient is not deterministic on a GPU. Memory format: as `global_average`.
    """
    if maps.is_contiguous(memory_format=torch.channels_last):
        return _halves(_halves(maps.permute(0, 2, 3, 1), 1), 2).permute(0, 3, 1, 2)
    return _halves(_halves(maps, 2), 3)


def _halves(maps: Tensor, dim: int) -> Tensor:
    size = maps.shape[dim]
    half = (size + 1) // 2
    if size == 2 * half:  # views, whose gradient needs no zeros
        return maps.unflatten(dim, (2, half)).mean(dim + 1)
    return torch.stack([maps.narrow(dim, first, half).mean(dim) for first in (0, size - half)], dim)
