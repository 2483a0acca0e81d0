"""Base class of data sets: their images, splits and image spec."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from ssl_lightning.core.image_spec import CHANNELS, ImageSpec
from ssl_lightning.data._loaders import ImageLoaders
from ssl_lightning.data._near_duplicates import (
    NearDuplicate,
    check_action,
    find_near_duplicates,
    tell_near_duplicates,
)
from ssl_lightning.data._pairing import SPLITS, Pairing, check_classes, draw_splits, fitting_batch
from ssl_lightning.data.io.augment import EvalView
from ssl_lightning.data.io.contents import check_contents

__all__ = ["PairedDataModule", "Pairing", "check_channels"]

MEASURED = 256  # images that mean and std are measured on
CHECKED = 64  # images that are checked if these are given


class PairedDataModule(ImageLoaders):
    """Unlabelled images to pretrain on, and labelled ones to probe on.

    A subclass sets `name` and implements `fetch` and `load`. The held-out images serve every selection and
    the pretext's validation loss. They are the same in every run, and pretraining never sees them.

    Args:
        batch_size: Images of a pretraining batch, over all processes.
        eval_batch_size: Images of a batch elsewhere, over all processes.
        image_size: Height and width in pixels.
        seed: Seed of the order and the augmentation of the pretraining images.
        mean: Per-channel mean in [0, 1]; None measures it on pretraining images.
        std: Per-channel standard deviation; None measures it.
        heldout: Number of labelled training images to hold out (without labels: of pretraining images).
            None holds out the published validation split, or a tenth if there is none. With 0 there is no
            validation, and no probe may select anything.
        max_labels: Most labelled images that probes may use, training and held-out together; None for all.
        pretrain_size: Most pretraining images in an epoch; None for all.
        near_duplicates: Whether to search the pretraining and training images for near-duplicates of test
            and held-out images: "ignore" does not, "report" counts them, and "drop" also leaves them out of
            pretraining. It reads every image once.

    Raises:
        ValueError: A number is out of range; in `setup`, also for the number of images.
    """

    name: str = "data"
    channels: int = 3  # 1 for grey, 3 for RGB, 4 for four channels as they are
    value_range: tuple[float, float] | None = None  # of pixels of more than 8 bits, see `eight_bit`
    targets: str = "classes"  # kind of the labels: classes, multilabel, masks or boxes
    eval_view: EvalView | None = None  # evaluation view of an image file, if images are files
    num_workers: int = 2  # processes that decode image files
    # keywords with a default that nobody chose: `setup` fits batch_size and heldout to few images
    free: frozenset[str] = frozenset()

    def __init__(
        self,
        *,
        batch_size: int = 64,
        eval_batch_size: int = 128,
        image_size: int = 64,
        seed: int = 0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        heldout: int | None = None,
        max_labels: int | None = None,
        pretrain_size: int | None = None,
        near_duplicates: Literal["ignore", "report", "drop"] = "ignore",
    ) -> None:
        super().__init__(batch_size, eval_batch_size, seed)
        positive = {
            "batch_size": batch_size,
            "eval_batch_size": eval_batch_size,
            "image_size": image_size,
            "max_labels": max_labels,
            "pretrain_size": pretrain_size,
        }
        for key, value in positive.items():
            if value is not None and value < 1:
                raise ValueError(f"data.{key} is {value}; it must be at least 1")
        if heldout is not None and heldout < 0:
            raise ValueError(f"data.heldout is {heldout}; it must be at least 0")
        if (mean is None) != (std is None):
            raise ValueError("data.mean and data.std must both be given, or both be null")
        self.image_size = image_size
        self.heldout = heldout
        self.max_labels = max_labels
        self.pretrain_size = pretrain_size
        self.near_duplicates = check_action(near_duplicates)
        self.duplicates_found: list[NearDuplicate] = []  # by `setup`, unless it ignores them
        self._mean = None if mean is None else tuple(float(value) for value in mean)
        self._std = None if std is None else tuple(float(value) for value in std)

    def fetch(self) -> None:
        """Download what `load` needs; must be safe to call often and from any number of processes."""

    def load(self) -> Pairing:
        """Return the images; called once in each process."""
        raise NotImplementedError

    def prepare_data(self) -> None:
        """Fetch the data; safe to repeat and to call in every process."""
        self.fetch()

    def setup(self, stage: str | None = None) -> None:
        """Load the images and draw the splits, once."""
        if self._pairing is not None:
            return
        pairing = self.load()
        check_classes(pairing, self.name, self.targets)
        self._splits = draw_splits(
            pairing,
            self.name,
            heldout=self.heldout,
            max_labels=self.max_labels,
            pretrain_size=self.pretrain_size,
            free=self.free,
        )
        self._pairing = pairing
        if self.near_duplicates != "ignore":
            self._search_duplicates()
        images = len(self._splits.pretrain)
        self.batch_size = fitting_batch(self.batch_size, images, self.name, self.free)
        # a task must not learn the labels of images that are tested in a fold
        labelled = not self.test_folds and bool((pairing.pretrain.labels[self._splits.pretrain] >= 0).all())
        mean, std = self._statistics()
        names = pairing.class_names
        self._spec = ImageSpec(
            self.channels, self.image_size, mean, std, names, pretrain_labels=labelled and names is not None
        )

    def _search_duplicates(self) -> None:
        """Find near-duplicates, say how many there are, and leave them out of pretraining if asked to."""
        loaders = {"pretrain": self.unlabelled()}
        if self.has_downstream:
            compared = SPLITS[1:] if self.test_folds else SPLITS  # with folds, all labelled images are tested
            loaders |= {split: self.downstream(split) for split in compared}
        else:
            loaders["heldout"] = self.val_dataloader()
        self.duplicates_found = find_near_duplicates(loaders)
        drops = self.near_duplicates == "drop"
        tell_near_duplicates(self.duplicates_found, drops)
        if not drops:
            return
        pretrain, overlap = self._splits.pretrain, self._loaded.overlap
        found = {
            split: torch.tensor([each.place for each in self.duplicates_found if each.split == split]).long()
            for split in ("pretrain", "train")
        }
        dropped = pretrain[found["pretrain"]]
        if overlap is not None:  # views of other shapes differ too much to be found
            dropped = torch.cat([dropped, overlap[self._splits.train[found["train"]]]])
        kept = torch.isin(pretrain, dropped, invert=True)
        if not kept.any():
            raise ValueError(
                f"all pretraining images of {self.name} are near-duplicates of test or held-out images; set "
                "data.near_duplicates=report"
            )
        self._splits = replace(self._splits, pretrain=pretrain[kept])

    def place(self, device: torch.device) -> None:
        """Move images to the device if the config asks for it; called once, before training.

        Raises:
            ValueError: The images do not fit.
        """

    def check_sample(self, images: Tensor) -> None:
        """Check a sample of the pretraining images, (n, C, H, W) uint8; see `check_contents`."""
        check_contents(images)

    def _statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        count = MEASURED if self._mean is None else CHECKED
        sample = self.train_sample(min(count, len(self._splits.pretrain)))  # (n, C, H, W)
        self.check_sample(sample)
        if self._mean is not None and self._std is not None:
            return self._mean, self._std
        values = sample.float() / 255
        mean, std = values.mean((0, 2, 3)), values.std((0, 2, 3)).clamp(min=1e-3)
        return tuple(mean.tolist()), tuple(std.tolist())


def check_channels(channels: int) -> int:
    """Return the number of channels of images.

    Raises:
        ValueError: It is not 1, 3 or 4.
    """
    if channels not in CHANNELS:
        raise ValueError(
            f"data.channels is {channels}; allowed are 1 (grey), 3 (RGB) and 4 (all as they are)"
        )
    return channels
