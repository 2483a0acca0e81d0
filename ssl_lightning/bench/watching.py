"""What the line on collapsed features costs of an epoch."""

from __future__ import annotations

import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from ssl_lightning.bench.build import composed, seconds, wait
from ssl_lightning.callbacks.collapse import Collapse
from ssl_lightning.run.parts import build_parts

BLOCK = 20  # steps that are timed at once


class Watched(Callback):
    """Time blocks of steps, and after each what `Collapse` does at the end of an epoch."""

    def __init__(self, collapse: Collapse) -> None:
        self.collapse = collapse
        self.steps: list[float] = []
        self.lines: list[float] = []
        self._began, self._done = 0.0, 0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.collapse.on_fit_start(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._done += 1
        if self._done % BLOCK:
            return
        wait()
        took = time.perf_counter() - self._began
        line = seconds(lambda: self.collapse.on_train_epoch_end(trainer, pl_module))
        if self._began:  # what comes before the first block's end warms up
            self.steps.append(took / BLOCK)
            self.lines.append(line)
        self._began = time.perf_counter()


def collapse_against_an_epoch(overrides: Sequence[str], blocks: int) -> dict[str, Any]:
    """Time the line and the steps by turns; the epoch is its steps alone, without validation."""
    with tempfile.TemporaryDirectory() as folder:
        length = [f"trainer.max_steps={(blocks + 1) * BLOCK}", "trainer.max_epochs=-1"]
        quick = ["trainer.limit_val_batches=0", "callbacks=[]", "logger=[]", "probe=[]"]
        job = build_parts(composed([*overrides, *length, *quick], Path(folder)), Path(folder))
        watched = Watched(Collapse())
        job.trainer.callbacks.append(watched)  # type: ignore[attr-defined]
        with contextlib.redirect_stdout(io.StringIO()):
            job.trainer.fit(job.task, datamodule=job.data)
        line, step = statistics.median(watched.lines), statistics.median(watched.steps)
        epoch = step * job.data.pretrain_batches
        return {"line_ms": 1000 * line, "epoch_s": epoch, "share_percent": 100 * line / epoch}
