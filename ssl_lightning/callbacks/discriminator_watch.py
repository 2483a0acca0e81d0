"""Warn when the discriminator of an adversarial task knows everything or nothing for long."""

from __future__ import annotations

import logging
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

log = logging.getLogger(__name__)

SCORES = ("disc_acc_real", "disc_acc_fake")
EVERYTHING, NOTHING = 0.99, 0.51  # mean accuracy on both kinds, beyond which the discriminator teaches little
LOOKS = 5  # consecutive looks that are long
ADVICE = {
    "everything": "a lower task.discriminator_lr_factor or a higher task.adversarial_weight may help",
    "nothing": "a higher task.discriminator_lr_factor or task.discriminator_steps=2 may help",
}


class DiscriminatorWatch(Callback):
    """Warn, once of each kind, when the discriminator knows everything or nothing for five looks in a row.

    A look is every `trainer.log_every_n_steps` batches. Its figure is the mean accuracy on real and on
    generated pictures since the last look; one half means that the discriminator only guesses. Both
    accuracies are logged as `train/disc_acc_real` and `train/disc_acc_fake`. They stay on the device until a
    look. The first process judges by its own batches. Tasks without a discriminator are left alone. The
    callback changes no weight and no random number.
    """

    def __init__(self) -> None:
        self.warned: set[str] = set()
        self._pending: list[Tensor] = []  # (2,) each
        self._looks: dict[str, int] = dict.fromkeys(ADVICE, 0)  # consecutive looks of each kind

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        scores: dict[str, Tensor] = pl_module.scores  # type: ignore[assignment]
        if not trainer.is_global_zero or SCORES[0] not in scores:
            return
        self._pending.append(torch.stack([scores[name].detach() for name in SCORES]))
        step = trainer.fit_loop.total_batch_idx + 1
        if step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            real, fake = torch.stack(self._pending).mean(0).tolist()
            self._pending = []
            self.look(real, fake, step)

    def look(self, real: float, fake: float, step: int) -> None:
        """Count a look, and warn at the last of `LOOKS` consecutive ones.

        Args:
            real: Accuracy on real pictures since the last look.
            fake: Accuracy on generated pictures.
            step: Number of batches so far.
        """
        mean = (real + fake) / 2
        for kind, found in (("everything", mean >= EVERYTHING), ("nothing", mean <= NOTHING)):
            self._looks[kind] = self._looks[kind] + 1 if found else 0
            if self._looks[kind] >= LOOKS and kind not in self.warned:
                self.warned.add(kind)
                log.warning(
                    "step %d: the discriminator has known %s for long: it is right on %.0f %% of real and "
                    "%.0f %% of generated pictures, and teaches both networks little; %s",
                    step, kind, 100 * real, 100 * fake, ADVICE[kind],
                )  # fmt: skip
