"""Base class of pretext tasks: device transfer, random streams, optimizer, logging."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from ssl_lightning.core.image_spec import ImageSpec
from ssl_lightning.core.seeding import generator, stream_seed
from ssl_lightning.engine.cuda_graphs import StepGraph
from ssl_lightning.engine.optim import one_cycle, use_fused_kernels
from ssl_lightning.networks.adapter import as_backbone
from ssl_lightning.networks.recipes import input_channels
from ssl_lightning.tasks._batches import check_images, explaining_single_images, spec_of_loader, unpack_batch
from ssl_lightning.tasks._continued import FACTOR, FrozenStart, parameter_groups
from ssl_lightning.tasks._pixels import along_rows, to_float
from ssl_lightning.tasks._stored import STORED, Origin, description_of, load_task, stored_spec

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
    """

    images: Tensor
    columns: list[str]
    captions: list[list[str]] = field(default_factory=list)
    right: list[list[bool | None]] = field(default_factory=list)
    watched: int | None = None


class PretextTask(pl.LightningModule):
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
    # False if a callback sends the scores to the loggers (callbacks/metrics.py, in our own runs)
    logs = True

    mean: Tensor
    std: Tensor

    def __new__(cls, *args: Any, **keywords: Any) -> Self:
        task = super().__new__(cls)
        task.__dict__["keywords"] = keywords  # as given, for checkpoints
        return task

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
        super().__init__()
        if lr_reference_batch is not None and lr_reference_batch < 1:
            raise ValueError(
                f"task.lr_reference_batch is {lr_reference_batch}; allowed are null and a positive batch size"
            )
        if not 0 < backbone_lr_factor < math.inf:
            raise ValueError(
                f"task.backbone_lr_factor is {backbone_lr_factor}; allowed is a number above 0, such as 0.1"
            )
        self.backbone = as_backbone(backbone, in_channels=input_channels(backbone) or 3)
        self.origin = Origin(self.backbone)
        self.seed = seed
        self.lr_reference_batch = lr_reference_batch
        self.backbone_lr_factor = backbone_lr_factor
        self.frozen_start = FrozenStart(freeze_until)
        self.image_format = torch.channels_last if channels_last else torch.contiguous_format
        self.scores: dict[str, Tensor] = {}  # scores of the last training batch, without their graph
        self.graph: StepGraph | None = None  # with `cuda_graphs`
        self._make_optimizer = optimizer or partial(self.default_optimizer[0], **self.default_optimizer[1])
        self._make_scheduler = scheduler or (one_cycle if optimizer is None else None)
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
        raise NotImplementedError

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
        raise NotImplementedError

    # --- shared by all tasks ---

    @property
    def spec(self) -> ImageSpec:
        """Shape and statistics of the images.

        Raises:
            ValueError: They are not known yet.
        """
        if self._spec is None:
            raise ValueError(
                f"{type(self).__name__} knows its images once training starts; give spec=ImageSpec(...) to "
                "use it before"
            )
        return self._spec

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: Any = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        **keywords: Any,
    ) -> Self:
        """Load a trained task from a checkpoint of any Trainer, or of a run of `train.py`.

        The file is read without running code. It holds the weights, the keywords, the spec, and a description
        of the backbone. It has no optimizer and no scheduler: give them again to train with your own.

        Args:
            checkpoint_path: The file.
            map_location: Device of the task; None is the CPU.
            hparams_file: Not supported.
            strict: Not supported; all weights must fit.
            weights_only: Always true.
            **keywords: Keywords that replace the stored ones. `backbone=` is needed for a backbone that is
                neither of this package, nor of timm or torchvision.

        Returns:
            The task, in training mode, as Lightning does it.

        Raises:
            ValueError: The file is broken or of another task, or its backbone is unknown.
        """
        task = load_task(cls, checkpoint_path, keywords)
        return task.to(map_location or "cpu").to(memory_format=task.image_format)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self._spec is not None:
            checkpoint[STORED] = description_of(self)
        self.frozen_start.save(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the spec of the checkpoint if this task derived its own from a batch."""
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
            self.build(self._derive_spec())
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
        takes, channels = input_channels(self.backbone), self.backbone_channels(self.spec)
        if takes not in (None, channels):
            raise ValueError(
                f"the backbone takes {takes} channels, and {type(self).__name__} feeds it {channels}; "
                f"build it for {channels} (in_chans={channels} in timm), or convert the images"
            )

    def _derive_spec(self) -> ImageSpec:
        trainer: Any = self.trainer
        spec = getattr(trainer.datamodule, "spec", None)
        if not isinstance(spec, ImageSpec):
            spec = spec_of_loader(self.training_loader(), labelled=self.needs_labels)
        found: ImageSpec = trainer.strategy.broadcast(spec)  # each process reads other images
        return found

    def training_loader(self) -> Any:
        """Return the training loader as given to the Trainer."""
        return self.trainer.fit_loop._data_source.dataloader()

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

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.frozen_start.update(self.backbone, self.steps_done(batch_idx))

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.frozen_start.drop_gradients(self.backbone)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        images, labels = batch
        self.fix_dropout(batch_idx)
        if self.graph is None:
            with explaining_single_images():
                scores = self.step(images, labels, self.training_stream(batch_idx, images.device))
        else:
            _, scores = next(self.graph.rounds(images, labels, self.stream_seed(batch_idx)))
        self.log_training(scores)
        return scores["loss"]

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        # Gradients appear only here, with or without a CUDA graph, so Lightning's `zero_grad` and
        # `on_validation_model_zero_grad` may set them to None.
        if self.graph is None or loss.requires_grad:  # False for a replayed loss
            super().backward(loss, *args, **kwargs)
        else:
            self.graph.hand_over()

    def on_fit_start(self) -> None:
        if self.graph is not None:
            self.graph.forget()  # at the end of a fit Lightning moves the weights to the CPU

    def falling_loss(self, scores: Mapping[str, Tensor]) -> Tensor:
        """Return the loss that falls in a healthy training, from the scores of a batch."""
        return scores["loss"]

    def fix_dropout(self, batch_idx: int) -> None:
        """Seed the global stream, from which dropout draws, so that a resumed run draws the same."""
        seed = stream_seed(self.seed, "dropout", self.current_epoch, batch_idx, self.global_rank)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every kind of device
        if self.device.type != "cpu":
            torch.get_device_module(self.device).manual_seed(seed)

    def training_stream(self, batch_idx: int, device: torch.device) -> torch.Generator:
        """Return the random stream of one training batch."""
        return torch.Generator(device).manual_seed(self.stream_seed(batch_idx))

    def stream_seed(self, batch_idx: int) -> int:
        """Return the seed of the random stream of one training batch."""
        return stream_seed(self.seed, "train", self.current_epoch, batch_idx, self._drawing_rank())

    def log_training(self, scores: Mapping[str, Tensor]) -> None:
        """Keep the scalars of this batch in `scores`, and log them in the steps that are logged.

        `self.log` in every step would cost a millisecond, logged or not.
        """
        self.scores = {name: value.detach() for name, value in scores.items()}
        if self.logs and self.trainer._logger_connector.should_update_logs:
            self.log_dict({f"train/{name}": value for name, value in self.scores.items() if name != "loss"})
            self.log("train/loss", self.scores["loss"], prog_bar=True)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        images, labels = batch
        # one stream for all epochs makes validation scores comparable over a run
        stream = generator(self.seed, "val", batch_idx, self._drawing_rank(), device=images.device)
        scores = self.step(images, labels, stream)
        named = {f"val/{name}": value for name, value in scores.items()}
        loss = {"val/loss": named.pop("val/loss")}
        for group, shown in ((loss, self.logs), (named, False)):
            self.log_dict(
                group, batch_size=len(images), on_epoch=True, sync_dist=True, logger=self.logs, prog_bar=shown
            )

    def trainer_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options for `make_trainer` without those that the task handles itself; here all."""
        return dict(options)

    @property
    def accumulated_batches(self) -> int:
        """Number of batches whose gradients make one optimizer step."""
        return int(self.trainer.accumulate_grad_batches)

    @property
    def max_steps(self) -> int:
        """Limit on optimizer steps; -1 for no limit."""
        return int(self.trainer.max_steps)

    def steps_done(self, batch_idx: int) -> int:
        """Return the number of optimizer steps before this batch."""
        return int(self.trainer.global_step)

    def configure_model(self) -> None:
        """Shard the networks, if the strategy supports it (`ssl_lightning.engine.fsdp`)."""
        strategy: Any = self.trainer.strategy if self._trainer is not None else None
        if hasattr(strategy, "shard"):
            strategy.shard(self)

    def configure_optimizers(self) -> Any:
        steps = self.total_steps()
        self.frozen_start.begin(steps)
        return self.optimizer_for(self.parameters(), steps)

    def optimizer_for(
        self, parameters: Iterable[nn.Parameter], total_steps: int, lr_factor: float = 1.0
    ) -> dict[str, Any]:
        """Create an optimizer for some of the parameters, and its schedule.

        Args:
            parameters: The parameters to train; the backbone's get their own rate.
            total_steps: Length of the schedule in steps.
            lr_factor: Learning rate relative to that of the run.
        """
        given: Any = parameters
        if self.backbone_lr_factor != 1 or self.frozen_start.share:
            given = parameter_groups(parameters, self.backbone, self.backbone_lr_factor)
        optimizer = self._make_optimizer(given)
        if not hasattr(self.trainer.strategy, "shard"):  # torch lacks some fused kernels for sharded weights
            use_fused_kernels(optimizer)
        if self.lr_reference_batch is not None:
            lr_factor *= self.lr_factor(self.global_batch() * self.accumulated_batches)
        for group in optimizer.param_groups:
            group["lr"] *= lr_factor * group.pop(FACTOR, 1.0)
        if self._make_scheduler is None:
            return {"optimizer": optimizer}
        schedule = self._make_scheduler(optimizer, total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def total_steps(self) -> int:
        """Return the number of optimizer steps of the full run.

        Raises:
            ValueError: The run has no end, or the length of its epochs is unknown.
        """
        epochs, limit = self.trainer.max_epochs, self.max_steps
        if epochs in (None, -1) and limit == -1:
            raise ValueError(
                "trainer.max_epochs and trainer.max_steps are both -1; a schedule needs an end, such as "
                "Trainer(max_epochs=100)"
            )
        if epochs in (None, -1):
            return limit
        batches = self.epoch_batches()
        if math.isinf(batches) and limit == -1:
            raise ValueError(
                "the training loader has no length, so the length of the schedule is unknown; give "
                "Trainer(max_steps=...), or Trainer(limit_train_batches=...) with max_epochs"
            )
        if math.isinf(batches):
            return limit
        steps = math.ceil(batches / self.accumulated_batches) * epochs
        return min(steps, limit) if limit >= 0 else steps

    def epoch_batches(self) -> float:
        """Return the number of training batches of an epoch in this process; infinite if it is unknown."""
        trainer: Any = self.trainer
        if not hasattr(trainer.datamodule, "pretrain_batches"):
            trainer.fit_loop.setup_data()  # as `Trainer.estimated_stepping_batches` does
            return float(trainer.num_training_batches)
        # our own loader must not be created before a checkpoint is restored
        batches, limit = trainer.datamodule.pretrain_batches, trainer.limit_train_batches
        return min(batches, limit) if isinstance(limit, int) else int(batches * limit)

    def global_batch(self) -> int:
        """Return the number of images of a batch, over all processes.

        Raises:
            ValueError: The training loader does not tell it.
        """
        trainer: Any = self.trainer
        if hasattr(trainer.datamodule, "pretrain_batches"):
            return int(trainer.datamodule.batch_size)
        size = getattr(self.training_loader(), "batch_size", None)
        if size is None:
            raise ValueError(
                "lr_reference_batch scales the learning rate by the batch size, and the training loader has "
                "no batch_size; scale lr of optimizer= instead"
            )
        return int(size) * int(trainer.world_size)

    def lr_factor(self, batch: int) -> float:
        """Return learning rate over base learning rate for a global batch: 1, or by linear scaling."""
        return 1.0 if self.lr_reference_batch is None else batch / self.lr_reference_batch

    def _drawing_rank(self) -> int:
        """Return the rank in the names of random streams."""
        return 0 if self.shares_draws else self.global_rank
