"""Any timm model as a trunk, and timm's ResNets with a stem for small images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn


def create_timm(
    model_name: str, *, in_channels: int = 3, pretrained: bool = False, out_indices: Sequence[int] | None = None
) -> nn.Module:
    """Build `timm.create_model(model_name, features_only=True)`.

    Args:
        model_name: A name of timm's list.
        in_channels: Channels of the images.
        pretrained: Load timm's published weights (a download, and for most models learned from labels).
        out_indices: Stages to return; None returns all.

    Raises:
        ValueError: timm has no such model, or it cannot return stage maps.
    """
    import difflib

    import timm

    known = timm.list_models()
    if model_name.partition(".")[0] not in known:
        close = difflib.get_close_matches(model_name, known, n=3)
        hint = f"did you mean {', '.join(close)}?" if close else "timm.list_models() has the names"
        raise ValueError(f"backbone.model_name is {model_name!r}, which timm does not have; {hint}")
    options: dict[str, Any] = {} if out_indices is None else {"out_indices": tuple(out_indices)}
    try:
        return timm.create_model(
            model_name, features_only=True, in_chans=in_channels, pretrained=pretrained, **options
        )
    except (RuntimeError, AssertionError, AttributeError) as error:
        raise ValueError(f"timm cannot build {model_name!r} with features_only=True: {error}") from error


def create_small_resnet(model_name: str, *, in_channels: int = 3) -> nn.Module:
    """Build a ResNet of timm's for images of up to 64 px: a 3x3 stem of stride 1 and no max-pooling.

    This is the CIFAR form that contrastive methods use (SimCLR, Chen et al. 2020, app. B.9). Stages are
    the four residual groups with reductions 1, 2, 4, 8; their weights carry timm's names.

    Args:
        model_name: "resnet18", "resnet34", "resnet50" or another ResNet of timm's with the plain stem.
        in_channels: Channels of the images.

    Raises:
        ValueError: Not such a ResNet.
    """
    net: Any = create_timm(model_name, in_channels=in_channels, out_indices=(1, 2, 3, 4))
    if not isinstance(net["conv1"] if "conv1" in net else None, nn.Conv2d) or "maxpool" not in net:
        raise ValueError(f"{model_name!r} has no plain ResNet stem; use for example resnet18 or resnet50")
    stem = nn.Conv2d(in_channels, net["conv1"].out_channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    net["conv1"], net["maxpool"] = stem, nn.Identity()
    for stage in net.feature_info.info:
        stage["reduction"] //= 4  # the stem no longer shrinks
    return net  # type: ignore[no-any-return]
