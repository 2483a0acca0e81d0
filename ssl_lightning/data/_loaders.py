"""Batches of a data set: to pretrain on, for validation, for the probes, and fixed draws."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Self

import pytorch_lightning as pl
import torch
from torch import Tensor

from ssl_lightning.core.cache import cache_root
from ssl_lightning.core.image_spec import ImageSpec
from ssl_lightning.core.seeding import generator
from ssl_lightning.data._pairing import SPLITS, Pairing, Splits, heldout_pool
from ssl_lightning.data.io.augment import EvalView
from ssl_lightning.data.io.folders import MAX_PIXELS, usable_images
from ssl_lightning.data.io.loader import BatchLoader
from ssl_lightning.data.io.sources import FileSource, ImageSource
from ssl_lightning.data.io.splits import stratified

# Arguments of Lightning's Trainer that do not work with `BatchLoader`, and what to use instead
UNFIT = {
    "overfit_batches": "use data.pretrain_size=64 to train on few images",
    "reload_dataloaders_every_n_epochs": "leave it out: the loader draws a new order in every epoch",
}


class ImageLoaders(pl.LightningDataModule):
    """The loaders of a data set, whose subclass loads the images and draws the splits in `setup`.

    Args:
        batch_size: Images of a pretraining batch, over all processes.
        eval_batch_size: Images of a batch elsewhere, over all processes.
        seed: Seed of the order and the augmentation of the pretraining images.
    """

    # set by `PairedDataModule` and its subclasses
    name: str
    channels: int
    value_range: tuple[float, float] | None
    targets: str
    eval_view: EvalView | None
    num_workers: int
    image_size: int

    def __init__(self, batch_size: int, eval_batch_size: int, seed: int) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.seed = seed
        self._pairing: Pairing | None = None
        self._splits: Splits
        self._spec: ImageSpec | None = None
        self._train_loader: BatchLoader | None = None
        self._resumed: dict[str, Any] = {}

    def setup(self, stage: str | None = None) -> None:
        """Load the images and draw the splits, once."""
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

    def train_dataloader(self) -> BatchLoader:
        """Return pretraining batches: shuffled, augmented and resumable, without an incomplete last one.

        Raises:
            ValueError: The Trainer wants another sampler, or a new loader in every epoch.
        """
        for option, instead in UNFIT.items():
            if self.trainer is not None and (value := getattr(self.trainer, option)):
                what = f"Trainer({option}={value}) does not work with {type(self).__name__}"
                raise ValueError(f"{what}; {instead}")
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
