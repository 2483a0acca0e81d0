"""Random control: the initial backbone, the baseline of every pretext task."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ssl_lightning.tasks.base import Batch, Panel, PretextTask


class Random(PretextTask):
    """Train nothing. For each seed, every task starts from the same backbone as this control."""

    needs_training = False

    def step(self, images: Tensor, labels: Tensor, stream: torch.Generator) -> dict[str, Tensor]:
        return {"loss": images.new_zeros((), dtype=torch.float32)}

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        self.log_training(self.step(*batch, self.training_stream(batch_idx, self.device)))

    def configure_optimizers(self) -> Any:
        return None  # Lightning then trains nothing

    def panel(self, images: Tensor) -> Panel:
        return Panel(images[:, None], ["image"])
