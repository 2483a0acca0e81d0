"""Base classes of the probes, and the context that a probe of the backbone gets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from ssl_lightning.artifacts.classifiers import FittedClassifier
from ssl_lightning.artifacts.records import Record
from ssl_lightning.features.encode import Features, Loader
from ssl_lightning.probes._accuracy import records_of
from ssl_lightning.probes._folds import out_of_fold, selecting_folds, selection
from ssl_lightning.probes._shared_maps import MapRequest, SharedMaps

# with what a probe of one's own needs besides a base class
__all__ = [
    "BackboneProbe",
    "BaseProbe",
    "ImageLoader",
    "Images",
    "Probe",
    "ProbeContext",
    "out_of_fold",
    "records_of",
    "selecting_folds",
    "selection",
]


class BaseProbe:
    """One downstream evaluation.

    A probe gets three labelled splits. It selects on `heldout`, and reads `test` only for the reported
    results. If the data hold out no images, it gets `train` and `test`.
    """

    # supported kinds of labels, see `PairedDataModule`; "none" needs no labels
    targets: ClassVar[tuple[str, ...]] = ("classes",)
    stage: str | None = None  # the one stage that it reads; None for all stages
    takes_views: ClassVar[bool] = True  # whether it accepts the mean over the tiles of an image
    selects: bool = True  # whether it needs held-out images: to select, or to report the best stage
    corruptions: tuple[str, ...] = ()  # of the test images, whose features it needs too
    fitted: FittedClassifier | None = None  # by the last `run`, if the probe fits one to store

    def check(self, counts: Mapping[str, int]) -> None:
        """Raise, before any work, if the probe does not support the data.

        Args:
            counts: Labelled images of each split: train, heldout, test. If the images have classes with known
                counts, `rarest` is the number of training images of the rarest class. Empty without labels.

        Raises:
            ValueError: The probe does not support the data; the message says why.
        """
        if self.selects and not counts.get("heldout"):
            raise ValueError(
                f"{type(self).__name__} needs held-out images to select on, and data.heldout is 0; "
                "raise data.heldout, or use only probes that can do without, such as probe=[nonlinear]"
            )

    def fitted_limits(self, counts: Mapping[str, int]) -> list[str]:
        """Describe the settings that few images reduce, a sentence each; the probe uses the reduced ones.

        Args:
            counts: As for `check`, which has passed.
        """
        return []

    def check_backbone(self, maps: Mapping[str, tuple[int, int, int]], counts: Mapping[str, int]) -> None:
        """Raise, before any work, if the probe does not support the backbone.

        Args:
            maps: For each stage the shape `(C, H, W)` of the map of one image.
            counts: As for `check`.

        Raises:
            ValueError: The backbone lacks what the probe needs; the message names both.
        """
        if self.stage is not None:
            self.check_stage(self.stage, maps)

    def check_images(self, data: Images) -> None:
        """Raise, before any work, if images that the probe reads beyond the splits cannot be read.

        Args:
            data: As the probe gets it (`ProbeContext.data`).

        Raises:
            ValueError or OSError: A folder of the probe holds no image.
            BadImagesError: Too many files cannot be decoded.
        """

    def check_stage(self, stage: str, maps: Mapping[str, tuple[int, int, int]]) -> None:
        """Raise if the backbone does not have a stage."""
        if stage not in maps:
            raise ValueError(
                f"stage of {type(self).__name__} is {stage!r}; the backbone has {', '.join(maps)}"
            )


class Probe(BaseProbe, ABC):
    """A probe of frozen features, which all feature probes share."""

    @property
    @abstractmethod
    def pools(self) -> tuple[int, ...]:
        """Grid sizes to which the probe needs the stage maps pooled."""

    @abstractmethod
    def run(self, features: Features, *, num_classes: int) -> list[Record]:
        """Evaluate one backbone.

        Returns:
            Records; the runner adds the names of the probe and of the branch.
        """


class ImageLoader(Protocol):
    """Batches of `(images uint8, labels)` in a fixed order, with access to single images."""

    @property
    def labels(self) -> Tensor:
        """Labels of the images of all processes, in order."""
        ...

    @property
    def image_names(self) -> list[str]:
        """Name of each image of all processes, in order."""
        ...

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]: ...

    def take(self, places: Tensor) -> Tensor:
        """Return the images `(n, C, H, W)` uint8 at these positions of the order."""
        ...


class Images(Protocol):
    """Further access to the images of a data pairing, see `PairedDataModule`."""

    @property
    def has_downstream(self) -> bool: ...

    @property
    def label_counts(self) -> Mapping[str, int]: ...

    @property
    def test_folds(self) -> Sequence[Images]: ...

    def downstream(self, split: str) -> ImageLoader: ...

    def unlabelled(self, count: int | None = None) -> ImageLoader: ...

    def augmented(self, count: int, view: str) -> ImageLoader: ...

    def images_in(self, folder: str) -> ImageLoader: ...

    def labelled(
        self, fraction: float, batch_size: int, *, augment: bool = True, heldout: bool = False
    ) -> Loader: ...


@dataclass(frozen=True)
class ProbeContext:
    """Context of a probe that needs the backbone itself.

    Args:
        branch: Name of the backbone.
        backbone: On `device`; a probe trains a copy of it.
        probe_input: Maps floats in [0, 1], `(B, C, H, W)`, to the backbone's input.
        loaders: For train, heldout and test this process's share of the labelled batches; without heldout
            if the data hold out no images.
        class_names: In label order.
        precision: Creates the context of forward passes.
        device: Device of the computation.
        folder: The run folder, for pictures.
        seed: Seed of the random streams.
        data: Access to the images beyond `loaders`.
        make_trainer: Makes a Trainer for the hardware of the run; takes further keywords of `pl.Trainer`.
        maps: Stage maps of `loaders`, which probes share.
    """

    branch: str
    backbone: nn.Module
    probe_input: Callable[[Tensor], Tensor]
    loaders: Mapping[str, Loader]
    class_names: tuple[str, ...]
    precision: Callable[[], AbstractContextManager[Any]]
    device: torch.device | str
    folder: Path
    seed: int
    data: Images
    make_trainer: Callable[..., pl.Trainer]
    maps: SharedMaps


class BackboneProbe(BaseProbe, ABC):
    """A probe that needs the backbone itself, to train it or to read its maps."""

    wanted: tuple[MapRequest, ...] = ()  # its requests to `ProbeContext.maps`, in this order

    @abstractmethod
    def run(self, context: ProbeContext) -> list[Record]:
        """Evaluate one backbone.

        Returns:
            Records; the runner adds the names of the probe and of the branch.
        """
