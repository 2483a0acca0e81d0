"""What the data sets share whose images are files of any size, decoded as they are needed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from ssl_lightning.core.cache import cache_root
from ssl_lightning.data.base import PairedDataModule
from ssl_lightning.data.io.augment import EvalView, TrainView
from ssl_lightning.data.io.folders import scan, usable
from ssl_lightning.data.io.packed import PackedSource
from ssl_lightning.data.io.sources import FileSource, default_workers


class ImageFiles(PairedDataModule):
    """Image files of any size, decoded by worker processes.

    Args:
        root: Cache folder, for downloads, the record of good files and packs; None for the default one.
        channels: 1 for grey, 3 for RGB.
        crop_scale: Smallest and largest share of a training picture's area that is cut out.
        crop_ratio: Side of the central square that evaluation sees, over the shorter side.
        flip: Whether half of the training images are mirrored left to right.
        max_pixels: Pictures with more pixels are bad.
        max_bad: Largest fraction of bad files, in each folder, that is passed over.
        verify: Decode every file once before work starts; what was good is remembered.
        num_workers: Decoding processes for each rank; None for one per core, at most 8.
        cache: Decode every picture once, into a pack below `root` (see `packed`), and cut all views from
            that. For runs of several epochs; the pixels take far more room on the disk than JPEG files.
        cache_side: Longest that the shorter side of a picture in the pack may be, in pixels; larger pictures
            are made smaller. Views of those are resized twice, and so differ a little from views of the
            file; all others are the same bit for bit. None is as much as the views need: a square picture's
            smallest training crop and its evaluation view then still have `image_size` pixels a side.
        batch_size, eval_batch_size, image_size, seed, mean, std, heldout, max_labels, pretrain_size:
            See `PairedDataModule`.

    Raises:
        ValueError: If a value is out of range.
    """

    eval_view: EvalView

    def __init__(
        self,
        *,
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
        verify: bool = True,
        num_workers: int | None = None,
        cache: bool = False,
        cache_side: int | None = None,
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
        if not 0 <= max_bad < 1:
            raise ValueError(f"data.max_bad is {max_bad}; allowed is a fraction from 0 to below 1")
        check_decoding(max_pixels, num_workers)
        if cache_side is not None and cache_side < image_size:
            raise ValueError(
                f"data.cache_side is {cache_side}; allowed are null and data.image_size {image_size} or more"
            )
        self.root = cache_root(root)
        self.train_view = TrainView(image_size, tuple(crop_scale), flip)  # type: ignore[arg-type]
        self.eval_view = EvalView(image_size, crop_ratio)
        self.max_pixels = max_pixels
        self.max_bad = max_bad
        self.verify = verify
        self.num_workers = default_workers() if num_workers is None else num_workers
        self.cache = cache
        needed = image_size / min(math.sqrt(self.train_view.scale[0]), crop_ratio)
        self.cache_side = math.ceil(needed) if cache_side is None else cache_side

    def find(self, folder: Path) -> list[Path]:
        """Return the images under a folder, at any depth; without the bad ones if files are verified."""
        if not self.verify:
            return scan(folder)
        cache = self.root / "folders"
        return usable(folder, max_pixels=self.max_pixels, max_bad=self.max_bad, cache=cache)

    def source(self, paths: Sequence[Path], labels: Tensor | None) -> FileSource:
        """Make a source of files, with labels (N,) or (N, K) or none; `cache` packs the files first."""
        options: dict[str, Any] = {
            "channels": self.channels,
            "train_view": self.train_view,
            "eval_view": self.eval_view,
            "max_pixels": self.max_pixels,
            "num_workers": self.num_workers,
        }
        if not self.cache:
            return FileSource(paths, labels, **options)
        return PackedSource(paths, labels, folder=self.root / "packed", side=self.cache_side, **options)


def match(
    pretrain: Sequence[Path], train: Sequence[Path], test: Sequence[Path], where: Path
) -> tuple[list[Path], Tensor]:
    """Find labelled images among those to pretrain on, by where a path really leads.

    Args:
        pretrain: Images to pretrain on.
        train: Labelled training images.
        test: Test images, which are not pretrained on; a warning says how many are left out.
        where: Folder of the test images, for messages.

    Returns:
        What is left to pretrain on; and the `overlap` of a `Pairing`.

    Raises:
        ValueError: An image is in `train` and in `test`.
    """
    tested = {path.resolve() for path in test}
    both = [path for path in train if path.resolve() in tested]
    if both:
        raise ValueError(
            f"{len(both)} training images are test images in {where} too, such as {both[0]}; none may be both"
        )
    unseen = [path for path in pretrain if path.resolve() not in tested]
    if len(unseen) < len(pretrain):
        rank_zero_warn(
            f"{len(pretrain) - len(unseen)} of the images to pretrain on are test images in {where} "
            "and so are not pretrained on"
        )
    places = {path.resolve(): index for index, path in enumerate(unseen)}
    return unseen, torch.tensor([places.get(path.resolve(), -1) for path in train])


def check_decoding(max_pixels: int, num_workers: int | None) -> None:
    """Raise ValueError unless pictures may have a pixel, and the number of processes is none or a number."""
    if max_pixels < 1 or (num_workers is not None and num_workers < 0):
        raise ValueError(
            f"data.max_pixels is {max_pixels} and data.num_workers {num_workers}; "
            "allowed are 1 pixel or more, and null or 0 workers or more"
        )


def check_both(train_dir: str | None, test_dir: str | None) -> None:
    """Raise ValueError where only one of the labelled folders is given."""
    if (train_dir is None) != (test_dir is None):
        raise ValueError(
            f"data.train_dir is {train_dir} and data.test_dir is {test_dir}; "
            "the probes need both, and without probes both are null"
        )


def check_same_classes(train_dir: Path, names: list[str], test_dir: Path, test_names: list[str]) -> None:
    """Refuse folders whose classes differ.

    Raises:
        ValueError: Names the classes that are in one only, or says that there is only one class.
    """
    if names != test_names:
        raise ValueError(
            f"the classes of {train_dir} and {test_dir} differ; only in the first: "
            f"{sorted(set(names) - set(test_names))}, only in the second: "
            f"{sorted(set(test_names) - set(names))}"
        )
    if len(names) < 2:
        raise ValueError(f"{train_dir} has images of one class only, {names[0]}; 2 or more are needed")
