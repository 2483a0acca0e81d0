"""Callbacks in a stock Trainer with stock loaders."""

import logging
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from ssl_lightning.callbacks._loaders import read_sample
from ssl_lightning.callbacks.checkpoint import Checkpoint
from ssl_lightning.callbacks.collapse import Collapse, feature_health
from ssl_lightning.callbacks.health import DeadRunError, HealthGuard
from ssl_lightning.callbacks.online_knn import OnlineKNN
from ssl_lightning.callbacks.panel import PanelPicture
from ssl_lightning.callbacks.throughput import Throughput
from ssl_lightning.data.fake import Fake, striped
from ssl_lightning.networks.convnet import ConvNet
from ssl_lightning.tasks.rotation import Rotation

BATCH = 16
FAKE = Fake(image_size=16)
FAKE.setup()


def loader(count: int, stream: str, **options: Any) -> DataLoader[Any]:
    images, labels = striped(count, 4, 3, 16, stream)
    return DataLoader(TensorDataset(images.permute(0, 3, 1, 2), labels), batch_size=BATCH, **options)


def bare_loader() -> DataLoader[Any]:
    """Return a loader of images alone."""
    return DataLoader(list(torch.rand(2 * BATCH, 3, 16, 16)), batch_size=BATCH)


class Task(Rotation):
    """Rotation that needs no data module of this package."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05)


def fit(folder: Path, *callbacks: pl.Callback, train: Any = None, val: Any = "given", **options: Any) -> Task:
    torch.manual_seed(0)
    task = Task(ConvNet(widths=[6, 10], strides=[2, 2]), FAKE.spec)
    given = {"max_epochs": 2, "log_every_n_steps": 2, "logger": False} | options
    trainer = pl.Trainer(
        accelerator="cpu", default_root_dir=folder, callbacks=list(callbacks), enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, **given,
    )  # fmt: skip
    torch.manual_seed(1)
    val = loader(32, "test") if val == "given" else val
    trainer.fit(task, train or loader(64, "train", shuffle=True), val)
    return task


def test_every_callback_works_and_changes_no_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logging.disable(logging.NOTSET)  # Hydra's `disabled` logging, in a test before, disables all
    caplog.set_level(logging.INFO, logger="ssl_lightning")
    bare, bare_state = fit(tmp_path / "bare"), torch.get_rng_state()
    throughput, guard, logger = Throughput(), HealthGuard(), CSVLogger(tmp_path / "logs")
    watched = fit(
        tmp_path / "watched", OnlineKNN(k=3), PanelPicture(), Collapse(), guard, throughput, logger=logger
    )
    assert torch.equal(torch.get_rng_state(), bare_state)
    for name, value in bare.state_dict().items():
        assert torch.equal(value, watched.state_dict()[name]), name
    assert throughput.images == 128
    assert guard.health().optimizer_steps == 8
    assert guard.health().verdict == "healthy"
    assert (guard.health().min_grad_norm or 0) > 0
    assert {p.name for p in (tmp_path / "watched").iterdir()} >= {"panel.png", "panels"}
    assert len(list((tmp_path / "watched/panels").glob("epoch_*.png"))) == 2
    assert "epoch 2: features backbone rank" in caplog.text
    logged = Path(logger.log_dir, "metrics.csv").read_text()
    assert "online/backbone/knn_top1" in logged
    assert "features/backbone/rank" in logged


def test_the_online_figure_equals_numpys(tmp_path: Path) -> None:
    images, labels = striped(64, 4, 3, 16, "train")
    queries, answers = striped(32, 4, 3, 16, "test")
    knn = OnlineKNN((images.numpy(), labels.numpy()), (queries.float() / 255, answers), k=1)
    task = fit(tmp_path, knn, train=bare_loader(), val=None)
    task.eval()

    def features(x: Tensor) -> np.ndarray:
        with torch.no_grad():
            maps = task.backbone(task.probe_input(x.permute(0, 3, 1, 2).float() / 255))
        pooled = maps[-1].double().numpy().mean((2, 3))
        return pooled / np.linalg.norm(pooled, axis=1, keepdims=True)

    nearest = (features(queries) @ features(images).T).argmax(1)
    expected = (labels.numpy()[nearest] == answers.numpy()).mean()
    assert float(task.trainer.callback_metrics["online/backbone/knn_top1"]) == pytest.approx(expected)


def test_collapse_watches_the_validation_images(tmp_path: Path) -> None:
    watch = Collapse()
    task = fit(tmp_path, watch)
    x = watch.features(task.trainer, task)["backbone"]
    images, _ = striped(32, 4, 3, 16, "test")
    with torch.no_grad():
        maps = task.eval().backbone(task.probe_input(images.permute(0, 3, 1, 2).float() / 255))
    found, expected = feature_health(x), feature_health(maps[-1].mean((2, 3)))
    assert found.rank == pytest.approx(expected.rank, rel=1e-4)
    assert found.dead == expected.dead


def test_the_guard_alone_stops_a_dead_run(tmp_path: Path) -> None:
    class Dead(HealthGuard):
        def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            pl_module.zero_grad(set_to_none=False)

    with pytest.raises(DeadRunError, match=r"gradient norm is exactly 0 .* There is no earlier checkpoint"):
        fit(tmp_path, Dead(), log_every_n_steps=1)


def test_missing_labels_get_one_sentence(tmp_path: Path) -> None:
    unlabelled = bare_loader()
    with pytest.raises(ValueError, match=r"no validation loader; give it images: OnlineKNN\("):
        fit(tmp_path, OnlineKNN(), val=None)
    with pytest.raises(ValueError, match=r"needs one label .*, and the train images lack them"):
        fit(tmp_path, OnlineKNN(), train=unlabelled)
    with pytest.raises(ValueError, match=r"only one of labelled_train and labelled_heldout"):
        OnlineKNN(labelled_train=unlabelled)


def test_a_sample_is_a_fixed_draw_and_leaves_no_trace() -> None:
    images, labels = striped(64, 4, 3, 16, "train")
    source = loader(64, "train", shuffle=True, generator=torch.Generator().manual_seed(3))
    before, state = source.generator.get_state(), torch.get_rng_state()
    found, again = read_sample(source, 20), read_sample(source, 24)
    assert torch.equal(found.images, again.images[:20])
    assert torch.equal(source.generator.get_state(), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(found.labels.unique()) == 4
    places = [(images.permute(0, 3, 1, 2) == x).flatten(1).all(1).nonzero().item() for x in found.images]
    assert torch.equal(labels[places], found.labels)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        yield from ({"image": torch.full((3, 8, 8), n / 10)} for n in range(10))


def test_batches_of_every_kind_are_read() -> None:
    found = read_sample(DataLoader(Stream(), batch_size=4), 6)
    assert found.labels.tolist() == [-1] * 6
    assert found.images[:, 0, 0, 0].tolist() == [round(25.5 * n) for n in range(6)]
    with pytest.raises(ValueError, match=r"loader gives a str; a batch is images"):
        read_sample(["photos"], 1)
    with pytest.raises(ValueError, match=r"gives no batch"):
        read_sample([], 1)
    with pytest.raises(ValueError, match=r"floats from -1 to"):
        read_sample([torch.full((2, 3, 8, 8), -1.0)], 1)


def test_untrained_weights_are_not_the_best(tmp_path: Path) -> None:
    task = Task(ConvNet(widths=[6, 10], strides=[2, 2]), FAKE.spec)
    trainer = SimpleNamespace(sanity_checking=True, callback_metrics={"val/loss": torch.tensor(0.1)})
    keep = Checkpoint(str(tmp_path))
    keep.on_validation_end(trainer, task)  # type: ignore[arg-type]
    assert keep.best == math.inf
    assert not list(tmp_path.iterdir())
