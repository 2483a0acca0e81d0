"""Random views of images, drawn for each image and made in one batch (SimCLR: Chen et al. 2020, app. A)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_lightning.ops.photometric import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    gaussian_blur,
    kernel_size,
    solarise,
)

TRIES = 10  # draws of a crop, of which the first that fits counts, as torchvision does
RATIO = (3 / 4, 4 / 3)  # aspect of a crop, width over height
SIGMA = (0.1, 2.0)  # deviation of the blur in pixels

# An image that is not chosen for a change gets the parameter that changes nothing (a factor of 1). All images
# take the same operations, so the device is never asked which ones are chosen.


def check_scale(name: str, scale: Sequence[float]) -> None:
    """Raise a ValueError unless `scale` is the smallest and the largest area of a crop, in (0, 1]."""
    if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(f"task.{name} is {list(scale)}; allowed are 0 < smallest <= largest <= 1")


@dataclass(frozen=True)
class Strengths:
    """Ranges and probabilities of the changes of a view; 0 switches a change off.

    Args:
        crop_scale: Smallest and largest area of the crop, as a share of the image.
        flip: Probability of mirroring left to right.
        jitter: Probability of changing the colours.
        brightness: Largest change of brightness: the factor is in 1 - this..1 + this, at least 0.
        contrast: Likewise for the contrast.
        saturation: Likewise for the saturation.
        hue: Largest turn of the hue, as a share of the colour circle, at most 0.5.
        grey: Probability of removing the colours.
        blur: Probability of blurring.
        solarise: Probability of inverting the bright half of the range.

    Raises:
        ValueError: A value is out of range.
    """

    crop_scale: Sequence[float] = (0.2, 1.0)
    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    grey: float = 0.2
    blur: float = 0.0
    solarise: float = 0.0

    def __post_init__(self) -> None:
        check_scale("crop_scale", self.crop_scale)
        if not 0 <= self.hue <= 0.5:
            raise ValueError(f"task.hue is {self.hue}; allowed are 0 (off) to 0.5")
        for name in ("flip", "jitter", "grey", "blur", "solarise"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"task.{name} is {getattr(self, name)}; allowed are probabilities, 0 (off) to 1"
                )
        for name in ("brightness", "contrast", "saturation"):
            if getattr(self, name) < 0:
                raise ValueError(f"task.{name} is {getattr(self, name)}; allowed are 0 (off) and above")

    def for_channels(self, channels: int) -> Strengths:
        """Return the strengths for images of so many channels; grey images have no colours to change.

        Raises:
            ValueError: The colours of such images are unknown, and a strength changes them.
        """
        colours = ("saturation", "hue", "grey")
        if channels == 3:
            return self
        if channels != 1 and any(getattr(self, name) for name in colours):
            off = " ".join(f"task.{name}=0" for name in colours)
            raise ValueError(f"images have {channels} channels, whose colours are unknown; set {off}")
        return Strengths(
            **{f.name: getattr(self, f.name) for f in fields(self)} | dict.fromkeys(colours, 0.0)
        )


@dataclass(frozen=True)
class Draws:
    """Parameters of the views of N images; None for a change that is off.

    Args:
        boxes: Crops `(N, 4)` int64: top, left, height and width in pixels.
        mirrored: `(N,)` bool.
        brightness: Factor `(N,)`.
        contrast: Factor `(N,)`.
        saturation: Factor `(N,)`; 0 for grey.
        hue: Turn `(N,)` as a share of the colour circle.
        colourless: `(N,)` bool, whether the colours are removed.
        sigma: Deviation of the blur in pixels `(N,)`; 0 for none.
        solarised: `(N,)` bool.
    """

    boxes: Tensor
    mirrored: Tensor
    brightness: Tensor | None = None
    contrast: Tensor | None = None
    saturation: Tensor | None = None
    hue: Tensor | None = None
    colourless: Tensor | None = None
    sigma: Tensor | None = None
    solarised: Tensor | None = None

    def rows(self, first: int, count: int) -> Draws:
        """Return the parameters of `count` images from number `first` on."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        rows: dict[str, Any] = {
            name: None if x is None else x[first : first + count] for name, x in values.items()
        }
        return Draws(**rows)


def draw_views(
    count: int, height: int, width: int, strengths: Strengths, generator: torch.Generator
) -> Draws:
    """Draw the parameters of one view for each of `count` images of `height` x `width` px.

    Every change takes its random numbers even if it is off, so a strength of 0 leaves the other draws alone.
    """
    boxes = draw_crops(count, height, width, strengths.crop_scale, generator)
    # (10, N), each uniform in [0, 1)
    flip, jitter, bright, contrast, saturation, hue, grey, blur, sigma, solarise = torch.rand(
        10, count, generator=generator, device=generator.device
    )
    jittered = jitter < strengths.jitter

    def factor(strength: float, uniform: Tensor) -> Tensor | None:
        if not strength or not strengths.jitter:
            return None
        low = max(0.0, 1 - strength)
        return torch.where(jittered, low + (1 + strength - low) * uniform, 1.0)

    def chosen(probability: float, uniform: Tensor) -> Tensor | None:
        return uniform < probability if probability else None

    blurred = chosen(strengths.blur, blur)
    deviation = SIGMA[0] + (SIGMA[1] - SIGMA[0]) * sigma
    turned = strengths.hue and strengths.jitter
    return Draws(
        boxes=boxes,
        mirrored=flip < strengths.flip,
        brightness=factor(strengths.brightness, bright),
        contrast=factor(strengths.contrast, contrast),
        saturation=factor(strengths.saturation, saturation),
        hue=torch.where(jittered, strengths.hue * (2 * hue - 1), 0.0) if turned else None,
        colourless=chosen(strengths.grey, grey),
        sigma=None if blurred is None else torch.where(blurred, deviation, 0.0),
        solarised=chosen(strengths.solarise, solarise),
    )


def draw_crops(
    count: int, height: int, width: int, scale: Sequence[float], generator: torch.Generator
) -> Tensor:
    """Draw crops whose area and log-aspect are uniform, as torchvision's RandomResizedCrop does.

    Args:
        count: N.
        height: Height of the images in pixels.
        width: Width of the images.
        scale: Smallest and largest area of a crop, as a share of the image.
        generator: Draws the crops; they are on its device.

    Returns:
        `(N, 4)` int64: top, left, height and width. If none of ten draws fits into an image, its crop is the
        largest in the centre with an allowed aspect.
    """
    uniform = torch.rand(count, TRIES, 4, generator=generator, device=generator.device).double()
    area, aspect, across, down = uniform.unbind(-1)  # each (N, 10)
    pixels = height * width * (scale[0] + area * (scale[1] - scale[0]))
    low, high = (math.log(ratio) for ratio in RATIO)
    shape = (low + aspect * (high - low)).exp()
    h, w = (pixels / shape).sqrt().round().clamp(min=1), (pixels * shape).sqrt().round().clamp(min=1)
    top, left = (down * (height - h + 1)).floor(), (across * (width - w + 1)).floor()
    fits = (h <= height) & (w <= width)
    first = fits.byte().argmax(1).view(-1, 1, 1).expand(-1, 1, 4)
    drawn = torch.stack([top, left, h, w], -1).gather(1, first)[:, 0]  # (N, 4)
    fallback = _central(height, width)
    central = torch.stack([torch.full_like(drawn[:, 0], float(value)) for value in fallback], 1)
    return torch.where(fits.any(1, keepdim=True), drawn, central).long()


def _central(height: int, width: int) -> tuple[int, int, int, int]:
    """Return the largest central crop with an allowed aspect: top, left, height, width."""
    w = min(width, max(1, round(height * RATIO[1])))
    h = min(height, max(1, round(width / RATIO[0])))
    return (height - h) // 2, (width - w) // 2, h, w


def make_views(images: Tensor, draws: Draws, size: int | None = None) -> Tensor:
    """Make one view of each image: crop, mirror, change the colours, blur, solarise, in this order.

    Torchvision shuffles the order of the changes of colour for each image. Here it is fixed: brightness,
    contrast, saturation, hue.

    Args:
        images: `(N, C, H, W)` uint8, or floats in [0, 1].
        draws: Parameters of the N images.
        size: Height and width of the views in pixels; None for those of the images.

    Returns:
        `(N, C, H, W)`, or `(N, C, size, size)`, float32 in [0, 1] (float64 for float64), contiguous.
    """
    views = crop_resize(images, draws.boxes, draws.mirrored, size)
    if draws.brightness is not None:
        views = adjust_brightness(views, draws.brightness)
    if draws.contrast is not None:
        views = adjust_contrast(views, draws.contrast)
    if draws.saturation is not None:
        views = adjust_saturation(views, draws.saturation)
    if draws.hue is not None:
        views = adjust_hue(views, draws.hue)
    if draws.colourless is not None:
        views = adjust_saturation(views, (~draws.colourless).to(views.dtype))
    if draws.sigma is not None:
        views = gaussian_blur(views, draws.sigma, kernel_size(views.shape[-1]))
    if draws.solarised is not None:
        views = solarise(views, draws.solarised)
    return views


def crop_resize(images: Tensor, boxes: Tensor, mirrored: Tensor, size: int | None = None) -> Tensor:
    """Crop each image at its own place and resize the crop, by default to the size of the image, bilinear.

    A crop that shrinks is not smoothed before (no antialiasing).

    Args:
        images: `(N, C, H, W)` uint8, or floats in [0, 1].
        boxes: `(N, 4)`: top, left, height and width, within the image.
        mirrored: `(N,)` bool, whether the crop is mirrored left to right.
        size: Height and width of the result in pixels; None for those of the images.

    Returns:
        `(N, C, H, W)`, or `(N, C, size, size)`, float32 in [0, 1] (float64 for float64), contiguous.
    """
    if images.dtype == torch.uint8:
        images = images.float().div_(255)
    elif images.dtype != torch.float64:
        images = images.float()
    height, width = images.shape[2:]
    top, left, h, w = boxes.to(images.dtype)[:, :, None].unbind(1)  # each (N, 1)
    y, x = (
        (torch.arange(side, device=images.device, dtype=images.dtype) + 0.5) / side
        for side in (size or height, size or width)
    )
    x = torch.where(mirrored[:, None], 1 - x, x)  # (N, W)
    # pixels beyond the crop are not seen, as if it had been cut out
    rows = torch.minimum(torch.maximum(top + y * h - 0.5, top), top + h - 1)  # (N, H)
    columns = torch.minimum(torch.maximum(left + x * w - 0.5, left), left + w - 1)  # (N, W)
    grid = torch.stack(
        torch.broadcast_tensors(
            ((2 * columns + 1) / width - 1)[:, None, :], ((2 * rows + 1) / height - 1)[:, :, None]
        ),
        -1,
    )  # (N, H, W, 2): x and y in -1..1, from edge to edge of the image
    return F.grid_sample(images.contiguous(), grid, padding_mode="border", align_corners=False)
