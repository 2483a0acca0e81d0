"""Images of a data set, and the draw of its splits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ssl_lightning.data.io.sources import ImageSource
from ssl_lightning.data.io.splits import complement, stratified


@dataclass(frozen=True)
class Pairing:
    """The images of a data set.

    Args:
        pretrain: Images of the pretext task.
        train: Labelled training images, including the held-out ones; None without labels.
        test: Labelled test images; None without labels.
        class_names: In label order; None without labels.
        overlap: (len(train),) int64, index in `pretrain` of each image of `train`, or -1. Pretraining leaves
            out the held-out images. None if the two share no image.
        heldout: Indices of the published validation split, into `train`, or into `pretrain` without labels;
            None if there is none.
    """

    pretrain: ImageSource
    train: ImageSource | None = None
    test: ImageSource | None = None
    class_names: tuple[str, ...] | None = None
    overlap: Tensor | None = None
    heldout: Tensor | None = None


@dataclass(frozen=True)
class Splits:
    """Indices of each split, int64 and sorted; the same in every run.

    Args:
        pretrain: Into `Pairing.pretrain`, without held-out images.
        val: Into `heldout_pool`: the held-out images, for the pretext's validation; may be empty.
        train: Into `Pairing.train`: images that probes train on; empty without labels.
        heldout: Into `Pairing.train`: images that probes select on; empty without labels or held-out images.
    """

    pretrain: Tensor
    val: Tensor
    train: Tensor
    heldout: Tensor


def heldout_pool(pairing: Pairing) -> ImageSource:
    """Return the source of the held-out images: `train`, or `pretrain` without labels."""
    return pairing.pretrain if pairing.train is None else pairing.train


def draw_splits(
    pairing: Pairing,
    name: str,
    *,
    batch_size: int,
    heldout: int | None,
    max_labels: int | None,
    pretrain_size: int | None,
) -> Splits:
    """Draw the splits of a data set; for the keywords see `PairedDataModule`.

    Raises:
        ValueError: A number is out of range for the data set `name`.
    """

    def refuse(key: str, value: object, allowed: str) -> ValueError:
        return ValueError(f"data.{key} is {value}; allowed for {name} is {allowed}")

    pool = heldout_pool(pairing)
    published = len(pool) // 10 if pairing.heldout is None else len(pairing.heldout)
    count = published if heldout is None else heldout
    least = 1 if heldout is None else 0
    if not least <= count < len(pool):
        kind = "pretraining" if pairing.train is None else "labelled training"
        raise refuse("heldout", count, f"{least} to {len(pool) - 1}, as there are {len(pool)} {kind} images")
    if heldout is None and pairing.heldout is not None:
        val = pairing.heldout
    else:
        val = stratified(pool.labels, count, "heldout")
    train = selecting = val[:0]
    if pairing.train is None:
        if max_labels is not None:
            raise refuse("max_labels", max_labels, "null, as there are no labels")
        pretrain = complement(val, len(pool))
    else:
        labels = pairing.train.labels
        train, selecting = complement(val, len(labels)), val
        if max_labels is not None:  # keep the proportion of held-out images
            classes = len(labels.unique())
            for_heldout = max(min(1, len(val)), round(max_labels * len(val) / len(labels)))
            for_train = max_labels - for_heldout
            if max_labels > len(labels) or for_train < classes:
                one_each = f"and at least {classes} (one a class) besides the held-out part"
                raise refuse("max_labels", max_labels, f"at most {len(labels)}, {one_each}")
            train = train[stratified(labels[train], for_train, "max_labels")]
            selecting = val[stratified(labels[val], for_heldout, "max_labels")]
        taken = val[:0] if pairing.overlap is None else pairing.overlap[val]
        pretrain = complement(taken[taken >= 0], len(pairing.pretrain))
    if pretrain_size is not None:
        if pretrain_size > len(pretrain):
            raise refuse("pretrain_size", pretrain_size, f"1 to {len(pretrain)}")
        same = torch.zeros(len(pretrain), dtype=torch.int64)  # one class: a plain fixed draw
        pretrain = pretrain[stratified(same, pretrain_size, "pretrain_size")]
    if batch_size > len(pretrain):
        raise refuse("batch_size", batch_size, f"1 to {len(pretrain)}, the pretraining images")
    return Splits(pretrain, val, train, selecting)
