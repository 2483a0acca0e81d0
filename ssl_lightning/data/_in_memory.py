"""What the data sets share whose images are of one size and are held in memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ssl_lightning.core.cache import cache_root
from ssl_lightning.data._pairing import Pairing
from ssl_lightning.data.base import PairedDataModule
from ssl_lightning.data.io.arrays import load
from ssl_lightning.data.io.augment import CropFlip
from ssl_lightning.data.io.sources import ArraySource, resize

LARGEST_SHARE = 0.5  # of the machine's memory that resized images may take
LITTLE = 0.1  # share of a GPU's free memory that nobody misses


class InMemory(PairedDataModule):
    """Images from the cache, indexed a batch at a time; at their published size they are mapped from disk.

    A subclass names the data set and its classes, and says how it gets into the cache.

    Args:
        root: Cache folder; None for the default one (see `io.download`).
        image_size: Height and width in pixels; None for the published ones. Another size is made once,
            in memory.
        crop_padding: Pixels by which training images are padded, by reflection, before the random crop.
        flip: Whether half of the training images are mirrored left to right.
        device_resident: Whether all images are kept on the GPU, so that a step moves none, and they are
            cropped there; "auto": where they take a tenth of its free memory at most. On a CPU no difference.
        batch_size, eval_batch_size, seed, mean, std, heldout, max_labels, pretrain_size:
            See `PairedDataModule`.

    Raises:
        ValueError: The resized images would take more than half of the machine's memory, or see
            `PairedDataModule`.
    """

    published_size: ClassVar[int]
    published_channels: ClassVar[int]
    class_names: ClassVar[tuple[str, ...]]
    pretrain_split: ClassVar[str] = "train"  # "unlabeled" where there is such a split

    def __init__(
        self,
        *,
        root: str | None = None,
        batch_size: int = 64,
        eval_batch_size: int = 500,
        image_size: int | None = None,
        seed: int = 0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        heldout: int | None = 1000,
        max_labels: int | None = None,
        pretrain_size: int | None = None,
        crop_padding: int = 0,
        flip: bool = True,
        device_resident: Literal["auto", True, False] = "auto",
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            image_size=self.published_size if image_size is None else image_size,
            channels=self.published_channels,
            seed=seed,
            mean=mean,
            std=std,
            heldout=heldout,
            max_labels=max_labels,
            pretrain_size=pretrain_size,
        )
        self.root = cache_root(root)
        self.augment = CropFlip(crop_padding, flip)
        self.device_resident = device_resident

    def obtain(self) -> Path:
        """Return the folder in the cache, downloaded unless it is there."""
        raise NotImplementedError

    def fetch(self) -> None:
        self.obtain()

    def load(self) -> Pairing:
        """Return the pretraining split, and the two labelled ones; the images of a split are held once."""
        folder = self.obtain()
        splits = dict.fromkeys((self.pretrain_split, "train", "test"))
        images = {split: load(folder, f"{split}_images") for split in splits}
        self._check_memory(sum(len(part) for part in images.values()))
        sources = {
            split: ArraySource(resize(part, self.image_size), self._labels(folder, split), self.augment)
            for split, part in images.items()
        }
        pretrain, train = sources[self.pretrain_split], sources["train"]
        overlap = torch.arange(len(train)) if pretrain is train else None
        return Pairing(pretrain, train, sources["test"], self.class_names, overlap=overlap)

    def place(self, device: torch.device) -> None:
        """Move the images of every split to the GPU, where `device_resident`.

        Raises:
            ValueError: They are to, and would take more than half of its free memory.
        """
        if not self.device_resident or device.type != "cuda":
            return
        pairing = self._loaded
        sources = {id(s): s for s in (pairing.pretrain, pairing.train, pairing.test)}.values()
        arrays = [source for source in sources if isinstance(source, ArraySource)]
        needed = sum(source.images.nbytes for source in arrays)
        free, _ = torch.cuda.mem_get_info(device)
        if self.device_resident == "auto":
            if needed > LITTLE * free:
                return
        elif needed > LARGEST_SHARE * free:
            raise ValueError(
                f"data.device_resident is true: the images take {needed / 1e9:,.1f} GB, and {device} has "
                f"{free / 1e9:,.1f} GB free; allowed is half. Set it to false"
            )
        for source in arrays:
            source.place(device)

    def _labels(self, folder: Path, split: str) -> Tensor | None:
        return None if split == "unlabeled" else load(folder, f"{split}_labels")

    def _check_memory(self, images: int) -> None:
        if self.image_size == self.published_size:
            return  # mapped, so that the system may drop what it does not need
        needed = images * self.image_size**2 * self.channels
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if needed > LARGEST_SHARE * there:
            raise ValueError(
                f"data.image_size is {self.image_size}: {images:,} such images take {needed / 1e9:,.0f} "
                f"GB in memory, of {there / 1e9:,.0f} GB; allowed is half. Take a smaller size (published: "
                f"{self.published_size}), or data=folder, which decodes as it goes"
            )
