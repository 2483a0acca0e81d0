"""Images of a data set that is indexed by numbers, such as a torch or a Hugging Face data set."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from ssl_lightning.core.progress import tracked
from ssl_lightning.data.io.augment import EvalView
from ssl_lightning.data.io.eight_bit import Facts
from ssl_lightning.data.io.folders import (
    SAMPLED,
    evenly,
    warn_of_facts,
)
from ssl_lightning.data.io.pixels import (
    image_pixels,
    with_channels,
)
from ssl_lightning.data.io.sources import ArraySource, PictureSource
from ssl_lightning.data.objects.labels import LABEL_KEYS, dataset_classes, quick_labels
from ssl_lightning.data.objects.views import Views, check_same_size, square_side

IMAGE_KEYS = ("image", "img")


class DatasetImages:
    """Images of anything with a length that gives an item for a number.

    Such as a torch `Dataset`, a Hugging Face data set, or a list. An item is an image, (image, label, ...),
    or a dict with the key `image` or `img`, and `label`.

    Args:
        data: The data set.
        given: Labels that replace the labels of the items; None keeps these.
        name: Name of the argument, for messages.
        channels, value_range: See `image_pixels`.

    Raises:
        ValueError: It has no length, or cannot be indexed by numbers.
    """

    def __init__(
        self,
        data: Any,
        given: Any,
        name: str,
        *,
        channels: int | None = None,
        value_range: tuple[float, float] | None = None,
    ) -> None:
        check_indexed(data, name)
        self.data, self.name = data, name
        self._given = given
        self._channels, self._value_range = channels, value_range
        self._read: list[Any] | None = None  # labels of the items, once they were read

    def __len__(self) -> int:
        return len(self.data)

    @cached_property
    def _first(self) -> Tensor:
        return self._item(0)[0]

    def channels(self) -> int:
        """Return the number of channels of the first image."""
        return self._first.shape[2]

    def side(self) -> int:
        """Return height and width of the first image; raise ValueError if they differ."""
        return square_side(tuple(self._first.shape[:2]), self.name)

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes, if the data set has them."""
        return None if self._given is not None else dataset_classes(self.data)

    def labels(self) -> Any:
        """Return the label of each image.

        Raises:
            ValueError: The items are images without labels.
        """
        if self._given is not None:
            return self._given
        labels = quick_labels(self.data) if self._read is None else self._read
        if labels is None:
            items = tracked(range(len(self.data)), f"read labels of {self.name}", "items")
            labels = [split_item(self.data[i], self.name)[1] for i in items]
        if any(label is None for label in labels):
            raise ValueError(
                f"{self.name} has images without labels; its items must be (image, label), or dicts with the "
                "key label; or give a pair (images, labels)"
            )
        return labels

    def source(self, views: Views) -> ArraySource | DatasetSource:
        """Read the central squares of all images into memory, resized, if they fit there.

        A warning says how PIL images are read differently from what they hold.

        Returns:
            The images in memory; or, of a larger data set, a source that reads a batch at a time.
        """
        shape = (len(self), views.size, views.size, views.channels)
        seen: list[Facts] = []
        if math.prod(shape) > views.max_memory:
            for index in evenly(range(len(self)), SAMPLED):
                self.picture(index, views, seen)
            warn_of_facts(f"a sample of {self.name}", seen, views.channels, views.value_range)
            return DatasetSource(self, views)
        pixels, self._read = torch.empty(shape, dtype=torch.uint8), []
        square = EvalView(views.size, 1.0)
        for index in tracked(range(len(self)), f"read {self.name}", "images"):
            picture, label = self.picture(index, views, seen)
            pixels[index] = square(picture).permute(1, 2, 0)
            self._read.append(label)
        warn_of_facts(self.name, seen, views.channels, views.value_range)
        return ArraySource(pixels, None, views.shift)

    def picture(self, index: int, views: Views, seen: list[Facts] | None = None) -> tuple[Tensor, Any]:
        """Return an image (C, H, W) uint8 and its label; for `seen` see `image_pixels`.

        Raises:
            ValueError: It is not an image, or `views` refuses its size or channels.
        """
        pixels, label = self._item(index, seen)
        height, width, channels = pixels.shape
        if views.check_size:
            check_same_size((views.size, views.size), (height, width), self._at(index))
        if views.check_channels and channels != views.channels:
            raise ValueError(
                f"{self._at(index)} has {channels} channels, and the first image {views.channels}; give "
                "channels=1 or channels=3, and all images are converted"
            )
        return with_channels(pixels[None], views.channels, self._at(index))[0].permute(2, 0, 1), label

    def _item(self, index: int, seen: list[Facts] | None = None) -> tuple[Tensor, Any]:
        image, label = split_item(self.data[index], self._at(index))
        return image_pixels(image, self._at(index), self._channels, self._value_range, seen), label

    def _at(self, index: int) -> str:
        return f"{self.name}[{index}]"


class DatasetSource(PictureSource):
    """Images of a data set, read by worker processes.

    Args:
        images: The data set.
        views: How images are cut.
    """

    def __init__(self, images: DatasetImages, views: Views) -> None:
        super().__init__(torch.full((len(images),), -1), **views.decoding)
        self.images, self.views = images, views

    def picture(self, index: int) -> Tensor:
        """Return a full picture (C, H, W) uint8."""
        return self.images.picture(index, self.views)[0]


def check_indexed(data: Any, name: str) -> None:
    """Raise ValueError if data has no length or is not indexed by numbers; say what to give."""
    kind = type(data).__name__
    if isinstance(data, Mapping):
        keys = ", ".join(str(key) for key in data)
        raise ValueError(
            f"{name} is a {kind} of {keys}; give one of them, such as data[{next(iter(data))!r}]"
        )
    if hasattr(data, "dataset") and not hasattr(data, "__getitem__"):
        raise ValueError(f"{name} is a {kind}; give its data set, loader.dataset")
    indexed = hasattr(data, "__len__") and hasattr(data, "__getitem__")
    if indexed and not isinstance(data, (str, bytes, IterableDataset)):
        return
    raise ValueError(
        f"{name} is a {kind}; allowed are a folder, an array or a tensor, and a data set with a length that "
        "is indexed by numbers, such as list(data)"
    )


def split_item(item: Any, name: str) -> tuple[Any, Any]:
    """Return image and label of an item of a data set; the label is None if there is none.

    Raises:
        ValueError: A dict has no image.
    """
    if isinstance(item, Mapping):
        image = next((item[key] for key in IMAGE_KEYS if key in item), None)
        if image is None:
            raise ValueError(
                f"{name} is a dict with the keys {', '.join(map(str, item))}; one must be image or img"
            )
        return image, next((item[key] for key in LABEL_KEYS if key in item), None)
    if isinstance(item, (tuple, list)) and item:
        return item[0], item[1] if len(item) > 1 else None
    return item, None
