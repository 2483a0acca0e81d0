"""Checkpoints to resume from, and the best one by the pretext's validation loss."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning import callbacks

from ssl_lightning.artifacts.checkpoints import SCHEMA, SCHEMA_KEY
from ssl_lightning.artifacts.run_folder import BEST, LAST, PREVIOUS
from ssl_lightning.callbacks.health import DivergedError, HealthGuard
from ssl_lightning.core.atomic_files import remove_leftovers
from ssl_lightning.core.stop_signals import STOP, requeue_if_slurm
from ssl_lightning.engine.fsdp import first_says, is_sharded


class Checkpoint(callbacks.Checkpoint):
    """Keep the two newest states of the run, and the best one.

    The first process writes alone and the others need not wait, for all hold the same state. Of a sharded
    state the first process says when, and all gather it. A state is taken only where a resumed run repeats
    nothing and skips nothing: after an optimizer step, not just before a validation, and at the end of an
    epoch. Non-finite weights are never written.

    Args:
        dirpath: Folder of `last.ckpt`, `previous.ckpt` (the one before it) and `best.ckpt`.
        every_n_steps: Batches between two states; None: by time and epoch only.
        every_minutes: Time between two states; None: by batches and epoch only.
        monitor: Figure whose lowest value makes `best.ckpt`; None keeps none.
    """

    def __init__(
        self,
        dirpath: str,
        *,
        every_n_steps: int | None = None,
        every_minutes: float | None = 5.0,
        monitor: str | None = "val/loss",
    ) -> None:
        for name, value in (("every_n_steps", every_n_steps), ("every_minutes", every_minutes)):
            if value is not None and value <= 0:
                raise ValueError(f"callbacks.checkpoint.{name} is {value}; it is null or above 0")
        self.folder = Path(dirpath)
        self.every_n_steps, self.every_minutes, self.monitor = every_n_steps, every_minutes, monitor
        self.best = math.inf
        self._steps_since = 0
        self._saved_at = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = float(state_dict["best"])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.folder)  # `torchrun` and `srun` start no launcher, which would
        self._saved_at = time.monotonic()
        STOP.install()
        STOP.deferred = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        STOP.deferred = False

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        STOP.deferred = False

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._steps_since += 1
        done = batch_idx + 1
        every = trainer.val_check_batch or math.inf
        before_validation = done % every == 0 or done >= trainer.num_training_batches
        if before_validation or done % pl_module.accumulated_batches:  # type: ignore[operator]
            return
        due = self._is_due() or STOP.signum is not None
        if first_says(due) if is_sharded(trainer) else due:
            self._save_last(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        value = trainer.callback_metrics.get(self.monitor or "")
        if self.monitor is not None and value is None:
            raise ValueError(
                f"callbacks.checkpoint.monitor is {self.monitor!r}; allowed are null and what is measured: "
                f"{', '.join(sorted(trainer.callback_metrics))}"
            )
        if value is not None and float(value) < self.best:
            self.best = float(value)
            save(trainer, pl_module, self.folder / BEST)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._save_last(trainer, pl_module)

    def _is_due(self) -> bool:
        by_steps = self.every_n_steps is not None and self._steps_since >= self.every_n_steps
        waited = time.monotonic() - self._saved_at
        return by_steps or (self.every_minutes is not None and waited >= 60 * self.every_minutes)

    def _save_last(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        last = self.folder / LAST
        saved = save(trainer, pl_module, last, keep=self.folder / PREVIOUS)
        self._steps_since, self._saved_at = 0, time.monotonic()
        if STOP.signum is not None and trainer.is_global_zero:
            what = "holds the run up to here" if saved else "is older: the gradient was 0 at the last step"
            print(f"stopped by a signal; {last} {what}", flush=True)
            if requeue_if_slurm(STOP.signum):
                print("the SLURM job was put back into the queue", flush=True)
            STOP.exit()


def save(trainer: pl.Trainer, pl_module: pl.LightningModule, path: Path, keep: Path | None = None) -> bool:
    """Write the state of the run from the first process, without waiting for the others.

    A state after a step without gradient is not written: the run may be dead, and older files are
    worth more. Where the state is sharded, all processes must call this together.

    Args:
        trainer: Its `save_checkpoint` would wait for all processes, which a clock or a signal of the first
            one cannot bring about.
        pl_module: Whose weights and buffers must be finite.
        path: The file.
        keep: Where the file that was there is moved, once the new one is ready.

    Returns:
        Whether this process wrote it.

    Raises:
        DivergedError: A step was bad that the guard had not yet looked at, or a value is not finite.
    """
    together = is_sharded(trainer)
    if not (trainer.is_global_zero or together):
        return False
    for guard in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(guard, HealthGuard):
            guard.read(trainer, pl_module, alone=not together)
            if guard.suspect:
                return False
    state = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
    if not trainer.is_global_zero:
        return False
    if not torch.stack([value.isfinite().all() for value in state["state_dict"].values()]).all():
        step = trainer.fit_loop.total_batch_idx + 1
        raise DivergedError(f"weights are not finite after step {step}; nothing was written to {path}")
    for logger in trainer.loggers:
        logger.save()  # what was logged so far outlives what is saved now
    state[SCHEMA_KEY] = SCHEMA
    if keep is None or not path.exists():
        trainer.strategy.checkpoint_io.save_checkpoint(state, path)
        return True
    ready = path.with_name(f".next-{path.name}.tmp")
    trainer.strategy.checkpoint_io.save_checkpoint(state, ready)
    os.replace(path, keep)
    os.replace(ready, path)
    return True
