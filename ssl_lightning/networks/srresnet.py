"""Backbone SRResNet, the generator of SRGAN (Ledig et al. 2017, sec. 2.1.1 and fig. 4)."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from ssl_lightning.networks.features import StagedNetwork, check_in_channels


class SRResNet(StagedNetwork):
    """A 9x9 convolution, residual blocks (3x3, batch norm, PReLU, 3x3, batch norm) and a skip over them.

    Every map is as large as the image. Stages have equally many blocks; a stage map is the output of a stage.
    The last stage ends in the paper's closing convolution with batch norm, and the output of the first
    convolution is added to its map. Up-sampling belongs to the head, see `PixelShuffleHead`.

    Args:
        in_channels: Channels of the images, at least 1.
        width: Channels throughout (paper: 64).
        blocks: Residual blocks (paper: 16).
        num_stages: Number of stages; must divide `blocks`.

    Raises:
        ValueError: A number is below 1, or `blocks` is not a multiple of `num_stages`.
    """

    def __init__(
        self, *, in_channels: int = 3, width: int = 64, blocks: int = 16, num_stages: int = 4
    ) -> None:
        check_in_channels(in_channels)
        if min(width, blocks, num_stages) < 1 or blocks % num_stages:
            raise ValueError(
                f"width is {width}, blocks is {blocks} and num_stages {num_stages}; all must be at least 1, "
                "and blocks a multiple of num_stages"
            )
        stages = [
            nn.Sequential(*(ResidualBlock(width) for _ in range(blocks // num_stages)))
            for _ in range(num_stages)
        ]
        stages[-1].append(_conv_bn(width))
        super().__init__(stages, [width] * num_stages, [1] * num_stages)
        self.first = nn.Sequential(nn.Conv2d(in_channels, width, 9, padding=4), nn.PReLU())

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map `(B, C, H, W)` floats to the stage maps, each `(B, width, H, W)`."""
        first = self.first(images)
        maps = super().forward(first)
        return [*maps[:-1], maps[-1] + first]


class ResidualBlock(nn.Module):
    """Compute x + f(x), f: 3x3 convolution, batch norm, PReLU, 3x3 convolution, batch norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(_conv_bn(width), nn.PReLU(), _conv_bn(width))

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, x + self.branch(x))


def _conv_bn(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
