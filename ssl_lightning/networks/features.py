"""The one contract of every trunk: images in, the list of stage feature maps out (DESIGN.md, section 3)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn


class FeatureInfo:
    """What the stage maps of a trunk look like, with the methods of timm's class of that name.

    Args:
        channels: C_i of each stage, shallow to deep.
        reductions: Factor by which each stage is smaller than the image.
    """

    def __init__(self, channels: Iterable[int], reductions: Iterable[int]) -> None:
        self._channels, self._reductions = list(channels), list(reductions)

    def channels(self) -> list[int]:
        """Channels of each stage."""
        return list(self._channels)

    def reduction(self) -> list[int]:
        """Image size over map size of each stage."""
        return list(self._reductions)


class StagedNetwork(nn.Module):
    """A chain of stages whose every output is a feature map.

    Args:
        stages: Modules run one after the other.
        channels: Channels of each stage's output.
        reductions: Image size over map size of each stage's output.
    """

    def __init__(self, stages: Iterable[nn.Module], channels: Iterable[int], reductions: Iterable[int]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.feature_info = FeatureInfo(channels, reductions)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map `(B, C, H, W)` floats to the stage maps, each `(B, C_i, H_i, W_i)`, shallow to deep."""
        maps, x = [], images
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


def conv_bn_relu(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Convolution padded to keep the size, batch norm (so no bias), ReLU."""
    convolution = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


def check_input_size(backbone: Any, image_size: int) -> None:
    """Refuse images that the trunk would shrink to less than one cell.

    Raises:
        ValueError: The image size is below the largest reduction of the trunk.
    """
    stride = max(backbone.feature_info.reduction())
    if image_size < stride:
        raise ValueError(
            f"the images are {image_size} px and the trunk's stride is {stride}: its last map would be empty; "
            f"set data.image_size to {stride} or more, or choose a shallower backbone"
        )
