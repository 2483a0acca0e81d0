"""A run that no longer learns is stopped: the step, the images of its batch, and what can be gone back to."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from ssl_lightning.artifacts.run_folder import BAD_BATCH, CHECKPOINTS, LAST
from ssl_lightning.core.atomic_files import atomic_file
from ssl_lightning.engine.fsdp import local_parts

NEVER = 2**62  # no mark is so high
LOSSES = 8  # of a task at most; a mark is the step, and a bit for each loss, and one for the gradient
GRADIENT = 2**LOSSES
STEP = 2 * GRADIENT
KEPT = 64  # steps whose figures wait to be looked at together
SHOWN = 8  # images that the message names; the file names all


class DivergedError(ValueError):
    """The loss, its gradient or the weights are no longer finite, or the loss is far above its start."""


class DivergenceGuard(Callback):
    """Stop a run whose loss or gradient is not finite, or whose loss grew far beyond its start.

    Looked at is every loss of the task (of every network), and the norm of the gradient of each optimizer.
    They are kept as they are, and looked at many steps at a time, by tensor operations alone, which leave the
    first step that was bad on the device. It is read where the device is waited for anyway: every
    `trainer.log_every_n_steps` batches, before a validation, before a state is written, and at the end of an
    epoch. The images of the bad batch follow from its number, so that they are known however late it is found
    out; `bad_batch.json` in the run folder names them all.

    Diverging is a loss whose mean since the last reading is above `factor` times the mean of the first
    reading. Where the loss gets other terms (an adversarial one after a warm-up), the first reading with
    these counts. Not checked is the gradient in float16, where the scaler skips steps that overflow.

    Args:
        run_dir: The run folder.
        factor: See above; None stops only where something is not finite.

    Raises:
        ValueError: The factor is not above 1.
    """

    def __init__(self, run_dir: Path, factor: float | None = 10.0) -> None:
        if factor is not None and not factor > 1:
            raise ValueError(f"diverged is {factor}; allowed are null and numbers above 1")
        self.run_dir, self.factor = run_dir, factor
        self._start: dict[str, float] = {}  # mean loss of the first reading, by the names of the scores
        self._steps = 0  # batches of this process; the resumed ones are not counted
        self._first = torch.tensor(NEVER)  # mark of the first bad step
        self._bits = 2 ** torch.arange(LOSSES)
        self._losses: list[str] = []  # in the order in which they were first seen
        self._sum, self._count = torch.zeros(()), 0  # of the loss since the last reading
        self._scores: list[Mapping[str, Tensor]] = []  # of the last steps, not looked at yet
        self._norms: list[tuple[int, Tensor]] = []  # mark and norm of their gradients

    def state_dict(self) -> dict[str, Any]:
        return {"start": self._start}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._start = dict(state_dict["start"])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._first, self._sum, self._bits = (
            each.to(pl_module.device) for each in (self._first, self._sum, self._bits)
        )
        if trainer.is_global_zero:
            (self.run_dir / BAD_BATCH).unlink(missing_ok=True)  # of a run that is resumed

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            return
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(local_parts(grads))
        self._norms.append(((self._steps + 1) * STEP + GRADIENT, norm))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._steps += 1
        self._scores.append(pl_module.scores)  # type: ignore[arg-type]
        if len(self._scores) == KEPT:
            self._look()
        if (trainer.fit_loop.total_batch_idx + 1) % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            terms = ",".join(sorted(pl_module.scores))  # type: ignore[arg-type]
            self._compare(trainer, pl_module, terms, self.read(trainer, pl_module))

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.read(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        found = {name: float(value) for name, value in trainer.callback_metrics.items() if "val/" in name}
        if bad := [name for name, value in found.items() if "loss" in name and not math.isfinite(value)]:
            self.stop(trainer, pl_module, f"{' and '.join(bad)} not finite", self._steps, 0)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.read(trainer, pl_module)

    def read(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *, alone: bool = False) -> float:
        """Wait for the device, and stop the run if a step was bad; in every process at once.

        Args:
            trainer: Tells where the run stands.
            pl_module: The task.
            alone: Whether only this process asks; its own flag is enough to judge weights, into which the
                gradients of all processes went.

        Returns:
            Mean loss since this was last asked for by `trainer.log_every_n_steps`, over all processes.

        Raises:
            DivergedError: The run is to stop.
        """
        self._look()
        mine = torch.stack([self._first.double(), self._sum.double()])
        each = [mine]
        if not alone and trainer.world_size > 1:
            each = [torch.empty_like(mine) for _ in range(trainer.world_size)]
            dist.all_gather(each, mine)
        firsts, sums = torch.stack(each).T.tolist()
        if min(firsts) < NEVER:
            step, bits = divmod(int(min(firsts)), STEP)
            batches, bad = 1, [f"train/{name}" for i, name in enumerate(self._losses) if bits >> i & 1]
            if bits == GRADIENT:  # of all batches since the last step
                batches, bad = pl_module.accumulated_batches, ["the norm of the gradient"]  # type: ignore[assignment]
            what = f"{' and '.join(bad)} {'is' if len(bad) == 1 else 'are'} not finite"
            self.stop(trainer, pl_module, what, step, batches)
        return sum(sums) / max(1, self._count) / len(sums)

    def stop(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, what: str, step: int, batches: int
    ) -> None:
        """Name what is wrong, the images, and the way back.

        Args:
            trainer: Tells where the run stands.
            pl_module: The task.
            what: What is wrong.
            step: Batch of this process at which it was.
            batches: How many batches it may come from, that one and those before it.

        Raises:
            DivergedError: Always.
        """
        ago = self._steps - step
        number = trainer.fit_loop.total_batch_idx + 1 - ago
        in_epoch = trainer.fit_loop.epoch_loop.batch_idx + 1 - ago
        facts: dict[str, Any] = {
            "what": what,
            "step": number,
            "epoch": trainer.current_epoch + 1,
            "batch": in_epoch,
            **self._images(trainer, ago, batches),
        }
        parts = [f"{what} at step {number} (epoch {facts['epoch']}, batch {in_epoch})"]
        if facts["images"]:
            path = self.run_dir / BAD_BATCH
            if trainer.is_global_zero:
                with atomic_file(path) as temporary:
                    temporary.write_text(json.dumps(facts, indent=1))
            named = ", ".join(map(str, facts["images"][:SHOWN]))
            rest = ", ..." if len(facts["images"]) > SHOWN else ""
            parts.append(f"its {len(facts['images'])} images, all named in {path}, are {named}{rest}")
        last = self.run_dir / CHECKPOINTS / LAST
        if last.exists():
            parts.append(f"the last good checkpoint is {last}; a new run may start from it, init_from={last}")
        else:
            parts.append("there is no checkpoint before it")
        tries = [f"a lower optimizer.lr (now {trainer.optimizers[0].param_groups[0]['lr']:.3g})"]
        tries.append("trainer.gradient_clip_val=1.0")
        if trainer.precision != "32-true":
            tries.append("trainer.precision=32-true")
        raise DivergedError(f"{'; '.join(parts)}. What may help: {', '.join(tries)}")

    def _look(self) -> None:
        """Note the first step that was bad among those kept, without waiting for the device."""
        if self._norms:
            marks, norms = zip(*self._norms, strict=True)
            self._note(~torch.stack(norms).isfinite(), marks)
            self._norms = []
        if not self._scores:
            return
        for scores in self._scores:
            self._losses += [name for name in scores if "loss" in name and name not in self._losses]
        terms = [each.get(name, each["loss"]).float() for each in self._scores for name in self._losses]
        losses = torch.stack(terms).view(len(self._scores), -1)  # (steps, losses)
        self._sum = self._sum + losses[:, self._losses.index("loss")].sum()
        self._count += len(losses)
        bad = ~losses.isfinite()
        steps = range(self._steps - len(losses) + 1, self._steps + 1)
        self._note(bad.any(1), [step * STEP for step in steps], (bad * self._bits[: bad.shape[1]]).sum(1))
        self._scores = []

    def _note(self, bad: Tensor, marks: Sequence[int], more: Tensor | int = 0) -> None:
        """Keep the lowest mark of those (n,) that are bad; `more` (n,) is added to the marks."""
        given = torch.tensor(marks).to(bad.device, non_blocking=True) + more
        self._first = torch.minimum(self._first, torch.where(bad, given, NEVER).min())

    def _compare(self, trainer: pl.Trainer, pl_module: pl.LightningModule, terms: str, loss: float) -> None:
        """Judge the mean loss since the last reading by that of the first."""
        self._sum, self._count = torch.zeros_like(self._sum), 0
        start = self._start.setdefault(terms, loss)
        if self.factor is not None and loss > self.factor * start > 0:
            every = trainer.log_every_n_steps  # type: ignore[attr-defined]
            what = (
                f"the mean loss of the last {every} batches is {loss:.3g}, more than {self.factor:g} "
                f"times the {start:.3g} of the first ones (diverged={self.factor:g})"
            )
            self.stop(trainer, pl_module, what, self._steps, 0)

    def _images(self, trainer: pl.Trainer, ago: int, batches: int) -> dict[str, list[Any]]:
        """Which pretraining images the batches up to that one hold, of all processes, and their names."""
        loader: Any = trainer.train_dataloader
        if not batches or not hasattr(loader, "batch_indices"):
            return {"images": [], "names": []}
        last = loader.epoch * len(loader) + loader.position - 1 - ago  # the loader stands at the next one
        numbers = range(max(0, last - batches + 1), last + 1)
        indices = torch.cat([loader.batch_indices(number) for number in numbers])
        return {"images": indices.tolist(), "names": loader.names(indices)}
