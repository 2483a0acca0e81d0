"""Base class for data sets of image files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from ssl_lightning.core.cache import cache_root
from ssl_lightning.data._pictures import Pictures
from ssl_lightning.data.io.contents import grey_images
from ssl_lightning.data.io.file_list import FileList
from ssl_lightning.data.io.folders import SAMPLED, evenly, sample_images, usable_images
from ssl_lightning.data.io.packed import PackedSource
from ssl_lightning.data.io.scan import scan
from ssl_lightning.data.io.sources import FileSource


class ImageFiles(Pictures):
    """Image files of any size, decoded on demand.

    Args:
        root: Cache folder for downloads, records of good files, and packs; None for the default one.
        max_bad: Largest fraction of bad files that is skipped, for each folder.
        verify: Decode every file once before work starts. The cache records the good files.
        cache: Decode every picture once into a pack below `root` (see `packed`), and cut all views from the
            pack. Use it for runs of several epochs. Pixels take far more disk space than JPEG files.
        cache_side: Upper limit of the shorter side of a picture in the pack, in pixels. Larger pictures are
            shrunk; their views are resized twice and differ a little from views of the file. All other
            views are the same bit for bit. None is the size that the views need: the smallest training
            crop and the evaluation view of a square picture then have at least `image_size` pixels a side.
        **base: The keywords of `Pictures`.

    Raises:
        ValueError: A value is out of range.
    """

    def __init__(
        self,
        *,
        root: str | None = None,
        max_bad: float = 0.01,
        verify: bool = True,
        cache: bool = False,
        cache_side: int | None = None,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        if not 0 <= max_bad < 1:
            raise ValueError(f"data.max_bad is {max_bad}; allowed is a fraction from 0 to below 1")
        if cache_side is not None and cache_side < self.image_size:
            raise ValueError(
                f"data.cache_side is {cache_side}; allowed are null and data.image_size {self.image_size} "
                "or more"
            )
        self.root = cache_root(root)
        self.max_bad = max_bad
        self.verify = verify
        self.cache = cache
        needed = self.image_size / min(math.sqrt(self.train_view.scale[0]), self.eval_view.crop_ratio)
        self.cache_side = math.ceil(needed) if cache_side is None else cache_side

    def find(self, folder: Path) -> FileList:
        """Return the images under a folder, at any depth; leave out the bad ones if `verify` is on."""
        return self.usable(folder, scan(folder, stamps=self.verify or self.cache))

    def usable(self, folder: Path, files: FileList) -> FileList:
        """Return the images that can be decoded; all of them if `verify` is off."""
        pixels: dict[str, Any] = {
            "max_pixels": self.max_pixels,
            "channels": self.channels,
            "value_range": self.value_range,
        }
        if not self.verify:
            sample_images({path: path for path in evenly(files, SAMPLED)}, **pixels)
            return files
        return usable_images(folder, files, max_bad=self.max_bad, cache=self.root / "folders", **pixels)

    def check_sample(self, images: Tensor) -> None:
        """Check a sample of the pretraining images, and say so if they are grey and read as RGB."""
        super().check_sample(images)
        if self.channels == 3 and grey_images(images).all():
            rank_zero_warn(
                f"all {len(images)} sampled pretraining images are grey, and are read as RGB; "
                "data.channels=1 reads them as grey"
            )

    def source(self, files: FileList, labels: Tensor | None) -> FileSource:
        """Make a source of files with labels (N,), (N, K) or None; pack the files first if `cache` is on."""
        if not self.cache:
            return FileSource(files, labels, **self.decoding)
        where = self.root / "packed"
        return PackedSource(files, labels, folder=where, side=self.cache_side, **self.decoding)


def check_both(train_dir: str | None, test_dir: str | None) -> None:
    """Raise ValueError if only one of the labelled folders is given."""
    if (train_dir is None) != (test_dir is None):
        raise ValueError(
            f"data.train_dir is {train_dir} and data.test_dir is {test_dir}; "
            "the probes need both; without probes, set both to null"
        )


def check_same_classes(train_dir: Path, names: list[str], test_dir: Path, test_names: list[str]) -> None:
    """Check that both folders have the same classes, at least two.

    Raises:
        ValueError: A class is in one folder only (names it), or there is only one class.
    """
    if names != test_names:
        raise ValueError(
            f"the classes of {train_dir} and {test_dir} differ; only in the first: "
            f"{sorted(set(names) - set(test_names))}, only in the second: "
            f"{sorted(set(test_names) - set(names))}"
        )
    if len(names) < 2:
        raise ValueError(f"{train_dir} has images of one class only, {names[0]}; at least 2 are needed")
