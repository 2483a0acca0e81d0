"""The loop that users run: validation in the middle of epochs, default callbacks, checkpoint and resume."""

import csv
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from ssl_lightning.bench.build import composed
from ssl_lightning.checkpoints import load_checkpoint
from ssl_lightning.run import Run
from tests._stand_in import StandIn
from tests.test_resume import digest

# 32 images, 4 batches an epoch, a validation after the 2nd and the 4th
LOOP = [
    "data=fake", "data.num_train=48", "data.heldout=16", "data.num_test=16", "data.batch_size=8",
    "trainer.max_epochs=3", "trainer.val_check_interval=0.5", "trainer.log_every_n_steps=1",
    "callbacks.checkpoint.every_n_steps=1", "callbacks.panel.images=1", "probe=[knn]", "probe.knn.ks=[2]", "scheduler=constant",
    "backbone.widths=[8,16]", "backbone.strides=[2,2]", "optimizer=adam", "optimizer.lr=0.01",
]  # fmt: skip
CASES = {
    "rotation": [],
    "jigsaw": ["task.permutations=4", "task.permutations_per_image=4"],
    "context_prediction": ["task.downsample=0"],
    "colorization": ["task.width=8"],
    "inpainting": ["task.warmup_steps=3"],
    "super_resolution": [],
    "supervised": [],
}
STOP = (1, 3)  # epoch and batch, both from 0, that an interrupted run does not reach


class Stopped(Exception):
    """The run is interrupted."""


class Watch(Callback):
    """Keep the weights at the first validation; interrupt the run."""

    def __init__(self, stop: tuple[int, int] | None = None) -> None:
        self.stop = stop
        self.first: dict[str, Tensor] = {}

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if (trainer.current_epoch, batch_idx) == self.stop:
            raise Stopped

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self.first:
            self.first = {name: p.detach().cpu().clone() for name, p in pl_module.named_parameters()}


def carry_out(folder: Path, overrides: list[str], watch: Watch, *, stand_in: bool = False) -> Run:
    """Do what a rank process does, `ssl_lightning.run.run`; a folder with a checkpoint is resumed."""
    cfg = composed([*LOOP, *overrides], folder)
    cfg.overrides = [*LOOP, *overrides]  # as the launcher does, for the model card
    job = Run(cfg, folder)
    if stand_in:
        job.task.graph = StandIn(job.task)
    job.trainer.callbacks.append(watch)  # type: ignore[attr-defined]
    job.execute()
    job.write("finished")
    return job


class Pair(NamedTuple):
    """One run from beginning to end without graphs, and one with, interrupted and resumed."""

    plain: Path
    replayed: Path
    first: tuple[dict[str, Tensor], dict[str, Tensor]]  # weights of both at the first validation


def both(folder: Path, overrides: list[str], *graphs: str, stand_in: bool = False) -> Pair:
    """Run both; `graphs` are the overrides that switch graphs on."""
    plain, replayed = folder / "plain", folder / "replayed"
    plain.mkdir()
    replayed.mkdir()
    watches = Watch(), Watch(STOP)
    carry_out(plain, [*overrides, "cuda_graphs=false"], watches[0])
    with pytest.raises(Stopped):
        carry_out(replayed, [*overrides, *graphs], watches[1], stand_in=stand_in)
    resumed = carry_out(replayed, [*overrides, *graphs], Watch(), stand_in=stand_in)
    assert resumed.resumed_from == replayed / "checkpoints/last.ckpt"
    return Pair(plain, replayed, (watches[0].first, watches[1].first))


def epoch_losses(folder: Path) -> list[float]:
    """Mean of the training loss in each epoch."""
    with open(folder / "metrics.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    losses = [[float(row["train/loss"]) for row in rows if row["epoch"] == str(epoch)] for epoch in range(3)]
    assert [len(each) for each in losses] == [4, 4, 4]
    return [sum(each) / len(each) for each in losses]


@pytest.fixture(scope="module", params=CASES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    given = [f"task={request.param}", *CASES[request.param], "trainer=cpu", "trainer.precision=32-true"]
    return both(tmp_path_factory.mktemp(request.param), given, stand_in=True)


def test_graphs_and_an_interruption_change_no_bit(pair: Pair) -> None:
    assert digest(pair.replayed) == digest(pair.plain)


def test_weights_learn_beyond_the_first_validation(pair: Pair) -> None:
    for folder, first in zip((pair.plain, pair.replayed), pair.first, strict=True):
        last = load_checkpoint(folder / "checkpoints/last.ckpt")["state_dict"]
        assert not [name for name, value in first.items() if torch.equal(value, last[name])]
        losses = epoch_losses(folder)
        assert losses[2] < losses[1] < losses[0], losses
