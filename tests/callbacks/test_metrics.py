"""Rows of the loggers against the figures of the training itself."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from ssl_lightning.callbacks import metrics
from ssl_lightning.callbacks.checkpoint import Checkpoint
from ssl_lightning.callbacks.csv_logger import CSVLogger
from ssl_lightning.callbacks.metrics import Metrics, mean_scores
from ssl_lightning.callbacks.online_knn import OnlineKNN
from ssl_lightning.callbacks.throughput import Throughput
from ssl_lightning.data.fake import Fake
from ssl_lightning.engine.trainer import make_trainer
from ssl_lightning.features.encode import encode
from ssl_lightning.networks.convnet import ConvNet
from ssl_lightning.ops.knn import knn_scores
from ssl_lightning.tasks.rotation import Rotation


class Watched(Rotation):
    """Task that keeps the figures that should be logged."""

    def step(self, images: Tensor, labels: Tensor, stream: torch.Generator) -> dict[str, Tensor]:
        scores = super().step(images, labels, stream)
        if self.training:
            self.losses = [*getattr(self, "losses", []), float(scores["loss"].detach())]
        return scores

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        total = sum(float(p.grad.double().square().sum()) for p in self.parameters()) ** 0.5
        self.norms = [*getattr(self, "norms", []), total]


def fit(tmp_path: Path) -> tuple[Watched, Metrics, list[dict]]:
    data = Fake(batch_size=32)
    data.setup()
    torch.manual_seed(0)
    backbone = ConvNet(widths=[8], strides=[2])
    task = Watched(backbone, data.spec, optimizer=lambda p: torch.optim.SGD(p, lr=0.05), seed=0)
    metrics, logger = Metrics(Throughput()), CSVLogger(str(tmp_path))
    checkpoint = Checkpoint(str(tmp_path / "checkpoints"), every_n_steps=1)
    trainer = make_trainer(
        accelerator="cpu", precision="32-true", max_epochs=2, log_every_n_steps=4, logger=[logger],
        callbacks=[metrics, OnlineKNN(k=5), checkpoint], enable_progress_bar=False,
    )  # fmt: skip
    try:
        trainer.fit(task, datamodule=data)
    finally:
        logger.finalize("")
    return task, metrics, logger.rows()


def test_rows_hold_the_scores_of_their_step(tmp_path: Path) -> None:
    task, metrics, rows = fit(tmp_path)
    steps = len(task.losses)
    training = [row for row in rows if row["train/loss"]]
    assert [int(row["step"]) for row in training] == list(range(4, steps + 1, 4))
    for row in training:
        at = int(row["step"]) - 1
        assert float(row["train/loss"]) == pytest.approx(task.losses[at])
        assert float(row["train/grad_norm"]) == pytest.approx(task.norms[at], rel=1e-4)
        assert float(row["train/lr"]) == 0.05
    validated = [row for row in rows if row["val/loss"]]
    assert [int(row["epoch"]) for row in validated] == [0, 1]
    assert metrics.validation["val/loss"] == pytest.approx(float(validated[-1]["val/loss"]))
    # the online figure, by hand, from labels of the training and held-out splits only
    data = task.trainer.datamodule
    loaders = {split: data.downstream(split) for split in ("train", "heldout")}
    found = encode(task.backbone, task.probe_input, loaders, [1])
    bank, queries = (found.get(split, "stage1", 1) for split in ("train", "heldout"))
    votes = knn_scores(queries, bank, found.labels["train"], data.spec.num_classes, [5])[0]
    expected = float((votes.argmax(1) == found.labels["heldout"]).float().mean())
    online = [float(r["online/backbone/knn_top1"]) for r in rows if r["online/backbone/knn_top1"]]
    assert len(online) == 2
    assert online[-1] == pytest.approx(expected)


def test_the_online_figure_needs_classes() -> None:
    data = SimpleNamespace(has_downstream=True, targets="masks", name="camvid")
    with pytest.raises(ValueError, match=r"votes on classes, and data camvid has masks"):
        OnlineKNN().on_fit_start(SimpleNamespace(datamodule=data), SimpleNamespace())  # type: ignore[arg-type]


def test_the_scores_of_a_row_are_those_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    task = SimpleNamespace(
        scores={"loss": torch.tensor(1.0), "acc": torch.tensor(0)}, device=torch.device("cpu")
    )
    other = torch.tensor([2.0, 0.5])
    monkeypatch.setattr(metrics, "gather", lambda trainer, task, mine, alone: torch.stack([mine, other]))
    assert mean_scores(SimpleNamespace(), task) == {"loss": 1.5, "acc": 0.25}  # type: ignore[arg-type]
