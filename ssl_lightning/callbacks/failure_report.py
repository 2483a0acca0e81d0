"""Report of a training that failed: where, on which images, and how to go back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from ssl_lightning.artifacts.run_folder import BAD_BATCH, CHECKPOINTS, LAST
from ssl_lightning.core.atomic_files import atomic_file

SHOWN = 8  # images named in a message; the file lists all


def report_divergence(trainer: pl.Trainer, folder: Path, what: str, ago: int, batches: int) -> str:
    """Write `bad_batch.json`, and return a message with the failure, its images, and what may help.

    Args:
        trainer: Trainer of the run.
        folder: The run folder.
        what: Failure in words.
        ago: Number of batches since the failure.
        batches: Number of batches that may be the cause, counted back from the failure.
    """
    number = trainer.fit_loop.total_batch_idx + 1 - ago
    in_epoch = trainer.fit_loop.epoch_loop.batch_idx + 1 - ago
    facts = {"what": what, "step": number, "epoch": trainer.current_epoch + 1, "batch": in_epoch}
    parts = [f"{what} at step {number} (epoch {facts['epoch']}, batch {in_epoch})"]
    images, names = pretraining_images(trainer, ago, batches)
    if images:
        path = folder / BAD_BATCH
        if trainer.is_global_zero:
            with atomic_file(path) as temporary:
                temporary.write_text(json.dumps(facts | {"images": images, "names": names}, indent=1))
        rest = ", ..." if len(images) > SHOWN else ""
        parts.append(
            f"its {len(images)} images, all named in {path}, are {', '.join(map(str, images[:SHOWN]))}{rest}"
        )
    tries = [f"a lower optimizer.lr (now {trainer.optimizers[0].param_groups[0]['lr']:.3g})"]
    tries.append("trainer.gradient_clip_val=1.0")
    if trainer.precision != "32-true":
        tries.append("trainer.precision=32-true")
    return f"{'; '.join(parts)}. {way_back(folder)}. What may help: {', '.join(tries)}"


def way_back(folder: Path) -> str:
    """Return a sentence that names the last checkpoint of a run folder."""
    last = folder / CHECKPOINTS / LAST
    if not last.exists():
        return "There is no earlier checkpoint"
    return f"The last good checkpoint is {last}; a new run may start from it: init_from={last}"


def pretraining_images(trainer: pl.Trainer, ago: int, batches: int) -> tuple[Sequence[int], Sequence[str]]:
    """Return the numbers and names of the pretraining images of some batches, over all processes.

    Args:
        trainer: Trainer whose loader knows the order of the images.
        ago: Number of batches since the last of them.
        batches: Number of batches.
    """
    loader: Any = trainer.train_dataloader
    if not batches or not hasattr(loader, "batch_indices"):
        return [], []
    last = loader.epoch * len(loader) + loader.position - 1 - ago  # the loader is at the next batch
    numbers = range(max(0, last - batches + 1), last + 1)
    indices = torch.cat([loader.batch_indices(number) for number in numbers])
    return indices.tolist(), loader.names(indices)
