"""Any images that a user has in Python: folders, arrays, torch and Hugging Face data sets."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from ssl_lightning.core.cache import cache_root
from ssl_lightning.data._pairing import Pairing
from ssl_lightning.data.base import PairedDataModule, check_channels
from ssl_lightning.data.io.eight_bit import check_value_range
from ssl_lightning.data.io.folders import MAX_PIXELS
from ssl_lightning.data.io.overlap import first_copies, match
from ssl_lightning.data.io.sources import ArraySource, FileSource, ImageSource, default_workers
from ssl_lightning.data.objects.any_images import AnyImages, FolderImages, open_images
from ssl_lightning.data.objects.labels import number_labels
from ssl_lightning.data.objects.views import Views

MAX_MEMORY = 1 << 30
ALL_TESTED = "all images of source are test images; an image may be in one split only"


class ImageData(PairedDataModule):
    """Images to pretrain on and, with labels, two splits to probe on.

    Each of the three is one of these:

    - a folder, as a string or a path. Images may lie at any depth; a labelled folder holds one folder per
      class. Files are decoded by worker processes, and undecodable ones (at most 1 %) are skipped;
    - a numpy array or a torch tensor (N, H, W), (N, H, W, C) or (N, C, H, W) with C 1, 3 or 4, of uint8 or
      floats in [0, 1], or of other values with `value_range`;
    - a torch `Dataset`, a Hugging Face `datasets.Dataset`, or a list. An item is an image, (image, label), or
      a dict with the key `image` or `img`, and `label`. An image is a PIL image, an array or a tensor. Leave
      random and normalising transforms out, since images are augmented here and normalised by the task;
    - a pair (images, labels) of an array, a `Dataset` or a list, and the label of each image.

    Labels are integers from 0, or class names. The splits may overlap: pretraining leaves out images that are
    held out or tested. These are found if both splits are the same object, folders (by path), or in memory
    (by content).

    Args:
        source: Images to pretrain on; labels in it are ignored.
        labelled_train: Labelled images for the probes; None for no probes. May be `source`.
        test: Labelled images for the reported figures; needed with `labelled_train`.
        image_size: Height and width in pixels. Images of another size are resized, the central square of
            those that are not square. None takes the size of the images, which must all be equal and square.
        channels: 1 for grey, 3 for RGB, 4 for four channels as they are; None takes the channels of the
            images of `source`, without the transparency of pictures.
        value_range: The two values that become black and white in arrays and in grey pictures of more than 8
            bits, such as (0, 4095) for 12 bits. None for 0 and 65535 in pictures; arrays then must be uint8
            or floats in [0, 1].
        crop: Whether training images are cropped at random. Images in memory are padded by reflection and
            shifted by up to an eighth of their size. Other images are cropped to 20 to 100 % of their area,
            and evaluation sees the central 87.5 %, as with `Folder`.
        flip: Whether half of the training images are mirrored left to right.
        max_memory: A `Dataset` of at most this many bytes, at `image_size`, is read into memory once. A
            larger one is read in every epoch, by worker processes.
        num_workers: Worker processes for each rank; None for one per core, at most 8.
        root: Cache folder, which records the good files of folders; None for the default one.
        **base: The other keywords of `PairedDataModule`, such as `batch_size` (64) and `heldout` (a tenth).

    Raises:
        FileNotFoundError: A folder does not exist.
        ValueError: A value is out of range, a source is of another kind, or only one of `labelled_train` and
            `test` is given. In `setup`: the images or labels do not fit.

    Example:
        >>> import numpy as np
        >>> images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
        >>> data = ImageData(images, batch_size=12)
        >>> data.setup()
        >>> data.spec.image_size, data.pretrain_batches, len(data.val_dataloader())
        (8, 3, 1)
    """

    name = "image_data"

    def __init__(
        self,
        source: Any,
        labelled_train: Any = None,
        test: Any = None,
        *,
        image_size: int | None = None,
        channels: int | None = None,
        value_range: tuple[float, float] | None = None,
        crop: bool = True,
        flip: bool = True,
        max_memory: int = MAX_MEMORY,
        num_workers: int | None = None,
        root: str | None = None,
        **base: Any,
    ) -> None:
        super().__init__(image_size=1 if image_size is None else image_size, **base)
        self.free = frozenset({"batch_size"} - base.keys())
        if (labelled_train is None) != (test is None):
            missing = "test" if test is None else "labelled_train"
            raise ValueError(
                f"{missing} is missing; the probes need both labelled_train and test, or neither"
            )
        if max_memory < 0 or (num_workers is not None and num_workers < 0):
            raise ValueError(
                f"max_memory is {max_memory} and num_workers {num_workers}; allowed are at least 0 bytes, "
                "and None or at least 0 workers"
            )
        self.root = cache_root(root)
        self.crop = crop
        self.flip = flip
        self.max_memory = max_memory
        self.num_workers = default_workers() if num_workers is None else num_workers
        self._inferred_size = image_size is None
        self._inferred_channels = channels is None
        self.value_range = check_value_range(value_range)
        if channels is not None:
            self.channels = check_channels(channels)
        self._source = self._open(source, "source")
        self._train = None if labelled_train is None else self._open(labelled_train, "labelled_train")
        self._test = None if test is None else self._open(test, "test")

    @property
    def has_downstream(self) -> bool:
        """Whether labelled images were given."""
        return self._train is not None

    def load(self) -> Pairing:
        """Read the images, number the labels, and match the splits."""
        views = self._infer()
        if self._train is None or self._test is None:
            return Pairing(self._source.source(views))
        check_count(self._train, 2)
        check_count(self._test, 1)
        converted = replace(views, check_size=False, check_channels=False)
        train = self._train.source(views if same_images(self._source, self._train) else converted)
        test = self._test.source(converted)
        train.labels, test.labels, names = number_labels(
            (self._train.labels(), len(self._train), self._train.class_names),
            (self._test.labels(), len(self._test), self._test.class_names),
        )
        pretrain, overlap, copies = self._match(views, train, test)
        if overlap is not None:
            known = overlap >= 0
            labels = torch.full((len(pretrain),), -1)
            labels[overlap[known]] = train.labels[known]
            pretrain.labels = labels
        return Pairing(pretrain, train, test, names, overlap, copies)

    def _open(self, given: Any, name: str) -> AnyImages:
        return open_images(
            given,
            name,
            max_pixels=MAX_PIXELS,
            cache=self.root / "folders",
            channels=None if self._inferred_channels else self.channels,
            value_range=self.value_range,
        )

    def _infer(self) -> Views:
        """Take size and channels from the images where they were not given."""
        check_count(self._source, 2)
        if self._inferred_size:
            self.image_size = self._source.side()
        if self._inferred_channels:
            self.channels = self._source.channels()
        views = Views(
            self.image_size,
            self.channels,
            crop=self.crop,
            flip=self.flip,
            max_pixels=MAX_PIXELS,
            num_workers=self.num_workers,
            max_memory=self.max_memory,
            value_range=self.value_range,
            check_size=self._inferred_size,
            check_channels=self._inferred_channels,
        )
        if isinstance(self._source, FolderImages):
            self.eval_view = views.evaluation
        return views

    def _match(
        self, views: Views, train: ImageSource, test: ImageSource
    ) -> tuple[ImageSource, Tensor | None, Tensor | None]:
        """Return the pretraining images that are no test images, `overlap` and `copies` of a `Pairing`."""
        given, labelled, tested = self._source, self._train, self._test
        if same_images(given, tested):
            raise ValueError(ALL_TESTED)
        if same_images(given, labelled):
            if isinstance(train, ArraySource) and isinstance(test, ArraySource):
                return match_itself(train, test)
            return train, torch.arange(len(train)), None
        if (
            isinstance(given, FolderImages)
            and isinstance(labelled, FolderImages)
            and isinstance(tested, FolderImages)
        ):
            unseen, overlap, copies = match(given.paths, labelled.paths, tested.paths, tested.folder)
            return FileSource(unseen, None, **views.decoding), overlap, copies
        pretrain = given.source(views)
        if (
            isinstance(pretrain, ArraySource)
            and isinstance(train, ArraySource)
            and isinstance(test, ArraySource)
        ):
            return match_content(pretrain, train, test)
        rank_zero_warn(
            "source is not compared with labelled_train and test: give three folders, or images that fit "
            "into memory, to have test and held-out images left out of pretraining"
        )
        return pretrain, None, None


def check_count(images: AnyImages, least: int) -> None:
    """Raise ValueError if there are too few images to train on and to hold out."""
    if len(images) < least:
        raise ValueError(f"{images.name} has {len(images)} images; at least {least} are needed")


def same_images(first: AnyImages | None, second: AnyImages | None) -> bool:
    """Return whether a user gave one array or one data set for both."""
    if isinstance(first, FolderImages) or isinstance(second, FolderImages):
        return False
    return first is not None and second is not None and first.data is second.data


def match_content(
    pretrain: ArraySource, train: ArraySource, test: ArraySource
) -> tuple[ArraySource, Tensor, Tensor]:
    """Find labelled images among the pretraining images, by content.

    Args:
        pretrain: Pretraining images.
        train: Labelled training images. A warning gives the number of those that are test images.
        test: Test images. Pretraining leaves them out, and a warning gives their number.

    Returns:
        The remaining pretraining images, and `overlap` and `copies` of a `Pairing`.

    Raises:
        ValueError: All pretraining images are test images.
    """
    ours, labelled, tests = (digests(each.images) for each in (pretrain, train, test))
    tested = np.isin(ours, tests)
    pretrain = leave_out(pretrain, tested)
    warn_trained(int(np.isin(labelled, tests).sum()))
    left = ours[~tested]
    places = {digest: index for index, digest in enumerate(left.tolist())}
    overlap = torch.tensor([places.get(digest, -1) for digest in labelled.tolist()])
    return pretrain, overlap, first_copies(left)


def match_itself(train: ArraySource, test: ArraySource) -> tuple[ArraySource, Tensor, Tensor]:
    """Do as `match_content` if the pretraining images are the labelled training images."""
    ours = digests(train.images)
    tested = np.isin(ours, digests(test.images))
    pretrain = leave_out(train, tested)
    warn_trained(int(tested.sum()))
    overlap = torch.from_numpy(np.where(tested, -1, np.cumsum(~tested) - 1))
    return pretrain, overlap, first_copies(ours[~tested])


def leave_out(pretrain: ArraySource, tested: np.ndarray) -> ArraySource:
    """Leave out the pretraining images that are test images, (N,) bool, and warn of their number.

    Raises:
        ValueError: All pretraining images are test images.
    """
    if tested.all():
        raise ValueError(ALL_TESTED)
    if not tested.any():
        return pretrain
    rank_zero_warn(f"{tested.sum()} images of source are test images; pretraining leaves them out")
    return ArraySource(pretrain.images[torch.from_numpy(~tested)], None, pretrain.augment)


def warn_trained(count: int, name: str = "labelled_train") -> None:
    """Warn of the number of labelled training images that are test images, if there are any."""
    if count:
        rank_zero_warn(f"{count} images of {name} are also test images; test scores are too high")


def digests(images: Tensor) -> np.ndarray:
    """Return a number for the content of each image (N, H, W, C) uint8, (N,) uint64."""
    hashes = (hashlib.blake2b(image.data, digest_size=8).digest() for image in images.numpy())
    return np.frombuffer(b"".join(hashes), np.uint64)
