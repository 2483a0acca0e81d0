"""Collapse report: against numpy, on collapsed backbones, and without effect on training."""

import csv
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ssl_lightning.callbacks.collapse import Collapse, FeatureHealth, line
from ssl_lightning.callbacks.csv_logger import CSVLogger
from ssl_lightning.callbacks.online_knn import OnlineKNN
from ssl_lightning.data.fake import Fake
from ssl_lightning.engine.trainer import make_trainer
from ssl_lightning.networks.convnet import ConvNet
from ssl_lightning.tasks.rotation import Rotation

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _all_messages(caplog: pytest.LogCaptureFixture) -> None:
    logging.disable(logging.NOTSET)  # Hydra's `disabled` logging, in a test before, disables all
    caplog.set_level(logging.INFO, logger="ssl_lightning")


def fake(**changes: Any) -> Fake:
    data = Fake(
        **{"num_train": 88, "num_test": 8, "heldout": 40, "batch_size": 16, "image_size": 16} | changes
    )
    data.setup()
    return data


def task_on(data: Fake) -> Rotation:
    torch.manual_seed(0)
    backbone = ConvNet(widths=[6, 10], strides=[2, 1])
    return Rotation(backbone, data.spec, optimizer=lambda p: torch.optim.SGD(p, lr=0.05))


def after_an_epoch(data: Any, *callbacks: Any) -> Any:
    """Return a trainer at the end of its first epoch, as callbacks see it."""
    return SimpleNamespace(
        datamodule=data, callbacks=callbacks, current_epoch=0, world_size=1, is_global_zero=True, loggers=[],
        strategy=None, precision_plugin=SimpleNamespace(forward_context=torch.no_grad),
        fit_loop=SimpleNamespace(total_batch_idx=3),
    )  # fmt: skip


def by_hand(task: Rotation, images: Tensor) -> tuple[float, int]:
    """Compute rank and dead channels of the last stage with numpy."""
    task.eval()
    with torch.no_grad():
        x = task.backbone(task.normalise(images.float() / 255))[-1].mean((2, 3)).double().numpy()
    values = np.linalg.svd(x, compute_uv=False)
    share = values / values.sum() + 1e-7
    return np.exp(-(share * np.log(share)).sum()), int((np.ptp(x, axis=0) < 1e-7).sum())


def fit(folder: Path, *callbacks: Any) -> tuple[Rotation, Tensor, list[dict[str, str]]]:
    folder.mkdir()
    task, logger = task_on(fake()), CSVLogger(str(folder))
    trainer = make_trainer(
        accelerator="cpu", precision="32-true", max_epochs=2, logger=[logger],
        callbacks=callbacks, enable_progress_bar=False, log_every_n_steps=100,
    )  # fmt: skip
    trainer.fit(task, datamodule=fake())
    logger.finalize("")
    rows = [row for row in logger.rows() if row.get("features/backbone/rank")]  # the task logs val/*
    return task, torch.get_rng_state(), rows


def test_training_stays_bit_equal_and_figures_equal_numpys(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bare, bare_rng, _ = fit(tmp_path / "bare")
    watched, rng, rows = fit(tmp_path / "watched", Collapse(images=32))
    state = watched.state_dict()  # weights and batch-norm statistics
    assert all(torch.equal(value, state[name]) for name, value in bare.state_dict().items())
    assert torch.equal(rng, bare_rng)
    assert watched.training
    assert [(row["step"], row["epoch"]) for row in rows] == [("3", "0"), ("6", "1")]  # 48 images, 3 batches
    (sample,) = (images for images, _ in fake().val_dataloader().sample(32))
    rank, dead = by_hand(watched, sample)
    assert float(rows[-1]["features/backbone/rank"]) == pytest.approx(rank, rel=1e-5)
    assert int(rows[-1]["features/backbone/dead_channels"]) == dead
    assert f"epoch 2: features backbone rank {rank:.1f} of 10, {dead} of 10 channels dead" in caplog.messages


def test_a_collapsed_backbone_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    data = fake()
    task = task_on(data)
    watch, trainer = Collapse(images=32), after_an_epoch(data)
    norm: Any = task.backbone.stages[-1][1][1]  # type: ignore[index, union-attr]
    with torch.no_grad():
        norm.weight[:3] = 0
        norm.bias[:3] = torch.tensor([-1.0, 0.0, 0.1])  # two are 0 after the ReLU, one is always 0.1
        norm.weight[3:] = 50  # else this 0.1 dominates all images in so small and untrained a backbone
        watch.on_train_epoch_end(trainer, task)
        assert caplog.messages[-1].startswith("epoch 1: features backbone rank ")
        assert caplog.messages[-1].endswith("of 10, 3 of 10 channels dead")
        assert watch.collapsed == []
        norm.weight[:6] = 0
        watch.on_train_epoch_end(trainer, task)
        assert "warning: features of backbone have collapsed" in caplog.messages[-1]
        assert "6 of 10 channels dead" in caplog.messages[-1]
        assert watch.collapsed == ["backbone"]
        norm.weight.fill_(0)
        norm.bias.fill_(0.5)
        watch.on_train_epoch_end(trainer, task)
        assert "collapsed: backbone rank 1.0 of 10, 10 of 10 channels dead" in caplog.messages[-1]
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING", "WARNING"]


def test_images_are_encoded_once_and_the_online_figure_is_unchanged() -> None:
    data = fake(num_train=200, heldout=100, eval_batch_size=20)
    task = task_on(data)
    seen: list[int] = []
    task.backbone.register_forward_hook(lambda module, given, maps: seen.append(len(given[0])))
    alone = Collapse(images=32).features(after_an_epoch(data), task)["backbone"]
    assert sum(seen) == 32
    seen.clear()
    knn, watch = OnlineKNN(batches=2), Collapse(images=32)
    knn.log = task.log = lambda *a, **k: None  # type: ignore[method-assign, attr-defined]
    trainer = after_an_epoch(data, watch, knn)
    knn.on_train_epoch_start(trainer, task)
    for callback in (watch, knn):
        callback.on_train_epoch_end(trainer, task)
    assert sum(seen) == 40 + 40  # two batches of each split
    torch.testing.assert_close(watch.features(trainer, task)["backbone"], alone)
    knn.on_train_epoch_start(trainer, task)
    few = OnlineKNN(batches=1)  # 20 images are not enough
    torch.testing.assert_close(watch.features(after_an_epoch(data, few), task)["backbone"], alone)


def test_images_cover_all_classes_of_a_sorted_split() -> None:
    data = fake(num_train=400, heldout=200, num_classes=4)
    loader = data.val_dataloader()
    loader.indices = loader.indices[loader.source.labels[loader.indices].argsort()]
    labels = torch.cat([labels for _, labels in loader.sample(64)])
    assert labels.bincount(minlength=4).min() >= 8
    assert torch.equal(loader.sample(64).indices[:20], loader.sample(20).indices)
    assert sorted(loader.sample(999).indices.tolist()) == sorted(loader.indices.tolist())


def test_too_few_images_are_announced_and_nothing_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    data = fake(heldout=15)
    trainer, watch = after_an_epoch(data), Collapse()
    told = "features are not watched for collapse: 15 held-out images, data.heldout=16 is needed"
    with pytest.warns(UserWarning, match=told):
        watch.on_train_start(trainer, task_on(data))
    watch.on_train_epoch_end(trainer, task_on(data))
    assert not caplog.messages
    with pytest.raises(ValueError, match=r"callbacks.collapse.images is 15; allowed are 16 and more"):
        Collapse(images=15)
    with pytest.raises(ValueError, match=r"every_n_epochs is 0"):
        Collapse(every_n_epochs=0)


def test_pretext_images_are_used_if_few_labels_are_held_out() -> None:
    data = fake(num_train=400, heldout=200, max_labels=20)
    watch = Collapse(images=64)
    assert len(data.downstream("heldout").indices) == 10
    assert len(watch.loader(after_an_epoch(data)).indices) == 64
    assert torch.equal(watch.loader(after_an_epoch(data)).indices, data.val_dataloader().sample(64).indices)


def test_one_line_for_all_branches() -> None:
    healthy, flat = FeatureHealth(12.0, 64, 1, 64), FeatureHealth(1.94, 64, 0, 64)
    assert line(3, {"backbone": healthy, "discriminator": healthy}) == (
        "epoch 3: features backbone rank 12.0 of 64, 1 of 64 channels dead; "
        "discriminator rank 12.0 of 64, 1 of 64 channels dead"
    )
    output = line(3, {"backbone": healthy, "discriminator": flat})
    assert output.startswith("epoch 3: warning: features of discriminator have collapsed: backbone rank 12.0")
    assert not FeatureHealth(2.0, 64, 32, 64).collapsed
    assert FeatureHealth(30.0, 64, 33, 64).collapsed


@pytest.mark.slow
def test_two_processes_report_once_and_like_one(tmp_path: Path) -> None:
    found, losses = {}, {}
    for processes in (1, 2):
        overrides = [
            "task=inpainting", "optimizer=adam", "data=fake", "data.image_size=16", "trainer=cpu",
            "trainer.precision=32-true", "trainer.max_epochs=2", "probe=[]", f"trainer.devices={processes}",
            "callbacks=[collapse,online_knn]", "callbacks.collapse.images=33", "task.instance_noise=0",
            "task.mask=center", f"output_dir={tmp_path}", f"name=of_{processes}",
            "trainer.log_every_n_steps=2",
        ]  # fmt: skip
        command = [sys.executable, str(ROOT / "train.py"), *overrides]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert "sync_dist" not in done.stdout + done.stderr  # of Lightning's warning
        assert done.stdout.count("features backbone rank") + done.stdout.count("collapsed: backbone") == 2
        with open(tmp_path / f"inpainting/fake/convnet/of_{processes}/metrics.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        losses[processes] = [float(row["train/loss"]) for row in rows if row["train/loss"]]
        rows = [row for row in rows if row["features/backbone/rank"]]
        names = [f"features/{branch}/rank" for branch in ("backbone", "discriminator")]
        found[processes] = [float(row[name]) for row in rows for name in names]
    # synchronised batch norm rounds differently
    assert found[2] == pytest.approx(found[1], rel=0.02)
    assert losses[2] == pytest.approx(losses[1], rel=0.02)  # of all processes; half a batch is further off
