"""Classifiers of RotNet on a frozen stage map (Gidaris, Singh, Komodakis 2018; sizes from their code)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ssl_lightning.networks.features import conv_bn_relu
from ssl_lightning.networks.heads import global_average

WIDEST = 2048  # upper bound for the units of a hidden layer
CONV_WIDTH = 192


class ThreeLayerClassifier(nn.Sequential):
    """Three fully-connected layers on all cells of a map: two hidden with 20 K units, batch norm and ReLU.

    Args:
        features: Numbers in a map: channels x rows x columns.
        num_classes: K.
    """

    def __init__(self, features: int, num_classes: int) -> None:
        hidden = min(20 * num_classes, WIDEST)
        super().__init__(
            nn.Flatten(),
            *_hidden(features, hidden),
            *_hidden(hidden, hidden),
            nn.Linear(hidden, num_classes),
        )
        _initialise(self)


class MeanClassifier(nn.Sequential):
    """Global average pooling of a map and a linear layer.

    Args:
        channels: Channels of the map.
        num_classes: K.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__(GlobalAverage(), nn.Linear(channels, num_classes))


class ConvBlockClassifier(nn.Sequential):
    """A block of NIN (one 3x3 and two 1x1 convolutions), global average pooling and a linear layer.

    Args:
        channels: Channels of the map.
        num_classes: K.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__(
            conv_bn_relu(channels, CONV_WIDTH, 3),
            conv_bn_relu(CONV_WIDTH, CONV_WIDTH, 1),
            conv_bn_relu(CONV_WIDTH, CONV_WIDTH, 1),
            GlobalAverage(),
            nn.Linear(CONV_WIDTH, num_classes),
        )
        _initialise(self)


class GlobalAverage(nn.Module):
    """Mean of a map `(B, C, rows, columns)` over its cells, `(B, C)`."""

    def forward(self, maps: Tensor) -> Tensor:
        return global_average(maps)


def _hidden(features: int, units: int) -> tuple[nn.Module, ...]:
    return nn.Linear(features, units, bias=False), nn.BatchNorm1d(units), nn.ReLU(inplace=True)


@torch.no_grad()
def _initialise(module: nn.Module) -> None:
    """Draw weights from a normal distribution of variance 2 / fan-out, set biases to 0, as in their code."""
    for part in module.modules():
        if isinstance(part, (nn.Conv2d, nn.Linear)):
            fan_out = part.weight.shape[0] * part.weight[0, 0].numel()
            nn.init.normal_(part.weight, std=math.sqrt(2 / fan_out))
            if part.bias is not None:
                nn.init.zeros_(part.bias)
