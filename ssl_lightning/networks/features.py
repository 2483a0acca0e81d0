"""Contract of every backbone: images in, list of stage maps out (CONTRIBUTING.md)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn

from ssl_lightning.core.errors import first_line
from ssl_lightning.networks.recipes import ATTRIBUTE
from ssl_lightning.networks.small_maps import PaddedConv2d


class FeatureInfo:
    """Describe the stage maps of a backbone, with the methods of timm's class of the same name.

    Args:
        channels: C_i of each stage, shallow to deep.
        reductions: Image size over map size of each stage.
        module_names: Name of the submodule that ends each stage.
    """

    def __init__(
        self, channels: Iterable[int], reductions: Iterable[int], module_names: Iterable[str]
    ) -> None:
        self._channels, self._reductions = list(channels), list(reductions)
        self._module_names = list(module_names)

    def channels(self) -> list[int]:
        """Channels of each stage."""
        return list(self._channels)

    def reduction(self) -> list[int]:
        """Image size over map size of each stage."""
        return list(self._reductions)

    def module_name(self) -> list[str]:
        """Name of the submodule whose output is the stage map."""
        return list(self._module_names)


class StagedNetwork(nn.Module):
    """Run a chain of stages and return the output of each.

    Args:
        stages: Modules, run in this order.
        channels: Channels of each stage's output.
        reductions: Image size over map size of each stage's output.
        min_image_size: Smallest height and width that leave one cell in every map; None: the largest
            reduction.
    """

    def __new__(cls, *args: Any, **keywords: Any) -> Self:
        network = super().__new__(cls)
        network.__dict__[ATTRIBUTE] = {"_target_": f"{cls.__module__}.{cls.__qualname__}", **keywords}
        return network

    def __init__(
        self,
        stages: Iterable[nn.Module],
        channels: Iterable[int],
        reductions: Iterable[int],
        min_image_size: int | None = None,
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        names = [f"stages.{index}" for index in range(len(self.stages))]
        self.feature_info = FeatureInfo(channels, reductions, names)
        self.min_image_size = min_image_size or max(self.feature_info.reduction())

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map `(B, C, H, W)` floats to the stage maps, each `(B, C_i, H_i, W_i)`, shallow to deep."""
        maps, x = [], images
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


def conv_bn_relu(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Build a convolution (H -> ceil(H / stride), no bias because of batch norm), batch norm and ReLU.

    `kernel` must be odd.
    """
    convolution = PaddedConv2d(in_channels, out_channels, kernel, stride)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


def deepest_map_size(backbone: nn.Module, channels: int, image_size: int) -> tuple[int, int]:
    """Return rows and columns of the deepest stage map of square images, without changing the backbone."""
    modes = {part: part.training for part in backbone.modules()}
    backbone.eval()  # batch norm statistics stay unchanged
    with torch.no_grad():
        height, width = backbone(torch.zeros(1, channels, image_size, image_size))[-1].shape[2:]
    for part, training in modes.items():
        part.training = training
    return height, width


@contextmanager
def explaining_download(model_name: str) -> Iterator[None]:
    """Explain an error of the network while the published weights of a model are fetched.

    Raises:
        ValueError: The weights are neither in the cache nor reachable.
    """
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"the published weights of {model_name} are not in the cache and cannot be downloaded "
            f"({first_line(error)}); "
            "give a file by init_from= and backbone.pretrained=false"
        ) from error


def check_in_channels(in_channels: int) -> None:
    """Raise if images would have no channels.

    Raises:
        ValueError: `in_channels` is below 1.
    """
    if in_channels < 1:
        raise ValueError(f"in_channels is {in_channels}; it must be at least 1 (1: grey, 3: RGB)")


def check_input_size(backbone: Any, image_size: int) -> None:
    """Raise if the backbone would shrink images to less than one cell.

    Args:
        backbone: A backbone; its `feature_info` is read, and its `min_image_size` if it has one.
        image_size: Height and width of the square images in pixels.

    Raises:
        ValueError: The image size is below the largest reduction of the backbone, or below its minimum.
    """
    stride, smallest = stride_and_smallest(backbone)
    if image_size < smallest:
        raise ValueError(
            f"data.image_size is {image_size} px, but the backbone has stride {stride} and needs at least "
            f"{smallest} px; set data.image_size to {smallest} or more, or choose a backbone with a smaller "
            "stride, such as convnet"
        )


def stride_and_smallest(backbone: Any) -> tuple[int, int]:
    """Return the largest reduction of a backbone, and the smallest image that leaves one cell in every map.

    Args:
        backbone: A backbone; its `feature_info` is read, and its `min_image_size` if it has one.
    """
    stride: int = max(backbone.feature_info.reduction())
    return stride, max(stride, getattr(backbone, "min_image_size", stride))
