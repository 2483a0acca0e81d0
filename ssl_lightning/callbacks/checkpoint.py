"""Save checkpoints to resume from, and the best one by the pretext's validation loss."""

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
from ssl_lightning.engine.fsdp import broadcast_flag, is_sharded


class Checkpoint(callbacks.Checkpoint):
    """Keep the two newest checkpoints of the run, and the best one.

    Rank 0 writes alone without blocking the other ranks, since all hold the same state. All ranks gather a
    sharded state when rank 0 decides to save. A checkpoint is saved only where a resumed run repeats and
    skips nothing: after an optimizer step, not just before a validation, and at the end of an epoch.
    Non-finite weights are never written.

    Args:
        dirpath: Folder of `last.ckpt`, `previous.ckpt` (the last but one) and `best.ckpt`.
        every_n_steps: Batches between two checkpoints; None saves by time and epoch only.
        every_minutes: Minutes between two checkpoints; None saves by batches and epoch only.
        monitor: Figure whose lowest value makes `best.ckpt`; None disables `best.ckpt`.
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
            remove_leftovers(self.folder)  # a worker started by hand has no launcher to do this
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
        if broadcast_flag(due) if is_sharded(trainer) else due:
            self._save_last(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        value = trainer.callback_metrics.get(self.monitor or "")
        if self.monitor is not None and value is None:
            raise ValueError(
                f"callbacks.checkpoint.monitor is {self.monitor!r}; allowed are null and measured figures: "
                f"{', '.join(sorted(trainer.callback_metrics))}"
            )
        if value is not None and float(value) < self.best:
            self.best = float(value)
            save(trainer, pl_module, self.folder / BEST)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._save_last(trainer, pl_module, epoch_ended=True)

    def _is_due(self) -> bool:
        by_steps = self.every_n_steps is not None and self._steps_since >= self.every_n_steps
        waited = time.monotonic() - self._saved_at
        return by_steps or (self.every_minutes is not None and waited >= 60 * self.every_minutes)

    def _save_last(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, epoch_ended: bool = False
    ) -> None:
        last = self.folder / LAST
        saved = save(trainer, pl_module, last, keep=self.folder / PREVIOUS, epoch_ended=epoch_ended)
        self._steps_since, self._saved_at = 0, time.monotonic()
        if STOP.signum is not None and trainer.is_global_zero:
            what = "holds the run up to here" if saved else "is older: the gradient was 0 at the last step"
            print(f"{last} {what}", flush=True)
            if requeue_if_slurm(STOP.signum):
                print("the SLURM job was put back into the queue", flush=True)
            STOP.exit()


def save(
    trainer: pl.Trainer,
    pl_module: pl.LightningModule,
    path: Path,
    keep: Path | None = None,
    epoch_ended: bool = False,
) -> bool:
    """Write a checkpoint from rank 0 without waiting for the other ranks.

    The state after a step without gradient is not written, since the run may be dead and older checkpoints
    are more useful. If the state is sharded, all processes must call this together.

    Args:
        trainer: Trainer of the run. Its `save_checkpoint` is not used: it would wait for all ranks, but a
            clock or a signal of rank 0 does not reach them.
        pl_module: Module whose weights and buffers must be finite.
        path: File to write.
        keep: File to which the existing `path` moves once the new one is complete.
        epoch_ended: Whether Lightning has counted the epoch as complete.

    Returns:
        Whether this process wrote the file.

    Raises:
        DivergedError: The guard finds a bad step that it had not read yet, or a value is not finite.
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
    if epoch_ended and not trainer.is_last_batch:
        reopen_epoch(trainer, state["loops"]["fit_loop"])
    if not trainer.is_global_zero:
        return False
    if not torch.stack([value.isfinite().all() for value in state["state_dict"].values()]).all():
        step = trainer.fit_loop.total_batch_idx + 1
        raise DivergedError(f"weights are not finite after step {step}; nothing was written to {path}")
    for logger in trainer.loggers:
        logger.save()  # logged rows must survive along with the checkpoint
    state[SCHEMA_KEY] = SCHEMA
    if keep is None or not path.exists():
        trainer.strategy.checkpoint_io.save_checkpoint(state, path)
        return True
    ready = path.with_name(f".next-{path.name}.tmp")
    trainer.strategy.checkpoint_io.save_checkpoint(state, ready)
    os.replace(path, keep)
    os.replace(ready, path)
    return True


def reopen_epoch(trainer: pl.Trainer, fit_loop: dict[str, Any]) -> None:
    """Let a resumed run finish an epoch that `max_steps` ended early, which Lightning counts as complete.

    Args:
        trainer: Trainer of the run, at the end of the epoch.
        fit_loop: State of its loop, changed in place.
    """
    for count in ("total", "current"):
        fit_loop["epoch_progress"][count]["processed"] -= 1
    loop = trainer.fit_loop.epoch_loop
    validated = loop.batch_progress.current.ready % (trainer.val_check_batch or math.inf) == 0
    if validated and loop._should_check_val_epoch():  # Lightning counts this step again when it resumes
        fit_loop["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1
