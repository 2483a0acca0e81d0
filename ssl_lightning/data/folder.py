"""Folders of your own images: one to pretrain on and, with labels, two to probe on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ssl_lightning.core.untrusted import check_folder
from ssl_lightning.data._files import ImageFiles, check_both, check_same_classes, match
from ssl_lightning.data._pairing import Pairing
from ssl_lightning.data.io.scan import classes_of


class Folder(ImageFiles):
    """Image files of any size, decoded by worker processes.

    Labelled folders hold one folder per class. Every file is decoded once before work starts, and the cache
    records the good ones. The folders may overlap: pretraining leaves out images that are held out or in
    `test_dir`.

    Args:
        pretrain_dir: Images to pretrain on, at any depth, without labels.
        train_dir: Labelled images for the probes; None for no probes.
        test_dir: Labelled images for the reported figures; needed with `train_dir`.
        **base: The keywords of `ImageFiles`.

    Raises:
        ValueError: A value is out of range, or only one of `train_dir` and `test_dir` is given.
    """

    name = "folder"

    def __init__(
        self, *, pretrain_dir: str, train_dir: str | None = None, test_dir: str | None = None, **base: Any
    ) -> None:
        super().__init__(**base)
        check_both(train_dir, test_dir)
        self.pretrain_dir = Path(pretrain_dir)
        self.train_dir = None if train_dir is None else Path(train_dir)
        self.test_dir = None if test_dir is None else Path(test_dir)

    @property
    def has_downstream(self) -> bool:
        """Whether labelled folders were given."""
        return self.train_dir is not None

    def fetch(self) -> None:
        """Check that the folders exist, so that a wrong path fails early."""
        for folder in (self.pretrain_dir, self.train_dir, self.test_dir):
            if folder is not None:
                check_folder(folder)

    def load(self) -> Pairing:
        """Find the images, skip bad ones with a warning, and match the folders."""
        pretrain = self.find(self.pretrain_dir)
        if self.train_dir is None or self.test_dir is None:
            return Pairing(self.source(pretrain, None))
        train, test = self.find(self.train_dir), self.find(self.test_dir)
        names, train_labels = classes_of(self.train_dir, train)
        test_names, test_labels = classes_of(self.test_dir, test)
        check_same_classes(self.train_dir, names, self.test_dir, test_names)
        unseen, overlap = match(pretrain, train, test, self.test_dir)
        labels = torch.full((len(unseen),), -1)
        labels[overlap[overlap >= 0]] = train_labels[overlap >= 0]
        return Pairing(
            self.source(unseen, labels),
            self.source(train, train_labels),
            self.source(test, test_labels),
            tuple(names),
            overlap,
        )
