"""Folders of your own images: one to pretrain on and, with labels, two to probe on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssl_lightning.core.untrusted import check_folder
from ssl_lightning.data._files import ImageFiles, check_same_classes
from ssl_lightning.data._pairing import Pairing
from ssl_lightning.data.io.file_list import FileList
from ssl_lightning.data.io.overlap import match
from ssl_lightning.data.io.scan import classes_of
from ssl_lightning.data.io.splits import FOLDS, complement, stratified

ENOUGH = 500  # test images: the standard error of an accuracy is at most 2.2 %


class Folder(ImageFiles):
    """Image files of any size, decoded by worker processes.

    Labelled folders hold one folder per class. Every file is decoded once before work starts, and the cache
    records the good ones. The folders may overlap: pretraining leaves out images that are held out or tested.

    With `train_dir` alone, a fixed fifth of its images is the test if that is at least 500. Fewer images are
    cross-validated: each fifth is the test of classifiers that are fitted to the others. Pretraining then may
    see the tested images, without their labels.

    Args:
        pretrain_dir: Images to pretrain on, at any depth, without labels.
        train_dir: Labelled images for the probes; None for no probes.
        test_dir: Labelled images for the reported figures; None to test on images of `train_dir`.
        **base: The keywords of `ImageFiles`.

    Raises:
        ValueError: A value is out of range, or `test_dir` is given without `train_dir`.
    """

    name = "folder"

    def __init__(
        self, *, pretrain_dir: str, train_dir: str | None = None, test_dir: str | None = None, **base: Any
    ) -> None:
        super().__init__(**base)
        if train_dir is None and test_dir is not None:
            raise ValueError(
                f"data.test_dir is {test_dir} and data.train_dir is null; the probes need data.train_dir, "
                "which may be given alone"
            )
        self.pretrain_dir = Path(pretrain_dir)
        self.train_dir = None if train_dir is None else Path(train_dir)
        self.test_dir = None if test_dir is None else Path(test_dir)

    @property
    def has_downstream(self) -> bool:
        """Whether labelled folders were given."""
        return self.train_dir is not None

    def fetch(self) -> None:
        """Check that the folders exist, so that a wrong path fails early."""
        for key in ("pretrain_dir", "train_dir", "test_dir"):
            if (folder := getattr(self, key)) is not None:
                check_folder(folder, f"; data.{key} is this folder")

    def load(self) -> Pairing:
        """Find the images, skip bad ones with a warning, and match the folders."""
        pretrain = self.find(self.pretrain_dir)
        if self.train_dir is None:
            return Pairing(self.source(pretrain, None))
        train = self.find(self.train_dir)
        names, train_labels = classes_of(self.train_dir, train)
        if self.test_dir is None:
            check_cross_validation(self.train_dir, names, train_labels)
            train, train_labels, test, test_labels = hold_out_test(train, train_labels)
        else:
            test = self.find(self.test_dir)
            test_names, test_labels = classes_of(self.test_dir, test)
            check_same_classes(self.train_dir, names, self.test_dir, test_names)
        unseen, overlap, copies = match(pretrain, train, test, self.test_dir or self.train_dir)
        labels = torch.full((len(unseen),), -1)
        labels[overlap[overlap >= 0]] = train_labels[overlap >= 0]
        return Pairing(
            self.source(unseen, labels),
            self.source(train, train_labels),
            self.source(test, test_labels) if len(test) else None,
            tuple(names),
            overlap,
            copies,
        )


def hold_out_test(files: FileList, labels: Tensor) -> tuple[FileList, Tensor, FileList, Tensor]:
    """Return training files and labels, then a fixed fifth as test; no test if it is below `ENOUGH`."""
    count = len(files) // FOLDS
    tested = stratified(labels, count if count >= ENOUGH else 0, "test")
    rest = complement(tested, len(files))
    return files.take(rest.numpy()), labels[rest], files.take(tested.numpy()), labels[tested]


def check_cross_validation(folder: Path, names: list[str], labels: Tensor) -> None:
    """Raise ValueError if a class has fewer images than there are folds, or there is one class only."""
    if len(names) < 2:
        raise ValueError(f"{folder} has images of one class only, {names[0]}; at least 2 are needed")
    sizes = labels.bincount().tolist()
    rarest = sizes.index(min(sizes))
    if sizes[rarest] < FOLDS:
        count = f"{sizes[rarest]} image{'s' * (sizes[rarest] != 1)}"
        raise ValueError(
            f"class {names[rarest]} of {folder} has {count}; without data.test_dir the "
            f"figures are cross-validated in {FOLDS} folds, which needs {FOLDS} images of each class; "
            "add images, or give data.test_dir"
        )
