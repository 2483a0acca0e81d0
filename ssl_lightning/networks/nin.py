"""RotNet's Network-in-Network for CIFAR-10 (Gidaris, Singh, Komodakis 2018, sec. 4.1)."""

from __future__ import annotations

import math

from torch import nn

from ssl_lightning.networks.features import StagedNetwork, check_in_channels, conv_bn_relu

# kernel of the first convolution (the other two are 1x1), widths of all three, pooling after them
BLOCKS = (
    (5, (192, 160, 96), nn.MaxPool2d),
    (5, (192, 192, 192), nn.AvgPool2d),
    (3, (192, 192, 192), None),
    (3, (192, 192, 192), None),
    (3, (192, 192, 192), None),
)
ALLOWED = (3, 4, 5)


class NIN(StagedNetwork):
    """Three to five blocks, each of a 5x5 or 3x3 and two 1x1 convolutions with batch norm and ReLU.

    Blocks 1 and 2 end in a 3x3 max- and average-pooling with stride 2. As in the authors' code, the pooling
    belongs to its block: stage map i, the input of the paper's classifiers, is taken *after* it. Images of
    32 px give maps of 16, 8, 8, ... (block 2: 192 x 8 x 8). The authors' published CIFAR-10 runs switch off
    the optional pooling of block 3 (`use_avg_on_conv3`), so it is absent here. As in their code, weights of
    convolutions start from a normal distribution with variance 2 / (k * k * C_out).

    Args:
        in_channels: Channels of the images, at least 1.
        blocks: Number of blocks, 3, 4 or 5 (the paper's table 1 compares them).

    Raises:
        ValueError: `blocks` is not 3, 4 or 5, or `in_channels` is below 1.
    """

    def __init__(self, *, in_channels: int = 3, blocks: int = 4) -> None:
        check_in_channels(in_channels)
        if blocks not in ALLOWED:
            raise ValueError(f"blocks is {blocks}; allowed are {', '.join(map(str, ALLOWED))}")
        stages, channels, reductions = [], [in_channels], [1]
        for kernel, (first, second, third), pooling in BLOCKS[:blocks]:
            layers: list[nn.Module] = [
                conv_bn_relu(channels[-1], first, kernel),
                conv_bn_relu(first, second, 1),
                conv_bn_relu(second, third, 1),
            ]
            if pooling is not None:
                layers.append(pooling(3, stride=2, padding=1))
            stages.append(nn.Sequential(*layers))
            channels.append(third)
            reductions.append(reductions[-1] * (1 if pooling is None else 2))
        super().__init__(stages, channels[1:], reductions[1:])
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
