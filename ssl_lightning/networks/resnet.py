"""ResNets of timm with a stem for small images."""

from __future__ import annotations

from typing import Any

from torch import nn

from ssl_lightning.networks.recipes import recorded
from ssl_lightning.networks.timm_backbone import create_timm


@recorded
def create_small_resnet(model_name: str = "resnet18", *, in_channels: int = 3) -> nn.Module:
    """Build a ResNet for images of up to 64 px: a 3x3 stem of stride 1 and no max-pooling.

    This is the CIFAR form of SimCLR (Chen et al. 2020, app. B.9). Stages are the four residual groups
    with reductions 1, 2, 4 and 8; a map has ceil(H / reduction) rows. Weights keep timm's names, so all
    weights except the stem's fit the ImageNet form too.

    Args:
        model_name: "resnet18", "resnet34", "resnet50" or another timm ResNet whose stem is one convolution.
        in_channels: Channels of the images, at least 1.

    Raises:
        ValueError: timm does not have the model, it is not such a ResNet, or `in_channels` is below 1.
    """
    groups = (1, 2, 3, 4)  # 0 would be the stem's map
    net: Any = create_timm(model_name, in_channels=in_channels, out_indices=groups)
    parts = dict(net.named_children())
    if not isinstance(parts.get("conv1"), nn.Conv2d) or not {"maxpool", "layer4"} <= parts.keys():
        raise ValueError(
            f"model_name is {model_name!r}, which has no plain ResNet stem; allowed is e.g. resnet18"
        )
    stem = nn.Conv2d(in_channels, net.conv1.out_channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")  # as timm initialises its stem
    net.conv1, net.maxpool = stem, nn.Identity()
    for stage in net.feature_info.info:  # stem and pooling no longer shrink the image
        stage["reduction"] = max(1, stage["reduction"] // 4)
    return net
