"""Fashion-MNIST: 60,000 + 10,000 grey pictures of clothes of 28 x 28 pixels in 10 classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ssl_lightning.data.base import PairedDataModule, Pairing
from ssl_lightning.data.io.arrays import load
from ssl_lightning.data.io.augment import CropFlip
from ssl_lightning.data.io.download import cache_root
from ssl_lightning.data.io.fashion_mnist import CLASSES, obtain_fashion_mnist
from ssl_lightning.data.io.sources import ArraySource, resize


class FashionMNIST(PairedDataModule):
    """Fashion-MNIST in memory: pretrained and probed on the same training images.

    Args:
        root: Cache folder; None for the default one (see `io.download`).
        crop_padding: Pixels by which training images are padded, by reflection, before the random crop.
        flip: Whether half of the training images are mirrored left to right.
        batch_size, eval_batch_size, image_size, seed, mean, std, heldout, max_labels, pretrain_size:
            See `PairedDataModule`; another image size than 28 is made once, in memory.
    """

    name = "fashion_mnist"

    def __init__(
        self,
        *,
        root: str | None = None,
        batch_size: int = 64,
        eval_batch_size: int = 500,
        image_size: int = 28,
        seed: int = 0,
        mean: Sequence[float] | None = (0.2860,),
        std: Sequence[float] | None = (0.3530,),
        heldout: int | None = 5000,
        max_labels: int | None = None,
        pretrain_size: int | None = None,
        crop_padding: int = 2,
        flip: bool = True,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            image_size=image_size,
            channels=1,
            seed=seed,
            mean=mean,
            std=std,
            heldout=heldout,
            max_labels=max_labels,
            pretrain_size=pretrain_size,
        )
        self.root = cache_root(root)
        self.augment = CropFlip(crop_padding, flip)

    def fetch(self) -> None:
        """Download the data set into the cache, unless it is there."""
        obtain_fashion_mnist(self.root)

    def load(self) -> Pairing:
        """Return both splits; the training images serve the pretext and the probes."""
        folder = obtain_fashion_mnist(self.root)
        train, test = (
            ArraySource(
                resize(load(folder, f"{split}_images"), self.image_size),
                load(folder, f"{split}_labels"),
                self.augment,
            )
            for split in ("train", "test")
        )
        return Pairing(train, train, test, CLASSES, overlap=torch.arange(len(train)))
