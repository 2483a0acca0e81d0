"""Labelled images among the pretraining images, by path; and images that are there more than once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from ssl_lightning.core.progress import watched
from ssl_lightning.data.io.file_list import FileList


def first_copies(digests: np.ndarray) -> Tensor:
    """Return the index of the first image with the same digest for each image, (N,) int64.

    >>> first_copies(np.array([7, 5, 7]))
    tensor([0, 1, 0])
    """
    _, first, kind = np.unique(digests, return_index=True, return_inverse=True)
    return torch.from_numpy(first[kind])


def match(
    pretrain: FileList, train: FileList, test: FileList, where: Path
) -> tuple[FileList, Tensor, Tensor]:
    """Find labelled images among the pretraining images, by resolved path.

    Args:
        pretrain: Pretraining images.
        train: Labelled training images.
        test: Test images. Pretraining leaves them out, and a warning gives their number.
        where: Folder of the test images, for messages.

    Returns:
        The remaining pretraining images, and `overlap` and `copies` of a `Pairing`.

    Raises:
        ValueError: An image is in `train` and in `test`.
    """
    with watched("match labelled and pretraining images"):  # a network disk resolves paths slowly
        return _match(pretrain, train, test, where)


def _match(
    pretrain: FileList, train: FileList, test: FileList, where: Path
) -> tuple[FileList, Tensor, Tensor]:
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
    places: dict[str, int] = {}
    copies = torch.arange(len(pretrain))
    for index, real in enumerate(pretrain.real_paths()):
        if real in wanted:
            copies[index] = places.setdefault(real, index)
    return pretrain, torch.tensor([places.get(real, -1) for real in labelled]), copies
