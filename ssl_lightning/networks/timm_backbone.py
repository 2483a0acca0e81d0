"""Backbones from timm: any of its models."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from torch import nn

from ssl_lightning.networks.adapter import as_backbone
from ssl_lightning.networks.features import check_in_channels, explaining_download
from ssl_lightning.networks.recipes import recorded

# Options of timm that name files or addresses; timm would read or download them without our checks
FILES = {"checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"}
BUILD_ERRORS = (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError)


@recorded
def create_timm(
    model_name: str, *, in_channels: int = 3, pretrained: bool = False, **options: Any
) -> nn.Module:
    """Build `timm.create_model(model_name, features_only=True)`, or adapt the model if timm cannot.

    Args:
        model_name: A name of `timm.list_models()`, with or without a weight tag ("resnet18.a1_in1k").
        in_channels: Channels of the images, at least 1.
        pretrained: Load timm's published weights (a download; most are trained with labels).
        options: Options of timm, such as `out_indices` (stages to return), `output_stride` (8 or 16: dilate
            instead of shrinking further) or `img_size`; None keeps timm's default.

    Raises:
        ValueError: timm does not have the model, the model has no stage maps, it refuses an option, or an
            option names a file.
    """
    backbone = _built(model_name, in_channels, pretrained, options)
    check_patches(backbone, model_name)
    return backbone


def _built(model_name: str, in_channels: int, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    """Build the stage maps of a model; see `create_timm`."""
    import timm  # takes seconds; runs with our own backbones need not wait for it

    check_in_channels(in_channels)
    known = timm.list_models()
    if model_name.partition(".")[0] not in known or not re.fullmatch(r"[\w.]+", model_name):
        close = get_close_matches(model_name, known, n=3)
        hint = f"did you mean {', '.join(close)}?" if close else "timm.list_models() lists all models"
        raise ValueError(f"model_name is {model_name!r}, which timm does not have; {hint}")
    given = {key: value for key, value in options.items() if value is not None}
    if files := sorted(FILES & given.keys()):
        raise ValueError(
            f"backbone.{files[0]} is {given[files[0]]!r}; files and addresses are not allowed here: load "
            "timm's weights with backbone.pretrained=true, or a file with init_from="
        )
    if "out_indices" in given:
        given["out_indices"] = tuple(given["out_indices"])  # Hydra passes its own list type
    try:
        with explaining_download(model_name):
            net = timm.create_model(
                model_name, features_only=True, in_chans=in_channels, pretrained=pretrained, **given
            )
        return as_backbone(net)
    except BUILD_ERRORS as error:
        # timm has no single error for "no stage maps" or for an option unknown to the model
        with contextlib.suppress(*BUILD_ERRORS):
            return _adapted(model_name, in_channels, pretrained, given)
        with_options = f" and {given}" if given else ""
        reason = f"{type(error).__name__}: {error}".removesuffix(": ")
        raise ValueError(
            f"timm cannot build {model_name!r} with features_only=True{with_options}: {reason}"
        ) from error


@recorded
def adapt_timm(
    model_name: str, *, stages: Sequence[str], in_channels: int = 3, img_size: Sequence[int] | None = None
) -> nn.Module:
    """Build `as_backbone(timm.create_model(model_name), stages=stages)`, for a checkpoint of such a backbone.

    Args:
        model_name: A name of `timm.list_models()`, without a weight tag.
        stages: Names of the nodes that end the stages.
        in_channels: Channels of the images, at least 1.
        img_size: Height and width of the images of a transformer; None for other models.

    Raises:
        ValueError: timm does not have the model, or the model lacks the nodes.
    """
    import timm

    if model_name not in timm.list_models():
        raise ValueError(f"model_name is {model_name!r}, which timm does not have")
    size: dict[str, Any] = {} if img_size is None else {"img_size": tuple(img_size)}
    net = timm.create_model(model_name, in_chans=in_channels, **size)
    return as_backbone(
        net, stages=stages, in_channels=in_channels, image_size=img_size[0] if img_size else None
    )


def check_patches(network: nn.Module, model_name: str) -> None:
    """Check that the patches of a transformer of timm cover its images, and not only their upper left part.

    Raises:
        ValueError: The size of the images is no multiple of the size of a patch, and they are not padded.
    """
    from timm.layers import PatchEmbed

    for layer in network.modules():
        if not isinstance(layer, PatchEmbed) or layer.img_size is None or layer.dynamic_img_pad:
            continue
        for size, patch in zip(layer.img_size, layer.patch_size, strict=True):
            if lost := size % patch:
                fits = size - lost + patch
                raise ValueError(
                    f"backbone.img_size is {size}, and {model_name} has patches of {patch} px, which would "
                    f"leave out the last {lost} px of each side; use a multiple of {patch}, such as "
                    f"backbone.img_size={fits} data.image_size={fits}, or pad them with "
                    "+backbone.dynamic_img_size=true +backbone.dynamic_img_pad=true"
                )


def _adapted(model_name: str, in_channels: int, pretrained: bool, given: dict[str, Any]) -> nn.Module:
    """Build and adapt a model without stage maps in timm, such as LeViT."""
    import timm

    options = {key: value for key, value in given.items() if key != "out_indices"}
    net: Any = timm.create_model(model_name, in_chans=in_channels, pretrained=pretrained, **options)
    stages = None
    if "out_indices" in given:
        stages = [net.feature_info[index]["module"] for index in given["out_indices"]]
    return as_backbone(net, stages=stages, image_size=given.get("img_size"), in_channels=in_channels)
