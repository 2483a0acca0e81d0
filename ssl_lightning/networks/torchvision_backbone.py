"""Backbones from torchvision: any of its classifiers."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import torchvision
from torch import nn

from ssl_lightning.networks.adapter import as_backbone
from ssl_lightning.networks.features import check_in_channels, explaining_download
from ssl_lightning.networks.recipes import recorded


@recorded
def create_torchvision(
    model_name: str,
    *,
    in_channels: int = 3,
    pretrained: bool = False,
    stages: Sequence[str] | None = None,
    image_size: int | None = None,
    **options: Any,
) -> nn.Module:
    """Build `torchvision.models.get_model(model_name)` and adapt it to a backbone.

    Args:
        model_name: A name of `torchvision.models.list_models(torchvision.models)`.
        in_channels: Channels of the images, at least 1. Unless 3, the first convolution is replaced; its
            weights are normal with the standard deviation of the original ones.
        pretrained: Load torchvision's best published weights (a download; trained with labels).
        stages: Names of the nodes that end the stages; None: the last map of each resolution (`as_backbone`).
        image_size: Height and width of the images of a `vit_*` or `maxvit_t`; None: 224.
        options: Options of torchvision, such as `width_mult` of mobilenet_v2; None keeps the default.

    Raises:
        ValueError: torchvision does not have the model or refuses an option, the model has no stages, or
            `pretrained` is set with `in_channels` other than 3.
    """
    check_in_channels(in_channels)
    known = torchvision.models.list_models(torchvision.models)
    if model_name not in known:
        close = get_close_matches(model_name, known, n=3)
        hint = f"did you mean {', '.join(close)}?" if close else f"it has {', '.join(known)}"
        raise ValueError(f"model_name is {model_name!r}, which torchvision does not have; {hint}")
    if pretrained and in_channels != 3:
        raise ValueError(
            f"backbone.pretrained is true, but the images have {in_channels} channels and published weights "
            "take 3; set backbone.pretrained=false, or use backbone=timm, which adapts them"
        )
    if "weights" in options:
        raise ValueError(
            f"backbone.weights is {options['weights']!r}; weights come from torchvision by "
            "backbone.pretrained=true, or from a file by init_from="
        )
    given = _of_size(model_name, image_size) | {k: v for k, v in options.items() if v is not None}
    try:
        with explaining_download(model_name):
            model = torchvision.models.get_model(
                model_name, weights="DEFAULT" if pretrained else None, **given
            )
    except (AssertionError, RuntimeError, TypeError) as error:  # an option unknown to the model
        with_options = f" with {given}" if given else ""
        raise ValueError(f"torchvision cannot build {model_name!r}{with_options}: {error}") from error
    if in_channels != 3:
        _replace_first_convolution(model, in_channels)
    return as_backbone(model, stages=stages, image_size=image_size, in_channels=in_channels)


def _of_size(model_name: str, image_size: int | None) -> dict[str, Any]:
    """Return the option that sets the image size of a transformer."""
    if image_size is None:
        return {}
    if model_name.startswith("vit_"):
        return {"image_size": image_size}
    return {"input_size": (image_size, image_size)} if model_name.startswith("maxvit") else {}


def _replace_first_convolution(model: nn.Module, in_channels: int) -> None:
    name, old = next((name, part) for name, part in model.named_modules() if isinstance(part, nn.Conv2d))
    new = nn.Conv2d(
        in_channels,
        old.out_channels,
        old.kernel_size,  # type: ignore[arg-type]
        old.stride,  # type: ignore[arg-type]
        old.padding,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )
    nn.init.normal_(new.weight, std=old.weight.std().item())
    if new.bias is not None:
        nn.init.zeros_(new.bias)
    parent, _, key = name.rpartition(".")
    setattr(model.get_submodule(parent), key, new)
