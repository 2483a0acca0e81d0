"""A network without a pretext task, as the probes take it: its backbone and its normalisation."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from ssl_lightning.artifacts.input_transform import InputTransform
from ssl_lightning.core.image_spec import ImageSpec
from ssl_lightning.networks.adapter import as_backbone


class BareNetwork(nn.Module):
    """A network to probe, with the interface of `ProbedTask`.

    Args:
        backbone: Maps `(B, C, H, W)` floats to the list of stage maps.
        normalise: Maps floats in [0, 1] to the input of the backbone.
        normalisation: The same in words.
    """

    recalibrate = False

    def __init__(
        self, backbone: nn.Module, normalise: Callable[[Tensor], Tensor], normalisation: str
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.probe_input = normalise
        self.normalisation = normalisation

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.backbone.parameters(), torch.empty(0)).device

    def branches(self) -> dict[str, nn.Module]:
        """Return the only backbone."""
        return {"backbone": self.backbone}

    def probe_views(self, images: Tensor) -> Tensor:
        """Raise ValueError: the network sees complete images."""
        raise ValueError("a network without a task has no views of an image")


def bare_network(
    model: nn.Module, spec: ImageSpec, mean: Sequence[float] | None, std: Sequence[float] | None
) -> BareNetwork:
    """Make the backbone of a copy of a network, and choose its normalisation.

    The normalisation is the first of these that exists: `mean` and `std`, the `transform` of a backbone from
    `load_backbone`, timm's `pretrained_cfg`, the statistics of the images.

    Args:
        model: Any network that `as_backbone` takes; it stays as it is.
        spec: Of the images.
        mean: Per-channel mean in [0, 1], or None.
        std: Per-channel standard deviation, or None.

    Raises:
        ValueError: The network is no backbone, or mean and std do not fit the images.
    """
    normalise, words = _normalisation(model, spec, mean, std)
    backbone = as_backbone(copy.deepcopy(model), image_size=spec.image_size, in_channels=spec.channels)
    return BareNetwork(backbone, normalise, words)


def own_transform(model: nn.Module) -> InputTransform | None:
    """Return the transform of a backbone from `load_backbone`, or None."""
    transform = getattr(model, "transform", None)
    return transform if isinstance(transform, InputTransform) else None


def _normalisation(
    model: nn.Module, spec: ImageSpec, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[nn.Module, str]:
    if (mean is None) != (std is None):
        raise ValueError("mean and std belong together; give both or neither")
    if mean is not None and std is not None:
        given = ImageSpec(spec.channels, spec.image_size, tuple(mean), tuple(std))  # checks their values
        return _with_words(given.mean, given.std, "as given")
    if (transform := own_transform(model)) is not None:
        return transform, "transform of the backbone"
    declared = getattr(model, "pretrained_cfg", None) or {}
    of_timm = declared.get("mean") or (), declared.get("std") or ()
    if len(of_timm[0]) == len(of_timm[1]) == spec.channels:
        return _with_words(*of_timm, "timm's pretrained_cfg")
    return _with_words(spec.mean, spec.std, "measured on the images")


def _with_words(mean: Sequence[float], std: Sequence[float], origin: str) -> tuple[nn.Module, str]:
    numbers = ["(" + ", ".join(f"{value:.3f}" for value in values) + ")" for values in (mean, std)]
    return v2.Normalize(list(mean), list(std)), f"mean {numbers[0]}, std {numbers[1]}: {origin}"
