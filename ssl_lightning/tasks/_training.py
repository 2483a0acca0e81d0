"""Training of a backbone by Lightning: optimizers, length of the schedule, random streams, logs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from ssl_lightning.core.seeding import stream_seed
from ssl_lightning.engine.cuda_graphs import StepGraph
from ssl_lightning.engine.optim import one_cycle, use_fused_kernels
from ssl_lightning.networks.adapter import as_backbone
from ssl_lightning.networks.recipes import input_channels
from ssl_lightning.tasks._continued import FACTOR, FrozenStart, parameter_groups


class TrainedModule(pl.LightningModule):
    """A backbone and its training, whatever it learns.

    `PretextTask` adds the images, the steps and the checkpoints, and describes the arguments.
    """

    # set by `PretextTask` and its subclasses
    default_optimizer: tuple[type[torch.optim.Optimizer], Mapping[str, Any]]
    shares_draws: bool
    # False if a callback sends the scores to the loggers (callbacks/metrics.py, in our own runs)
    logs = True

    def __init__(
        self,
        backbone: nn.Module,
        *,
        optimizer: Callable[..., torch.optim.Optimizer] | None,
        scheduler: Callable[..., torch.optim.lr_scheduler.LRScheduler] | None,
        seed: int,
        lr_reference_batch: int | None,
        freeze_until: float,
        backbone_lr_factor: float,
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
        self.seed = seed
        self.lr_reference_batch = lr_reference_batch
        self.backbone_lr_factor = backbone_lr_factor
        self.frozen_start = FrozenStart(freeze_until)
        self.scores: dict[str, Tensor] = {}  # scores of the last training batch, without their graph
        self.graph: StepGraph | None = None  # with `cuda_graphs`
        self._make_optimizer = optimizer or partial(self.default_optimizer[0], **self.default_optimizer[1])
        self._make_scheduler = scheduler or (one_cycle if optimizer is None else None)

    def on_fit_start(self) -> None:
        if self.graph is not None:
            self.graph.forget()  # at the end of a fit Lightning moves the weights to the CPU

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.frozen_start.update(self.backbone, self.steps_done(batch_idx))

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.frozen_start.drop_gradients(self.backbone)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        # Gradients appear only here, with or without a CUDA graph, so Lightning's `zero_grad` and
        # `on_validation_model_zero_grad` may set them to None.
        if self.graph is None or loss.requires_grad:  # False for a replayed loss
            super().backward(loss, *args, **kwargs)
        else:
            self.graph.hand_over()

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

    def _drawing_rank(self) -> int:
        """Return the rank in the names of random streams."""
        return 0 if self.shares_draws else self.global_rank

    def log_training(self, scores: Mapping[str, Tensor]) -> None:
        """Keep the scalars of this batch in `scores`, and log them in the steps that are logged.

        `self.log` in every step would cost a millisecond, logged or not.
        """
        self.scores = {name: value.detach() for name, value in scores.items()}
        if self.logs and self.trainer._logger_connector.should_update_logs:
            self.log_dict({f"train/{name}": value for name, value in self.scores.items() if name != "loss"})
            self.log("train/loss", self.scores["loss"], prog_bar=True)

    def trainer_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options for `make_trainer` without those that the task handles itself; here all."""
        return dict(options)

    def check_trainer(self, trainer: pl.Trainer) -> None:
        """Check before work that the task can train with the precision and the processes of a Trainer.

        Raises:
            ValueError: It cannot.
        """

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

    def training_loader(self) -> Any:
        """Return the training loader as given to the Trainer."""
        return self.trainer.fit_loop._data_source.dataloader()
