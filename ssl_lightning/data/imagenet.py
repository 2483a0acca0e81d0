"""ImageNet (ILSVRC 2012), unpacked: `train` and `val`, each with a folder per class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssl_lightning.core.untrusted import check_folder
from ssl_lightning.data._files import ImageFiles, check_same_classes
from ssl_lightning.data._pairing import Pairing
from ssl_lightning.data.io.scan import classes_of


class ImageNet(ImageFiles):
    """1.28 million training images in 1,000 classes, or any data set in this layout.

    `val`, with 50,000 images and public labels, is the test split. The held-out images are drawn from
    `train`.

    Args:
        dir: Folder with `train/<class>/<image>` and `val/<class>/<image>`.
        one_percent: List of the images in the published 1 % of labels (SimCLR's `1percent.txt`, one file
            name a line), for fine-tuning; None draws 1 % like any other share.
        ten_percent: The same for 10 %.
        **base: The keywords of `ImageFiles`.

    Raises:
        ValueError: A value is out of range. In `setup`: `train` and `val` have different classes, or a list
            names an image that is not in `train`.
    """

    name = "imagenet"

    def __init__(
        self, *, dir: str, one_percent: str | None = None, ten_percent: str | None = None, **base: Any
    ) -> None:
        super().__init__(**base)
        self.dir = Path(dir)
        given = {0.01: one_percent, 0.1: ten_percent}
        self.lists = {
            fraction: Path(path).expanduser() for fraction, path in given.items() if path is not None
        }
        self._listed: dict[float, Tensor] = {}

    def fetch(self) -> None:
        """Check that the folders and lists exist, so that a wrong path fails early."""
        for folder in (self.dir / "train", self.dir / "val"):
            check_folder(folder, "; data.dir must hold train and val")
        for path in self.lists.values():
            if not path.is_file():
                raise FileNotFoundError(f"file {path} does not exist; it must list one image name a line")

    def load(self) -> Pairing:
        """Find the images and read the lists."""
        train_dir, test_dir = self.dir / "train", self.dir / "val"
        train, test = self.find(train_dir), self.find(test_dir)
        names, train_labels = classes_of(train_dir, train)
        test_names, test_labels = classes_of(test_dir, test)
        check_same_classes(train_dir, names, test_dir, test_names)
        self._listed = {fraction: read_image_list(path, train) for fraction, path in self.lists.items()}
        images = self.source(train, train_labels)
        labelled_test = self.source(test, test_labels)
        return Pairing(images, images, labelled_test, tuple(names), overlap=torch.arange(len(train)))

    def labelled_indices(self, fraction: float, *, heldout: bool = False) -> Tensor:
        """Return the training images of a share; if it has a list, the listed images that may be used."""
        if fraction not in self._listed:
            return super().labelled_indices(fraction, heldout=heldout)
        chosen = self._listed[fraction]
        return chosen[torch.isin(chosen, self._labelled_pool(heldout))]


def read_image_list(path: Path, images: Sequence[str]) -> Tensor:
    """Find the images that a file lists, one name a line.

    Returns:
        Indices into `images`, int64, sorted, without duplicates.

    Raises:
        ValueError: The list is empty, or names images that do not exist; gives their number and the first.
    """
    names = [Path(line.strip()).name for line in path.read_text().splitlines() if line.strip()]
    places = {os.path.basename(image): place for place, image in enumerate(images)}
    missing = [name for name in names if name not in places]
    if missing or not names:
        first = f", such as {missing[0]}" if missing else ""
        raise ValueError(f"{path} lists {len(names)} images; {len(missing)} are not in train{first}")
    return torch.tensor(sorted({places[name] for name in names}))
