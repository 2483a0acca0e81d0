"""Tasks with a target that follows as a moving average: its weights, steps that count, combined tasks."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from lightly.utils.scheduler import cosine_schedule
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ssl_lightning.core.image_spec import ImageSpec
from ssl_lightning.core.seeding import generator
from ssl_lightning.networks.convnet import ConvNet
from ssl_lightning.networks.vit import create_small_vit
from ssl_lightning.tasks._momentum import MomentumTask
from ssl_lightning.tasks.base import PretextTask
from ssl_lightning.tasks.byol import BYOL
from ssl_lightning.tasks.combined import Combined

SPEC = ImageSpec(3, 16, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
SMALL: dict[str, Any] = {"hidden": 16, "embedding": 8}
BATCHES, EPOCHS = 5, 2


def sgd(lr: float = 0.1) -> Callable[[Any], torch.optim.Optimizer]:
    return lambda parameters: torch.optim.SGD(parameters, lr=lr, momentum=0.9)


def network() -> ConvNet:
    torch.manual_seed(0)
    return ConvNet(widths=(8, 16), strides=(2, 2))


def make(**options: Any) -> BYOL:
    return BYOL(network(), SPEC, **SMALL | {"optimizer": sgd(), "momentum": 0.7} | options)


def fit(task: PretextTask, folder: Path, *callbacks: Callback, **options: Any) -> pl.Trainer:
    """Train on 5 batches in each of 2 epochs, with validation."""
    quiet: dict[str, Any] = {
        "accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "logger": False,
        "enable_checkpointing": False, "max_epochs": EPOCHS, "default_root_dir": folder,
    }  # fmt: skip
    images = torch.randint(256, (4 * BATCHES, 3, 16, 16), dtype=torch.uint8, generator=generator("pictures"))
    loader = DataLoader(TensorDataset(images), batch_size=4)
    trainer = pl.Trainer(**quiet | options, callbacks=list(callbacks))
    trainer.fit(task, loader, loader)
    return trainer


def weights(*parts: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for part in parts for p in part.parameters()]


class Naive(Callback):
    """Follow the learning network by a loop over the weights, after every change of them."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.learner = weights(pl_module.backbone, pl_module.head)  # type: ignore[arg-type]
        self.expected = [each.clone() for each in self.learner]
        self.steps = 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, MomentumTask)
        now = weights(pl_module.backbone, pl_module.head)
        if all(map(torch.equal, now, self.learner)):
            return
        total = pl_module.total_steps()
        share = cosine_schedule(trainer.global_step - 1, total + 1, pl_module.momentum, 1.0)
        self.learner, self.steps = now, self.steps + 1
        self.expected = [share * old + (1 - share) * new for old, new in zip(self.expected, now, strict=True)]


@pytest.mark.parametrize(("accumulated", "steps"), [(1, 10), (2, 6)])
def test_the_target_is_a_moving_average_over_optimizer_steps(
    accumulated: int, steps: int, tmp_path: Path
) -> None:
    task, naive = make(), Naive()
    fit(task, tmp_path, naive, accumulate_grad_batches=accumulated)
    assert naive.steps == steps
    for found, expected in zip(weights(task.target), naive.expected, strict=True):
        torch.testing.assert_close(found, expected)
    assert not all(map(torch.equal, weights(task.target), weights(task.backbone, task.head)))


class Overflow(Callback):
    """Make the gradients of some steps infinite."""

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step in (2, 3):
            next(pl_module.parameters()).grad.fill_(torch.inf)  # type: ignore[union-attr]


def test_a_step_that_float16_skips_leaves_the_target(tmp_path: Path) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    plugin = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    task, naive = make(), Naive()
    fit(task, tmp_path, Overflow(), naive, plugins=[plugin])
    assert naive.steps == EPOCHS * BATCHES - 2
    for found, expected in zip(weights(task.target), naive.expected, strict=True):
        torch.testing.assert_close(found, expected)


def test_the_momentum_rises_to_1(tmp_path: Path) -> None:
    task = make(momentum=0.996)
    fit(task, tmp_path)
    assert task.momentum_after(0) == pytest.approx(0.996)
    assert task.momentum_after(5) == pytest.approx(0.998)
    assert task.momentum_after(10) == task.momentum_after(11) == 1  # a resumed run may be longer


@pytest.mark.parametrize(("momentum", "same"), [(0.0, True), (1.0, False)])
def test_the_extremes_copy_and_stay(momentum: float, same: bool, tmp_path: Path) -> None:
    task = make(momentum=momentum)
    before = weights(task.target)
    fit(task, tmp_path, max_steps=1)
    assert all(map(torch.equal, weights(task.target), weights(task.backbone, task.head))) == same
    assert all(map(torch.equal, weights(task.target), before)) != same


def test_the_target_starts_as_the_backbone_that_was_loaded_later(tmp_path: Path) -> None:
    task = make(momentum=1.0)
    given = ConvNet(widths=(8, 16), strides=(2, 2))
    given(torch.rand(4, 3, 16, 16))  # changes the statistics
    task.backbone.load_state_dict(given.state_dict())
    fit(task, tmp_path, max_steps=1)
    assert all(map(torch.equal, weights(task.target[0]), weights(given)))


def test_the_target_learns_nothing_by_gradients_and_is_in_the_checkpoint(tmp_path: Path) -> None:
    task = make()
    trainer = fit(task, tmp_path)
    assert all(p.grad is None and not p.requires_grad for p in task.target.parameters())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded = BYOL.load_from_checkpoint(tmp_path / "last.ckpt")
    for name, value in task.target.state_dict().items():  # batch-norm statistics too
        assert torch.equal(loaded.target.state_dict()[name], value), name
    assert task.branches() == {"backbone": task.backbone}


def test_the_target_of_a_frozen_backbone_is_frozen(tmp_path: Path) -> None:
    task = make(freeze_until=0.99)
    before = copy.deepcopy(task.target[0].state_dict())
    fit(task, tmp_path)
    for name, value in task.target[0].state_dict().items():  # batch-norm statistics too
        assert torch.equal(value, before[name]), name


def test_the_target_freezes_the_layers_that_the_learner_has_frozen(tmp_path: Path) -> None:
    task = make()
    norm, target = (
        next(part for part in net.modules() if isinstance(part, nn.BatchNorm2d))
        for net in (task.backbone, task.target[0])
    )
    norm.eval()
    fit(task, tmp_path, max_steps=1)
    assert torch.equal(target.running_mean, torch.zeros(8))
    assert torch.equal(target.running_var, torch.ones(8))


@pytest.mark.parametrize("more", [{}, {"accumulate_grad_batches": 2}])
def test_one_part_of_a_combined_task_is_the_task_itself(more: dict[str, Any], tmp_path: Path) -> None:
    alone = make()
    keywords = {**SMALL, "momentum": 0.7}
    only = Combined(network(), SPEC, parts=["byol"], options={"byol": keywords}, optimizer=sgd())
    for task in (alone, only):
        fit(task, tmp_path, **more)
    state = only.state_dict()
    assert len(state) == len(alone.state_dict())
    for name, value in alone.state_dict().items():
        place = name if name.startswith("backbone.") else f"parts.byol.{name}"
        assert torch.equal(state[place], value), name


def test_the_target_drops_nothing(tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = create_small_vit(width=24, depth=2, heads=3, stages=1, drop_path=0.5)
    task = BYOL(backbone, ImageSpec(3, 32, (0.5,) * 3, (0.25,) * 3), **SMALL).train()
    images = torch.rand(1, 8, 3, 32, 32)
    first, second = (task.embed_by_target(images) for _ in range(2))
    assert torch.equal(first, second)
    learner = [task.backbone(images[0])[-1] for _ in range(2)]
    assert not torch.equal(*learner)


def test_a_wrong_momentum_is_refused() -> None:
    with pytest.raises(ValueError, match=r"momentum is 1\.5; allowed are 0"):
        make(momentum=1.5)
