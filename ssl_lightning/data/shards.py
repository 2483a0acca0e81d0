"""Images packed into shards, for data that exceed memory, lie on slow storage, or are many files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning.utilities import rank_zero_warn

from ssl_lightning.core.untrusted import check_folder
from ssl_lightning.data._files import check_both, check_same_classes
from ssl_lightning.data._pairing import Pairing
from ssl_lightning.data._pictures import Pictures
from ssl_lightning.data.io.overlap import first_copies
from ssl_lightning.data.io.shard_index import ShardIndex, read_index
from ssl_lightning.data.io.shards import ShardSource


class Shards(Pictures):
    """Folders written by `python -m ssl_lightning.data.pack`, decoded by worker processes.

    Each epoch visits the shards in a new order and mixes the images of `window` of them. Copies are found by
    content: pretraining leaves out images that are held out or in `test_dir`, and the probes do not train
    on images of `test_dir`. `train_dir` may be `pretrain_dir`.

    Args:
        pretrain_dir: Shards to pretrain on, without labels.
        train_dir: Shards packed with labels for the probes; None for no probes.
        test_dir: Shards packed with labels for the reported figures; needed with `train_dir`.
        window: Shards whose images are mixed. Memory should have room for twice as many.
        read_ahead: Read the next window from front to back while training on this one. The disk is then
            read in order; otherwise it is read one picture at a time.
        **base: The keywords of `Pictures`. A folder with a picture above `max_pixels` raises an error.

    Raises:
        ValueError: A value is out of range, or only one of `train_dir` and `test_dir` is given. In `setup`:
            the labelled folders do not match.
        ShardError: In `setup`: a folder is incomplete; names the file.
    """

    name = "shards"

    def __init__(
        self,
        *,
        pretrain_dir: str,
        train_dir: str | None = None,
        test_dir: str | None = None,
        window: int = 16,
        read_ahead: bool = True,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        check_both(train_dir, test_dir)
        if window < 1:
            raise ValueError(f"data.window is {window}; allowed is at least 1 shard")
        self.pretrain_dir = Path(pretrain_dir).expanduser()
        self.train_dir = None if train_dir is None else Path(train_dir).expanduser()
        self.test_dir = None if test_dir is None else Path(test_dir).expanduser()
        self.window = window
        self.read_ahead = read_ahead

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
        """Read the indexes, and match the folders by the content of their images."""
        pretrain = self._index(self.pretrain_dir)
        if self.train_dir is None or self.test_dir is None:
            return Pairing(self._source(pretrain))
        train, test = self._index(self.train_dir), self._index(self.test_dir)
        check_labelled(train, test)
        same = train.digest == pretrain.digest
        train_source = self._source(train, drop_copies(train, test, "training"))
        pretrain_source = (
            train_source if same else self._source(pretrain, drop_copies(pretrain, test, "pretraining"))
        )
        overlap = torch.arange(len(train_source)) if same else find_copies(train_source, pretrain_source)
        if not same:  # replaces labels of pretrain_dir, whose classes may differ
            known = overlap >= 0
            labels = torch.full((len(pretrain_source),), -1)
            labels[overlap[known]] = train_source.labels[known]
            pretrain_source.labels = labels
        copies = first_copies(pretrain_source.rows["digest"])
        return Pairing(pretrain_source, train_source, self._source(test), train.class_names, overlap, copies)

    def _index(self, folder: Path) -> ShardIndex:
        index = read_index(folder)
        if index.largest > self.max_pixels:
            raise ValueError(
                f"data.max_pixels is {self.max_pixels}, and a picture in {folder} has {index.largest}; set "
                f"data.max_pixels={index.largest}, or pack the folder again with a lower --max-pixels"
            )
        return index

    def _source(self, index: ShardIndex, keep: np.ndarray | None = None) -> ShardSource:
        source = ShardSource(index, keep, window=self.window, read_ahead=self.read_ahead, **self.decoding)
        source.check_sample()
        return source


def check_labelled(train: ShardIndex, test: ShardIndex) -> None:
    """Check that both folders of the probes have labels, of the same classes.

    Raises:
        ValueError: A folder has no labels, or the classes differ; names them.
    """
    for index in (train, test):
        if index.class_names is None:
            raise ValueError(
                f"{index.folder} was packed without labels, which the probes need; pack it with --labels"
            )
    assert train.class_names is not None
    assert test.class_names is not None
    check_same_classes(train.folder, list(train.class_names), test.folder, list(test.class_names))


def drop_copies(index: ShardIndex, test: ShardIndex, purpose: str) -> np.ndarray | None:
    """Find the images that are not copies of test images; a warning gives the number of copies.

    Returns:
        Rows of the table, int64; None for all.

    Raises:
        ValueError: All images are copies.
    """
    copies = np.isin(index.table["digest"], test.table["digest"])
    if copies.all():
        raise ValueError(
            f"all images of {index.folder} are test images in {test.folder}; "
            "an image may be in one split only"
        )
    if not copies.any():
        return None
    rank_zero_warn(
        f"{copies.sum()} {purpose} images in {index.folder} are test images in {test.folder}; "
        f"{purpose} leaves them out"
    )
    return np.flatnonzero(~copies)


def find_copies(train: ShardSource, pretrain: ShardSource) -> torch.Tensor:
    """Return the index in `pretrain` of each image of `train`, (N,) int64; -1 if it has no copy there."""
    digests = np.asarray(pretrain.rows["digest"])
    order = digests.argsort(kind="stable")
    wanted = train.rows["digest"]
    found = order[np.searchsorted(digests, wanted, sorter=order).clip(max=len(order) - 1)]
    return torch.from_numpy(np.where(digests[found] == wanted, found, -1))
