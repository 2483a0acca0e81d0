"""Check before the first step that a resumed run has restored its state."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from ssl_lightning.engine.fsdp import local_parts

COUNTED = ("global_step", "optimizer_states", "lr_schedulers")  # Lightning ignores missing entries


class Restored(Callback):
    """Raise if the loops, callbacks, schedules or optimizers of a checkpoint do not match the run.

    `ssl_lightning.run.build` compares the weights earlier; the other parts exist once Lightning built them.

    Args:
        path: The checkpoint; None for a run from the beginning.
        content: Content of the checkpoint without the weights.
    """

    def __init__(self, path: Path | None, content: Mapping[str, Any] | None) -> None:
        self.path = path
        self.pending = path is not None  # until the state is restored
        self.step: int = 0 if content is None else content["global_step"]
        self.expected = {} if content is None else {key: content[key] for key in COUNTED}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.pending:
            found: tuple[Any, ...] = (trainer.global_step, trainer.optimizers, trainer.lr_scheduler_configs)
            for (key, saved), got in zip(self.expected.items(), found, strict=True):
                saved, got = (each if isinstance(each, int) else len(each) for each in (saved, got))
                if saved != got:
                    raise ValueError(f"{key}: {saved} in the checkpoint, {got} in the run")
            for optimizer in trainer.optimizers:
                check_moments(optimizer)
        self.pending, self.expected = False, {}

    @contextlib.contextmanager
    def naming(self) -> Iterator[None]:
        """Name the checkpoint in the error if it cannot be restored.

        Raises:
            ValueError: The checkpoint cannot be restored.
        """
        try:
            yield
        except Exception as error:
            if not self.pending:
                raise
            reason = f"{type(error).__name__}: {error}".strip().partition("\n")[0]
            raise ValueError(
                f"{self.path} does not hold the state of this run ({reason}); nothing was changed. A new run "
                f"may start from its weights: init_from={self.path}"
            ) from error


def check_moments(optimizer: torch.optim.Optimizer) -> None:
    """Raise if an optimizer's state has a shape unlike its parameter, or is not finite.

    Raises:
        ValueError: The message names the entry.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for name, value in optimizer.state.get(parameter, {}).items():
                if not isinstance(value, torch.Tensor):
                    continue
                if value.ndim and value.shape != parameter.shape:
                    raise ValueError(
                        f"{name} of the optimizer has shape {tuple(value.shape)} for {tuple(parameter.shape)}"
                    )
                if not all(part.isfinite().all() for part in local_parts([value])):
                    raise ValueError(f"{name} of the optimizer is not finite")
