"""ImageNet (ILSVRC 2012) as it is unpacked: `train` and `val`, a folder for each class in both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssl_lightning.data._files import ImageFiles, check_same_classes
from ssl_lightning.data._pairing import Pairing
from ssl_lightning.data.io.folders import classes_of


class ImageNet(ImageFiles):
    """1.28 million training images in 1,000 classes; `val`, the 50,000 with public labels, is the test split.

    Anything in this layout will do. What is held out for selection is drawn from `train`.

    Args:
        dir: Holds `train/<class>/<image>` and `val/<class>/<image>`.
        one_percent: File with the names of the images whose labels are the published 1 % (SimCLR's
            `1percent.txt`: a file name a line), for fine-tuning; None draws 1 % like any other share.
        ten_percent: The same for 10 %.
        **base: The keywords of `ImageFiles`.

    Raises:
        ValueError: A value is out of range; in `setup` also: `train` and `val` have other classes, or a list
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
        """Look for the folders and lists, so that a wrong path is told before anything else starts."""
        for folder in (self.dir / "train", self.dir / "val"):
            if not folder.expanduser().is_dir():
                raise FileNotFoundError(f"folder {folder} does not exist; data.dir has train and val in it")
        for path in self.lists.values():
            if not path.is_file():
                raise FileNotFoundError(f"file {path} does not exist; it should list names of images")

    def load(self) -> Pairing:
        """Find the images and read the lists."""
        train_dir, test_dir = self.dir / "train", self.dir / "val"
        train, test = self.find(train_dir), self.find(test_dir)
        names, train_labels = classes_of(train_dir, train)
        test_names, test_labels = classes_of(test_dir, test)
        check_same_classes(train_dir, names, test_dir, test_names)
        self._listed = {fraction: listed(path, train) for fraction, path in self.lists.items()}
        images = self.source(train, torch.tensor(train_labels))
        labelled_test = self.source(test, torch.tensor(test_labels))
        return Pairing(images, images, labelled_test, tuple(names), overlap=torch.arange(len(train)))

    def labelled_indices(self, fraction: float, *, heldout: bool = False) -> Tensor:
        """Which training images a share is: of its list, if it has one, the images that may be used."""
        if fraction not in self._listed:
            return super().labelled_indices(fraction, heldout=heldout)
        chosen = self._listed[fraction]
        return chosen[torch.isin(chosen, self._labelled_pool(heldout))]


def listed(path: Path, images: list[Path]) -> Tensor:
    """Find the images that a file names, a line each.

    Returns:
        Their places in `images`, int64, sorted, each once.

    Raises:
        ValueError: The file names none, or images that are not there; says how many and names the first.
    """
    names = [Path(line.strip()).name for line in path.read_text().splitlines() if line.strip()]
    places = {image.name: place for place, image in enumerate(images)}
    missing = [name for name in names if name not in places]
    if missing or not names:
        first = f", such as {missing[0]}" if missing else ""
        raise ValueError(f"{path} lists {len(names)} images; {len(missing)} are not in train{first}")
    return torch.tensor(sorted({places[name] for name in names}))
