"""Runs that diverge or stop learning at a known step: they stop and name the step."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from ssl_lightning.artifacts.checkpoints import load_checkpoint
from ssl_lightning.callbacks.checkpoint import Checkpoint
from ssl_lightning.callbacks.health import DeadRunError, DivergedError, GradientWatch, HealthGuard
from ssl_lightning.data.fake import Fake
from ssl_lightning.engine.trainer import make_trainer
from ssl_lightning.networks.convnet import ConvNet
from ssl_lightning.tasks.rotation import Rotation


class Poisoned(Rotation):
    """Task whose loss or gradient is NaN from step `poison` on, or whose loss is scaled by `scale`."""

    fed: ClassVar[list[Tensor]] = []  # images of each training batch
    poison, what, scale = 10**9, "loss", 1.0

    def step(self, images: Tensor, labels: Tensor, stream: torch.Generator) -> dict[str, Tensor]:
        scores = super().step(images, labels, stream)
        if self.training:
            self.fed.append(images)
            if len(self.fed) >= self.poison:
                loss = scores["loss"] * self.scale
                # 0 + the root of 0: a correct value with an infinite slope
                scores["loss"] = loss * torch.nan if self.what == "loss" else loss + (loss * 0).sqrt()
                if self.what in ("scale", "opponent"):
                    scores["loss"] = loss
        return scores

    def falling_loss(self, scores: Mapping[str, Tensor]) -> Tensor:
        grown = self.what == "opponent" and len(self.fed) >= self.poison
        return scores["loss"] / (self.scale if grown else 1.0)


def fit(
    folder: Path, *, poison: int, what: str = "loss", scale: float = 1.0, factor: float | None = None,
    precision: str = "32-true", resume: bool = False, saves: int | None = 1,
    first: Sequence[Callback] = (), more: Sequence[Callback] = (),
    guard: HealthGuard | None = None, lr: float = 0.01, **options: Any,
) -> None:  # fmt: skip
    data = Fake(num_train=128, batch_size=16, image_size=16)  # 4 batches an epoch
    data.setup()
    torch.manual_seed(0)
    Poisoned.fed.clear()
    backbone = ConvNet(widths=[8], strides=[2])
    task = Poisoned(backbone, data.spec, optimizer=lambda p: torch.optim.SGD(p, lr=lr))
    task.poison, task.what, task.scale = poison, what, scale
    given = {"max_epochs": 3, "log_every_n_steps": 3} | options
    guard = guard or HealthGuard(folder, factor)
    checkpoint = Checkpoint(str(folder / "checkpoints"), every_n_steps=saves)
    trainer = make_trainer(
        accelerator="cpu", precision=precision, enable_progress_bar=False, **given,
        callbacks=[*first, guard, *more, GradientWatch(guard), checkpoint],
    )  # fmt: skip
    trainer.fit(task, datamodule=data, ckpt_path=folder / "checkpoints/last.ckpt" if resume else None)


def stopped(folder: Path, message: str, **keys: Any) -> dict[str, Any]:
    """Fit until the run stops; return the content of bad_batch.json, with pixels, and the last checkpoint."""
    with pytest.raises(DivergedError, match=message):
        fit(folder, **keys)
    facts = json.loads((folder / "bad_batch.json").read_text())
    data = Fake(num_train=128, batch_size=16, image_size=16)
    source = data.load().pretrain
    pixels = source.images[facts["images"]].permute(0, 3, 1, 2).float() / 255
    last = folder / "checkpoints/last.ckpt"
    return facts | {"pixels": pixels, "fed": Poisoned.fed, "last": load_checkpoint(last)}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_the_step_and_its_images_are_named_even_if_read_late(
    tmp_path: Path, what: str, precision: str
) -> None:
    names = {"loss": "train/loss", "gradient": "the norm of the gradient"}
    message = rf"{names[what]} is not finite at step 7 \(epoch 2, batch 3\); its 16 images, .*last\.ckpt"
    found = stopped(
        tmp_path, message, poison=7, what=what, precision=precision, saves=None, log_every_n_steps=100
    )
    assert (found["step"], found["epoch"], found["batch"]) == (7, 2, 3)
    assert torch.equal(found["pixels"], found["fed"][6])  # read after step 8, at the end of the epoch
    assert found["names"] == [f"pretrain/{number}" for number in found["images"]]
    assert found["last"]["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["ready"] == 4
    assert all(value.isfinite().all() for value in found["last"]["state_dict"].values())


def test_figures_are_read_before_a_checkpoint_and_resumed_runs_keep_counting(tmp_path: Path) -> None:
    found = stopped(tmp_path, "at step 6 ", poison=6, log_every_n_steps=100)
    assert len(found["fed"]) == 6
    assert found["last"]["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["ready"] == 5
    found = stopped(tmp_path, r"at step 7 \(epoch 2, batch 3\)", poison=2, resume=True)
    assert torch.equal(found["pixels"], found["fed"][1])
    fit(tmp_path, poison=10**9, resume=True)
    assert not (tmp_path / "bad_batch.json").exists()


def test_a_bad_gradient_names_all_batches_since_the_last_step(tmp_path: Path) -> None:
    found = stopped(
        tmp_path, r"gradient is not finite at step 4 .*32 images", poison=3, what="gradient",
        accumulate_grad_batches=2,
    )  # fmt: skip
    assert torch.equal(found["pixels"], torch.cat(found["fed"][2:4]))


def test_a_loss_far_above_its_start_stops_the_run(tmp_path: Path) -> None:
    message = r"mean loss of the last 2 batches is .*, more than 10 times the 1\.\d+ .* at step 6 "
    with pytest.raises(DivergedError, match=message):
        fit(tmp_path, poison=5, what="scale", scale=12.0, factor=10.0, log_every_n_steps=2)
    fit(tmp_path, poison=5, what="scale", scale=8.0, factor=10.0, log_every_n_steps=2)
    fit(tmp_path, poison=5, what="scale", scale=12.0, factor=None, log_every_n_steps=2)
    fit(tmp_path, poison=5, what="opponent", scale=12.0, factor=10.0, log_every_n_steps=2)
    with pytest.raises(ValueError, match=r"diverged is 1.0; allowed are null and numbers above 1"):
        HealthGuard(tmp_path, 1.0)


def test_the_device_is_not_synchronised_between_two_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []
    plain = HealthGuard.read
    monkeypatch.setattr(HealthGuard, "read", lambda *a, **k: (reads.append(1), plain(*a, **k))[1])
    # one epoch, so that the reads can be counted; the tests above have several
    fit(tmp_path, poison=10**9, saves=None, max_epochs=1, log_every_n_steps=100)
    assert len(reads) == 4  # before validation, before best.ckpt, at the end of the epoch, before last.ckpt


class Cut(Callback):
    """From step `after` on, remove all gradients, or undo the changes of an optimizer step."""

    def __init__(self, what: str, after: int) -> None:
        self.what, self.after, self.steps = what, after, 0

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        self.steps += 1
        if self.steps <= self.after:
            return
        if self.what == "gradients":
            optimizer.zero_grad()  # sets them to None
        elif self.what == "values":
            optimizer.zero_grad(set_to_none=False)
        else:
            self.before = [p.detach().clone() for p in pl_module.parameters()]

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        if self.what == "steps" and self.steps > self.after:
            for parameter, value in zip(pl_module.parameters(), self.before, strict=True):
                parameter.data.copy_(value)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("gradients", r"gradient norm is exactly 0 at step 15, .*rate of 0.01: 8 of 8 parameters have no"),
        ("values", r"gradient norm is exactly 0 at step 15, .*: 0 of 8 parameters have no"),
        ("steps", r"no weight changes at step 18, for 3 looks in a row \(every 3 steps\)"),
    ],
)
def test_a_run_that_no_longer_learns_stops_within_three_looks(
    tmp_path: Path, what: str, message: str
) -> None:
    guard = HealthGuard(tmp_path)
    last = tmp_path / "checkpoints/last.ckpt"
    cut = {"first" if what == "steps" else "more": [Cut(what, after=7)]}
    with pytest.raises(DeadRunError, match=message + rf".*{last}"):
        fit(tmp_path, poison=10**9, max_epochs=9, guard=guard, **cut)
    health = guard.health()
    assert health.verdict == "dead"
    if what == "steps":
        assert health.zero_grad_share == 0
        return
    assert (health.steps, health.optimizer_steps) == (15, 15)
    assert health.zero_grad_share == pytest.approx(8 / 15)
    # no checkpoint without a gradient was written, so the run resumes from an earlier step
    assert load_checkpoint(last)["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["ready"] == 7
    whole = HealthGuard(tmp_path)
    fit(tmp_path, poison=10**9, guard=whole, resume=True)
    assert whole.health().steps == 12
    assert whole.health().zero_grad_share == 0


def test_a_learning_rate_that_falls_to_zero_is_not_a_dead_run(tmp_path: Path) -> None:
    class Falls(Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
            trainer.optimizers[0].param_groups[0]["lr"] = 0.01 if trainer.global_step < 8 else 1e-30

    guard = HealthGuard(tmp_path)
    fit(tmp_path, poison=10**9, max_epochs=6, guard=guard, more=[Falls()])
    assert guard.health().verdict == "healthy"


def test_gradient_norms_are_counted_over_the_full_run(tmp_path: Path) -> None:
    norms: list[float] = []

    class Norms(Callback):
        def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
            grads = [p.grad.flatten() for p in pl_module.parameters() if p.grad is not None]
            norms.append(float(torch.cat(grads).norm()))

    guard = HealthGuard(tmp_path)
    fit(tmp_path, poison=10**9, max_epochs=2, more=[Norms()])
    fit(tmp_path, poison=10**9, guard=guard, resume=True, more=[Norms()])  # a third epoch
    health = guard.health()
    assert (health.steps, health.optimizer_steps) == (12, 12)
    assert health.min_grad_norm == pytest.approx(min(norms), rel=1e-5)
    assert health.max_grad_norm == pytest.approx(max(norms), rel=1e-5)
