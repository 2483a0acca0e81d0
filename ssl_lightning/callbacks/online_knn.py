"""A nearest-neighbour figure while pretraining goes on: to watch, never to report."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from ssl_lightning.engine.fsdp import whole_task
from ssl_lightning.features.encode import Features, encode
from ssl_lightning.ops.knn import knn_scores, topk_accuracy

SPLITS = ("train", "heldout")


class OnlineKNN(Callback):
    """Vote of the nearest labelled training images for held-out ones, every few epochs.

    Logged as `online/<branch>/knn_top1` for the deepest stage, a name of its own: the offline probes use all
    labels and the test images, this one neither: a fixed draw, and no test images.

    Args:
        every_n_epochs: Epochs between two figures.
        k: Neighbours.
        temperature: A neighbour's vote weighs exp(cosine / temperature).
        batches: Batches of labelled training images in the bank, and of held-out images at most.
    """

    def __init__(
        self, *, every_n_epochs: int = 1, k: int = 20, temperature: float = 0.07, batches: int = 10
    ) -> None:
        values = {"every_n_epochs": every_n_epochs, "k": k, "temperature": temperature, "batches": batches}
        for name, value in values.items():
            if value <= 0:
                raise ValueError(f"callbacks.online_knn.{name} is {value}; it must be above 0")
        self.every_n_epochs, self.k, self.temperature, self.batches = every_n_epochs, k, temperature, batches
        self._features: dict[str, Features] = {}  # of this epoch

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        if data.has_downstream and data.targets != "classes":
            raise ValueError(
                f"callbacks.online_knn votes on classes, and data {data.name} has {data.targets}; "
                "leave it out"
            )
        if data.has_downstream and not data.label_counts["heldout"]:
            raise ValueError(
                "callbacks.online_knn votes on held-out images, and data.heldout is 0; leave it out"
            )

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._features = {}

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        task, data = pl_module, trainer.datamodule  # type: ignore[attr-defined]
        if not self.is_due(trainer):
            return
        for name, features in self.encoded(trainer, task).items():
            bank, queries = (features.get(split, features.stages[-1], 1) for split in SPLITS)
            with torch.inference_mode():
                votes = knn_scores(
                    queries,
                    bank,
                    features.labels["train"],
                    data.spec.num_classes,
                    [min(self.k, len(bank))],
                    temperature=self.temperature,
                )
                figure = topk_accuracy(votes[0], features.labels["heldout"])
            # as a tensor of the default type: the figure is the same in every process
            task.log(f"online/{name}/knn_top1", figure.float(), logger=False)
            if trainer.is_global_zero:
                for logger in trainer.loggers:
                    logger.log_metrics(
                        {"epoch": trainer.current_epoch, f"online/{name}/knn_top1": float(figure)},
                        step=trainer.fit_loop.total_batch_idx + 1,
                    )

    def is_due(self, trainer: pl.Trainer) -> bool:
        """Whether there is a figure at the end of this epoch."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        return (trainer.current_epoch + 1) % self.every_n_epochs == 0 and data.has_downstream

    def loaders(self, trainer: pl.Trainer) -> dict[str, Any]:
        """The images of either split, always the same."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        return {split: data.downstream(split).sample(self.batches * data.eval_batch_size) for split in SPLITS}

    def holds(self, trainer: pl.Trainer, loader: Any) -> bool:
        """Whether what is encoded at the end of this epoch begins with the images of a loader."""
        if not self.is_due(trainer):
            return False
        mine = self.loaders(trainer)["heldout"]
        count = len(loader.indices)
        return mine.source is loader.source and torch.equal(mine.indices[:count], loader.indices)

    def encoded(self, trainer: pl.Trainer, task: Any) -> dict[str, Features]:
        """Features of `loaders` for every branch, encoded once an epoch, whoever asks first."""
        if not self._features:
            loaders, whole = self.loaders(trainer), whole_task(trainer, task)
            for name, backbone in whole.branches().items():
                self._features[name] = encode(
                    backbone,
                    whole.probe_input,
                    loaders,
                    [1],
                    precision=trainer.precision_plugin.forward_context,
                    device=task.device,
                )
        return self._features
