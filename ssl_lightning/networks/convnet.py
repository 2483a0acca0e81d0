"""Backbone of the quick start: six 3x3 convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from operator import mul

from torch import nn

from ssl_lightning.networks.features import StagedNetwork, check_in_channels, conv_bn_relu


class ConvNet(StagedNetwork):
    """Stages of two 3x3 convolutions with batch norm and ReLU, the second of which may have a stride.

    With strides 2, 2, 1, images of 32 px give maps of 16, 8 and 8; a map has ceil(H / reduction) rows.
    The stride belongs to the second convolution of a stage. A stride in the next stage instead would make
    this convolution, on the largest maps, cost four times as much.

    Args:
        in_channels: Channels of the images, at least 1.
        widths: Channels of each stage. Use multiples of 16: with other widths, CPU kernels (batch norm above
            all) take several times as long per channel.
        strides: Stride of each stage, applied at its second convolution.

    Raises:
        ValueError: The lists differ in length or are empty, or a number is below 1.
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        widths: Sequence[int] = (32, 64, 128),
        strides: Sequence[int] = (2, 2, 1),
    ) -> None:
        check_in_channels(in_channels)
        if len(widths) != len(strides) or not widths or min(*widths, *strides) < 1:
            raise ValueError(
                f"widths are {list(widths)} and strides {list(strides)}; "
                "both need one number of at least 1 for each stage"
            )
        inputs = [in_channels, *widths[:-1]]
        stages = [
            nn.Sequential(conv_bn_relu(before, width, 3), conv_bn_relu(width, width, 3, stride))
            for before, width, stride in zip(inputs, widths, strides, strict=True)
        ]
        super().__init__(stages, widths, accumulate(strides, mul))
