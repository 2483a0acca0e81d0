"""Base class for data sets of images of one size, held in memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ssl_lightning.core.cache import cache_root
from ssl_lightning.data._pairing import Pairing
from ssl_lightning.data.base import PairedDataModule
from ssl_lightning.data.io.arrays import load
from ssl_lightning.data.io.augment import CropFlip
from ssl_lightning.data.io.sources import ArraySource, resize

LARGEST_SHARE = 0.5  # of memory that images may take
AUTO_SHARE = 0.1  # of a GPU's free memory that images may take under device_resident "auto"


class InMemory(PairedDataModule):
    """Images from the cache, indexed a batch at a time and mapped from disk at their published size.

    A subclass names the data set and its classes, and implements `obtain`.

    Args:
        root: Cache folder; None for the default one (see `core.cache`).
        image_size: Height and width in pixels; None for the published size. Images of another size are
            resized once, in memory.
        crop_padding: Pixels of reflection padding around training images before the random crop.
        flip: Whether half of the training images are mirrored left to right.
        device_resident: Whether the GPU keeps and crops all images, so that a step transfers none. "auto"
            does so if they take at most a tenth of its free memory. It has no effect on a CPU.
        eval_batch_size, heldout: See `PairedDataModule`.
        **base: The other keywords of `PairedDataModule`.

    Raises:
        ValueError: See `PairedDataModule`; or the resized images, in `setup`, would take more than half
            of the machine's memory.
    """

    published_size: ClassVar[int]
    published_channels: ClassVar[int]
    class_names: ClassVar[tuple[str, ...]]
    pretrain_split: ClassVar[str] = "train"  # or "unlabeled"

    def __init__(
        self,
        *,
        root: str | None = None,
        image_size: int | None = None,
        crop_padding: int = 0,
        flip: bool = True,
        device_resident: Literal["auto", True, False] = "auto",
        eval_batch_size: int = 500,
        heldout: int | None = 1000,
        **base: Any,
    ) -> None:
        size = self.published_size if image_size is None else image_size
        super().__init__(image_size=size, eval_batch_size=eval_batch_size, heldout=heldout, **base)
        self.channels = self.published_channels
        self.root = cache_root(root)
        self.augment = CropFlip(crop_padding, flip)
        self.device_resident = device_resident

    def obtain(self) -> Path:
        """Return the folder in the cache; download it if it is missing."""
        raise NotImplementedError

    def fetch(self) -> None:
        self.obtain()

    def load(self) -> Pairing:
        """Return the pretraining split and the two labelled ones; splits that coincide share their images."""
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
        """Move the images of every split to the GPU if `device_resident` asks for it.

        Raises:
            ValueError: `device_resident` is true, and the images would take more than half of the GPU's free
                memory.
        """
        if not self.device_resident or device.type != "cuda":
            return
        pairing = self._loaded
        sources = {id(s): s for s in (pairing.pretrain, pairing.train, pairing.test)}.values()
        arrays = [source for source in sources if isinstance(source, ArraySource)]
        needed = sum(source.images.nbytes for source in arrays)
        free, _ = torch.cuda.mem_get_info(device)
        if self.device_resident == "auto":
            if needed > AUTO_SHARE * free:
                return
        elif needed > LARGEST_SHARE * free:
            raise ValueError(
                f"data.device_resident is true: the images take {needed / 1e9:,.1f} GB, and {device} has "
                f"{free / 1e9:,.1f} GB free; allowed is half of that. Set it to false"
            )
        for source in arrays:
            source.place(device)

    def _labels(self, folder: Path, split: str) -> Tensor | None:
        return None if split == "unlabeled" else load(folder, f"{split}_labels")

    def _check_memory(self, images: int) -> None:
        if self.image_size == self.published_size:
            return  # mapped, so the system may evict pages
        needed = images * self.image_size**2 * self.channels
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if needed > LARGEST_SHARE * memory:
            raise ValueError(
                f"data.image_size is {self.image_size}: {images:,} such images take {needed / 1e9:,.0f} GB, "
                f"and the machine has {memory / 1e9:,.0f} GB of memory; allowed is half of that. Use a "
                f"smaller size (published: {self.published_size}), or data=folder, which decodes on demand"
            )
