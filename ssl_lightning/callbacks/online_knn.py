"""Nearest-neighbour accuracy during pretraining, for monitoring only."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from ssl_lightning.engine.fsdp import unsharded_task
from ssl_lightning.features.encode import Features, encode
from ssl_lightning.ops.knn import knn_scores, topk_accuracy

SPLITS = ("train", "heldout")


class OnlineKNN(Callback):
    """Classify held-out images by their nearest labelled training images, every few epochs.

    Logged as `online/<branch>/knn_top1` for the deepest stage. The name differs from the offline probes,
    which use all labels and the test images. This callback uses a fixed draw of labels and no test images.

    Args:
        every_n_epochs: Epochs between two figures.
        k: Number of neighbours.
        temperature: A neighbour's vote weighs exp(cosine / temperature).
        batches: Most batches of labelled training images in the bank, and of held-out images.
    """

    def __init__(
        self, *, every_n_epochs: int = 1, k: int = 20, temperature: float = 0.07, batches: int = 10
    ) -> None:
        values = {"every_n_epochs": every_n_epochs, "k": k, "temperature": temperature, "batches": batches}
        for name, value in values.items():
            if value <= 0:
                raise ValueError(f"callbacks.online_knn.{name} is {value}; it must be above 0")
        self.every_n_epochs, self.k, self.temperature, self.batches = every_n_epochs, k, temperature, batches
        self._features: dict[str, Features] = {}  # of the current epoch

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
            # default dtype; the figure is equal in every process
            task.log(f"online/{name}/knn_top1", figure.float(), logger=False)
            if trainer.is_global_zero:
                for logger in trainer.loggers:
                    logger.log_metrics(
                        {"epoch": trainer.current_epoch, f"online/{name}/knn_top1": float(figure)},
                        step=trainer.fit_loop.total_batch_idx + 1,
                    )

    def is_due(self, trainer: pl.Trainer) -> bool:
        """Whether this epoch ends with a figure."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        return (trainer.current_epoch + 1) % self.every_n_epochs == 0 and data.has_downstream

    def loaders(self, trainer: pl.Trainer) -> dict[str, Any]:
        """Return the loaders of both splits, over a fixed draw of images."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        return {split: data.downstream(split).sample(self.batches * data.eval_batch_size) for split in SPLITS}

    def holds(self, trainer: pl.Trainer, loader: Any) -> bool:
        """Whether the held-out images encoded at the end of this epoch begin with the images of `loader`."""
        if not self.is_due(trainer):
            return False
        mine = self.loaders(trainer)["heldout"]
        count = len(loader.indices)
        return mine.source is loader.source and torch.equal(mine.indices[:count], loader.indices)

    def encoded(self, trainer: pl.Trainer, task: Any) -> dict[str, Features]:
        """Return the features of `loaders` for every branch, encoded once per epoch."""
        if not self._features:
            loaders, unsharded = self.loaders(trainer), unsharded_task(trainer, task)
            for name, backbone in unsharded.branches().items():
                self._features[name] = encode(
                    backbone,
                    unsharded.probe_input,
                    loaders,
                    [1],
                    precision=trainer.precision_plugin.forward_context,
                    device=task.device,
                )
        return self._features
