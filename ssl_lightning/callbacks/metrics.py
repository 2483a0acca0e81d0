"""Send the figures of a run to every logger and to results.json."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from ssl_lightning.callbacks.csv_logger import CSVLogger
from ssl_lightning.callbacks.health import gather
from ssl_lightning.callbacks.throughput import Throughput
from ssl_lightning.engine.fsdp import total_norm


class Metrics(Callback):
    """Send a row to the loggers every `trainer.log_every_n_steps` batches, and after each validation.

    A training row holds the task's scores of that batch, the learning rate, the gradient norm and the images
    per second. The scores are means over all processes, each of which has its part of the batch. The device
    is synchronised only for these rows. Lightning's own logging comes after the checkpoint of the same batch,
    so that a resumed run would lose a row.

    Args:
        throughput: Callback that counts the images.
    """

    def __init__(self, throughput: Throughput) -> None:
        self.throughput = throughput
        self.steps = 0  # batches so far; Lightning's global_step counts the steps of every optimizer
        self.validation: dict[str, float] = {}  # last figures of the pretext's validation
        self._norms: dict[str, Tensor] = {}
        self._written_at = 0.0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        pl_module.logs = False  # type: ignore[assignment]  # the loggers get the rows of this callback alone

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        pl_module.logs = True  # type: ignore[assignment]

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "validation": self.validation}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.steps, self.validation = state_dict["steps"], dict(state_dict["validation"])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                if isinstance(logger, CSVLogger):
                    logger.keep_until(self.steps)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if not self._row_is_due(trainer, self.steps + 1):
            return
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        name = "train/grad_norm" + (f"_{len(self._norms)}" if self._norms else "")  # one per optimizer
        self._norms[name] = total_norm(grads)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.steps += 1
        if not self._row_is_due(trainer, self.steps):
            return
        norms, self._norms = self._norms, {}
        scores = mean_scores(trainer, pl_module)
        if not trainer.is_global_zero:
            return
        row = {f"train/{name}": value for name, value in scores.items()}
        row |= {name: float(value) for name, value in norms.items()}
        for number, optimizer in enumerate(trainer.optimizers):
            row["train/lr" + (f"_{number}" if number else "")] = optimizer.param_groups[0]["lr"]
        row["train/images_per_s"] = self.throughput.images_per_s
        self._write(trainer, row)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            scores = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
            self.validation = scores
            self._write(trainer, scores)

    def _row_is_due(self, trainer: pl.Trainer, step: int) -> bool:
        return step % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]

    def _write(self, trainer: pl.Trainer, row: dict[str, float]) -> None:
        if not trainer.is_global_zero:
            return
        row = {"epoch": trainer.current_epoch, **row}
        for logger in trainer.loggers:
            logger.log_metrics(row, step=self.steps)
            if time.monotonic() - self._written_at > 10:
                logger.save()
        if time.monotonic() - self._written_at > 10:
            self._written_at = time.monotonic()


def mean_scores(trainer: pl.Trainer, task: Any) -> dict[str, float]:
    """Return the scores of the last training batch, over all processes."""
    values = torch.stack([value.to(task.device, torch.float32) for value in task.scores.values()])
    means = gather(trainer, task, values, alone=False).mean(0)
    return dict(zip(task.scores, means.tolist(), strict=True))
