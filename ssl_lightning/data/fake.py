"""Generated images for tests and first trials, without a download."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ssl_lightning.core.seeding import generator
from ssl_lightning.data._pairing import Pairing
from ssl_lightning.data.base import PairedDataModule, check_channels
from ssl_lightning.data.io.augment import CropFlip
from ssl_lightning.data.io.sources import ArraySource


class Fake(PairedDataModule):
    """Striped images under light from above; the direction of the stripes is the class.

    The light makes rotation and position learnable; the stripes make the classes learnable. The images are
    the same for every seed of a run.

    Args:
        num_train: Training images, for the pretext and the probes.
        num_test: Test images.
        num_classes: Classes of equal size.
        channels: 1, 3 or 4.
        crop_padding: Pixels of reflection padding around training images before the random crop.
        flip: Whether half of the training images are mirrored left to right.
        batch_size, eval_batch_size, image_size, heldout: See `PairedDataModule`.
        **base: The other keywords of `PairedDataModule`.
    """

    name = "fake"

    def __init__(
        self,
        *,
        num_train: int = 320,
        num_test: int = 64,
        num_classes: int = 4,
        channels: int = 3,
        crop_padding: int = 0,
        flip: bool = False,
        batch_size: int = 32,
        eval_batch_size: int = 64,
        image_size: int = 32,
        heldout: int | None = 64,
        **base: Any,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            image_size=image_size,
            heldout=heldout,
            **base,
        )
        if num_classes < 2 or min(num_train, num_test) < num_classes:
            raise ValueError(
                f"data.num_classes is {num_classes}, num_train {num_train} and num_test {num_test}; "
                "allowed are at least 2 classes, with an image of each in both splits"
            )
        self.channels = check_channels(channels)
        self.num_train = num_train
        self.num_test = num_test
        self.num_classes = num_classes
        self.augment = CropFlip(crop_padding, flip)

    def load(self) -> Pairing:
        """Return generated training and test images."""
        train, test = (
            ArraySource(
                *striped(count, self.num_classes, self.channels, self.image_size, split), self.augment
            )
            for split, count in (("train", self.num_train), ("test", self.num_test))
        )
        names = tuple(f"stripes{round(180 * k / self.num_classes)}" for k in range(self.num_classes))
        return Pairing(train, train, test, names, overlap=torch.arange(len(train)))


def striped(count: int, classes: int, channels: int, size: int, stream: str) -> tuple[Tensor, Tensor]:
    """Generate images (count, size, size, channels) uint8 and their labels (count,) int64."""
    draw = generator("fake", stream)
    labels = torch.arange(count) % classes
    angle, phase, pitch, side = torch.rand(4, count, 1, 1, generator=draw)
    angle = math.pi * (labels[:, None, None] + 0.4 * (angle - 0.5)) / classes  # (N, 1, 1)
    y, x = torch.linspace(0, 1, size)[:, None], torch.linspace(0, 1, size)[None]
    along = x * angle.cos() + y * angle.sin()  # (N, H, W)
    stripes = 0.5 + 0.5 * torch.sin(2 * math.pi * (along * (3 + 2 * pitch) + phase))
    light = 1 - 0.7 * y + 0.2 * (x - 0.5) * side  # bright at the top
    colours = torch.rand(2, count, channels, 1, 1, generator=draw) * 0.6 + 0.4
    mixed = stripes[:, None] * colours[0] + (1 - stripes[:, None]) * colours[1] * 0.4  # (N, C, H, W)
    noisy = mixed * light[:, None] + 0.03 * torch.randn(count, channels, size, size, generator=draw)
    images = (noisy.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).contiguous()
    return images, labels
