"""Base class for pretraining on one data set in memory and probing on another."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from ssl_lightning.data._in_memory import InMemory
from ssl_lightning.data._pairing import Pairing
from ssl_lightning.data.io.arrays import load
from ssl_lightning.data.io.pixels import with_channels
from ssl_lightning.data.io.sources import ArraySource, resize


class InMemoryPair(InMemory):
    """Unlabelled images of one data set to pretrain on, labelled images of another to probe on.

    All images get the size and channels of the pretraining set. Probe images are resized (bicubic). Grey
    becomes three equal channels, and colour becomes the luma of BT.601. Mean and deviation come from the
    pretraining images, since the backbone was trained with them. The pretext's validation sees held-out
    images of the probe set.

    Args:
        **base: The keywords of `InMemory`.
    """

    pretrain_on: ClassVar[type[InMemory]]
    probe_on: ClassVar[type[InMemory]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.published_size = cls.pretrain_on.published_size
        cls.published_channels = cls.pretrain_on.published_channels
        cls.class_names = cls.probe_on.class_names

    def obtain(self) -> Path:
        """Return the folder of the pretraining set."""
        return self.pretrain_on(root=str(self.root)).obtain()

    def fetch(self) -> None:
        self.obtain()
        self.probe_on(root=str(self.root)).obtain()

    def load(self) -> Pairing:
        """Return the images of both sets; convert the probe set's once, in memory."""
        images = load(self.obtain(), f"{self.pretrain_on.pretrain_split}_images")
        folder = self.probe_on(root=str(self.root)).obtain()
        probed = {split: load(folder, f"{split}_images") for split in ("train", "test")}
        self._check_memory(len(images) + sum(len(part) for part in probed.values()))
        pretrain = ArraySource(resize(images, self.image_size), None, self.augment)
        train, test = (
            ArraySource(
                with_channels(resize(part, self.image_size), self.channels),
                load(folder, f"{split}_labels"),
                self.augment,
            )
            for split, part in probed.items()
        )
        return Pairing(pretrain, train, test, self.class_names)
