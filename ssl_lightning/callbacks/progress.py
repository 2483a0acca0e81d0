"""Progress of pretraining on the terminal: epoch, batches, images/s, loss, pretext accuracy."""

from __future__ import annotations

import math
import time
from contextlib import ExitStack
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ssl_lightning.callbacks.throughput import Throughput
from ssl_lightning.core.progress import watched


class ProgressBar(Callback):
    """Show a rich bar on a terminal, and plain lines in a file.

    Lightning's own rich bar reads the loss from the device after every batch. This one reads it only when
    it draws. The first batch, which may compile, and validation show the lines of `core.progress`.

    Args:
        every_s: Seconds between two updates on a terminal.
        plain_every_s: Seconds between two lines in a file.
    """

    def __init__(self, every_s: float = 0.5, plain_every_s: float = 15.0) -> None:
        if min(every_s, plain_every_s) <= 0:
            raise ValueError(
                f"every_s is {every_s} and plain_every_s {plain_every_s}; both are seconds above 0"
            )
        self.console = Console()
        self.interval = every_s if self.console.is_terminal else plain_every_s
        self._drawn = 0.0
        self._bar: Progress | None = None
        self._throughput = Throughput()
        self._waiting = ExitStack()  # for the first batch
        self._validating = ExitStack()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        watches = [c for c in trainer.callbacks if isinstance(c, Throughput)]  # type: ignore[attr-defined]
        self._throughput = watches[0] if watches else self._throughput
        self._drawn = time.monotonic()
        self._waiting.enter_context(watched("first batch"))
        if trainer.is_global_zero and self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, TextColumn("{task.fields[figures]}"), console=self.console)
            self._bar.add_task("pretraining", total=None, figures="")
            self._bar.start()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._waiting.close()
        if trainer.is_global_zero and time.monotonic() - self._drawn >= self.interval:
            self._draw(trainer, pl_module, batch_idx + 1)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        batches = [int(count) for count in trainer.num_val_batches if math.isfinite(count)]
        work = watched("validation", sum(batches) or None, "batches")
        self._validated = self._validating.enter_context(work)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._validated.advance()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._validating.close()
        if trainer.is_global_zero and not trainer.sanity_checking:
            named = {k: v for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
            text = f"epoch {trainer.current_epoch + 1}: {_figures(named)}"
            self.console.print(text, highlight=False, soft_wrap=True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self._close()  # restores the cursor of the terminal

    def _draw(self, trainer: pl.Trainer, task: Any, done: int) -> None:
        self._drawn = time.monotonic()
        named = {f"train/{name}": task.scores[name] for name in sorted({"acc", "loss"} & task.scores.keys())}
        figures = f"{self._throughput.images_per_s:,.0f} images/s  {_figures(named)}"
        epochs, batches = _ends(trainer, task)
        title = f"epoch {trainer.current_epoch + 1}" + (f"/{epochs}" if epochs else "")
        if self._bar is not None:
            self._bar.update(
                self._bar.task_ids[0], description=title, completed=done, total=batches, figures=figures
            )
        else:
            of = f"/{batches}" if batches else ""
            self.console.print(f"{title}: batch {done}{of}  {figures}", highlight=False, soft_wrap=True)

    def _close(self) -> None:
        self._waiting.close()
        self._validating.close()
        if self._bar is not None:
            self._bar.stop()
        self._bar = None


def _ends(trainer: pl.Trainer, task: Any) -> tuple[int | None, int | None]:
    """Return the number of epochs, and of batches in this one; None for a loader without length."""
    length = trainer.num_training_batches
    if math.isinf(length):
        return None, None
    steps, total = math.ceil(length / task.accumulated_batches), task.total_steps()
    left = (total - trainer.current_epoch * steps) * task.accumulated_batches
    return math.ceil(total / steps), min(int(length), left)


def _figures(named: dict[str, Any]) -> str:
    return "  ".join(f"{name} {float(value):.3f}" for name, value in sorted(named.items()))
