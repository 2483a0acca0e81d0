"""DINO: crops, loss and centre as used, schedules, learning, and the collapse without both guards."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from lightly.loss import DINOLoss
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from ssl_lightning.artifacts.results import read_results
from ssl_lightning.core.image_spec import ImageSpec
from ssl_lightning.core.seeding import generator
from ssl_lightning.networks.convnet import ConvNet
from ssl_lightning.ops.views import draw_views
from ssl_lightning.tasks._views import BatchPlace
from ssl_lightning.tasks.base import PretextTask
from ssl_lightning.tasks.combined import Combined
from ssl_lightning.tasks.dino import DINO
from tests.tasks._learning import seen_by
from tests.tasks.test_byol import colours, outputs
from tests.test_user_loop import run_job

SPEC = ImageSpec(3, 16, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
SMALL: dict[str, Any] = {"hidden": 32, "embedding": 8, "prototypes": 64, "local_views": 2}
EASY: dict[str, Any] = {"crop_scale": [0.5, 1.0], "local_scale": [0.2, 0.5], "jitter": 0.0, "grey": 0.0}


def network() -> ConvNet:
    torch.manual_seed(0)
    return ConvNet(widths=(8, 16), strides=(2, 2))


def make(**options: Any) -> DINO:
    return DINO(network(), SPEC, **SMALL | options)


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.01)


def score(task: DINO, images: Tensor) -> dict[str, float]:
    scores = task.step(images, torch.full((len(images),), -1), generator(0))
    return {name: value.item() for name, value in scores.items()}


def fit(task: PretextTask, folder: Path, *callbacks: Callback, **options: Any) -> pl.Trainer:
    """Train on 16 images in one batch, with validation."""
    trainer = pl.Trainer(
        accelerator="cpu", default_root_dir=folder, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=list(callbacks), **options,
    )  # fmt: skip
    loader = DataLoader(TensorDataset(colours(16)), batch_size=16)
    trainer.fit(task, loader, loader)
    return trainer


@pytest.mark.parametrize("local_views", [0, 3])
def test_the_loss_is_that_of_lightly_and_the_teacher_sees_the_large_crops(local_views: int) -> None:
    task, images = make(local_views=local_views), colours(12)
    student, teacher = outputs(task.head), outputs(task.target)
    seen, seen_by_teacher = seen_by(task.backbone), seen_by(task.target[0])
    task.centre += torch.linspace(0, 0.1, 64)
    lightly = DINOLoss(64, student_temp=0.1, center_momentum=0.9)
    lightly.center = task.centre.clone().view(1, 1, -1)
    loss = score(task, images)["loss"]
    views = [view for each in student for view in each.split(12)]
    expected = lightly(list(teacher[0].split(12)), views, teacher_temp=0.04)
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(task.centre, lightly.center.flatten())
    assert [tuple(x.shape[2:]) for x in seen] == [(16, 16), (8, 8)][: 1 + bool(local_views)]
    assert sum(len(x) for x in seen) == 12 * task.views_per_image
    assert torch.equal(seen_by_teacher[0], seen[0])
    assert len(seen_by_teacher) == 1


def test_small_crops_are_drawn_after_the_large_ones_with_their_own_area() -> None:
    task, images = make(local_scale=[0.05, 0.1]), colours(12)
    seen = seen_by(task.backbone)
    score(task, images)
    stream = generator(0)
    for _ in range(2):
        boxes = draw_views(12, 16, 16, task.strengths, stream).boxes
        assert (boxes[:, 2] * boxes[:, 3]).min() >= 0.35 * 256
    expected = task.small_views(images, BatchPlace((12,), 0), stream)
    torch.testing.assert_close(seen[1], task.inputs(expected))
    draws = [draw_views(1000, 16, 16, task.local_strengths, generator(n)) for n in range(2)]
    for each in draws:
        assert (each.boxes[:, 2] * each.boxes[:, 3]).max() <= 0.13 * 256


def test_the_centre_moves_only_in_training() -> None:
    task = make(centre_momentum=0.75).eval()
    score(task, colours(6))
    assert not task.centre.any()
    task.train()
    teacher = outputs(task.target)
    for _ in range(2):
        score(task, colours(6))
    first, second = (each.mean(0) for each in teacher)
    torch.testing.assert_close(task.centre, 0.75 * 0.25 * first + 0.25 * second)
    off = make(centre_momentum=1.0)
    score(off, colours(6))
    assert not off.centre.any()


class Watch(Callback):
    """Note the temperature of each step, and whether the step changed the prototypes."""

    def __init__(self) -> None:
        self.temperatures: list[float] = []
        self.moved: list[bool] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.task = pl_module.tasks["dino"] if isinstance(pl_module, Combined) else pl_module
        self.before = self.task.head.network.prototypes.weight.detach().clone()

    def on_train_batch_end(self, *_: Any) -> None:
        self.temperatures.append(float(self.task.temperature))
        self.moved.append(not torch.equal(self.task.head.network.prototypes.weight, self.before))


@pytest.mark.parametrize("combined", [False, True])
def test_the_temperature_rises_and_the_prototypes_are_frozen_at_first(combined: bool, tmp_path: Path) -> None:
    options = {"teacher_temperature": [0.02, 0.06], "warmup": 0.5, "freeze_prototypes": 0.3}
    task: PretextTask = make(optimizer=adam, **options)
    if combined:
        task = Combined(network(), SPEC, parts=["dino"], options={"dino": SMALL | options}, optimizer=adam)
    watch = Watch()
    fit(task, tmp_path, watch, max_epochs=8)
    assert watch.temperatures == pytest.approx([0.02, 0.03, 0.04, 0.05, *[0.06] * 4])
    assert watch.moved == [False] * 3 + [True] * 5


def test_centre_and_temperature_are_in_the_checkpoint(tmp_path: Path) -> None:
    task = make(optimizer=adam)
    trainer = fit(task, tmp_path, max_epochs=4)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded = DINO.load_from_checkpoint(tmp_path / "last.ckpt")
    assert loaded.centre.abs().sum() > 0
    assert torch.equal(loaded.centre, task.centre)
    assert loaded.temperature == task.temperature == torch.tensor(0.07)


@pytest.mark.slow
def test_a_few_images_are_learned_by_heart(tmp_path: Path) -> None:
    task, images = make(optimizer=adam, momentum=0.9, teacher_temperature=[0.04, 0.04], **EASY), colours(16)
    before = score(task.eval(), images)
    fit(task.train(), tmp_path, max_epochs=100)
    after = score(task.eval(), images)
    gap_before, gap_after = (each["loss"] - each["entropy"] for each in (before, after))
    assert gap_after < 0.2 * gap_before  # of the divergence from the targets, which move
    with torch.no_grad():
        first, second = F.normalize(
            task.embed(task.views(images, BatchPlace((16,), 0), generator("val"))), dim=2
        )
    nearest = (first @ second.T).argmax(1)
    assert (nearest == torch.arange(16)).float().mean() >= 0.5  # of 1/16 by chance: no collapse


def test_a_small_crop_is_half_an_image_or_what_the_backbone_needs() -> None:
    assert make().local_size == 8
    deep = ConvNet(widths=(8, 8, 8, 8), strides=(2, 2, 2, 2))
    assert DINO(deep, SPEC, **SMALL).local_size == 16
    with pytest.raises(ValueError, match=r"local_size is 8 px, but .* stride 16 and needs at least 16 px"):
        DINO(deep, SPEC, **SMALL, local_size=8)
    assert DINO(deep, SPEC, **SMALL | {"local_views": 0}, local_size=8).views_per_image == 2


@pytest.mark.parametrize("local_views", [0, 2])
def test_the_panel_shows_a_small_crop(local_views: int) -> None:
    panel = make(local_views=local_views).eval().panel(colours(3) / 255)
    shown = 3 + bool(local_views)
    assert panel.images.shape == (3, shown, 3, 16, 16)
    for rows in (panel.captions, panel.right):
        assert [len(row) for row in rows] == [shown] * 3
    assert len(panel.columns) == shown


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"local_views": -1}, "task.local_views is -1 and task.prototypes 64; allowed: >= 0 and >= 2"),
        ({"local_scale": [0.4, 0.1]}, r"task.local_scale is \[0.4, 0.1\]; allowed are 0 < smallest"),
        ({"student_temperature": 0}, "task.student_temperature is 0; it must be above 0"),
        ({"teacher_temperature": [0, 1]}, r"task.teacher_temperature is \[0, 1\]; allowed are two numbers"),
        ({"centre_momentum": 1.5}, "task.centre_momentum is 1.5; allowed is a share, 0 to 1"),
    ],
)
def test_wrong_values_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**given)


@pytest.mark.slow
@pytest.mark.parametrize("guarded", [False, True])
def test_the_health_line_and_the_verdict_name_a_collapse_without_guards(
    guarded: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = ["task=dino", "data.num_train=272", "callbacks.collapse.images=16", "trainer=cpu"]
    options += ["task.hidden=32", "task.embedding=16", "task.prototypes=64", "task.momentum=0.5"]
    options += ["task.local_views=2", "trainer.max_epochs=6", "trainer.precision=32-true"]
    guards = {  # without: neither centred nor sharpened
        True: ["task.teacher_temperature=[0.04,0.04]"],
        False: ["task.centre_momentum=1", "task.teacher_temperature=[0.1,0.1]"],
    }
    run_job(tmp_path / "run", [*options, *guards[guarded]])
    verdict = read_results(tmp_path / "run/results.json").run.verdict
    assert verdict is not None
    assert (verdict.kind == "collapsed") != guarded
    assert ("the features of head hardly differ" in verdict.text) != guarded
    assert any("features of head have collapsed" in text for text in caplog.messages) != guarded
