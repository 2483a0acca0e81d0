"""Generated scenes with exact masks and boxes: clothes of Fashion-MNIST on photographs of CIFAR-10."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssl_lightning.core.cache import cache_root
from ssl_lightning.core.seeding import generator
from ssl_lightning.data._dense import DenseDataModule
from ssl_lightning.data._pairing import Pairing
from ssl_lightning.data.io.annotations import Boxes
from ssl_lightning.data.io.arrays import load
from ssl_lightning.data.io.augment import CropFlip
from ssl_lightning.data.io.cifar10 import obtain_cifar10
from ssl_lightning.data.io.dense import DenseArrays
from ssl_lightning.data.io.fashion_mnist import CLASSES, obtain_fashion_mnist
from ssl_lightning.data.io.paint import paint_scenes
from ssl_lightning.data.io.sources import ArraySource

KINDS = ("masks", "boxes")


class Scenes(DenseDataModule):
    """Tinted clothes on photographs, upright, at times one in front of another.

    Training scenes use training images of both sets; test scenes use test images. Class 0 of a mask is the
    background. A box encloses the visible part of an object. An object that is less than 30 % visible is
    marked as difficult.

    Args:
        root: Cache folder of both sets; None for the default one (see `core.cache`).
        targets: Labels for the probes: "masks" or "boxes".
        num_train: Training scenes, for the pretext and the probes.
        num_test: Test scenes.
        objects: Fewest and most objects in a scene; with 0 some scenes have no boxes.
        object_size: Smallest and largest side of an object, as a share of the scene's side.
        scenes_seed: Seed of the scenes. They do not depend on the seed of a run.
        crop_padding: Pixels of reflection padding around training images before the random crop.
        flip: Whether half of the training images of the pretext are mirrored left to right.
        eval_batch_size, heldout: See `PairedDataModule`.
        **base: The other keywords of `PairedDataModule`.

    Raises:
        ValueError: A value is out of range.
    """

    name = "scenes"

    def __init__(
        self,
        *,
        root: str | None = None,
        targets: str = "masks",
        num_train: int = 5000,
        num_test: int = 1000,
        objects: Sequence[int] = (1, 3),
        object_size: Sequence[float] = (0.3, 0.6),
        scenes_seed: int = 0,
        crop_padding: int = 0,
        flip: bool = True,
        eval_batch_size: int = 250,
        heldout: int | None = 500,
        **base: Any,
    ) -> None:
        super().__init__(eval_batch_size=eval_batch_size, heldout=heldout, **base)
        if targets not in KINDS:
            raise ValueError(f"data.targets is {targets!r}; allowed are {', '.join(KINDS)}")
        if min(num_train, num_test) < 1:
            raise ValueError(
                f"data.num_train is {num_train} and data.num_test {num_test}; both must be at least 1"
            )
        if len(objects) != 2 or not 0 <= objects[0] <= objects[1] or not 1 <= objects[1] <= 20:
            raise ValueError(f"data.objects is {list(objects)}; allowed is 0 <= fewest <= most, most 1 to 20")
        if len(object_size) != 2 or not 0 < object_size[0] <= object_size[1] <= 1:
            raise ValueError(
                f"data.object_size is {list(object_size)}; allowed is 0 < smallest <= largest <= 1"
            )
        self.root = cache_root(root)
        self.targets = targets
        self.num_train, self.num_test = num_train, num_test
        self.objects = (int(objects[0]), int(objects[1]))
        self.object_size = (float(object_size[0]), float(object_size[1]))
        self.scenes_seed = scenes_seed
        self.augment = CropFlip(crop_padding, flip)

    def fetch(self) -> None:
        obtain_cifar10(self.root)
        obtain_fashion_mnist(self.root)

    def load(self) -> Pairing:
        """Paint the scenes in memory."""
        folders = obtain_cifar10(self.root), obtain_fashion_mnist(self.root)
        images, train = self._paint(folders, "train", self.num_train)
        test_images, test = self._paint(folders, "test", self.num_test)
        names = ("background", *CLASSES) if self.targets == "masks" else CLASSES
        return Pairing(
            ArraySource(images, None, self.augment),
            DenseArrays(images, train),
            DenseArrays(test_images, test),
            names,
            overlap=torch.arange(len(images)),
        )

    def _paint(
        self, folders: tuple[Path, Path], split: str, count: int
    ) -> tuple[Tensor, Tensor | list[Boxes]]:
        photographs, clothes = (load(folder, f"{split}_images") for folder in folders)
        images, masks, boxes = paint_scenes(
            photographs,
            clothes[..., 0],
            load(folders[1], f"{split}_labels"),
            count,
            size=self.image_size,
            objects=self.objects,
            object_size=self.object_size,
            draw=generator("scenes", split, self.scenes_seed),
        )
        return images, masks if self.targets == "masks" else boxes
