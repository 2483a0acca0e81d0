"""RotNet's Network-in-Network for CIFAR-10 (Gidaris, Singh, Komodakis 2018, sec. 4.1)."""

from __future__ import annotations

import math

from torch import nn

from ssl_lightning.networks.features import StagedNetwork, conv_bn_relu

BLOCKS = (3, 4, 5)


class NIN(StagedNetwork):
    """Three to five blocks, each of one wide convolution and two of 1x1, all with batch norm and ReLU.

    Blocks 1 and 2, and block 3 when others follow it, end in a pooling with stride 2. As in the authors'
    code the pooling belongs to its block, so the map of block 2, the paper's best, is 8 x 8 for images
    of 32 px. Convolutions start from a normal distribution with variance 2 / (k * k * C_out), as there.

    Args:
        in_channels: Channels of the images.
        blocks: Number of blocks; the paper's tables use 3, 4 and 5.

    Raises:
        ValueError: `blocks` is none of these.
    """

    def __init__(self, *, in_channels: int = 3, blocks: int = 4) -> None:
        if blocks not in BLOCKS:
            raise ValueError(f"blocks is {blocks}; allowed are {', '.join(map(str, BLOCKS))}")
        poolings: list[list[nn.Module]] = [
            [nn.MaxPool2d(3, 2, padding=1)],
            [nn.AvgPool2d(3, 2, padding=1)],
            [nn.AvgPool2d(3, 2, padding=1)] if blocks > 3 else [],
            [],
            [],
        ]
        stages = [_block(in_channels, (192, 160, 96), 5, poolings[0]), _block(96, (192, 192, 192), 5, poolings[1])]
        stages += [_block(192, (192, 192, 192), 3, poolings[index]) for index in range(2, blocks)]
        reductions = [2, 4] + ([4] if blocks == 3 else [8] * (blocks - 2))
        super().__init__(stages, [96] + [192] * (blocks - 1), reductions)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))


def _block(in_channels: int, widths: tuple[int, int, int], kernel: int, pooling: list[nn.Module]) -> nn.Module:
    first, second, third = widths
    return nn.Sequential(
        conv_bn_relu(in_channels, first, kernel), conv_bn_relu(first, second, 1), conv_bn_relu(second, third, 1), *pooling
    )
