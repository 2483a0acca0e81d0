"""Joint training of a copy of a backbone and a classifier, for the fine-tuning probe."""

from __future__ import annotations

import contextlib
import copy
import signal
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_lightning.core.progress import Work, tracked
from ssl_lightning.engine.sync_batch_norm import synchronise_batch_norm
from ssl_lightning.features.encode import evaluating, gather_batches, stage_maps
from ssl_lightning.networks.rotnet_classifiers import ConvBlockClassifier, MeanClassifier
from ssl_lightning.probes._accuracy import Scored, check_loss, figure_of
from ssl_lightning.probes.base import ProbeContext

HEADS = {"linear": MeanClassifier, "conv": ConvBlockClassifier}
DECAY = 0.2  # factor of the rates at each milestone


class FineTuning(pl.LightningModule):
    """A backbone and a classifier that are trained together.

    Args:
        context: Context of the probe; its backbone is copied.
        frozen: Name of the last frozen stage, or None.
        steps: Steps of the full schedule.
        every_n_epochs: Epochs between two evaluations on held-out images; None for no evaluation.
        classifier, stage, milestones, lr, head_lr, weight_decay, patience: See `FineTuneProbe`.
    """

    progress: Work  # of the training

    def __init__(
        self,
        context: ProbeContext,
        *,
        classifier: str,
        stage: str | None,
        frozen: str | None,
        steps: int,
        milestones: Sequence[float] | None,
        every_n_epochs: int | None,
        lr: float,
        head_lr: float,
        weight_decay: float,
        patience: int,
    ) -> None:
        super().__init__()
        self.context, self.steps, self.milestones = context, steps, milestones
        self.every_n_epochs, self.patience = every_n_epochs, patience
        self.lr, self.head_lr, self.weight_decay = lr, head_lr, weight_decay
        self.backbone = copy.deepcopy(context.backbone).requires_grad_(True)
        images, labels = next(iter(context.loaders["test"]))
        inputs = context.probe_input(images[:1].to(context.device).float().div_(255))
        self.metric = "top1" if labels.ndim == 1 else "map"  # selects the epoch
        self.stage, channels = self.fix_weights(inputs, stage, frozen)
        arguments = {"channels": channels, "num_classes": len(context.class_names)}
        self.head_config = {"_target_": target_of(HEADS[classifier]), **arguments}
        self.head: nn.Module = HEADS[classifier](**arguments).to(context.device)
        if dist.is_initialized() and dist.get_world_size() > 1:
            on_gpu = torch.device(context.device).type == "cuda"
            self.backbone = synchronise_batch_norm(self.backbone, on_gpu=on_gpu)
            self.head = synchronise_batch_norm(self.head, on_gpu=on_gpu)
        self.best, self.best_epoch, self.best_weights = -1.0, 0, copy.deepcopy(self.state_dict())
        self._signal_handlers = {
            signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGUSR1)
        }

    def fix_weights(self, inputs: Tensor, stage: str | None, frozen: str | None) -> tuple[str, int]:
        """Freeze the stages up to `frozen`, and the weights that do not contribute to `stage`.

        Returns:
            Name and channels of the classified map; the deepest map without a `stage`.
        """
        with evaluating(self.backbone):
            maps = stage_maps(self.backbone, inputs)
            by_name = {f"stage{number}": each for number, each in enumerate(maps, 1)}
            stage = stage or next(reversed(by_name))
            trained = contributing_weights(self.backbone, by_name[stage])
            fixed = contributing_weights(self.backbone, by_name[frozen]) if frozen else set()
        for name, weight in self.backbone.named_parameters():
            weight.requires_grad_(name in trained - fixed)
        return stage, by_name[stage].shape[1]

    @property
    def trained_weights(self) -> int:
        """Number of trained weights of backbone and classifier."""
        return sum(weight.numel() for weight in self.parameters() if weight.requires_grad)

    def forward(self, images: Tensor) -> Tensor:
        """Map `(B, C, H, W)` uint8 to logits `(B, K)`."""
        maps = stage_maps(self.backbone, self.context.probe_input(images.float().div_(255)))
        return self.head(maps[int(self.stage.removeprefix("stage")) - 1])

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        total = loss(self(images).float(), labels)
        self.last_loss = total.detach()
        return total

    def configure_optimizers(self) -> Any:
        backbone = [weight for weight in self.backbone.parameters() if weight.requires_grad]
        groups = [{"params": self.head.parameters(), "lr": self.head_lr}, {"params": backbone, "lr": self.lr}]
        sgd = torch.optim.SGD(groups, momentum=0.9, nesterov=True, weight_decay=self.weight_decay)
        schedule: torch.optim.lr_scheduler.LRScheduler
        if self.milestones is None:
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, self.steps)
        else:
            at = [round(milestone * self.steps) for milestone in self.milestones]
            schedule = torch.optim.lr_scheduler.MultiStepLR(sgd, at, DECAY)
        return {"optimizer": sgd, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        with contextlib.suppress(ValueError):  # only the main thread may set handlers
            # Lightning's handlers would wait for the other processes
            for signum, handler in self._signal_handlers.items():
                signal.signal(signum, handler)

    def on_train_epoch_start(self) -> None:
        self.train()
        for part in self.backbone.modules():  # frozen parts keep their statistics too
            own = list(part.parameters(recurse=False))
            if own and not any(weight.requires_grad for weight in own):
                part.eval()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.progress.advance()

    def on_train_epoch_end(self) -> None:
        check_loss(self.last_loss, "finetune")
        epoch = self.current_epoch + 1
        if self.every_n_epochs is None:
            return
        if epoch % self.every_n_epochs and epoch < self.trainer.max_epochs:  # type: ignore[operator]
            return
        value = figure_of(self.metric, *self.scores("heldout"))
        if value > self.best:
            self.best, self.best_epoch = value, epoch
            self.best_weights = copy.deepcopy(self.state_dict())
        elif epoch - self.best_epoch >= self.patience * self.every_n_epochs:
            self.trainer.should_stop = True  # the score is the same in every process

    @torch.no_grad()
    def scores(self, split: str) -> Scored:
        """Return logits and labels of a split; the same in every process.

        This is not Lightning's validation, which syncs buffers with each batch and needs equally many
        batches in every process.
        """
        answers, truth, counts = [], [], []
        with evaluating(self):
            for images, labels in tracked(self.context.loaders[split], f"test on {split}", "batches"):
                if len(images):
                    with self.context.precision():
                        answers.append(self(images.to(self.device, non_blocking=True)).float())
                    truth.append(labels.to(self.device))
                    counts.append(len(images))
        logits = gather_batches(torch.cat(answers), counts)
        labels = gather_batches(torch.cat(truth), counts)
        return logits, labels


def target_of(made: type) -> str:
    """Return the dotted name of a class."""
    return f"{made.__module__}.{made.__qualname__}"


def loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of `(B,)` labels, or the binary one of `(B, K)` labels; -1 is ignored."""
    if labels.ndim == 1:
        return F.cross_entropy(logits, labels)
    counted = (labels >= 0).float()
    each = F.binary_cross_entropy_with_logits(
        logits, labels.clamp(min=0).float(), weight=counted, reduction="sum"
    )
    return each / counted.sum().clamp(min=1)


def contributing_weights(module: nn.Module, output: Tensor) -> set[str]:
    """Return the names of the weights of a module that contribute to one of its outputs."""
    names, weights = zip(*module.named_parameters(), strict=True)
    grads = torch.autograd.grad(output.float().sum(), weights, retain_graph=True, allow_unused=True)
    return {name for name, grad in zip(names, grads, strict=True) if grad is not None}
