"""Square views of images given in Python: size, channels, and how they are cut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ssl_lightning.data.io.augment import CropFlip, EvalView, TrainView


@dataclass(frozen=True)
class Views:
    """How images are cut and resized.

    Args:
        size: Height and width of the result in pixels.
        channels: 1 for grey, 3 for RGB, 4 for four channels as they are.
        crop: Whether training images are cropped at random.
        flip: Whether half of the training images are mirrored left to right.
        max_pixels: Larger files are bad.
        num_workers: Processes that read files, and data sets that do not fit in memory.
        max_memory: Largest size in bytes of a data set that is read into memory.
        value_range: See `to_pixels`, and `eight_bit` for files and PIL images.
        check_size: Whether the images of a data set must have this size.
        check_channels: Whether the images of a data set must have these channels.
    """

    size: int
    channels: int
    crop: bool
    flip: bool
    max_pixels: int
    num_workers: int
    max_memory: int
    value_range: tuple[float, float] | None = None
    check_size: bool = False
    check_channels: bool = False

    @property
    def shift(self) -> CropFlip:
        """Return the augmentation of images in memory."""
        return CropFlip(self.size // 8 if self.crop else 0, self.flip)

    @property
    def evaluation(self) -> EvalView:
        """Return the evaluation view of pictures that are read on demand."""
        return EvalView(self.size, 0.875 if self.crop else 1.0)

    @property
    def decoding(self) -> dict[str, Any]:
        """Return the keywords of a `PictureSource`, without `labels`."""
        scale, ratio = ((0.2, 1.0), (3 / 4, 4 / 3)) if self.crop else ((1.0, 1.0), (1.0, 1.0))
        return {
            "channels": self.channels,
            "value_range": self.value_range,
            "train_view": TrainView(self.size, scale, self.flip, ratio),
            "eval_view": self.evaluation,
            "max_pixels": self.max_pixels,
            "num_workers": self.num_workers,
        }


def check_same_size(first: tuple[int, ...], size: tuple[int, ...], name: str) -> None:
    """Raise ValueError if an image is not of the size of the first one."""
    if size != first:
        raise ValueError(
            f"{name} has {size[0]} x {size[1]} pixels, and the first image {first[0]} x {first[1]}; give "
            "image_size, and the central square of each image is resized to it"
        )


def square_side(size: tuple[int, ...], name: str) -> int:
    """Return the side of a square; raise ValueError if height and width differ."""
    if size[0] != size[1]:
        raise ValueError(
            f"the images of {name} have {size[0]} x {size[1]} pixels; give image_size, and the central "
            "square of each image is resized to it"
        )
    return size[0]


def central_squares(images: Tensor) -> Tensor:
    """Return the central square of each image (N, H, W, C), as a view."""
    height, width = images.shape[1:3]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return images[:, top : top + side, left : left + side]
