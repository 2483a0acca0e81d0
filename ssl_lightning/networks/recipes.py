"""Recipes of backbones: the call that builds a backbone, as plain values for a checkpoint."""

from __future__ import annotations

import functools
import hashlib
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import nn

PACKAGE = "ssl_lightning.networks."
ATTRIBUTE = "recipe"  # of a backbone that this package built
TIMM, ADAPTED = f"{PACKAGE}timm_backbone.create_timm", f"{PACKAGE}timm_backbone.adapt_timm"
TORCHVISION = f"{PACKAGE}torchvision_backbone.create_torchvision"

Builder = TypeVar("Builder", bound=Callable[..., nn.Module])


def recorded(build: Builder) -> Builder:
    """Decorate a function of this package, so that its backbones carry their recipe."""
    signature = inspect.signature(build)

    @functools.wraps(build)
    def wrapper(*args: Any, **keywords: Any) -> nn.Module:
        backbone = build(*args, **keywords)
        given = signature.bind(*args, **keywords).arguments
        options = given.pop("options", {})  # **options of the builder
        backbone.__dict__[ATTRIBUTE] = {
            "_target_": f"{build.__module__}.{build.__name__}",
            **given,
            **options,
        }
        return backbone

    return wrapper  # type: ignore[return-value]


def recipe_of(backbone: nn.Module) -> dict[str, Any] | None:
    """Return `_target_` and arguments of the call that builds a backbone like this one.

    Known are the backbones of this package, and models of timm and torchvision. `layers_of` tells whether a
    rebuilt backbone has the same layers, because other options of these models are not known.

    Returns:
        None if the backbone is unknown.

    Example:
        >>> from ssl_lightning.networks.convnet import ConvNet
        >>> recipe_of(ConvNet(widths=(8, 16), strides=(2, 2)))
        {'_target_': 'ssl_lightning.networks.convnet.ConvNet', 'widths': [8, 16], 'strides': [2, 2]}
    """
    if is_recorded(backbone):
        return plain(getattr(backbone, ATTRIBUTE))
    network: Any = getattr(backbone, "_network", backbone)  # an adapted backbone has the original network
    if isinstance(getattr(network, "pretrained_cfg", None), Mapping):
        return _recipe_of_timm(backbone, network)
    if type(network).__module__.startswith("torchvision.models."):
        return _recipe_of_torchvision(backbone, network)
    return None


def is_recorded(backbone: nn.Module) -> bool:
    """Whether this package built the backbone, so that its recipe is exact."""
    recipe = getattr(backbone, ATTRIBUTE, None)
    return isinstance(recipe, dict) and str(recipe.get("_target_")).startswith(PACKAGE)


def layers_of(backbone: nn.Module) -> str:
    """Return a digest of the layers of a network and their options, without the weights."""
    return hashlib.blake2b(repr(backbone).encode(), digest_size=16).hexdigest()


def plain(value: Any) -> Any:
    """Convert to dicts, lists, numbers and strings, the values that a checkpoint may hold.

    Raises:
        TypeError: The value is of another kind.

    >>> plain({"widths": (8, 16)})
    {'widths': [8, 16]}
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, Sequence):
        return [plain(each) for each in value]
    raise TypeError(f"{value!r} is not plain")


def input_channels(network: nn.Module) -> int | None:
    """Return the number of channels that the first convolution takes; None without convolutions."""
    return next((part.in_channels for part in network.modules() if isinstance(part, nn.Conv2d)), None)


def check_input_channels(network: nn.Module, channels: int, feeder: str) -> None:
    """Raise ValueError if a network takes another number of channels than a task, the feeder, gives it."""
    if misfit := channel_misfit(network, channels):
        fed = f"{channels} channel{'s' * (channels != 1)}"
        raise ValueError(f"{feeder} feeds the backbone {fed}, but {misfit}")


def channel_misfit(network: nn.Module, channels: int) -> str:
    """Say why a network does not take so many channels, and what to do; "" if nothing is known against it."""
    takes = input_channels(network)
    if takes in (None, channels):
        return ""
    key = f" (channels={takes})" if takes in (1, 3, 4) else ""
    return (
        f"its first convolution takes {takes}; build it for {channels} (in_chans={channels} in timm), or "
        f"convert the images{key}"
    )


def _recipe_of_timm(backbone: nn.Module, network: Any) -> dict[str, Any] | None:
    name = network.pretrained_cfg.get("architecture")
    if not name:
        return None
    recipe = {"model_name": name, "in_channels": input_channels(network) or 3}
    info: Any = backbone.feature_info
    if backbone is network:
        return {"_target_": TIMM, **recipe, "out_indices": list(info.out_indices)}
    size = getattr(getattr(network, "patch_embed", None), "img_size", None)
    return {"_target_": ADAPTED, **recipe, "stages": info.module_name(), "img_size": plain(size)}


def _recipe_of_torchvision(backbone: nn.Module, network: nn.Module) -> dict[str, Any] | None:
    """Find the smallest model of the same class that has all weights of the network, by name and shape."""
    import torchvision

    own, found = _shapes(network), []
    for name in torchvision.models.list_models(torchvision.models):
        build = torchvision.models.get_model_builder(name)
        if build.__module__ != type(network).__module__:
            continue
        with torch.device("meta"), warnings.catch_warnings(action="ignore"):
            model = _shapes(build())
        if own.items() <= model.items():
            found.append((len(model), name))
    if not found:
        return None
    info: Any = backbone.feature_info
    size = getattr(network, "image_size", None)  # of a ViT
    return {
        "_target_": TORCHVISION,
        "model_name": min(found)[1],
        "stages": info.module_name(),
        "image_size": size if isinstance(size, int) else None,
    }


def _shapes(network: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in network.state_dict().items()}
