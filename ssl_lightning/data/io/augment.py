"""Spatial augmentation of uint8 images: batched for images in memory, one by one for decoded files."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

Padding = Literal["reflect", "zero"]


def crop_flip(
    images: Tensor,
    indices: Tensor,
    offsets: Tensor,
    mirrored: Tensor,
    padding: int,
    mode: Padding = "reflect",
) -> Tensor:
    """Gather images, each padded, cropped back to its size at its own offset, and mirrored or not.

    Every pixel is copied once, straight from the data set.

    Args:
        images: (N, H, W, C) uint8, contiguous.
        indices: (B,) int64, images to gather.
        offsets: (B, 2) int64, top and left corner of the crop, in 0..2 * padding.
        mirrored: (B,) bool, whether the crop is mirrored left to right.
        padding: Pixels on each side; below H and W when reflecting.
        mode: Padding: the image mirrored about its edge pixels, or zeros.

    Returns:
        (B, H, W, C) uint8.
    """
    height, width, channels = images.shape[1:]
    y = torch.arange(height, device=images.device) + offsets[:, :1] - padding  # (B, H), source rows
    x = torch.arange(width, device=images.device) + offsets[:, 1:] - padding  # (B, W)
    x = torch.where(mirrored[:, None], x.flip(1), x)
    if mode == "reflect":
        within_y = (height - 1) - ((height - 1) - y.abs()).abs()
        within_x = (width - 1) - ((width - 1) - x.abs()).abs()
    else:
        within_y, within_x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    pixel = ((indices[:, None] * height + within_y) * width)[:, :, None] + within_x[:, None]  # (B, H, W)
    crop = images.view(-1, channels).index_select(0, pixel.flatten()).view(*pixel.shape, channels)
    if mode == "zero":
        crop *= ((y == within_y)[:, :, None] & (x == within_x)[:, None])[..., None]
    return crop


@dataclass(frozen=True)
class CropFlip:
    """Random crop of the padded image and random mirroring, for images in memory.

    Parameters are drawn for the global batch, and each process applies its slice. The pixels do not depend on
    the number of processes.

    Args:
        padding: Pixels on each side before the crop; 0 turns cropping off.
        flip: Whether half of the images are mirrored left to right.
        mode: `reflect` or `zero`.
    """

    padding: int
    flip: bool
    mode: Padding = "reflect"

    def __post_init__(self) -> None:
        if self.padding < 0:
            raise ValueError(f"crop_padding is {self.padding}; it must be 0 (no crop) or more pixels")
        if self.mode not in get_args(Padding):
            raise ValueError(f"padding mode is {self.mode!r}; allowed are {', '.join(get_args(Padding))}")

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw offsets (count, 2) int64 and mirrored (count,) bool."""
        offsets = torch.randint(2 * self.padding + 1, (count, 2), generator=generator)
        mirrored = torch.rand(count, generator=generator) < 0.5
        return offsets, mirrored

    def gather(self, images: Tensor, indices: Tensor, offsets: Tensor, mirrored: Tensor) -> Tensor:
        """Gather images (B,) of (N, H, W, C) uint8, augmented with their drawn offsets and mirroring."""
        if not self.flip:
            mirrored = torch.zeros_like(mirrored)
        return crop_flip(images, indices, offsets, mirrored, self.padding, self.mode)


def resize(picture: Tensor, height: int, width: int) -> Tensor:
    """Resize one picture (C, H, W) uint8 to (C, height, width), bicubic with antialiasing.

    Torch's uint8 kernel is several times as fast as Pillow on a CPU with AVX2. Pixels differ by at most one
    grey level, except at edges that overshoot: Pillow 13 clips columns first, torch clips rows first.

    Returns:
        (C, height, width) uint8, with the channels of a pixel side by side in memory.
    """
    # Channels-last strides, so torch does not split the channels
    batch = picture.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
    return F.interpolate(batch, (height, width), mode="bicubic", antialias=True)[0]


@dataclass(frozen=True)
class TrainView:
    """Random resized crop and mirroring of one decoded picture.

    Args:
        size: Height and width of the result in pixels.
        scale: Smallest and largest area of the crop, as a share of the picture's area.
        flip: Whether half of the pictures are mirrored left to right.
        ratio: Smallest and largest aspect (width over height) of the crop.
    """

    size: int
    scale: tuple[float, float]
    flip: bool = True
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"crop_scale is {list(self.scale)}; allowed is 0 < smallest <= largest <= 1")

    def box(self, width: int, height: int, generator: torch.Generator) -> tuple[int, int, int, int]:
        """Draw the crop (left, top, right, bottom); area and log-aspect are uniform."""
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for area, aspect, x, y in torch.rand(10, 4, generator=generator).tolist():
            pixels = width * height * (self.scale[0] + area * (self.scale[1] - self.scale[0]))
            shape = math.exp(low + aspect * (high - low))
            w, h = max(1, round(math.sqrt(pixels * shape))), max(1, round(math.sqrt(pixels / shape)))
            if w <= width and h <= height:
                left, top = int(x * (width - w + 1)), int(y * (height - h + 1))
                return left, top, left + w, top + h
        # No draw of ten fits, as in very long pictures: take the centre, up to the allowed aspect
        w = min(width, max(1, round(height * self.ratio[1])))
        h = min(height, max(1, round(width / self.ratio[0])))
        left, top = (width - w) // 2, (height - h) // 2
        return left, top, left + w, top + h

    def __call__(self, picture: Tensor, generator: torch.Generator) -> Tensor:
        """Return the view (C, size, size) of a picture (C, H, W) uint8."""
        height, width = picture.shape[1:]
        left, top, right, bottom = self.box(width, height, generator)
        view = resize(picture[:, top:bottom, left:right], self.size, self.size)
        mirrored = torch.rand((), generator=generator) < 0.5
        return view.flip(2) if self.flip and mirrored else view


@dataclass(frozen=True)
class EvalView:
    """Central square of one decoded picture, resized: resize and centre crop in one step.

    Args:
        size: Height and width of the result in pixels.
        crop_ratio: Side of the square, in whole pixels, over the picture's shorter side, in (0, 1].
    """

    size: int
    crop_ratio: float

    def __post_init__(self) -> None:
        if not 0 < self.crop_ratio <= 1:
            raise ValueError(f"crop_ratio is {self.crop_ratio}; allowed is above 0 and at most 1")

    def __call__(self, picture: Tensor) -> Tensor:
        """Return the view (C, size, size) of a picture (C, H, W) uint8."""
        height, width = picture.shape[1:]
        side = max(1, round(self.crop_ratio * min(width, height)))
        left, top = (width - side) // 2, (height - side) // 2
        return resize(picture[:, top : top + side, left : left + side], self.size, self.size)
