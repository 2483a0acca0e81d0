"""Images of a data set, and the draw of its splits."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ssl_lightning.core.messages import fitted, tell
from ssl_lightning.data.io.sources import ImageSource
from ssl_lightning.data.io.splits import FOLDS, complement, draw_folds, stratified

SPLITS = ("train", "heldout", "test")  # of the labelled images
NAMED = 5  # classes that a message names


@dataclass(frozen=True)
class Pairing:
    """The images of a data set.

    Args:
        pretrain: Images of the pretext task.
        train: Labelled training images, including the held-out ones; None without labels.
        test: Labelled test images; None without labels. If only `train` has labels, figures are
            cross-validated over its images.
        class_names: In label order; None without labels.
        overlap: (len(train),) int64, index in `pretrain` of each image of `train`, or -1. Pretraining leaves
            out the held-out images. None if the two share no image.
        copies: (len(pretrain),) int64, index in `pretrain` of the first image that is the same; None if all
            differ, or if they were not compared. Pretraining leaves out the copies of held-out images too.
        heldout: Indices of the published validation split, into `train`, or into `pretrain` without labels;
            None if there is none.
    """

    pretrain: ImageSource
    train: ImageSource | None = None
    test: ImageSource | None = None
    class_names: tuple[str, ...] | None = None
    overlap: Tensor | None = None
    copies: Tensor | None = None
    heldout: Tensor | None = None


@dataclass(frozen=True)
class Splits:
    """Indices of each split, int64 and sorted; the same in every run.

    Args:
        pretrain: Into `Pairing.pretrain`, without held-out images.
        val: Into `heldout_pool`: the held-out images, for the pretext's validation; may be empty.
        train: Into `Pairing.train`: images that probes train on; empty without labels.
        heldout: Into `Pairing.train`: images that probes select on; empty without labels or held-out images.
        test: Into `Pairing.train`: test images of a fold; None if the data have test images of their own.
    """

    pretrain: Tensor
    val: Tensor
    train: Tensor
    heldout: Tensor
    test: Tensor | None = None

    def folds(self, labels: Tensor) -> list[Splits]:
        """Return the splits with each fold of the labelled images as the test images.

        Args:
            labels: Those of `Pairing.train`.
        """
        train, heldout = self.train, self.heldout
        part = draw_folds(labels[torch.cat([train, heldout])], FOLDS)
        of_train, of_heldout = part[: len(train)], part[len(train) :]
        return [
            replace(
                self,
                train=train[of_train != fold],
                heldout=heldout[of_heldout != fold],
                test=torch.cat([train[of_train == fold], heldout[of_heldout == fold]]),
            )
            for fold in range(int(part.max()) + 1)
        ]


def heldout_pool(pairing: Pairing) -> ImageSource:
    """Return the source of the held-out images: `train`, or `pretrain` without labels."""
    return pairing.pretrain if pairing.train is None else pairing.train


def check_classes(pairing: Pairing, name: str, targets: str) -> None:
    """Check that the labelled images are of several classes; a message names classes without images.

    Args:
        pairing: Images of the data set.
        name: Name of the data set.
        targets: Kind of the labels; for masks and boxes nothing is checked.

    Raises:
        ValueError: The training or the test images are of fewer than 2 classes.
    """
    names = pairing.class_names
    if names is None or targets not in ("classes", "multilabel"):
        return
    for split, source in (("training", pairing.train), ("test", pairing.test)):
        if source is None:
            continue
        labels = source.labels  # (N,) or (N, K)
        per_class = labels[labels >= 0].bincount() if labels.ndim == 1 else (labels == 1).sum(0)
        found = {names[label] for label in per_class.nonzero().flatten().tolist() if label < len(names)}
        missing = [each for each in names if each not in found]
        if targets == "classes" and len(found) < 2:
            only = f"one class only, {found.pop()}" if found else "no class"
            raise ValueError(
                f"data {name} has {split} images of {only}; images of at least 2 of its classes "
                f"{_first_names(names)} are needed"
            )
        if missing:
            tell(
                f"data {name} has no {split} image of {len(missing)} of its {len(names)} classes: "
                f"{_first_names(missing)}"
            )


def draw_splits(
    pairing: Pairing,
    name: str,
    *,
    heldout: int | None,
    max_labels: int | None,
    pretrain_size: int | None,
    free: Collection[str] = (),
) -> Splits:
    """Draw the splits of a data set; for the keywords see `PairedDataModule`.

    Limits above the number of images have no effect; a message says so.

    Raises:
        ValueError: A number is out of range for the data set `name`.
    """
    pool = heldout_pool(pairing)
    val = _draw_heldout(pairing, name, heldout, free)
    train = selecting = val[:0]
    taken = val
    if pairing.train is not None:
        train, selecting = complement(val, len(pool)), val
        if max_labels is not None and max_labels > len(pool):
            tell(fitted("data.max_labels", max_labels, len(pool), len(pool), name))
        elif max_labels is not None:
            train, selecting = _draw_labelled(pool.labels, train, val, max_labels, name, free)
        taken = val[:0] if pairing.overlap is None else pairing.overlap[val]
        taken = taken[taken >= 0]
    if pairing.copies is None:
        pretrain = complement(taken, len(pairing.pretrain))
    else:
        pretrain = torch.isin(pairing.copies, pairing.copies[taken], invert=True).nonzero().flatten()
    if pretrain_size is not None and pretrain_size > len(pretrain):
        count = len(pretrain)
        tell(fitted("data.pretrain_size", pretrain_size, count, count, name, "pretraining image"))
    elif pretrain_size is not None:
        same = torch.zeros(len(pretrain), dtype=torch.int64)  # one class: a plain fixed draw
        pretrain = pretrain[stratified(same, pretrain_size, "pretrain_size")]
    if not len(pretrain):
        raise ValueError(f"all pretraining images of {name} are held out; lower data.heldout")
    return Splits(pretrain, val, train, selecting)


def fitting_batch(batch_size: int, images: int, name: str, free: Collection[str]) -> int:
    """Return the size of a pretraining batch; halve a default until the images fill a batch.

    Raises:
        ValueError: A user chose a batch that the images do not fill.
    """
    if batch_size <= images:
        return batch_size
    if "batch_size" not in free:
        raise _refusal("batch_size", batch_size, name, f"1 to {images}, the pretraining images")
    used = batch_size
    while used > images:
        used //= 2  # the result still divides evenly among 2, 4 or 8 processes
    tell(fitted("data.batch_size", batch_size, used, images, name, "pretraining image"))
    return used


def _draw_heldout(pairing: Pairing, name: str, heldout: int | None, free: Collection[str]) -> Tensor:
    """Return the held-out images as indices into `heldout_pool`, sorted."""
    pool = heldout_pool(pairing)
    if heldout is None and pairing.heldout is not None:
        return pairing.heldout
    tenth = max(1, len(pool) // 10)
    count = tenth if heldout is None else heldout
    kind = "pretraining" if pairing.train is None else "labelled training"
    if heldout is not None and heldout >= len(pool) > 1 and "heldout" in free:
        count = tenth
        tell(fitted("data.heldout", heldout, count, len(pool), name, f"{kind} image"))
    if count >= len(pool) and heldout is None:
        raise ValueError(
            f"data {name} has {len(pool)} {kind} image; one is held out, so at least 2 are needed, or "
            "data.heldout=0"
        )
    if count >= len(pool):
        allowed = f"0 to {len(pool) - 1}, as there are {len(pool)} {kind} images"
        raise _refusal("heldout", count, name, allowed)
    drawn = stratified(pool.labels, count, "heldout", spare=1)
    if heldout is None and pairing.train is not None and pairing.test is None:
        while len(drawn) + 1 < len(pool) and not _in_every_fold(drawn, pool.labels):
            drawn = stratified(pool.labels, len(drawn) + 1, "heldout", spare=1)
    return drawn


def _in_every_fold(heldout: Tensor, labels: Tensor) -> bool:
    """Whether each fold of a cross-validation keeps a held-out image to select on."""
    splits = Splits(heldout[:0], heldout, complement(heldout, len(labels)), heldout)
    return all(len(fold.heldout) for fold in splits.folds(labels))


def _draw_labelled(
    labels: Tensor, train: Tensor, val: Tensor, max_labels: int, name: str, free: Collection[str]
) -> tuple[Tensor, Tensor]:
    """Draw `max_labels` training and held-out images, in the proportion of the two; no class is lost."""
    classes = len(labels.unique())
    for_heldout = max(min(1, len(val)), round(max_labels * len(val) / len(labels)))
    for_train = max_labels - for_heldout
    if for_train < classes and "max_labels" in free:
        for_train = classes
        used = for_train + for_heldout
        tell(fitted("data.max_labels", max_labels, used, 1, f"each of {classes} classes", "training image"))
    elif for_train < classes:
        one_each = f"and at least {classes} (one a class) besides the held-out part"
        raise _refusal("max_labels", max_labels, name, f"at most {len(labels)}, {one_each}")
    return (
        train[stratified(labels[train], for_train, "max_labels", least=1)],
        val[stratified(labels[val], for_heldout, "max_labels")],
    )


def _first_names(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")


def _refusal(key: str, value: object, name: str, allowed: str) -> ValueError:
    return ValueError(f"data.{key} is {value}; allowed for {name} is {allowed}")
