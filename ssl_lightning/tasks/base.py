"""Base class of pretext tasks: what a task may override, its images, steps and checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ssl_lightning.core.image_spec import ImageSpec
from ssl_lightning.core.seeding import generator
from ssl_lightning.networks.recipes import check_input_channels
from ssl_lightning.tasks._batches import check_images, explaining_single_images, spec_of_loader, unpack_batch
from ssl_lightning.tasks._contract import (
    TaskContractError,
    UnknownImagesError,
    build_checked,
    check_comparable,
    check_panel,
    check_scores,
)
from ssl_lightning.tasks._pixels import along_rows, to_float
from ssl_lightning.tasks._stored import STORED, Origin, StoredTask, description_of, stored_spec
from ssl_lightning.tasks._training import TrainedModule

Batch = tuple[Tensor, Tensor]  # images (B, C, H, W) uint8, labels (B,) int64, -1 where there is none
SGD = (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4})

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Panel:
    """A grid of pictures that shows what a task does.

    Args:
        images: `(rows, columns, C, H, W)` floats in [0, 1].
        columns: One title per column.
        captions: For each row and column a line under the picture; may be empty.
        right: For each row and column: True is drawn in green, False in red, None in grey.
        watched: Number of the column that changes during training, for a strip over the epochs. None if only
            the captions change.

    Raises:
        ValueError: Shapes or lengths do not fit each other.
    """

    images: Tensor
    columns: list[str]
    captions: list[list[str]] = field(default_factory=list)
    right: list[list[bool | None]] = field(default_factory=list)
    watched: int | None = None

    def __post_init__(self) -> None:
        check_panel(self.images, self.columns, self.captions, self.right, self.watched)


class PretextTask(StoredTask, TrainedModule):
    """A network that learns from labels derived from the images themselves.

    A task implements `step` (corrupt, encode, score) and `panel`; the backbone is `self.backbone`. Its
    constructor checks keywords; `build` makes what depends on the images. If the spec is given, the
    constructor calls `build`. Otherwise a Trainer calls it, with the spec of the data module or of the first
    training batch: channels, size, and the mean and deviation of its pixels.

    A batch is images `(B, C, H, W)`, uint8 or floats in [0, 1]: alone, first in a tuple, or in a dict under
    "image". Lightning's `Trainer` logs `train/*` and `val/*`. `load_from_checkpoint` gives the trained task.

    Args:
        backbone: Any network that takes images; see `as_backbone`.
        spec: Shape and statistics of the images; None derives them when training starts.
        optimizer: Creates the optimizer from the parameters; its `lr` is the base learning rate. None takes
            the default of `train.py` for the task, with a one-cycle schedule. Checkpoints do not keep it.
        scheduler: Creates the schedule from the optimizer and the number of steps, and steps after every
            optimizer step. None keeps lr constant if an optimizer is given. Checkpoints do not keep it.
        seed: Seed of the random streams of the run.
        lr_reference_batch: With a number, the learning rate is lr * global batch size / this number (the
            linear scaling rule, Goyal et al. 2017). None keeps lr unchanged.
        freeze_until: Share of the run, from 0 to below 1, in which the backbone keeps its weights and its
            batch-norm statistics, so that new heads do not ruin given weights.
        backbone_lr_factor: Learning rate of the backbone relative to that of all other weights.
        channels_last: Memory format of images and weights in training.
    """

    needs_training = True  # False for a control that is probed at its initial weights
    needs_labels = False  # True for a control that learns from the labels of the pretraining images
    chance: float | None = None  # accuracy of guessing, of a task with an accuracy; known after `build`
    views_per_image = 1  # images that enter the backbone per pretraining image: the effective batch
    fewest_images = 1  # of a batch, over all processes; more where images are compared with each other
    # True if the backbone never saw full images, so that its batch-norm statistics do not fit them
    recalibrate = False
    # True if `rounds` runs the same operations on every batch, so that `cuda_graphs` may record it: no
    # Python branch on the step, the epoch, or values read from the device
    recordable = False
    # True if a step draws for the batch of all processes and takes its part, so that results do not depend on
    # the number of processes; False if each process draws for its own images
    shares_draws = False
    # Guards against shortcuts: for each, the overrides of the task's keywords that switch it off
    guards: Mapping[str, Mapping[str, Any]] = {}
    labels_seen = "none"  # labels that shape the weights while pretraining, in words: for results.json
    # class and keywords of the optimizer if none is given, as `train.py task=...` has them
    default_optimizer: tuple[type[torch.optim.Optimizer], Mapping[str, Any]] = SGD

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        spec: ImageSpec | None = None,
        *,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        scheduler: Callable[..., torch.optim.lr_scheduler.LRScheduler] | None = None,
        seed: int = 0,
        lr_reference_batch: int | None = None,
        freeze_until: float = 0.0,
        backbone_lr_factor: float = 1.0,
        channels_last: bool = True,
    ) -> None:
        super().__init__(
            backbone,
            optimizer=optimizer,
            scheduler=scheduler,
            seed=seed,
            lr_reference_batch=lr_reference_batch,
            freeze_until=freeze_until,
            backbone_lr_factor=backbone_lr_factor,
        )
        self.origin = Origin(self.backbone)
        self.image_format = torch.channels_last if channels_last else torch.contiguous_format
        self._spec: ImageSpec | None = None
        self._derived = False  # whether the spec comes from the training data
        self._unchecked: set[bool] = set()  # modes, training or not, whose first batch is still to be checked
        if spec is not None:
            PretextTask.build(self, spec)

    # --- a task may override ---

    def build(self, spec: ImageSpec) -> None:
        """Build what depends on the images: heads, decoders, buffers. A task extends it.

        Raises:
            ValueError: The images do not fit the task or its backbone.
        """
        self._spec = spec
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(1, -1, 1, 1), persistent=False)

    @classmethod
    def backbone_channels(cls, spec: ImageSpec) -> int:
        """Return the number of input channels of the backbone; by default the channels of the images."""
        return spec.channels

    def check_images(self, sample: Callable[[int], Tensor]) -> None:
        """Check before work that the pretraining images can teach the task.

        Args:
            sample: Returns up to n pretraining images, `(n, C, H, W)` uint8.

        Raises:
            ValueError: They cannot.
        """

    def step(self, images: Tensor, labels: Tensor, stream: torch.Generator) -> dict[str, Tensor]:
        """Score one batch.

        Args:
            images: `(B, C, H, W)` as `receive` returns them: floats in [0, 1] unless the task overrides it.
            labels: `(B,)` int64 downstream labels, -1 for none; only controls read them.
            stream: Source of all random draws of this step.

        Returns:
            Scalars to log by name; `"loss"` is minimised.
        """
        raise TaskContractError(f"{type(self).__name__} has no step; write step(images, labels, stream)")

    def rounds(
        self, images: Tensor, labels: Tensor, stream: torch.Generator
    ) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Yield for each optimizer the name of its loss, and scores as `step` returns them.

        The caller does the backward pass of one round before it requests the next.
        """
        yield "loss", self.step(images, labels, stream)

    def branches(self) -> dict[str, nn.Module]:
        """Return the backbones to probe, by name."""
        return {"backbone": self.backbone}

    def branch_configs(self) -> dict[str, dict[str, Any]]:
        """Return the configs, with `_target_`, of branches that the task built itself."""
        return {}

    def embeddings(self, features: Tensor) -> dict[str, Tensor]:
        """Return what else is watched for collapse, `(N, D)` by name; by default nothing.

        Args:
            features: Pooled last stage of the backbone, `(N, C)`, of plain images in evaluation mode.
        """
        return {}

    def networks(self) -> list[nn.Module]:
        """Return the networks that the task calls, each as a whole: what is compiled and sharded."""
        return list(self.children())

    def chances(self) -> dict[str, float]:
        """Return the accuracy of guessing, by the name of the score."""
        return {} if self.chance is None else {"acc": self.chance}

    def falling_loss(self, scores: Mapping[str, Tensor]) -> Tensor:
        """Return the loss that falls in a healthy training, from the scores of a batch."""
        return scores["loss"]

    def receive(self, images: Tensor) -> Tensor:
        """Convert a batch of the loader, `(B, C, H, W)` uint8, to the images of `step`.

        A task that does not need every pixel as a float keeps the bytes.
        """
        return to_float(images).contiguous(memory_format=self.image_format)

    def probe_input(self, images: Tensor) -> Tensor:
        """Convert plain images, `(B, C, H, W)` floats in [0, 1], to the input of the backbone."""
        return self.normalise(images)

    def probe_views(self, images: Tensor) -> Tensor:
        """Convert plain images to several inputs for each, `(B, V, C, h, w)`, whose features are averaged.

        Raises:
            ValueError: The backbone of this task sees full images, so it has no such views.
        """
        raise ValueError(
            f"encoding.input is views, but the backbone of {type(self).__name__} sees full images; "
            "set encoding.input=image"
        )

    def input_config(self) -> dict[str, Any]:
        """Describe `probe_input` for `backbone.json`: the colours, and their mean and deviation."""
        colour = {1: "grey", 3: "RGB", 4: "RGBX"}[self.spec.channels]
        mean, std = list(self.spec.mean), list(self.spec.std)
        return {"image_size": self.spec.image_size, "colour": colour, "mean": mean, "std": std}

    def panel(self, images: Tensor) -> Panel:
        """Show what the task does to `(B, C, H, W)` float images in [0, 1]."""
        raise TaskContractError(f"{type(self).__name__} has no panel; write panel(images)")

    # --- shared by all tasks; `_training.py` has the optimizers, `_stored.py` loads checkpoints ---

    @property
    def spec(self) -> ImageSpec:
        """Shape and statistics of the images.

        Raises:
            UnknownImagesError: They are not known yet.
        """
        if self._spec is None:
            raise UnknownImagesError(self)
        return self._spec

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self._spec is not None:
            checkpoint[STORED] = description_of(self)
        self.frozen_start.save(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the spec of the checkpoint if this task derived its own from a batch."""
        if self._trainer is not None and self._trainer.state.fn == "fit":
            self.frozen_start.load(checkpoint)
        spec = stored_spec(checkpoint)
        if self._derived and spec is not None and spec != self._spec:
            self.build(spec)
            self.to(memory_format=self.image_format)

    def setup(self, stage: str) -> None:
        """Derive the spec if it is not given, before training."""
        if stage != "fit":
            return
        if self._spec is None:
            build_checked(self, self._derive_spec())
            self._derived = True
            log.info("%s derived %s from the training data", type(self).__name__, self._spec)
        self.check_channels()
        self.to(memory_format=self.image_format)
        self._unchecked = {True, False}

    def check_channels(self) -> None:
        """Raise if the backbone takes another number of channels than the images have.

        Raises:
            ValueError: The numbers differ.
        """
        check_input_channels(self.backbone, self.backbone_channels(self.spec), type(self).__name__)

    def _derive_spec(self) -> ImageSpec:
        trainer: Any = self.trainer
        spec = getattr(trainer.datamodule, "spec", None)
        if not isinstance(spec, ImageSpec):
            spec = spec_of_loader(self.training_loader(), labelled=self.needs_labels)
        found: ImageSpec = trainer.strategy.broadcast(spec)  # each process reads other images
        return found

    @property
    def is_built(self) -> bool:
        """Whether the task knows its images; a stock Trainer tells it when training starts."""
        return self._spec is not None

    def normalise(self, images: Tensor) -> Tensor:
        """Standardise floats in [0, 1] with the mean and deviation of the data set."""
        mean, std = (along_rows(values, images) for values in (self.mean, self.std))
        return (images - mean) / std

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Batch:
        """Convert a batch of any kind to the input of `step`, on the device."""
        images, labels = unpack_batch(batch, needs_labels=self.needs_labels)
        if self.training in self._unchecked:  # once, since looking at floats waits for the device
            check_images(images, self.spec)
            self._unchecked.discard(self.training)
        return self.receive(images), labels

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        images, labels = batch
        self.fix_dropout(batch_idx)
        if batch_idx == 0:
            check_comparable(self, len(images) * self.trainer.world_size)
        if self.graph is None:
            with explaining_single_images():
                scores = self.step(images, labels, self.training_stream(batch_idx, images.device))
            if batch_idx == 0:
                check_scores(self, scores)
        else:
            _, scores = next(self.graph.rounds(images, labels, self.stream_seed(batch_idx)))
        self.log_training(scores)
        return scores["loss"]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        images, labels = batch
        # one stream for all epochs makes validation scores comparable over a run
        stream = generator(self.seed, "val", batch_idx, self._drawing_rank(), device=images.device)
        scores = self.step(images, labels, stream)
        if batch_idx == 0:
            check_scores(self, scores)
        named = {f"val/{name}": value for name, value in scores.items()}
        loss = {"val/loss": named.pop("val/loss")}
        for group, shown in ((loss, self.logs), (named, False)):
            self.log_dict(
                group, batch_size=len(images), on_epoch=True, sync_dist=True, logger=self.logs, prog_bar=shown
            )
