"""Heads that map the stage maps of a backbone to predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_lightning.networks.features import stride_and_smallest


class PooledClassifier(nn.Module):
    """Global average pooling of the last stage map, then one linear layer.

    Args:
        backbone: The backbone whose last stage is classified; only its `feature_info` is read.
        num_classes: Number of classes.
    """

    def __init__(self, backbone: Any, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(backbone.feature_info.channels()[-1], num_classes)

    def forward(self, stages: list[Tensor]) -> Tensor:
        """Map stage maps, the last `(B, D, H, W)`, to logits `(B, num_classes)`."""
        return self.linear(global_average(stages[-1]))


class FlattenedClassifier(nn.Module):
    """One linear layer on all cells of the last stage map, so that places differ (Radford et al. 2016).

    Args:
        backbone: The backbone whose last stage is classified; only its `feature_info` is read.
        grid: Rows and columns of that map.
        num_classes: Number of classes.
    """

    def __init__(self, backbone: Any, grid: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(backbone.feature_info.channels()[-1] * grid[0] * grid[1], num_classes)

    def forward(self, stages: list[Tensor]) -> Tensor:
        """Map stage maps, the last `(B, D, rows, columns)`, to logits `(B, num_classes)`."""
        return self.linear(stages[-1].flatten(1))


class PooledHead(nn.Module):
    """Global average pooling of the last stage map, then a network.

    Args:
        network: Maps `(B, D)` to any output.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, stages: list[Tensor]) -> Tensor:
        """Map stage maps, the last `(B, D, H, W)`, to the output of the network."""
        return self.network(global_average(stages[-1]))


class StandardisedLinear(nn.Module):
    """Linear classifier on a stage map, pooled to a grid and standardised: the head of the linear probe.

    Args:
        channels: Channels of the map.
        grid: Rows and columns of the pooled map.
        num_classes: K.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, channels: int, grid: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.grid = (grid[0], grid[1])
        features = channels * grid[0] * grid[1]
        self.register_buffer("shift", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))
        self.linear = nn.Linear(features, num_classes)

    def forward(self, maps: Tensor) -> Tensor:
        """Map `(B, channels, H, W)` to logits `(B, K)`."""
        cells = F.adaptive_avg_pool2d(maps, self.grid).flatten(1)  # (B, channels * rows * columns)
        return self.linear((cells - self.shift) * self.scale)


class TileEmbedding(nn.Module):
    """Average the last stage map of a tile over quarters, then a linear layer, batch norm and ReLU.

    Quarters keep the layout within the tile, for maps of any size. Without batch norm, jigsaw may not start
    to learn for many epochs.

    Args:
        backbone: The backbone whose last stage is embedded; only its `feature_info` is read.
        width: Size of the embedding of a tile.
    """

    def __init__(self, backbone: Any, width: int) -> None:
        super().__init__()
        channels = backbone.feature_info.channels()[-1]
        self.linear = nn.Linear(4 * channels, width, bias=False)
        self.norm = nn.BatchNorm1d(width)

    def forward(self, stages: list[Tensor]) -> Tensor:
        """Map stage maps, the last `(N, D, h, w)`, to non-negative embeddings `(N, width)`."""
        quarters = _quarters(stages[-1])  # (N, D, 2, 2)
        return self.norm(self.linear(quarters.flatten(1))).relu_()


class SequenceClassifier(nn.Module):
    """Classify the order of a sequence: concatenate its embeddings, one hidden layer, one linear layer.

    Args:
        length: Embeddings in a sequence.
        width: Size of an embedding.
        hidden: Units of the hidden layer, with batch norm; 0 omits it.
        num_classes: Number of classes.
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
    """Raise if the backbone would shrink tiles to less than one cell.

    Args:
        backbone: A backbone; its `feature_info` is read, and its `min_image_size` if it has one.
        tile: Height and width of a tile in pixels.
        image_size: Height and width of the images, for the message.

    Raises:
        ValueError: The tile is below the largest reduction of the backbone, or below its minimum.
    """
    stride, smallest = stride_and_smallest(backbone)
    if tile < smallest:
        raise ValueError(
            f"the tiles are {tile} px (data.image_size is {image_size}), but the backbone has stride "
            f"{stride} and needs at least {smallest} px; raise data.image_size or task.tile, or choose a "
            "backbone with a smaller stride, such as convnet"
        )


def global_average(maps: Tensor) -> Tensor:
    """Average `(B, C, H, W)` over its cells: `(B, C)`.

    The gradient has the memory format of the maps. The gradient of `maps.mean((2, 3))` is always contiguous;
    the layer before channels-last maps would then mix two formats, and ReLU on a CPU takes 20 times as long.
    """
    if maps.is_contiguous(memory_format=torch.channels_last):
        return maps.permute(0, 2, 3, 1).mean((1, 2))
    return maps.mean((2, 3))


def _quarters(maps: Tensor) -> Tensor:
    """Average each quarter of `(N, D, h, w)`: `(N, D, 2, 2)`. Quarters of an odd size share the middle.

    Equals adaptive_avg_pool2d, whose gradient is not deterministic on a GPU. Memory format: as in
    `global_average`.
    """
    if maps.is_contiguous(memory_format=torch.channels_last):
        return _halves(_halves(maps.permute(0, 2, 3, 1), 1), 2).permute(0, 3, 1, 2)
    return _halves(_halves(maps, 2), 3)


def _halves(maps: Tensor, dim: int) -> Tensor:
    size = maps.shape[dim]
    half = (size + 1) // 2
    if size == 2 * half:  # a view: its gradient needs no zero-filled tensor
        return maps.unflatten(dim, (2, half)).mean(dim + 1)
    return torch.stack([maps.narrow(dim, first, half).mean(dim) for first in (0, size - half)], dim)
