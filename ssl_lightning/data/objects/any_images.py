"""Images that a user has in Python: a folder, an array, or a data set that is indexed."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ssl_lightning.core.image_spec import CHANNELS
from ssl_lightning.core.progress import tracked
from ssl_lightning.core.untrusted import check_folder
from ssl_lightning.data.io.eight_bit import pillow_channels
from ssl_lightning.data.io.file_list import FileList, folder_prefix
from ssl_lightning.data.io.folders import open_image, usable_images
from ssl_lightning.data.io.pixels import (
    DECISIVE,
    as_plain_tensor,
    channels_last,
    to_pixels,
    with_channels,
)
from ssl_lightning.data.io.scan import classes_of
from ssl_lightning.data.io.sources import ArraySource, FileSource, resize
from ssl_lightning.data.objects.dataset_images import DatasetImages
from ssl_lightning.data.objects.views import Views, central_squares, check_same_size, square_side

MAX_BAD = 0.01  # fraction of undecodable files that is skipped


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
    def paths(self) -> FileList:
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
        first, prefix = None, folder_prefix(self.folder)
        for path in tracked(self.paths, f"read sizes of {self.name}", "files"):
            with open_image(path) as image:
                width, height = image.size
            first = first or (height, width)
            check_same_size(first, (height, width), f"{self.name} {path.removeprefix(prefix)}")
        assert first is not None
        return square_side(first, self.name)

    def labels(self) -> list[str]:
        """Return the class name of each file."""
        names, numbers = classes_of(self.folder, self.paths)
        return [names[number] for number in numbers.tolist()]

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
