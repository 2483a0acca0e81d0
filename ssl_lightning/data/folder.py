"""One's own image files: a folder to pretrain on and, if there are labels, two to probe on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from ssl_lightning.data.base import PairedDataModule, Pairing
from ssl_lightning.data.io.augment import EvalView, TrainView
from ssl_lightning.data.io.download import cache_root
from ssl_lightning.data.io.folders import classes_of, usable
from ssl_lightning.data.io.sources import FileSource


class Folder(PairedDataModule):
    """Image files of any size, decoded by worker processes.

    Labelled folders hold one folder per class. Every file is decoded once before work starts, and
    what was good is remembered. Images of `pretrain_dir` that are held out or in `test_dir` are not
    pretrained on, where the folders overlap.

    Args:
        pretrain_dir: Images to pretrain on, at any depth; labels are not needed.
        train_dir: Labelled images for the probes; None for no probes.
        test_dir: Labelled images for the reported figures; needed with `train_dir`.
        root: Cache folder for the record of good files; None for the default one.
        channels: 1 for grey, 3 for RGB.
        crop_scale: Smallest and largest share of a training picture's area that is cut out.
        crop_ratio: Side of the central square that evaluation sees, over the shorter side.
        flip: Whether half of the training images are mirrored left to right.
        max_pixels: Pictures with more pixels are bad.
        max_bad: Largest fraction of bad files, in each folder, that is passed over.
        num_workers: Decoding processes for each rank; None for one per core, at most 8.
        batch_size, eval_batch_size, image_size, seed, mean, std, heldout, max_labels, pretrain_size:
            See `PairedDataModule`.

    Raises:
        ValueError: If a value is out of range, or only one of `train_dir` and `test_dir` is given.
    """

    name = "folder"
    eval_view: EvalView

    def __init__(
        self,
        *,
        pretrain_dir: str,
        train_dir: str | None = None,
        test_dir: str | None = None,
        root: str | None = None,
        batch_size: int = 64,
        eval_batch_size: int = 128,
        image_size: int = 64,
        channels: int = 3,
        seed: int = 0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        heldout: int | None = None,
        max_labels: int | None = None,
        pretrain_size: int | None = None,
        crop_scale: Sequence[float] = (0.2, 1.0),
        crop_ratio: float = 0.875,
        flip: bool = True,
        max_pixels: int = 50_000_000,
        max_bad: float = 0.01,
        num_workers: int | None = None,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            image_size=image_size,
            channels=channels,
            seed=seed,
            mean=mean,
            std=std,
            heldout=heldout,
            max_labels=max_labels,
            pretrain_size=pretrain_size,
        )
        if (train_dir is None) != (test_dir is None):
            raise ValueError(
                f"data.train_dir is {train_dir} and data.test_dir is {test_dir}; "
                "the probes need both, and without probes both are null"
            )
        if not 0 <= max_bad < 1:
            raise ValueError(f"data.max_bad is {max_bad}; allowed is a fraction from 0 to below 1")
        if max_pixels < 1 or (num_workers is not None and num_workers < 0):
            raise ValueError(
                f"data.max_pixels is {max_pixels} and data.num_workers {num_workers}; "
                "allowed are 1 pixel or more, and null or 0 workers or more"
            )
        self.pretrain_dir = Path(pretrain_dir)
        self.train_dir = None if train_dir is None else Path(train_dir)
        self.test_dir = None if test_dir is None else Path(test_dir)
        self.root = cache_root(root)
        self.train_view = TrainView(image_size, tuple(crop_scale), flip)  # type: ignore[arg-type]
        self.eval_view = EvalView(image_size, crop_ratio)
        self.max_pixels = max_pixels
        self.max_bad = max_bad
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.num_workers = min(8, cores) if num_workers is None else num_workers

    @property
    def has_downstream(self) -> bool:
        """Whether labelled folders were given."""
        return self.train_dir is not None

    def fetch(self) -> None:
        """Look for the folders, so that a wrong path is told before anything else starts."""
        for folder in (self.pretrain_dir, self.train_dir, self.test_dir):
            if folder is not None and not folder.expanduser().is_dir():
                raise FileNotFoundError(f"folder {folder} does not exist")

    def load(self) -> Pairing:
        """Find the images, leave out and report bad ones, and match the folders to each other."""
        pretrain = self._good(self.pretrain_dir)
        if self.train_dir is None or self.test_dir is None:
            return Pairing(self._source(pretrain, None))
        train, test = self._good(self.train_dir), self._good(self.test_dir)
        names, train_labels = classes_of(self.train_dir, train)
        test_names, test_labels = classes_of(self.test_dir, test)
        if names != test_names:
            raise ValueError(
                f"the classes of {self.train_dir} and {self.test_dir} differ; only in the first: "
                f"{sorted(set(names) - set(test_names))}, only in the second: "
                f"{sorted(set(test_names) - set(names))}"
            )
        if len(names) < 2:
            raise ValueError(
                f"{self.train_dir} has images of one class only, {names[0]}; 2 or more are needed"
            )
        tested = {path.resolve() for path in test}
        both = sum(path.resolve() in tested for path in train)
        if both:
            raise ValueError(
                f"{both} images are in {self.train_dir} and in {self.test_dir}; none may be in both"
            )
        unseen = [path for path in pretrain if path.resolve() not in tested]
        if len(unseen) < len(pretrain):
            rank_zero_warn(
                f"{len(pretrain) - len(unseen)} images of {self.pretrain_dir} are in {self.test_dir} "
                "and so are not pretrained on"
            )
        where = {path.resolve(): index for index, path in enumerate(unseen)}
        overlap = torch.tensor([where.get(path.resolve(), -1) for path in train])
        labels = torch.full((len(unseen),), -1)
        labels[overlap[overlap >= 0]] = torch.tensor(train_labels)[overlap >= 0]
        return Pairing(
            self._source(unseen, labels),
            self._source(train, torch.tensor(train_labels)),
            self._source(test, torch.tensor(test_labels)),
            tuple(names),
            overlap,
        )

    def _good(self, folder: Path) -> list[Path]:
        cache = self.root / "folders"
        return usable(folder, max_pixels=self.max_pixels, max_bad=self.max_bad, cache=cache)

    def _source(self, paths: list[Path], labels: Tensor | None) -> FileSource:
        return FileSource(
            paths,
            labels,
            channels=self.channels,
            train_view=self.train_view,
            eval_view=self.eval_view,
            max_pixels=self.max_pixels,
            num_workers=self.num_workers,
        )
