"""Transform from pictures to the input of an exported backbone."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import grayscale_to_rgb, rgb_to_grayscale

from ssl_lightning.data.io.augment import EvalView
from ssl_lightning.data.io.eight_bit import check_value_range, eight_bit
from ssl_lightning.data.io.folders import as_tensor
from ssl_lightning.ops.lab import rgb_to_lab

CHANNELS = {"RGB": (3,), "grey": (1,), "L": (1, 3, 4), "RGBX": (4,)}  # input channels for each colour
KEYS = ("image_size", "colour", "mean", "std", "crop_ratio", "value_range")
MAX_SIZE = 1 << 14  # px
MARGIN = 0.5  # of floats beyond [0, 1], such as bicubic resizing leaves


class InputTransform(v2.Transform):
    """Convert pictures to the input of a backbone, as its task did for the probes.

    A picture is cropped to its central square and resized to `image_size` (bicubic). A picture that has this
    size already is only converted. Then follow the colours and the normalisation.

    Args:
        image_size: Height and width of the result in pixels.
        colour: "RGB", "grey", "RGBX" for RGB with a fourth channel, or "L" for the lightness of CIE Lab, 0 to
            100, the same in 1, 3 or 4 channels.
        mean: Mean of each channel, subtracted; pixels are in [0, 1], L in [0, 100].
        std: Deviation of each channel, divided by.
        crop_ratio: Side of the square over the shorter side of the picture, in (0, 1].
        value_range: Values that become black and white in PIL images of more than 8 bits; None for 0 and
            65535.

    Raises:
        ValueError: A value is not allowed.

    Example:
        >>> transform = InputTransform(8, "grey", [0.5], [0.25])
        >>> transform(Image.new("RGB", (12, 9), "white"))[0, 0, :2].tolist()
        [2.0, 2.0]
    """

    def __init__(
        self,
        image_size: int,
        colour: str,
        mean: list[float],
        std: list[float],
        crop_ratio: float = 1.0,
        value_range: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if colour not in CHANNELS:
            raise ValueError(f"colour is {colour!r}; allowed are {', '.join(CHANNELS)}")
        if not 1 <= image_size <= MAX_SIZE:
            raise ValueError(f"image_size is {image_size}; allowed is 1 to {MAX_SIZE} px")
        counts = CHANNELS[colour]
        if len(mean) not in counts or len(std) != len(mean) or not min(std) > 0:
            needed = ", ".join(map(str, counts))
            raise ValueError(f"mean is {mean} and std {std}; {colour} needs {needed} each, and std above 0")
        self.image_size, self.colour, self.crop_ratio = image_size, colour, crop_ratio
        self.mean, self.std = list(mean), list(std)
        self.value_range = check_value_range(value_range)
        self._view = EvalView(image_size, crop_ratio)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> InputTransform:
        """Make the transform that the `input` of a `backbone.json` describes.

        Raises:
            ValueError: A value is missing or not allowed.
        """
        try:
            return cls(**{key: config[key] for key in KEYS if key in config})
        except (TypeError, AttributeError) as error:
            raise ValueError(f"input is {config!r}, which describes no images: {error}") from error

    @property
    def config(self) -> dict[str, Any]:
        """The values that describe the transform; `from_config` takes them."""
        values = {key: getattr(self, key) for key in KEYS}
        return {key: value for key, value in values.items() if value is not None}

    @property
    def channels(self) -> int:
        """Channels of the result."""
        return len(self.mean)

    def forward(self, *inputs: Any) -> Any:
        """Refuse arrays and paths, which `v2.Transform` would return as they are."""
        if inputs and isinstance(inputs[0], (np.ndarray, str, os.PathLike)):
            opener = "fromarray" if isinstance(inputs[0], np.ndarray) else "open"
            raise ValueError(
                f"the picture is a {type(inputs[0]).__name__}; allowed are a PIL image, such as "
                f"Image.{opener}(...), and a tensor"
            )
        return super().forward(*inputs)

    def transform(self, inpt: Any, params: dict[str, Any]) -> Tensor:
        """Convert one picture, or a batch of tensors.

        Args:
            inpt: A PIL image of any mode, or a tensor `(C, H, W)` or `(B, C, H, W)` with C 1 or 3 (4 for
                "RGBX"), uint8 or floats in [0, 1].
            params: Unused.

        Returns:
            Floats of shape `(channels, image_size, image_size)`, for a batch with B in front.

        Raises:
            ValueError: The tensor has another shape or type.
        """
        if isinstance(inpt, Image.Image):
            channels = 3 if self.colour == "L" else self.channels
            inpt = as_tensor(eight_bit(inpt, channels, self.value_range))
        images = _plain(inpt, (4,) if self.colour == "RGBX" else (1, 3))
        batch = self._sized(images if images.ndim == 4 else images[None])
        pixels = batch if batch.is_floating_point() else batch.float().div(255)
        result = v2.functional.normalize(self._coloured(pixels), self.mean, self.std)
        return result if images.ndim == 4 else result[0]

    def _sized(self, images: Tensor) -> Tensor:
        if tuple(images.shape[-2:]) == (self.image_size, self.image_size):
            return images
        return torch.stack([self._view(image) for image in images]).clamp(*_range(images))

    def _coloured(self, pixels: Tensor) -> Tensor:
        """Convert floats `(B, C, H, W)` in [0, 1] to the colours of the backbone."""
        if self.colour == "RGBX":
            return pixels
        if self.colour == "grey":
            return rgb_to_grayscale(pixels) if pixels.shape[1] == 3 else pixels
        rgb = pixels if pixels.shape[1] == 3 else grayscale_to_rgb(pixels)
        return rgb_to_lab(rgb)[:, :1].expand(-1, self.channels, -1, -1) if self.colour == "L" else rgb

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.config.items())


def _plain(images: Tensor, channels: tuple[int, ...]) -> Tensor:
    """Return a plain tensor; raise ValueError if it does not hold images."""
    images = images.as_subclass(Tensor)
    kind = images.dtype == torch.uint8 or images.is_floating_point()
    if images.ndim not in (3, 4) or images.shape[-3] not in channels or not kind:
        raise ValueError(
            f"the images are {tuple(images.shape)} of {images.dtype}; allowed are (C, H, W) and (B, C, H, W) "
            f"with {' or '.join(map(str, channels))} channels, uint8 or floats in [0, 1]"
        )
    if images.is_floating_point() and images.numel():
        low, high = (float(bound) for bound in images.aminmax())
        if low < -MARGIN or high > 1 + MARGIN:
            raise ValueError(
                f"the images have floats from {low:.3g} to {high:.3g}; allowed is [0, 1], so divide by 255 "
                "or leave out the normalisation"
            )
    return images


def _range(images: Tensor) -> tuple[float, float]:
    return (0, 1) if images.is_floating_point() else (0, 255)
