"""Stop a run that diverges or no longer learns, and count its gradients."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from ssl_lightning.artifacts.run_facts import Health
from ssl_lightning.artifacts.run_folder import BAD_BATCH
from ssl_lightning.callbacks.failure_report import report_divergence, way_back
from ssl_lightning.engine.fsdp import local_parts

LOOKS = 3  # consecutive looks without learning that stop a run
LOW_LR = 0.01  # share of the highest rate so far, below which updates may vanish in fp32
SAMPLED = 64  # values per parameter that are compared for changes
NAMES = 64  # most losses of a task; NAMES * step + number identifies a bad figure
GRADIENT = NAMES - 1  # number of the gradient norm; a bad loss of the same step has a lower one
FALLING = ""  # name of the figure that may not grow
NEVER = math.inf


class DivergedError(ValueError):
    """A loss, a gradient or a weight is not finite, or the loss is far above its start."""


class DeadRunError(ValueError):
    """The network no longer learns: it gets no gradient, or its weights do not change."""


class HealthGuard(Callback):
    """Stop a run that diverges or no longer learns, and count its gradients.

    The guard watches every loss of the task and the gradient norm of every optimizer. These figures stay on
    the device until it is synchronised anyway: every `trainer.log_every_n_steps` batches (a look), before a
    validation, before a checkpoint, and at the end of an epoch.

    - Not finite: a loss or a gradient norm. The error names the step and the images of its batch, and
      `bad_batch.json` lists all of them. In float16 only losses count, since the scaler skips overflows.
    - Diverging: the mean loss since the last look is above `factor` times the mean loss of the first look. If
      the loss gets new terms (feature matching after a warm-up), the first look with these terms counts. The
      adversarial term is left out: it grows as the discriminator learns (`PretextTask.falling_loss`).
    - Dead: in three consecutive looks the gradient norm is exactly 0, an optimizer has no gradient at all, or
      no weight has changed, while the learning rate is above a hundredth of its highest value so far.

    A `GradientWatch` passes it the gradients after all other callbacks changed them. Without one the guard
    reads them itself.

    Args:
        run_dir: The run folder; None for the Trainer's `default_root_dir`.
        factor: Largest growth of the loss; None disables this check.

    Raises:
        ValueError: The factor is not above 1.
    """

    state_key = "DivergenceGuard"  # the name in the checkpoints of old runs

    def __init__(self, run_dir: str | Path | None = None, factor: float | None = 10.0) -> None:
        if factor is not None and not factor > 1:
            raise ValueError(f"diverged is {factor}; allowed are null and numbers above 1")
        self._run_dir = None if run_dir is None else Path(run_dir)
        self.factor = factor
        self.suspect = False  # the last optimizer step had no gradient: do not save such a state
        self.verdict = "healthy"
        self._start: dict[str, float] = {}  # mean loss of the first look, by names of the scores
        self._counts = {"steps": 0, "optimizer_steps": 0, "zero_steps": 0}
        self._norms: list[float] = []  # smallest and largest so far
        # figures on the device: step, name of the loss (None for a norm), value
        self._pending: list[tuple[int, str | None, Tensor]] = []
        self._losses: list[str] = []  # names in order of first appearance
        self._bad = NEVER  # first non-finite figure, NAMES * step + number
        self._steps = 0  # batches of this process since its start or resume
        self._loss_sum, self._loss_count = 0.0, 0  # since the last look
        self._last_norm: float | None = None  # largest of all optimizers at the last step
        self._missing: dict[int, tuple[int, int]] = {}  # by optimizer: parameters without gradient, all
        self._weights: Tensor | None = None  # sampled at the last look
        self._looked_at = 0  # optimizer steps at the last look
        self._dead_looks, self._top_lr = 0, 0.0
        self._alone = False  # whether no `GradientWatch` passes the gradients

    def folder(self, trainer: pl.Trainer) -> Path:
        """Return the folder of the checkpoints and of `bad_batch.json`."""
        return self._run_dir or Path(trainer.default_root_dir)

    def health(self) -> Health:
        """Return the counts of the run, including its parts before a resume."""
        done = self._counts["optimizer_steps"]
        smallest, largest = self._norms or (None, None)
        return Health(
            steps=self._counts["steps"],
            optimizer_steps=done,
            min_grad_norm=smallest,
            max_grad_norm=largest,
            zero_grad_share=self._counts["zero_steps"] / done if done else 0.0,
            verdict=self.verdict,
        )

    def state_dict(self) -> dict[str, Any]:
        self._fold()
        return {"start": self._start, "counts": dict(self._counts), "norms": list(self._norms)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._start = dict(state_dict["start"])
        self._counts |= state_dict.get("counts", {})  # absent in the checkpoints of old runs
        self._norms = list(state_dict.get("norms", []))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._alone = not any(isinstance(each, GradientWatch) for each in trainer.callbacks)  # type: ignore[attr-defined]
        self._looked_at = self._counts["optimizer_steps"]
        self._weights = sample_weights(pl_module)
        if trainer.is_global_zero:
            (self.folder(trainer) / BAD_BATCH).unlink(missing_ok=True)  # left by the run before its resume

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if self._alone:
            self.note_gradients(trainer, pl_module, optimizer)

    def note_gradients(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Store the gradient norm of an optimizer's next step."""
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        grads = [p.grad for p in parameters if p.grad is not None]
        self._counts["optimizer_steps"] += 1
        self._missing[id(optimizer)] = (len(parameters) - len(grads), len(parameters))
        if getattr(trainer.precision_plugin, "scaler", None) is None:
            norm = torch.nn.utils.get_total_norm(local_parts(grads)).to(pl_module.device)
            self._pending.append((self._steps + 1, None, norm))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._steps += 1
        self._counts["steps"] += 1
        scores: dict[str, Tensor] = pl_module.scores  # type: ignore[assignment]
        self._pending += [(self._steps, name, scores[name]) for name in scores if "loss" in name]
        falling: Tensor = pl_module.falling_loss(scores)  # type: ignore[operator]
        self._pending.append((self._steps, FALLING, falling))
        if (trainer.fit_loop.total_batch_idx + 1) % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            loss = self.read(trainer, pl_module)
            self._loss_sum, self._loss_count = 0.0, 0
            self._check_growth(trainer, pl_module, ",".join(sorted(scores)), loss)
            self._check_alive(trainer, pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.read(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        found = {name: float(value) for name, value in trainer.callback_metrics.items() if "val/" in name}
        if bad := [name for name, value in found.items() if "loss" in name and not math.isfinite(value)]:
            self._diverged(trainer, pl_module, f"{' and '.join(bad)} not finite", self._steps, 0)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.read(trainer, pl_module)

    def read(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *, alone: bool = False) -> float:
        """Synchronise the device, and stop the run in every process if a figure was not finite.

        Args:
            trainer: Trainer of the run.
            pl_module: The task.
            alone: Whether only this process reads. That is enough before a checkpoint, since its weights
                depend on the gradients of all processes.

        Returns:
            Mean loss since the last look, over all processes.

        Raises:
            DivergedError: A figure was not finite.
        """
        self._fold()
        mine = torch.tensor([self._bad, self._loss_sum, self._last_norm or 0.0], dtype=torch.float64)
        bad, sums, norms = gather(trainer, pl_module, mine, alone).T
        self.suspect = self._last_norm is not None and float(norms.max()) == 0
        if (first := float(bad.min())) < NEVER:
            step, number = divmod(int(first), NAMES)
            if number == GRADIENT:  # every batch since the last optimizer step may be the cause
                name, batches = "the norm of the gradient", int(pl_module.accumulated_batches)  # type: ignore[arg-type]
            else:
                name, batches = f"train/{self._losses[number]}", 1
            self._diverged(trainer, pl_module, f"{name} is not finite", step, batches)
        return float(sums.mean()) / max(1, self._loss_count)

    def _fold(self) -> None:
        """Copy the pending figures to the host in one transfer, and count them."""
        if not self._pending:
            return
        steps, names, tensors = zip(*self._pending, strict=True)
        self._pending = []
        values = torch.stack([tensor.detach().float() for tensor in tensors]).tolist()
        norms: dict[int, float] = {}  # largest norm of each step
        for step, name, value in zip(steps, names, values, strict=True):
            if name == FALLING:
                self._loss_sum += value
                self._loss_count += 1
                continue
            if name is not None and name not in self._losses:
                self._losses.append(name)
            if not math.isfinite(value):
                number = GRADIENT if name is None else self._losses.index(name)
                self._bad = min(self._bad, NAMES * step + number)
            elif name is None:
                norms[step] = max(norms.get(step, 0.0), value)
                self._counts["zero_steps"] += value == 0
                self._norms = [min([*self._norms[:1], value]), max([*self._norms[1:], value])]
        if norms:
            self._last_norm = norms[max(norms)]

    def _check_growth(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, terms: str, loss: float
    ) -> None:
        start = self._start.setdefault(terms, loss)
        if self.factor is not None and loss > self.factor * start > 0:
            every = trainer.log_every_n_steps  # type: ignore[attr-defined]
            what = (
                f"the mean loss of the last {every} batches is {loss:.3g}, more than {self.factor:g} "
                f"times the {start:.3g} of the first ones (diverged={self.factor:g})"
            )
            self._diverged(trainer, pl_module, what, self._steps, 0)

    def _check_alive(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count consecutive looks without learning, and stop the run at the third.

        Raises:
            DeadRunError: Three consecutive looks saw no learning.
        """
        if self._counts["optimizer_steps"] == self._looked_at:  # batches are still being accumulated
            return
        self._looked_at = self._counts["optimizer_steps"]
        weights = sample_weights(pl_module)
        changed = self._weights is None or not torch.equal(weights, self._weights)
        self._weights = weights
        changed = bool(gather(trainer, pl_module, torch.tensor([float(changed)]), False).max())
        lr = max(group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups)
        self._top_lr = max(self._top_lr, lr)
        without = any(missing == of > 0 for missing, of in self._missing.values())
        learns = changed and not self.suspect and not without
        self._dead_looks = 0 if learns or lr <= LOW_LR * self._top_lr else self._dead_looks + 1
        if self._dead_looks < LOOKS:
            return
        self.verdict = "dead"
        missing, parameters = (sum(counts) for counts in zip(*self._missing.values(), strict=True))
        what = "the gradient norm is exactly 0" if self.suspect or without else "no weight changes"
        raise DeadRunError(
            f"{what} at step {trainer.fit_loop.total_batch_idx + 1}, for {LOOKS} looks in a row (every "
            f"{trainer.log_every_n_steps} steps), at a learning rate of {lr:.3g}: {missing} of "  # type: ignore[attr-defined]
            f"{parameters} parameters have no gradient, and the run learns nothing. "
            f"{way_back(self.folder(trainer))}"
        )

    def _diverged(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, what: str, step: int, batches: int
    ) -> None:
        """Stop the run with the failure, its images, and the checkpoint to return to.

        Args:
            trainer: Trainer of the run.
            pl_module: The task.
            what: Failure in words.
            step: Batch of this process at which the failure occurred.
            batches: Number of batches that may be the cause, counted back from `step`.

        Raises:
            DivergedError: Always.
        """
        self.verdict = "diverged"
        raise DivergedError(
            report_divergence(trainer, self.folder(trainer), what, self._steps - step, batches)
        )


class GradientWatch(Callback):
    """Pass the gradients to a guard after all other callbacks changed them; last callback of a Trainer.

    Args:
        guard: The guard.
    """

    def __init__(self, guard: HealthGuard) -> None:
        self.guard = guard

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        self.guard.note_gradients(trainer, pl_module, optimizer)


def gather(trainer: pl.Trainer, pl_module: pl.LightningModule, values: Tensor, alone: bool) -> Tensor:
    """Gather `(n,)` values of all processes: `(processes, n)` on the CPU."""
    if alone or trainer.world_size == 1:
        return values[None]
    mine = values.to(pl_module.device)
    each = [torch.empty_like(mine) for _ in range(trainer.world_size)]
    dist.all_gather(each, mine)
    return torch.stack(each).cpu()


@torch.no_grad()
def sample_weights(module: torch.nn.Module) -> Tensor:
    """Return up to 64 evenly spaced values of each trained parameter (of its local shard), `(n,)`."""
    parts = local_parts([p.detach() for p in module.parameters() if p.requires_grad])
    # as_strided reads the memory in any format; reshape would copy channels-last weights
    return torch.cat(
        [
            part.as_strided((min(SAMPLED, part.numel()),), (max(1, part.numel() // SAMPLED),)).float()
            for part in parts
        ]
    )
