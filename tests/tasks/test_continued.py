"""Continued pretraining: a backbone that is frozen at first, and its own learning rate."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from ssl_lightning.data.fake import Fake
from ssl_lightning.networks.convnet import ConvNet
from ssl_lightning.tasks._continued import FACTOR, FrozenStart, parameter_groups
from ssl_lightning.tasks.base import PretextTask
from ssl_lightning.tasks.inpainting import Inpainting
from ssl_lightning.tasks.rotation import Rotation
from tests._stand_in import StandIn

EPOCH = 4  # batches
SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=0.01)
MAKERS: dict[str, Callable[..., PretextTask]] = {
    "rotation": Rotation,
    "inpainting": partial(Inpainting, discriminator_width=4),
    "inpainting with a warm-up": partial(Inpainting, discriminator_width=4, warmup_steps=3),
}


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> set[str]:
    return {name for name, value in one.items() if not torch.equal(value, other[name])}


class States(pl.Callback):
    """Store the state of the backbone and of the rest after every batch."""

    def __init__(self) -> None:
        self.backbone: list[dict[str, Tensor]] = []
        self.rest: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.backbone.append(state_of(pl_module.backbone))
        whole = state_of(pl_module).items()
        self.rest.append({name: value for name, value in whole if not name.startswith("backbone.")})


def task_of(kind: str, **keywords: Any) -> PretextTask:
    torch.manual_seed(0)
    return MAKERS[kind](ConvNet(widths=[6, 8], strides=[2, 1]), optimizer=SGD, **keywords)


def fit(task: PretextTask, folder: Path, epochs: int = 3, ckpt: Path | None = None, **options: Any) -> States:
    """Fit by a plain Trainer, with a validation twice an epoch."""
    states = States()
    data = Fake(num_train=48, heldout=16, batch_size=8, image_size=16)
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, max_epochs=epochs, val_check_interval=2, logger=False,
        callbacks=[states], enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, **{"enable_checkpointing": False} | options,
    )  # fmt: skip
    trainer.fit(task, data, ckpt_path=ckpt, weights_only=False)
    return states


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("kind", MAKERS)
def test_a_frozen_backbone_keeps_every_bit_until_its_step(kind: str, graph: bool, tmp_path: Path) -> None:
    task = task_of(kind, freeze_until=0.4)  # round(0.4 * 12) = 5 steps
    if graph:
        task.graph = StandIn(task)
    states, first = fit(task, tmp_path), state_of(task_of(kind).backbone)
    for step in range(5):
        assert not differing(states.backbone[step], first), step
    assert any("running_mean" in name for name in first)
    for step in range(5, 12):  # every weight and statistic moves in every step
        before = states.backbone[step - 1]
        assert differing(before, states.backbone[step]) == set(before), step
    assert differing(states.rest[0], states.rest[1])  # the heads learn from the start
    assert all(part.training for part in task.modules())
    if graph:  # frozen, then learning; the warm-up has no graph
        assert task.graph.recordings == 2  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["rotation", "inpainting"])
def test_graphs_change_no_bit(kind: str, tmp_path: Path) -> None:
    found = []
    for graph in (False, True):
        task = task_of(kind, freeze_until=0.5, backbone_lr_factor=0.1)
        task.graph = StandIn(task) if graph else None
        fit(task, tmp_path)
        found.append(state_of(task))
    assert not differing(*found)


@pytest.mark.parametrize("stop", [1, 2])  # epochs: before and after the backbone begins to learn
@pytest.mark.parametrize("kind", MAKERS)
def test_a_resumed_run_ends_with_the_same_bits(kind: str, stop: int, tmp_path: Path) -> None:
    def make() -> PretextTask:
        return task_of(kind, freeze_until=0.4, backbone_lr_factor=0.5)

    straight = make()
    fit(straight, tmp_path)
    keep = pl.callbacks.ModelCheckpoint(tmp_path, filename="{epoch}", every_n_epochs=1, save_top_k=-1)

    class Stop(pl.Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == stop:
                raise KeyboardInterrupt

    stopped = make()
    options: dict[str, Any] = {"enable_checkpointing": True}
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit_with(stopped, tmp_path, [keep, Stop()], **options)
    resumed = make()
    fit(resumed, tmp_path, ckpt=tmp_path / f"epoch={stop - 1}.ckpt")
    assert not differing(state_of(resumed), state_of(straight))


def fit_with(task: PretextTask, folder: Path, callbacks: list[pl.Callback], **options: Any) -> None:
    data = Fake(num_train=48, heldout=16, batch_size=8, image_size=16)
    pl.Trainer(
        accelerator="cpu", devices=1, max_epochs=3, val_check_interval=2, logger=False, callbacks=callbacks,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder, **options,
    ).fit(task, data)  # fmt: skip


def test_a_run_that_resumes_with_more_epochs_is_not_frozen_again(tmp_path: Path) -> None:
    keep = pl.callbacks.ModelCheckpoint(tmp_path, filename="end")
    task = task_of("rotation", freeze_until=0.4, scheduler=None)
    fit_with(task, tmp_path, [keep])
    longer = task_of("rotation", freeze_until=0.4)
    states = fit(longer, tmp_path, epochs=30, ckpt=tmp_path / "end.ckpt")  # 0.4 of it would be 48 steps
    assert longer.frozen_start.steps == 5
    assert differing(states.backbone[0], state_of(task.backbone))


def test_a_checkpoint_that_was_validated_does_not_end_the_frozen_start(tmp_path: Path) -> None:
    keep = pl.callbacks.ModelCheckpoint(tmp_path, filename="end")
    fit_with(task_of("rotation"), tmp_path, [keep])
    data = Fake(num_train=48, heldout=16, batch_size=8, image_size=16)
    data.setup()
    task = task_of("rotation", freeze_until=0.5, spec=data.spec)
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "default_root_dir": tmp_path}
    trainer = pl.Trainer(accelerator="cpu", devices=1, **quiet)
    trainer.validate(task, data, tmp_path / "end.ckpt", verbose=False, weights_only=False)
    fit(task, tmp_path, epochs=1)
    assert task.frozen_start.steps == 2


def test_a_second_fit_begins_frozen(tmp_path: Path) -> None:
    task = task_of("rotation", freeze_until=0.5)
    fit(task, tmp_path, epochs=1)
    before = state_of(task.backbone)
    states = fit(task, tmp_path, epochs=1)
    assert [bool(differing(before, each)) for each in states.backbone] == [False, False, True, True]


def test_layers_that_a_user_set_to_evaluation_stay_so(tmp_path: Path) -> None:
    task = task_of("rotation", freeze_until=0.5)
    own = next(part for part in task.backbone.modules() if isinstance(part, nn.BatchNorm2d))
    own.eval()
    fit(task, tmp_path, epochs=1)
    assert not own.training
    assert task.backbone.training


def rates(task: PretextTask) -> list[list[tuple[float, int]]]:
    """Return for each optimizer and group the learning rate and the number of weights."""
    optimizers = task.trainer.optimizers
    return [[(g["lr"], sum(p.numel() for p in g["params"])) for g in o.param_groups] for o in optimizers]


def weights(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def test_the_backbone_has_its_own_rate(tmp_path: Path) -> None:
    task = task_of("rotation", backbone_lr_factor=0.1, lr_reference_batch=16)
    fit(task, tmp_path, epochs=1)
    heads = weights(task) - weights(task.backbone)
    found = rates(task)
    assert found == [[(pytest.approx(0.025), heads), (pytest.approx(0.0025), weights(task.backbone))]]
    assert all(FACTOR not in group for each in task.trainer.optimizers for group in each.param_groups)


def test_a_discriminator_has_the_rate_of_the_run(tmp_path: Path) -> None:
    task: Any = task_of("inpainting", backbone_lr_factor=0.1, discriminator_lr_factor=0.5)
    fit(task, tmp_path, epochs=1)
    judging = weights(task.discriminator, task.judge)
    heads = weights(task) - weights(task.backbone) - judging
    assert rates(task) == [
        [(pytest.approx(0.05), heads), (pytest.approx(0.005), weights(task.backbone))],
        [(pytest.approx(0.025), judging)],
    ]


def test_the_schedule_keeps_the_ratio_of_the_rates(tmp_path: Path) -> None:
    from ssl_lightning.engine.optim import one_cycle

    ratios = []

    class Ratios(pl.Callback):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            heads, backbone = (group["lr"] for group in trainer.optimizers[0].param_groups)
            ratios.append(backbone / heads)

    task = task_of("rotation", backbone_lr_factor=0.2, scheduler=one_cycle)
    fit_with(task, tmp_path, [Ratios()], enable_checkpointing=False)
    assert ratios == pytest.approx([0.2] * 12)


def test_groups_are_not_empty() -> None:
    backbone = nn.Linear(2, 2)
    given = [*backbone.parameters()]
    assert parameter_groups(given, nn.Linear(2, 2), 0.1) == [{"params": given}]
    assert parameter_groups(given, backbone, 0.1) == [{"params": given, FACTOR: 0.1}]


def test_the_defaults_keep_a_single_group(tmp_path: Path) -> None:
    task = task_of("rotation")
    fit(task, tmp_path, epochs=1)
    assert rates(task) == [[(0.05, weights(task))]]


@pytest.mark.parametrize("share", [-0.1, 1, float("nan")])
def test_shares_out_of_range_are_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"task\.freeze_until is .*; allowed is a share of the run"):
        FrozenStart(share)


@pytest.mark.parametrize("factor", [0, -1.0, float("inf"), float("nan")])
def test_factors_out_of_range_are_refused(factor: float) -> None:
    with pytest.raises(ValueError, match=r"task\.backbone_lr_factor is .*; allowed is a number above 0"):
        task_of("rotation", backbone_lr_factor=factor)
