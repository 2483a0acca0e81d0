"""STL-10: 100,000 unlabelled and 5,000 + 8,000 labelled photographs of 96 x 96 pixels."""

from __future__ import annotations

from collections.abc import Sequence

from ssl_lightning.data.base import PairedDataModule, Pairing
from ssl_lightning.data.io.arrays import load
from ssl_lightning.data.io.augment import CropFlip
from ssl_lightning.data.io.download import cache_root
from ssl_lightning.data.io.sources import ArraySource, resize
from ssl_lightning.data.io.stl10 import CLASSES, obtain_stl10


class STL10(PairedDataModule):
    """STL-10: pretrained on the unlabelled split, probed on the labelled ones.

    At 96 pixels the images stay on disk and are mapped into memory (2.8 GB of page cache).

    Args:
        root: Cache folder; None for the default one (see `io.download`).
        crop_padding: Pixels by which training images are padded, by reflection, before the random crop.
        flip: Whether half of the training images are mirrored left to right.
        batch_size, eval_batch_size, image_size, seed, mean, std, heldout, max_labels, pretrain_size:
            See `PairedDataModule`; another image size than 96 is made once, in memory.
    """

    name = "stl10"

    def __init__(
        self,
        *,
        root: str | None = None,
        batch_size: int = 64,
        eval_batch_size: int = 250,
        image_size: int = 96,
        seed: int = 0,
        mean: Sequence[float] | None = (0.4467, 0.4398, 0.4066),
        std: Sequence[float] | None = (0.2603, 0.2566, 0.2713),
        heldout: int | None = 1000,
        max_labels: int | None = None,
        pretrain_size: int | None = None,
        crop_padding: int = 12,
        flip: bool = True,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            image_size=image_size,
            channels=3,
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
        obtain_stl10(self.root)

    def load(self) -> Pairing:
        """Return the unlabelled split for the pretext, and the two labelled ones for the probes."""
        folder = obtain_stl10(self.root)
        unlabeled, train, test = (
            ArraySource(
                resize(load(folder, f"{split}_images"), self.image_size),
                None if split == "unlabeled" else load(folder, f"{split}_labels"),
                self.augment,
            )
            for split in ("unlabeled", "train", "test")
        )
        return Pairing(unlabeled, train, test, CLASSES)
