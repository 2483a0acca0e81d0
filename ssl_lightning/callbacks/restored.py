"""Whether a resumed run got its state back, before the first step of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from ssl_lightning.engine.fsdp import local_parts

COUNTED = ("global_step", "optimizer_states", "lr_schedulers")  # of which Lightning does not miss any


class Restored(Callback):
    """Refuse a checkpoint whose loops, callbacks, schedules or optimizers are not those of the run.

    Weights are compared before (`ssl_lightning.run.build`); the rest is known once Lightning has made it.

    Args:
        path: The checkpoint; None where the run begins.
        content: What it holds, apart from the weights.
    """

    def __init__(self, path: Path | None, content: Mapping[str, Any] | None) -> None:
        self.path = path
        self.awaited = path is not None  # until the first step can be made
        self.wanted = {} if content is None else {key: content[key] for key in COUNTED}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.awaited:
            there: tuple[Any, ...] = (trainer.global_step, trainer.optimizers, trainer.lr_scheduler_configs)
            for (key, saved), got in zip(self.wanted.items(), there, strict=True):
                saved, got = (each if isinstance(each, int) else len(each) for each in (saved, got))
                if saved != got:
                    raise ValueError(f"{key}: {saved} in the checkpoint, {got} in the run")
            for optimizer in trainer.optimizers:
                check_moments(optimizer)
        self.awaited, self.wanted = False, {}

    @contextlib.contextmanager
    def naming(self) -> Iterator[None]:
        """Name the checkpoint where it cannot be restored.

        Raises:
            ValueError: It cannot.
        """
        try:
            yield
        except Exception as error:
            if not self.awaited:
                raise
            reason = f"{type(error).__name__}: {error}".strip().partition("\n")[0]
            raise ValueError(
                f"{self.path} does not hold the state of this run ({reason}); nothing was done. A new run "
                f"may start from its weights: init_from={self.path}"
            ) from error


def check_moments(optimizer: torch.optim.Optimizer) -> None:
    """Refuse what an optimizer remembers of a weight where it is of another shape, or not finite.

    Raises:
        ValueError: It is.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for name, value in optimizer.state.get(parameter, {}).items():
                if not isinstance(value, torch.Tensor):
                    continue
                if value.ndim and value.shape != parameter.shape:
                    raise ValueError(
                        f"{name} of the optimizer has {tuple(value.shape)} for {tuple(parameter.shape)}"
                    )
                if not all(part.isfinite().all() for part in local_parts([value])):
                    raise ValueError(f"{name} of the optimizer is not finite")
