"""What every probe is, and the runner that encodes once and hands the features to all of them."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Protocol, cast

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from ssl_lightning.artifacts.results import Record
from ssl_lightning.features.encode import Features, Loader, encode
from ssl_lightning.probes._shared_maps import SharedMaps, Wanted


class BaseProbe:
    """One downstream evaluation.

    A probe sees three labelled splits. It chooses on `heldout`, and reads `test` for the figures it
    reports only. Where the data hold out no images, it sees `train` and `test`.
    """

    # kinds of labels that it can do, see `PairedDataModule`; with "none" it needs no labels at all
    targets: ClassVar[tuple[str, ...]] = ("classes",)
    stage: str | None = None  # the one stage that it looks at, where it does not look at all of them
    takes_views: ClassVar[bool] = True  # whether it can do with the mean over the tiles of an image
    selects: bool = True  # whether it needs held-out images: to choose by, or to report the best stage

    def check(self, counts: Mapping[str, int]) -> None:
        """Refuse, before any work, data that the probe cannot do.

        Args:
            counts: Labelled images of each split: train, heldout, test; and where images have classes, and
                they were counted, `rarest`: training images of the class that has the fewest. Empty where
                there are no labels.

        Raises:
            ValueError: The probe and the data do not fit; says how.
        """
        if self.selects and not counts.get("heldout"):
            raise ValueError(
                f"{type(self).__name__} needs held-out images to choose by, and data.heldout is 0; hold some "
                "out, or choose only probes that select nothing, such as probe=[nonlinear] "
                "probe.nonlinear.selection=last"
            )

    def check_backbone(self, maps: Mapping[str, tuple[int, int, int]], counts: Mapping[str, int]) -> None:
        """Refuse, before any work, a backbone that the probe cannot do.

        Args:
            maps: For each stage the shape `(C, H, W)` of the map of one image.
            counts: As for `check`.

        Raises:
            ValueError: Names what was asked for and what there is.
        """
        if self.stage is not None:
            self.check_stage(self.stage, maps)

    def check_stage(self, stage: str, maps: Mapping[str, tuple[int, int, int]]) -> None:
        """Refuse a stage that the backbone does not have."""
        if stage not in maps:
            raise ValueError(
                f"stage of {type(self).__name__} is {stage!r}; the backbone has {', '.join(maps)}"
            )


class Probe(BaseProbe, ABC):
    """A probe of frozen features, which are encoded once for all of them."""

    @property
    @abstractmethod
    def pools(self) -> tuple[int, ...]:
        """Sizes of the grids that it wants the stage maps pooled to."""

    @abstractmethod
    def run(self, features: Features, *, num_classes: int) -> list[Record]:
        """Evaluate one backbone.

        Returns:
            Records; the runner adds the names of the probe and of the branch.
        """


class ImageLoader(Protocol):
    """Batches of `(images uint8, labels)` in a fixed order, of which single images can be had again."""

    @property
    def image_names(self) -> list[str]:
        """Name of each image, in order, those of the other processes included."""
        ...

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]: ...

    def take(self, places: Tensor) -> Tensor:
        """The images `(n, C, H, W)` uint8 at some places of the order."""
        ...


class Images(Protocol):
    """What a data pairing has to offer beside the labelled splits, see `PairedDataModule`."""

    @property
    def has_downstream(self) -> bool: ...

    @property
    def label_counts(self) -> Mapping[str, int]: ...

    def downstream(self, split: str) -> ImageLoader: ...

    def unlabelled(self, count: int | None = None) -> ImageLoader: ...

    def images_in(self, folder: str) -> ImageLoader: ...

    def labelled(
        self, fraction: float, batch_size: int, *, augment: bool = True, heldout: bool = False
    ) -> Loader: ...


@dataclass(frozen=True)
class Setting:
    """What a probe of the backbone itself works with.

    Args:
        branch: Name of the backbone.
        backbone: On `device`; a probe that trains does so on a copy.
        feed: Turns floats in [0, 1], `(B, C, H, W)`, into what the backbone takes.
        loaders: For each of train, heldout and test this process's share of the labelled batches; without
            heldout where the data hold out no images.
        class_names: In label order.
        precision: Makes the context that forward passes run in.
        device: Where to compute.
        folder: The run folder, for pictures.
        seed: Names the random streams.
        data: The images by other ways than `loaders`.
        make_trainer: Makes a Trainer for the hardware of the run, from further keywords of Lightning's.
        maps: Stage maps of `loaders`, which probes share.
    """

    branch: str
    backbone: nn.Module
    feed: Callable[[Tensor], Tensor]
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
    """A probe that needs the backbone itself: to train it, or to read its maps."""

    wanted: tuple[Wanted, ...] = ()  # what it will ask of `Setting.maps`, in this order

    @abstractmethod
    def run(self, setting: Setting) -> list[Record]:
        """Evaluate one backbone.

        Returns:
            Records; the runner adds the names of the probe and of the branch.
        """


def run_probes(
    branches: Mapping[str, nn.Module],
    probe_input: Callable[[Tensor], Tensor],
    probes: Mapping[str, BaseProbe],
    loaders: Mapping[str, Loader],
    *,
    class_names: tuple[str, ...],
    folder: Path,
    data: Images | None = None,
    make_trainer: Callable[..., pl.Trainer] = pl.Trainer,
    seed: int = 0,
    precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
    device: torch.device | str = "cpu",
    protocol: Mapping[str, Any] | None = None,
) -> tuple[list[Record], dict[str, float]]:
    """Encode each backbone once for all probes of features, and run every probe on it.

    With several processes all do this on the same features and return the same: while one probed,
    the others could only wait.

    Args:
        branches: The backbones by name, on `device`.
        probe_input: Turns floats in [0, 1], `(B, C, H, W)`, into what the backbones take.
        probes: The probes by name.
        loaders: For each of train, heldout and test an iterable of `(images uint8, labels)`, each of
            which yields this process's slice of every batch.
        class_names: In label order; labels of the kind "classes" lie in 0..K-1.
        folder: The run folder, for pictures.
        data: The images by other ways than `loaders`, for the probes that ask for them.
        make_trainer: Makes a Trainer for the hardware of the run, for the probes that train by Lightning.
        seed: Names the random streams of probes that draw.
        precision: Makes the context that the forward pass runs in.
        device: Where features are kept and probes computed.
        protocol: How the backbones were prepared and fed, for the protocol of every record.

    Returns:
        The records, all but `trained`; and seconds by name: `encode_s`, and for each probe `<name>_s`.

    Raises:
        ValueError: A label is out of range, or the features or the data do not fit a probe.
    """
    records: list[Record] = []
    seconds = {f"{name}_s": 0.0 for name in probes}
    of_features = {name: probe for name, probe in probes.items() if isinstance(probe, Probe)}
    of_backbones = {name: probe for name, probe in probes.items() if isinstance(probe, BackboneProbe)}
    pools = {pool for probe in of_features.values() for pool in probe.pools}
    wanted = [each for probe in of_backbones.values() for each in probe.wanted]
    images = sum(cast(Images, data).label_counts[split] for split in loaders) if wanted else 0

    def timed(name: str, branch: str, evaluate: Callable[[], list[Record]]) -> None:
        began = time.perf_counter()
        found = evaluate()
        seconds[f"{name}_s"] += time.perf_counter() - began
        for record in found:
            whole = {**record.protocol, **(protocol or {})}
            records.append(replace(record, probe=name, branch=branch, protocol=whole))

    for branch, backbone in branches.items():
        if of_features:
            features = encode(backbone, probe_input, loaders, pools, precision=precision, device=device)
            seconds["encode_s"] = seconds.get("encode_s", 0.0) + features.encode_s
            _check_labels(features, len(class_names))
            counts = {split: len(labels) for split, labels in features.labels.items()}
            for name, probe in of_features.items():
                probe.check(counts)
                with torch.inference_mode():  # closed forms only; a probe that trains leaves it again
                    timed(name, branch, partial(probe.run, features, num_classes=len(class_names)))
            del features
        setting = Setting(
            branch,
            backbone,
            probe_input,
            loaders,
            class_names,
            precision,
            device,
            folder,
            seed,
            cast(Images, data),
            make_trainer,
            SharedMaps(backbone, probe_input, loaders, images, wanted, precision=precision, device=device),
        )
        for name, backbone_probe in of_backbones.items():
            timed(name, branch, partial(backbone_probe.run, setting))
    return records, seconds


def _check_labels(features: Features, num_classes: int) -> None:
    for split, labels in features.labels.items():
        low, high = (int(bound) for bound in labels.aminmax())
        if labels.ndim == 2:  # (N, K)
            if low < -1 or high > 1 or labels.shape[1] != num_classes:
                raise ValueError(
                    f"labels of the downstream split {split!r} lie in {low}..{high} for {labels.shape[1]} "
                    f"classes; where an image may be of several they must be 1, 0 or -1 for {num_classes}"
                )
        elif low < 0 or high >= num_classes:
            raise ValueError(
                f"labels of the downstream split {split!r} lie in {low}..{high}; "
                f"with {num_classes} classes they must lie in 0..{num_classes - 1}"
            )
