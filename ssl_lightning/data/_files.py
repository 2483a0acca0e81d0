"""What the data sets share whose images are files of any size, decoded as they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from ssl_lightning.data.base import PairedDataModule
from ssl_lightning.data.io.augment import EvalView, TrainView
from ssl_lightning.data.io.download import cache_root
from ssl_lightning.data.io.folders import scan, usable
from ssl_lightning.data.io.sources import FileSource, default_workers


class ImageFiles(PairedDataModule):
    """Image files of any size, decoded by worker processes.

    Args:
        root: Cache folder, for downloads and for the record of good files; None for the default one.
        channels: 1 for grey, 3 for RGB.
        crop_scale: Smallest and largest share of a training picture's area that is cut out.
        crop_ratio: Side of the central square that evaluation sees, over the shorter side.
        flip: Whether half of the training images are mirrored left to right.
        max_pixels: Pictures with more pixels are bad.
        max_bad: Largest fraction of bad files, in each folder, that is passed over.
        verify: Decode every file once before work starts; what was good is remembered.
        num_workers: Decoding processes for each rank; None for one per core, at most 8.
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
        if max_pixels < 1 or (num_workers is not None and num_workers < 0):
            raise ValueError(
                f"data.max_pixels is {max_pixels} and data.num_workers {num_workers}; "
                "allowed are 1 pixel or more, and null or 0 workers or more"
            )
        self.root = cache_root(root)
        self.train_view = TrainView(image_size, tuple(crop_scale), flip)  # type: ignore[arg-type]
        self.eval_view = EvalView(image_size, crop_ratio)
        self.max_pixels = max_pixels
        self.max_bad = max_bad
        self.verify = verify
        self.num_workers = default_workers() if num_workers is None else num_workers

    def find(self, folder: Path) -> list[Path]:
        """Return the images under a folder, at any depth; without the bad ones if files are verified."""
        if not self.verify:
            return scan(folder)
        cache = self.root / "folders"
        return usable(folder, max_pixels=self.max_pixels, max_bad=self.max_bad, cache=cache)

    def source(self, paths: Sequence[Path], labels: Tensor | None) -> FileSource:
        """Make a source of files, with labels (N,) or (N, K) or none."""
        return FileSource(
            paths,
            labels,
            channels=self.channels,
            train_view=self.train_view,
            eval_view=self.eval_view,
            max_pixels=self.max_pixels,
            num_workers=self.num_workers,
        )


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
