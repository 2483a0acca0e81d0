"""Batches of any loader: their kinds, their checks, and the image spec that they imply."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor

from ssl_lightning.core.image_spec import CHANNELS, ImageSpec
from ssl_lightning.data.io.contents import check_contents

KINDS = (
    "a batch is images (B, C, H, W), uint8 or floats in [0, 1]: alone, first in a tuple, or in a dict under "
    "'image'"
)
COLLATE = "for pictures of PIL use DataLoader(..., collate_fn=ssl_lightning.data.io.collate.collate_images)"
NO_LABEL = "labels must be 0 or more in every batch; a label below 0 means that there is none"
SMALLEST_STD = 1e-3  # of one channel, so that constant images can be standardised


def unpack_batch(batch: Any, *, needs_labels: bool = False) -> tuple[Tensor, Tensor]:
    """Split a batch into images and labels.

    Args:
        batch: Images, a sequence of images and labels, or a dict with "image" and perhaps "label".
        needs_labels: Whether a batch without labels is an error.

    Returns:
        Images `(B, C, H, W)`, and the labels, or -1 for each image if there are none.

    Raises:
        ValueError: The batch is of another kind.

    Example:
        >>> images = torch.zeros(2, 3, 8, 8)
        >>> unpack_batch({"image": images})[1].tolist()
        [-1, -1]
        >>> unpack_batch([images, torch.tensor([4, 5])])[1].tolist()
        [4, 5]
    """
    images, labels = batch, None
    if isinstance(batch, Mapping):
        images, labels = batch.get("image"), batch.get("label")
    elif isinstance(batch, Sequence) and not isinstance(batch, str) and len(batch):
        images, labels = batch[0], batch[1] if len(batch) > 1 else None
    if not isinstance(images, Tensor) or images.ndim != 4:
        raise ValueError(f"the loader gives {_describe(batch)}; {KINDS}; {COLLATE}")
    if images.dtype == torch.float64:
        images = images.float()
    if isinstance(labels, Tensor):
        return images, labels
    if needs_labels:
        raise ValueError(
            "this task learns from labels, and the loader gives none; a batch must be (images, labels), or a "
            "dict with 'image' and 'label'"
        )
    return images, torch.full((len(images),), -1, device=images.device)


def check_images(images: Tensor, spec: ImageSpec) -> None:
    """Raise if images are not of the kind that a task expects; waits for the device if they are floats.

    Args:
        images: `(B, C, H, W)`, as the loader gives them.
        spec: Expected shape.

    Raises:
        ValueError: The shape, the type or the range is wrong.
    """
    check_kind(images)
    wanted = (spec.channels, spec.image_size, spec.image_size)
    if tuple(images.shape[1:]) != wanted:
        raise ValueError(
            f"the loader gives images of shape {tuple(images.shape[1:])}, and the task takes {wanted}; "
            "resize them, or give the task a spec of these images"
        )


def check_kind(images: Tensor) -> None:
    """Raise if images are neither uint8 nor floats in [0, 1].

    Raises:
        ValueError: The type or the range is wrong.
    """
    if images.dtype == torch.uint8:
        return
    if not images.is_floating_point():
        raise ValueError(f"the loader gives images of type {images.dtype}; {KINDS}")
    low, high = (float(value) for value in images.detach().aminmax())
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"the loader gives floats from {low:.3g} to {high:.3g}; allowed are uint8 and floats in [0, 1]: "
            "drop Normalize from the transform, since tasks normalise images themselves"
        )


def spec_of_loader(loader: Any, *, labelled: bool = False) -> ImageSpec:
    """Derive the spec from the first batch of a loader, with the mean and deviation of its pixels.

    The global random state stays as it is.

    Args:
        loader: Any iterable of batches.
        labelled: Whether to find the classes too: the `classes` of the data set, else the labels of one pass.

    Raises:
        ValueError: The batch is of the wrong kind, the images have another shape, or one has no label.
    """
    images, labels = next(read(loader, needs_labels=labelled))
    if labelled and int(labels.min()) < 0:
        raise ValueError(NO_LABEL)
    check_kind(images)
    channels, height, width = images.shape[1:]
    if channels not in CHANNELS or height != width:
        raise ValueError(
            f"the loader gives images with {channels} channels and {height} x {width} px; tasks take square "
            "images with 1, 3 or 4 channels: add CenterCrop or Resize((size, size)) to the transform"
        )
    check_contents(images)
    values = images.float() / (255 if images.dtype == torch.uint8 else 1)
    mean, std = values.mean((0, 2, 3)), values.std((0, 2, 3)).clamp(SMALLEST_STD, 1)
    names = class_names(loader) if labelled else None
    return ImageSpec(
        channels, height, tuple(mean.tolist()), tuple(std.tolist()), names, pretrain_labels=labelled
    )


def class_names(loader: Any) -> tuple[str, ...]:
    """Return the `classes` of the data set of a loader, else a number for each label of one pass.

    Raises:
        ValueError: The loader gives no labels, or some below 0.
    """
    named = getattr(getattr(loader, "dataset", None), "classes", None)
    if named:
        return tuple(map(str, named))
    ranges = [labels.aminmax() for _, labels in read(loader, needs_labels=True)]
    if min(int(each.min) for each in ranges) < 0:
        raise ValueError(NO_LABEL)
    return tuple(map(str, range(max(int(each.max) for each in ranges) + 1)))


def first_images(loader: Any, count: int) -> Tensor:
    """Return the first images of a loader, `(n, C, H, W)` uint8, n at most `count`."""
    found: list[Tensor] = []
    for images, _ in read(loader):
        check_kind(images)
        found.append(images if images.dtype == torch.uint8 else (images * 255).round().byte())
        if sum(map(len, found)) >= count:
            break
    return torch.cat(found)[:count]


def read(loader: Iterable[Any], *, needs_labels: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the unpacked batches of a loader, at least one, and keep the global random state.

    Raises:
        ValueError: The loader is empty or cannot collate its samples, or a batch is of the wrong kind.
    """
    empty = True
    with isolate_rng():
        batches = iter(loader)
    while True:
        try:
            with isolate_rng():
                batch = next(batches)
        except StopIteration:
            break
        except TypeError as error:
            if "collate" not in str(error):
                raise
            raise ValueError(f"the loader cannot collate its samples; {KINDS}; {COLLATE}") from error
        empty = False
        yield unpack_batch(batch, needs_labels=needs_labels)
    if empty:
        raise ValueError(
            "the training loader gives no batch; use a batch_size of at most the number of images"
        )


@contextmanager
def explaining_single_images() -> Iterator[None]:
    """Explain torch's error on a batch that is too small for batch norm.

    Raises:
        ValueError: A batch norm saw one value per channel.
    """
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ValueError(
            "a batch of one image is too small for batch norm, which needs two values per channel; use a "
            "larger batch_size, and DataLoader(..., drop_last=True) if the last batch is the small one"
        ) from error


def _describe(batch: Any) -> str:
    """Name the kind of a batch for an error."""
    if isinstance(batch, Tensor):
        return f"a tensor of shape {tuple(batch.shape)}"
    kind = type(batch).__name__
    if isinstance(batch, Mapping):
        return f"a {kind} with the keys {', '.join(map(str, batch)) or 'none'}"
    if isinstance(batch, Sequence) and not isinstance(batch, str) and len(batch):
        first = batch[0]
        inner = f"shape {tuple(first.shape)}" if isinstance(first, Tensor) else f"type {type(first).__name__}"
        return f"a {kind} whose first entry has {inner}"
    return f"a {kind}"
