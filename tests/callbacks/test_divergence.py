"""A run that is poisoned at a step that the test knows: it stops there, and names the images it was fed."""

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from ssl_lightning.artifacts.checkpoints import load_checkpoint
from ssl_lightning.callbacks.checkpoint import Checkpoint
from ssl_lightning.callbacks.divergence import DivergedError, DivergenceGuard
from ssl_lightning.data.fake import Fake
from ssl_lightning.engine.trainer import make_trainer
from ssl_lightning.networks.convnet import ConvNet
from ssl_lightning.tasks.rotation import Rotation


class Poisoned(Rotation):
    """From step `poison` on its loss, or only the gradient, is no number, or the loss is `scale` times."""

    fed: ClassVar[list[Tensor]] = []  # images of each training batch
    poison, what, scale = 10**9, "loss", 1.0

    def step(self, images: Tensor, labels: Tensor, stream: torch.Generator) -> dict[str, Tensor]:
        scores = super().step(images, labels, stream)
        if self.training:
            self.fed.append(images)
            if len(self.fed) >= self.poison:
                loss = scores["loss"] * self.scale
                # 0 + the root of 0: its value is right, its slope is not
                scores["loss"] = loss * torch.nan if self.what == "loss" else loss + (loss * 0).sqrt()
                if self.what == "scale":
                    scores["loss"] = loss
        return scores


def fit(
    folder: Path, *, poison: int, what: str = "loss", scale: float = 1.0, factor: float | None = None,
    precision: str = "32-true", resume: bool = False, saves: int | None = 1, **options: Any,
) -> None:  # fmt: skip
    data = Fake(num_train=128, batch_size=16, image_size=16)  # 4 batches an epoch
    data.setup()
    torch.manual_seed(0)
    Poisoned.fed.clear()
    trunk = ConvNet(widths=[8], strides=[2])
    task = Poisoned(trunk, data.spec, optimizer=lambda p: torch.optim.SGD(p, lr=0.01))
    task.poison, task.what, task.scale = poison, what, scale
    given = {"max_epochs": 3, "log_every_n_steps": 3} | options
    checkpoint = Checkpoint(str(folder / "checkpoints"), every_n_steps=saves)
    trainer = make_trainer(
        accelerator="cpu", precision=precision, enable_progress_bar=False, **given,
        callbacks=[DivergenceGuard(folder, factor), checkpoint],
    )  # fmt: skip
    trainer.fit(task, datamodule=data, ckpt_path=folder / "checkpoints/last.ckpt" if resume else None)


def stopped(folder: Path, message: str, **keys: Any) -> dict[str, Any]:
    """Fit, see it stop; return what the file says of the batch, with its pixels, and the last state."""
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
def test_the_step_and_its_images_are_named_however_late_it_is_read(
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


def test_it_is_read_before_a_state_is_written_and_resumed_runs_count_on(tmp_path: Path) -> None:
    found = stopped(tmp_path, "at step 6 ", poison=6, log_every_n_steps=100)
    assert len(found["fed"]) == 6
    assert found["last"]["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["ready"] == 5
    found = stopped(tmp_path, r"at step 7 \(epoch 2, batch 3\)", poison=2, resume=True)
    assert torch.equal(found["pixels"], found["fed"][1])
    fit(tmp_path, poison=10**9, resume=True)
    assert not (tmp_path / "bad_batch.json").exists()


def test_a_gradient_is_that_of_all_batches_since_the_last_step(tmp_path: Path) -> None:
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
    with pytest.raises(ValueError, match=r"diverged is 1.0; allowed are null and numbers above 1"):
        DivergenceGuard(tmp_path, 1.0)


def test_nothing_is_asked_of_the_device_between_two_readings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []
    plain = DivergenceGuard.read
    monkeypatch.setattr(DivergenceGuard, "read", lambda *a, **k: (reads.append(1), plain(*a, **k))[1])
    # one epoch, so that the readings can be counted; the tests above have several
    fit(tmp_path, poison=10**9, saves=None, max_epochs=1, log_every_n_steps=100)
    assert len(reads) == 4  # before validation, before best.ckpt, at the end of the epoch, before last.ckpt
