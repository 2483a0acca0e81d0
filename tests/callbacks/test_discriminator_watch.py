"""Warnings of a discriminator that knows everything or nothing."""

import logging
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ssl_lightning.callbacks.discriminator_watch import LOOKS, DiscriminatorWatch
from ssl_lightning.data.fake import Fake
from ssl_lightning.engine.trainer import make_trainer
from ssl_lightning.networks.convnet import ConvNet
from ssl_lightning.tasks.inpainting import Inpainting
from ssl_lightning.tasks.rotation import Rotation

NAME = "ssl_lightning.callbacks.discriminator_watch"


@pytest.mark.parametrize(
    ("real", "fake", "warns"),
    [
        (1.0, 0.99, "known everything .* 100 % of real and 99 % of generated .*task.adversarial_weight"),
        (1.0, 0.01, "known nothing .*discriminator_steps=2"),
        (0.6, 0.55, None),
        (1.0, 0.9, None),
    ],
)
def test_a_warning_comes_once_after_some_looks(
    real: float, fake: float, warns: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    watch = DiscriminatorWatch()
    for number in range(LOOKS - 1):
        watch.look(real, fake, number)
    watch.look(0.7, 0.7, 0)  # in between it neither knows all nor nothing
    for number in range(LOOKS - 1):
        watch.look(real, fake, number)
    assert not caplog.messages
    for number in range(3):
        watch.look(real, fake, number)
    assert len(caplog.messages) == (warns is not None)
    if warns:
        assert caplog.text.count("step 0: the discriminator") == 1
        assert re.search(warns, caplog.text)


class Sure(Inpainting):
    """Its discriminator is right on everything."""

    def discriminator_scores(self, fake: Tensor, real: list[Tensor]) -> dict[str, Tensor]:
        scores = super().discriminator_scores(fake, real)
        return scores | {name: torch.ones(()) for name in ("disc_acc_real", "disc_acc_fake")}


@pytest.mark.parametrize(("kind", "warns"), [(Sure, True), (Inpainting, False), (Rotation, False)])
def test_it_looks_at_the_steps_of_a_run(
    kind: type[Inpainting | Rotation], warns: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = Fake(num_train=256, batch_size=8, image_size=16)
    task = kind(ConvNet(widths=(4, 4), strides=(2, 2)))
    watch = DiscriminatorWatch()
    trainer = make_trainer(
        **task.trainer_options({"max_epochs": 1, "limit_train_batches": 2 * LOOKS, "log_every_n_steps": 2}),
        accelerator="cpu", precision="32-true", callbacks=[watch], default_root_dir=tmp_path,
        enable_progress_bar=False,
    )  # fmt: skip
    with caplog.at_level(logging.WARNING, NAME):
        trainer.fit(task, datamodule=data)
    text = [record.getMessage() for record in caplog.records if record.name == NAME]
    assert [line.split(":")[0] for line in text] == [f"step {2 * LOOKS}"] * warns
