"""Checkpoints that a run resumes from."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from ssl_lightning.callbacks.checkpoint import Checkpoint
from ssl_lightning.data.fake import Fake
from ssl_lightning.networks.convnet import ConvNet
from ssl_lightning.tasks.rotation import Rotation


class Batches(pl.Callback):
    """Records epoch, batch and logged step of every batch, and the batches before each validation."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int, int]] = []
        self.validated: list[int] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append(
            (trainer.current_epoch, batch_idx, trainer.fit_loop.epoch_loop._batches_that_stepped)
        )

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.validated.append(trainer.fit_loop.total_batch_idx + 1)


def fit(folder: Path, ckpt: Path | None = None, **options: Any) -> tuple[Batches, Rotation]:
    """Train on 4 batches in each of up to 3 epochs."""
    torch.manual_seed(0)
    sgd = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
    task, batches = Rotation(ConvNet(widths=(4, 8), strides=(2, 2)), optimizer=sgd), Batches()
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=3, logger=False, callbacks=[batches, Checkpoint(str(folder))],
        num_sanity_val_steps=0, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, **options,
    )  # fmt: skip
    data = Fake(num_train=40, heldout=8, num_test=8, image_size=8, batch_size=8)
    trainer.fit(task, data, ckpt_path=ckpt, weights_only=False)
    return batches, task


@pytest.mark.parametrize("steps", [5, 6])  # in the middle of an epoch; likewise, after a validation
@pytest.mark.parametrize("options", [{"val_check_interval": 2}, {"limit_val_batches": 0}])
def test_an_epoch_that_max_steps_ended_early_is_finished(
    steps: int, options: dict[str, Any], tmp_path: Path
) -> None:
    whole, expected = fit(tmp_path / "whole", **options)
    first, _ = fit(tmp_path / "parts", max_steps=steps, **options)
    rest, found = fit(tmp_path / "parts", tmp_path / "parts/last.ckpt", **options)
    assert len(first.seen) == steps
    assert first.seen + rest.seen == whole.seen
    assert first.validated + rest.validated == whole.validated
    assert all(map(torch.equal, found.parameters(), expected.parameters()))
