"""Labelled images among the pretraining images, by path."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from ssl_lightning.core.progress import watched
from ssl_lightning.data.io.file_list import FileList


def match(pretrain: FileList, train: FileList, test: FileList, where: Path) -> tuple[FileList, Tensor]:
    """Find labelled images among the pretraining images, by resolved path.

    Args:
        pretrain: Pretraining images.
        train: Labelled training images.
        test: Test images. Pretraining leaves them out, and a warning gives their number.
        where: Folder of the test images, for messages.

    Returns:
        The remaining pretraining images, and the `overlap` of a `Pairing`.

    Raises:
        ValueError: An image is in `train` and in `test`.
    """
    with watched("match labelled and pretraining images"):  # a network disk resolves paths slowly
        return _match(pretrain, train, test, where)


def _match(pretrain: FileList, train: FileList, test: FileList, where: Path) -> tuple[FileList, Tensor]:
    tested, labelled = set(test.real_paths()), list(train.real_paths())
    both = [path for path, real in zip(train, labelled, strict=True) if real in tested]
    if both:
        raise ValueError(
            f"{len(both)} training images are also test images in {where}, such as {both[0]}; "
            "an image may be in one split only"
        )
    unseen = np.array([real not in tested for real in pretrain.real_paths()], bool)
    if not unseen.all():
        rank_zero_warn(
            f"{(~unseen).sum()} pretraining images are test images in {where}; pretraining leaves them out"
        )
        pretrain = pretrain.take(np.flatnonzero(unseen))
    wanted = set(labelled)
    places = {real: index for index, real in enumerate(pretrain.real_paths()) if real in wanted}
    return pretrain, torch.tensor([places.get(real, -1) for real in labelled])
