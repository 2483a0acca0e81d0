"""Sources of images with masks or boxes, from files or memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ssl_lightning.data.io.annotations import VOID, Boxes, map_in_threads, read_mask
from ssl_lightning.data.io.folders import decode
from ssl_lightning.data.io.sources import Share

PADDING = 128  # grey level beside a resized image


def fitted_size(size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """Return the height and width of an image resized to fit into `target` with its aspect kept.

    >>> fitted_size((100, 200), (64, 64))
    (32, 64)
    """
    scale = min(target[0] / size[0], target[1] / size[1])
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


class DenseFiles:
    """Image files with a mask or boxes for each, resized to fit one size; the rest is grey and void.

    Args:
        paths: One file per image.
        annotations: Path of the mask of each image, or its boxes in pixels of the file.
        size: Height and width of the yielded images.
        num_classes, void: See `read_mask`; unused for boxes.
        channels: 1 for grey, 3 for RGB, 4 for four channels as they are.
        max_pixels: Larger pictures are refused.
        num_workers: Decoding threads; 0 decodes in the calling thread.
        value_range: See `eight_bit`.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        annotations: Sequence[Path] | Sequence[Boxes],
        *,
        size: tuple[int, int],
        num_classes: int,
        void: Sequence[int] = (),
        channels: int,
        max_pixels: int,
        num_workers: int,
        value_range: tuple[float, float] | None = None,
    ) -> None:
        self.value_range = value_range
        self.paths = list(paths)
        self.annotations: list[Path | Boxes] = list(annotations)
        self.size, self.num_classes, self.void = size, num_classes, tuple(void)
        self.channels, self.max_pixels, self.num_workers = channels, max_pixels, num_workers
        self.labels = torch.full((len(self.paths),), -1)  # no image-level labels

    def __len__(self) -> int:
        return len(self.paths)

    def iterate(self, shares: Iterable[Share], augment: bool) -> Iterator[tuple[Tensor, Any]]:
        """Yield images (B, C, H, W) uint8 and targets of each share, in order, not augmented.

        Targets are masks (B, H, W) int64, or a list of dicts, see `Boxes.target`.
        """
        for share in shares:
            indices = share.indices.tolist()
            loaded = map_in_threads(self._load, indices, self.num_workers, "decode a batch")
            pixels = torch.stack([image for image, _ in loaded]) if loaded else self._no_pixels()
            targets: Any = [target for _, target in loaded]
            if self.annotations and isinstance(self.annotations[0], Path):
                targets = torch.stack(targets) if targets else torch.zeros(0, *self.size, dtype=torch.int64)
            yield pixels.permute(0, 3, 1, 2), targets

    def _no_pixels(self) -> Tensor:
        return torch.zeros(0, *self.size, self.channels, dtype=torch.uint8)

    def _load(self, index: int) -> tuple[Tensor, Any]:
        image = decode(self.paths[index], self.channels, self.max_pixels, self.value_range)
        height, width = fitted_size((image.height, image.width), self.size)
        scale = width / image.width, height / image.height
        resized = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
        pixels = np.full((*self.size, self.channels), PADDING, np.uint8)
        pixels[:height, :width] = resized.reshape(height, width, self.channels)
        annotation = self.annotations[index]
        if isinstance(annotation, Boxes):
            return torch.from_numpy(pixels), annotation.target(scale)
        mask = Image.fromarray(read_mask(annotation, self.num_classes, self.void, image.size))
        ids = np.full(self.size, VOID, np.int64)
        ids[:height, :width] = np.asarray(mask.resize((width, height), Image.Resampling.NEAREST))
        return torch.from_numpy(pixels), torch.from_numpy(ids)


class DenseArrays:
    """Images in memory with a mask or boxes for each.

    Args:
        images: (N, H, W, C) uint8.
        annotations: Masks (N, H, W) uint8, or boxes of each image.
    """

    def __init__(self, images: Tensor, annotations: Tensor | Sequence[Boxes]) -> None:
        self.images, self.annotations = images, annotations
        self.labels = torch.full((len(images),), -1)  # no image-level labels

    def __len__(self) -> int:
        return len(self.images)

    def iterate(self, shares: Iterable[Share], augment: bool) -> Iterator[tuple[Tensor, Any]]:
        """Yield as `DenseFiles.iterate` does."""
        for share in shares:
            images = self.images.index_select(0, share.indices).permute(0, 3, 1, 2)  # (B, C, H, W)
            if isinstance(self.annotations, Tensor):
                yield images, self.annotations.index_select(0, share.indices).long()
            else:
                yield images, [self.annotations[index].target() for index in share.indices.tolist()]
