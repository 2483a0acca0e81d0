"""The bottleneck of the context encoder (Pathak et al. 2016, sec. 3.1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

MAX_CELLS = 1024


class ChannelwiseLinear(nn.Module):
    """A fully-connected layer within each channel, then a 1x1 convolution across them, batch norm and ReLU.

    It passes information between all places of a map, which small convolutions cannot. With m cells and C
    channels it has C m^2 weights; one layer over all channels would have C^2 m^2.

    Args:
        channels: C.
        grid: Rows and columns of every input map.

    Raises:
        ValueError: The maps have more than 1024 cells.
    """

    def __init__(self, channels: int, grid: tuple[int, int]) -> None:
        super().__init__()
        cells = math.prod(grid)
        if cells > MAX_CELLS:
            raise ValueError(
                f"the deepest maps of the backbone have {grid[0]} x {grid[1]} cells, and a layer that "
                f"connects all pairs has {channels * cells**2:,} weights; allowed are {MAX_CELLS} cells: "
                "choose a backbone with a larger stride, or a smaller data.image_size"
            )
        self.weight = nn.Parameter(torch.empty(channels, cells, cells))
        self.across = nn.Sequential(
            nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
        )
        nn.init.uniform_(self.weight, -(cells**-0.5), cells**-0.5)  # as nn.Linear does

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, h, w)` to the same shape."""
        per_channel = x.flatten(2).transpose(0, 1)  # (C, B, m)
        mixed = (per_channel @ self.weight).transpose(0, 1)  # (B, C, m)
        return self.across(mixed.reshape(x.shape))
