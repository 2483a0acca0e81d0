"""Images that a user has in Python: a folder, an array, or a data set that is indexed."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from ssl_lightning.core.image_spec import CHANNELS
from ssl_lightning.core.progress import tracked
from ssl_lightning.core.untrusted import check_folder
from ssl_lightning.data.io.augment import CropFlip, EvalView, TrainView
from ssl_lightning.data.io.eight_bit import Facts, pillow_channels
from ssl_lightning.data.io.folders import (
    SAMPLED,
    classes_of,
    evenly,
    open_image,
    usable_images,
    warn_of_facts,
)
from ssl_lightning.data.io.pixels import (
    DECISIVE,
    as_plain_tensor,
    channels_last,
    image_pixels,
    to_pixels,
    with_channels,
)
from ssl_lightning.data.io.sources import ArraySource, FileSource, PictureSource, resize
from ssl_lightning.data.objects.labels import LABEL_KEYS, dataset_classes, quick_labels

IMAGE_KEYS = ("image", "img")
MAX_BAD = 0.01  # fraction of undecodable files that is skipped


@dataclass(frozen=True)
class Views:
    """How images are cut and resized.

    Args:
        size: Height and width of the result in pixels.
        channels: 1 for grey, 3 for RGB, 4 for four channels as they are.
        crop: Whether training images are cropped at random.
        flip: Whether half of the training images are mirrored left to right.
        max_pixels: Larger files are bad.
        num_workers: Processes that read files, and data sets that do not fit in memory.
        max_memory: Largest size in bytes of a data set that is read into memory.
        value_range: See `to_pixels`, and `eight_bit` for files and PIL images.
        check_size: Whether the images of a data set must have this size.
        check_channels: Whether the images of a data set must have these channels.
    """

    size: int
    channels: int
    crop: bool
    flip: bool
    max_pixels: int
    num_workers: int
    max_memory: int
    value_range: tuple[float, float] | None = None
    check_size: bool = False
    check_channels: bool = False

    @property
    def shift(self) -> CropFlip:
        """Return the augmentation of images in memory."""
        return CropFlip(self.size // 8 if self.crop else 0, self.flip)

    @property
    def evaluation(self) -> EvalView:
        """Return the evaluation view of pictures that are read on demand."""
        return EvalView(self.size, 0.875 if self.crop else 1.0)

    @property
    def decoding(self) -> dict[str, Any]:
        """Return the keywords of a `PictureSource`, without `labels`."""
        scale, ratio = ((0.2, 1.0), (3 / 4, 4 / 3)) if self.crop else ((1.0, 1.0), (1.0, 1.0))
        return {
            "channels": self.channels,
            "value_range": self.value_range,
            "train_view": TrainView(self.size, scale, self.flip, ratio),
            "eval_view": self.evaluation,
            "max_pixels": self.max_pixels,
            "num_workers": self.num_workers,
        }


class FolderImages:
    """Image files under a folder, at any depth; the first folder below it names the class.

    Args:
        folder: The folder.
        name: Name of the argument, for messages.
        max_pixels: Larger files are bad.
        cache: Folder of the records of good files.
        channels: 4 if all files must have 4 channels; else they may have any.
        value_range: See `eight_bit`.

    Raises:
        FileNotFoundError: The folder does not exist.
    """

    class_names = None  # the labels are the names

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        max_pixels: int,
        cache: Path,
        channels: int = 3,
        value_range: tuple[float, float] | None = None,
    ) -> None:
        check_folder(folder, f"; {name} is this folder")
        self.folder, self.name = folder, name
        self.max_pixels, self.cache = max_pixels, cache
        self._pixels: dict[str, Any] = {"channels": channels, "value_range": value_range}

    @cached_property
    def paths(self) -> list[Path]:
        """Return the files that can be decoded; a warning names the others."""
        return usable_images(
            self.folder, max_pixels=self.max_pixels, max_bad=MAX_BAD, cache=self.cache, **self._pixels
        )

    def __len__(self) -> int:
        return len(self.paths)

    def channels(self) -> int:
        """Return 1 if all files are grey, else 3."""
        for path in tracked(self.paths, f"read colours of {self.name}", "files"):
            with open_image(path) as image:
                if pillow_channels(image.mode) == 3:
                    return 3
        return 1

    def side(self) -> int:
        """Return the height and width that all files share.

        Raises:
            ValueError: They differ.
        """
        first = None
        for path in tracked(self.paths, f"read sizes of {self.name}", "files"):
            with open_image(path) as image:
                width, height = image.size
            first = first or (height, width)
            check_same_size(first, (height, width), f"{self.name} {path.relative_to(self.folder)}")
        assert first is not None
        return square_side(first, self.name)

    def labels(self) -> list[str]:
        """Return the class name of each file."""
        names, numbers = classes_of(self.folder, self.paths)
        return [names[number] for number in numbers]

    def source(self, views: Views) -> FileSource:
        """Return the files, to be decoded by worker processes."""
        return FileSource(self.paths, None, **views.decoding)


class ArrayImages:
    """Images in an array or a tensor; see `channels_last`.

    Args:
        data: The images.
        given: Their labels, if there are any.
        name: Name of the argument, for messages.

    Raises:
        ValueError: The array is one image, or has another layout.
    """

    class_names = None

    def __init__(self, data: np.ndarray | Tensor, given: Any, name: str) -> None:
        shape = tuple(data.shape)
        if data.ndim == 3 and (shape[0] in DECISIVE or shape[2] in CHANNELS):
            raise ValueError(
                f"{name} has shape {shape}, as a single image has; give a stack (N, H, W), (N, H, W, C) or "
                "(N, C, H, W) of several"
            )
        self.data, self.name = data, name
        self._given = given
        self._values = channels_last(as_plain_tensor(data, name), name)

    def __len__(self) -> int:
        return len(self.data)

    def channels(self) -> int:
        """Return the number of channels."""
        return self._values.shape[3]

    def side(self) -> int:
        """Return height and width; raise ValueError if they differ."""
        return square_side(tuple(self._values.shape[1:3]), self.name)

    def labels(self) -> Any:
        """Return the label of each image; raise ValueError without labels."""
        if self._given is None:
            raise ValueError(f"{self.name} has images without labels; give a pair (images, labels)")
        return self._given

    def source(self, views: Views) -> ArraySource:
        """Return the central squares of all images, resized, in memory."""
        pixels = to_pixels(central_squares(self._values), self.name, views.value_range)
        pixels = with_channels(resize(pixels, views.size), views.channels, self.name)
        return ArraySource(pixels, None, views.shift)


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


AnyImages = FolderImages | ArrayImages | DatasetImages


def open_images(
    given: Any,
    name: str,
    *,
    max_pixels: int,
    cache: Path,
    channels: int | None = None,
    value_range: tuple[float, float] | None = None,
) -> AnyImages:
    """Return what a user gave as images.

    Args:
        given: A folder; an array or a tensor; a data set that is indexed by numbers; or a pair of one of the
            last two and labels.
        name: Name of the argument, for messages.
        max_pixels: Larger image files are bad.
        cache: Folder of the records of good files.
        channels: Channels that the user asked for; None for none.
        value_range: See `to_pixels`, and `eight_bit` for files and PIL images.

    Raises:
        FileNotFoundError: The folder does not exist.
        ValueError: It is none of these.
    """
    if isinstance(given, (str, os.PathLike)):
        return FolderImages(
            Path(given).expanduser(),
            name,
            max_pixels=max_pixels,
            cache=cache,
            channels=channels or 3,
            value_range=value_range,
        )
    images, labels = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
    if isinstance(images, (np.ndarray, Tensor)):
        return ArrayImages(images, labels, name)
    return DatasetImages(images, labels, name, channels=channels, value_range=value_range)


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


def check_same_size(first: tuple[int, ...], size: tuple[int, ...], name: str) -> None:
    """Raise ValueError if an image is not of the size of the first one."""
    if size != first:
        raise ValueError(
            f"{name} has {size[0]} x {size[1]} pixels, and the first image {first[0]} x {first[1]}; give "
            "image_size, and the central square of each image is resized to it"
        )


def square_side(size: tuple[int, ...], name: str) -> int:
    """Return the side of a square; raise ValueError if height and width differ."""
    if size[0] != size[1]:
        raise ValueError(
            f"the images of {name} have {size[0]} x {size[1]} pixels; give image_size, and the central "
            "square of each image is resized to it"
        )
    return size[0]


def central_squares(images: Tensor) -> Tensor:
    """Return the central square of each image (N, H, W, C), as a view."""
    height, width = images.shape[1:3]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return images[:, top : top + side, left : left + side]
