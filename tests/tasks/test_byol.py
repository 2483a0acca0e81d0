"""BYOL: the loss as used, closed forms, learning, and the collapse without a predictor."""

import csv
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from lightly.loss import NegativeCosineSimilarity
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ssl_lightning.artifacts.results import read_results
from ssl_lightning.core.image_spec import ImageSpec
from ssl_lightning.core.seeding import generator
from ssl_lightning.networks.convnet import ConvNet
from ssl_lightning.tasks._views import BatchPlace
from ssl_lightning.tasks.byol import BYOL
from tests.tasks._learning import seen_by
from tests.test_user_loop import run_job

SPEC = ImageSpec(3, 16, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
UNCHANGED: dict[str, Any] = {"crop_scale": [1.0, 1.0], "flip": 0.0, "jitter": 0.0, "grey": 0.0}


def make(**options: Any) -> BYOL:
    torch.manual_seed(0)
    return BYOL(ConvNet(widths=(8, 16), strides=(2, 2)), SPEC, **{"hidden": 32, "embedding": 8} | options)


def colours(count: int) -> Tensor:
    """Images of four coloured squares, `(count, 3, 16, 16)` uint8."""
    values = 255 * torch.rand(count, 3, 2, 2, generator=generator("colours"))
    return values.byte().repeat_interleave(8, 2).repeat_interleave(8, 3)


def outputs(module: nn.Module) -> list[Tensor]:
    """Return a list to which each call of a module appends its output."""
    found: list[Tensor] = []
    module.register_forward_hook(lambda module, inputs, output: found.append(output.detach()))
    return found


def score(task: BYOL, images: Tensor) -> float:
    return task.step(images, torch.full((len(images),), -1), generator(0))["loss"].item()


def test_the_loss_is_that_of_lightly_on_crossed_views() -> None:
    task, images = make(), colours(12)
    predicted, targets = outputs(task.predictor), outputs(task.target)
    loss = score(task, images)
    lightly = NegativeCosineSimilarity()
    crossed = lightly(predicted[0], targets[0]) + lightly(predicted[1], targets[1])
    assert loss == pytest.approx((4 + 2 * crossed).item(), rel=1e-5)  # 2 - 2 cos, of each direction


def test_every_network_takes_one_view_after_the_other() -> None:
    task, images = make(), colours(12)
    learner, target = seen_by(task.backbone), seen_by(task.target[0])
    score(task, images)
    assert [len(x) for x in learner + target] == [12] * 4
    assert torch.equal(learner[0], target[1])
    assert torch.equal(learner[1], target[0])


def test_equal_networks_are_0_apart_on_equal_views_and_8_on_opposite_ones() -> None:
    task = make(predictor=False, **UNCHANGED)
    assert score(task, colours(6)) == pytest.approx(0, abs=1e-5)
    last = task.target[1].network.layers[-1]  # type: ignore[union-attr]
    for values in (last.weight, last.bias):  # type: ignore[union-attr]
        values.neg_()
    assert score(task, colours(6)) == pytest.approx(8, abs=1e-5)


def test_a_few_images_are_learned_by_heart(tmp_path: Path) -> None:
    task = make(
        crop_scale=[0.5, 1.0], jitter=0.0, grey=0.0, momentum=0.9,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.01),
    )  # fmt: skip
    images = colours(16)
    before = score(task, images)
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=100, default_root_dir=tmp_path, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(task, DataLoader(TensorDataset(images), batch_size=16))
    task.eval()
    assert score(task, images) < 0.1 * before
    with torch.no_grad():
        views = task.views(images, BatchPlace((16,), 0), generator("val"))
        first, second = F.normalize(task.embed(views), dim=2)
    nearest = (first @ second.T).argmax(1)
    assert (nearest == torch.arange(16)).float().mean() >= 0.5  # of 1/16 by chance: no collapse


@pytest.mark.slow
@pytest.mark.parametrize(("predictor", "kind"), [(False, "collapsed"), (True, "not compared")])
def test_the_health_line_and_the_verdict_name_a_collapse_without_predictor(
    predictor: bool, kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = ["task=byol", "data.num_train=272", "callbacks.collapse.images=16", "trainer=cpu"]
    options += ["task.hidden=32", "task.embedding=16", "task.momentum=0.5", "trainer.max_epochs=6"]
    options += ["optimizer=sgd", "optimizer.lr=0.3", "trainer.precision=32-true"]
    run_job(tmp_path / "run", [*options, f"task.predictor={predictor}"])
    verdict = read_results(tmp_path / "run/results.json").run.verdict
    assert verdict is not None
    assert verdict.kind == kind
    assert ("the features of head hardly differ" in verdict.text) != predictor
    assert any("features of head have collapsed" in text for text in caplog.messages) != predictor
    with open(tmp_path / "run/metrics.csv", newline="") as file:
        ranks = [
            float(row["features/head/rank"]) for row in csv.DictReader(file) if row["features/head/rank"]
        ]
    assert len(ranks) == 6
