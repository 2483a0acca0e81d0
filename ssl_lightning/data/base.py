"""Base class of data sets: splits, loaders, and the image spec."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

import pytorch_lightning as pl
import torch
from torch import Tensor

from ssl_lightning.core.cache import cache_root
from ssl_lightning.core.image_spec import CHANNELS, ImageSpec
from ssl_lightning.core.seeding import generator
from ssl_lightning.data._near_duplicates import (
    NearDuplicate,
    check_action,
    find_near_duplicates,
    tell_near_duplicates,
)
from ssl_lightning.data._pairing import Pairing, Splits, draw_splits, fitting_batch, heldout_pool
from ssl_lightning.data.io.augment import EvalView
from ssl_lightning.data.io.contents import check_contents
from ssl_lightning.data.io.folders import usable_images
from ssl_lightning.data.io.loader import BatchLoader
from ssl_lightning.data.io.sources import FileSource, ImageSource
from ssl_lightning.data.io.splits import stratified

SPLITS = ("train", "heldout", "test")
MAX_PIXELS = 50_000_000  # default limit of a picture
MEASURED = 256  # images that mean and std are measured on
CHECKED = 64  # images that are checked if these are given


class PairedDataModule(pl.LightningDataModule):
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
        super().__init__()
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
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.image_size = image_size
        self.seed = seed
        self.heldout = heldout
        self.max_labels = max_labels
        self.pretrain_size = pretrain_size
        self.near_duplicates = check_action(near_duplicates)
        self.duplicates_found: list[NearDuplicate] = []  # by `setup`, unless it ignores them
        self._mean = None if mean is None else tuple(float(value) for value in mean)
        self._std = None if std is None else tuple(float(value) for value in std)
        self._pairing: Pairing | None = None
        self._splits: Splits
        self._spec: ImageSpec | None = None
        self._train_loader: BatchLoader | None = None
        self._resumed: dict[str, Any] = {}

    def fetch(self) -> None:
        """Download what `load` needs; must be safe to call often and from any number of processes."""

    def load(self) -> Pairing:
        """Return the images; called once in each process."""
        raise NotImplementedError

    @property
    def has_downstream(self) -> bool:
        """Whether there are labelled splits; known before `setup`."""
        return True

    @property
    def holds_out(self) -> bool:
        """Whether there are held-out images, once `setup` has run."""
        return len(self._splits.val) > 0

    @property
    def spec(self) -> ImageSpec:
        """Shape and statistics of the images, once `setup` has run."""
        if self._spec is None:
            raise RuntimeError(f"call setup() of data {self.name} before asking for its spec")
        return self._spec

    def prepare_data(self) -> None:
        """Fetch the data; safe to repeat and to call in every process."""
        self.fetch()

    def setup(self, stage: str | None = None) -> None:
        """Load the images and draw the splits, once."""
        if self._pairing is not None:
            return
        pairing = self.load()
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
        labelled = bool((pairing.pretrain.labels[self._splits.pretrain] >= 0).all())
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
        kept = torch.ones(len(self._splits.pretrain), dtype=torch.bool)
        kept[[each.place for each in self.duplicates_found if drops and each.split == "pretrain"]] = False
        if not kept.any():
            raise ValueError(
                f"all pretraining images of {self.name} are near-duplicates of test or held-out images; set "
                "data.near_duplicates=report"
            )
        self._splits = replace(self._splits, pretrain=self._splits.pretrain[kept])

    def place(self, device: torch.device) -> None:
        """Move images to the device if the config asks for it; called once, before training.

        Raises:
            ValueError: The images do not fit.
        """

    def train_dataloader(self) -> BatchLoader:
        """Return pretraining batches: shuffled, augmented and resumable, without an incomplete last one."""
        loader = self._loader(
            self._loaded.pretrain, self._splits.pretrain, self.batch_size, "pretrain", shuffle=True
        )
        loader.load_state_dict(self._resumed)
        self._train_loader = loader
        return loader

    @property
    def pretrain_images(self) -> int:
        """Number of images of an epoch."""
        return len(self._splits.pretrain)

    @property
    def pretrain_batches(self) -> int:
        """Number of batches of an epoch."""
        return len(self._splits.pretrain) // self.batch_size

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the pretraining images, for the checkpoint.

        Lightning saves the state of the loader too, but does not restore it from a checkpoint written at the
        end of an epoch.
        """
        return {} if self._train_loader is None else self._train_loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume the pretraining images from a saved position."""
        self._resumed = state_dict
        if self._train_loader is not None:
            self._train_loader.load_state_dict(state_dict)

    def val_dataloader(self) -> BatchLoader:
        """Return the held-out images for the pretext's validation, not augmented; may be empty."""
        return self._loader(heldout_pool(self._loaded), self._splits.val, self.eval_batch_size, "val")

    def downstream(self, split: str, batch_size: int | None = None) -> BatchLoader:
        """Return labelled batches for the probes, in a fixed order, not augmented.

        Args:
            split: `train`, `heldout` (for every selection) or `test` (for the reported figure only). If
                figures are cross-validated, `test` is all labelled images; see `test_folds`.
            batch_size: Over all processes; None for `eval_batch_size`.

        Raises:
            ValueError: The split is unknown, or there are no labels.
        """
        if split not in SPLITS:
            raise ValueError(f"split is {split!r}; allowed are {', '.join(SPLITS)}")
        pairing = self._loaded
        if pairing.train is None:
            raise ValueError(f"data {self.name} has no labelled images, so there is no {split} split")
        source, splits = pairing.train, self._splits
        if split != "test":
            indices = splits.train if split == "train" else splits.heldout
        elif pairing.test is not None:
            source, indices = pairing.test, torch.arange(len(pairing.test))
        else:
            indices = self._labelled_pool(heldout=True) if splits.test is None else splits.test
        return self._loader(source, indices, batch_size or self.eval_batch_size, split)

    @property
    def test_folds(self) -> list[Self]:
        """The data with each fifth of the labelled images as test images; empty if there are test images."""
        pairing = self._loaded
        if pairing.train is None or pairing.test is not None or self._splits.test is not None:
            return []
        folds = []
        for splits in self._splits.folds(pairing.train.labels):
            folds.append(copy.copy(self))
            folds[-1]._splits = splits
        return folds

    @property
    def label_counts(self) -> dict[str, int]:
        """Number of labelled images of each split, and `rarest`: training images of the smallest class.

        Empty without labels; without `rarest` for masks and boxes. If figures are cross-validated, the
        smallest numbers of a fold.
        """
        if not self.has_downstream:
            return {}
        if folds := [fold.label_counts for fold in self.test_folds]:
            return {key: min(fold[key] for fold in folds) for key in folds[0]}
        counts = {split: len(self.downstream(split).indices) for split in SPLITS}
        if self.targets in ("classes", "multilabel"):
            assert self._loaded.train is not None
            labels = self._loaded.train.labels[self._splits.train]
            classes = len(self.spec.class_names or ())
            per_class = labels.bincount(minlength=classes) if labels.ndim == 1 else (labels == 1).sum(0)
            counts["rarest"] = int(per_class.min())
        return counts

    def labelled(
        self, fraction: float, batch_size: int, *, augment: bool = True, heldout: bool = False
    ) -> BatchLoader:
        """Return shuffled batches of labelled training images, to train a classifier on.

        Args:
            fraction: Share of the images, in (0, 1]: a fixed draw, stratified by class.
            batch_size: Over all processes; reduced if the share has fewer images.
            augment: Whether images are augmented as for pretraining.
            heldout: Whether to train on the held-out images too.

        Raises:
            ValueError: The share has fewer images than there are processes.
        """
        indices = self.labelled_indices(fraction, heldout=heldout)
        processes = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        batch_size = min(batch_size, len(indices)) // processes * processes
        if batch_size == 0:
            raise ValueError(
                f"a fraction {fraction:g} of the labelled training images of {self.name} is {len(indices)} "
                f"images; {processes} processes need at least one each"
            )
        assert self._loaded.train is not None
        name = f"labelled {fraction:g}"
        return self._loader(self._loaded.train, indices, batch_size, name, shuffle=True, augment=augment)

    def labelled_indices(self, fraction: float, *, heldout: bool = False) -> Tensor:
        """Return the share as indices into `Pairing.train`, int64, sorted; see `labelled`."""
        source, allowed = self._loaded.train, self._labelled_pool(heldout)
        assert source is not None
        return allowed[stratified(source.labels[allowed], round(fraction * len(allowed)), "fraction")]

    def _labelled_pool(self, heldout: bool) -> Tensor:
        """Return the indices of the `train` split, with or without the held-out images, sorted."""
        train = self._splits.train
        return torch.cat([train, self._splits.heldout]).sort().values if heldout else train

    def unlabelled(self, count: int | None = None) -> BatchLoader:
        """Return pretraining images in a fixed order, not augmented.

        Args:
            count: Size of a fixed draw; None, or more than there are, for all.
        """
        return self._loader(self._loaded.pretrain, self._fixed_draw(count), self.eval_batch_size, "pretrain")

    def augmented(self, count: int, view: str) -> BatchLoader:
        """Return the images of `unlabelled`, augmented as for training, the same in every run.

        Args:
            count: Size of the fixed draw.
            view: Name of the random stream; each name gives other views.
        """
        source, indices = self._loaded.pretrain, self._fixed_draw(count)
        return self._loader(source, indices, self.eval_batch_size, view, augment=True, seed=0)

    def _fixed_draw(self, count: int | None) -> Tensor:
        """Return pretraining images as sorted indices, the same in every run; all if there are no more."""
        indices = self._splits.pretrain
        if count is None or count >= len(indices):
            return indices
        order = torch.randperm(len(indices), generator=generator("fixed", "unlabelled"))
        return indices[order[:count].sort().values]

    def images_in(self, folder: str) -> BatchLoader:
        """Return the central square of each image file in any folder, at any depth, resized.

        Files that cannot be decoded are skipped with a warning.

        Raises:
            FileNotFoundError: The folder does not exist, or holds no image.
            BadImagesError: More than a tenth of the files cannot be decoded.
        """
        path = Path(folder).expanduser()
        cache = cache_root(getattr(self, "root", None)) / "folders"
        pixels: dict[str, Any] = {"channels": self.channels, "value_range": self.value_range}
        files = usable_images(path, max_pixels=MAX_PIXELS, max_bad=0.1, cache=cache, **pixels)
        source = FileSource(
            files,
            None,
            **pixels,
            train_view=None,
            eval_view=self.eval_view or EvalView(self.image_size, 1.0),
            max_pixels=MAX_PIXELS,
            num_workers=self.num_workers,
        )
        return self._loader(source, torch.arange(len(files)), self.eval_batch_size, path.name)

    def train_sample(self, n: int) -> Tensor:
        """Return the same n pretraining images (n, C, H, W) uint8 in every run, for figures.

        Raises:
            ValueError: n is below 1 or above the number of images.
        """
        source = self._loaded.pretrain
        if not 1 <= n <= len(self._splits.pretrain):
            raise ValueError(f"{n} images were requested; allowed are 1 to {len(self._splits.pretrain)}")
        order = torch.randperm(len(self._splits.pretrain), generator=generator("fixed", "sample"))[:n]
        (batch,) = BatchLoader(source, self._splits.pretrain[order], n, seed=0, shuffle=False, name="sample")
        return batch[0].cpu()

    @property
    def _loaded(self) -> Pairing:
        if self._pairing is None:
            self.setup()
        assert self._pairing is not None
        return self._pairing

    def _loader(
        self,
        source: ImageSource,
        indices: Tensor,
        batch_size: int,
        name: str,
        shuffle: bool = False,
        augment: bool | None = None,
        seed: int | None = None,
    ) -> BatchLoader:
        rank, world_size = 0, 1
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        return BatchLoader(
            source,
            indices,
            batch_size,
            seed=self.seed if seed is None else seed,
            shuffle=shuffle,
            augment=shuffle if augment is None else augment,
            drop_last=shuffle,
            rank=rank,
            world_size=world_size,
            name=name,
        )

    def _statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        count = MEASURED if self._mean is None else CHECKED
        sample = self.train_sample(min(count, len(self._splits.pretrain)))  # (n, C, H, W)
        check_contents(sample)
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
