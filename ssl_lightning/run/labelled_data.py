"""Labelled images of any kind as a data module, for a call of `probe`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from ssl_lightning.data.base import PairedDataModule
from ssl_lightning.data.io.sources import ArraySource, ImageSource
from ssl_lightning.data.objects.any_images import FolderImages
from ssl_lightning.data.objects.image_data import ImageData, digests, same_images, warn_trained
from ssl_lightning.data.objects.views import Views


class _Labelled(ImageData):
    """Labelled images on which nothing is pretrained, so that test images need not be left out."""

    def _match(
        self, views: Views, train: ImageSource, test: ImageSource
    ) -> tuple[ImageSource, Tensor, Tensor | None]:
        warn_trained(self._tested(train, test), "train")
        return train, torch.arange(len(train)), None

    def _tested(self, train: ImageSource, test: ImageSource) -> int:
        """Count the training images that are test images, by path or content, or as one data set."""
        if isinstance(self._train, FolderImages) and isinstance(self._test, FolderImages):
            paths = set(self._test.paths.real_paths())
            return sum(path in paths for path in self._train.paths.real_paths())
        if isinstance(train, ArraySource) and isinstance(test, ArraySource):
            return int(np.isin(digests(train.images), digests(test.images)).sum())
        return len(train) if same_images(self._train, self._test) else 0


def labelled_data(
    train: Any,
    test: Any,
    *,
    heldout: int | None,
    image_size: int | None,
    channels: int | None,
    batch_size: int,
    seed: int,
) -> PairedDataModule:
    """Return a data module, set up, with the labelled splits; see `probe` for the arguments.

    Raises:
        ValueError: The images or labels are missing, or do not suffice.
    """
    if isinstance(train, pl.LightningDataModule):
        data = _given(train, test=test, heldout=heldout, image_size=image_size, channels=channels)
    elif test is None:
        raise ValueError(
            "test is missing: probe(model, train, test) needs labelled test images, on which it only reports"
        )
    else:
        data = _Labelled(
            train,
            labelled_train=train,
            test=test,
            image_size=image_size,
            channels=channels,
            heldout=heldout,
            batch_size=1,  # nothing is pretrained
            eval_batch_size=batch_size,
            seed=seed,
        )
    data.prepare_data()
    data.setup()
    if not data.has_downstream:
        raise ValueError(
            f"data {data.name} has no labelled images; give train and test: probe(model, train, test)"
        )
    return data


def _given(data: pl.LightningDataModule, **others: Any) -> PairedDataModule:
    """Check a data module that is given instead of labelled images."""
    if not isinstance(data, PairedDataModule):
        raise ValueError(
            f"{type(data).__name__} is no data module of ssl_lightning; give two labelled data sets instead: "
            "probe(model, train, test)"
        )
    if extra := [key for key, value in others.items() if value is not None]:
        raise ValueError(
            f"{extra[0]} is given beside the data module {type(data).__name__}, which sets it itself; "
            f"leave it out: probe(model, data)"
        )
    return data
