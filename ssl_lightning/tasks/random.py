"""Random control: the initial backbone, the baseline of every pretext task."""

from __future__ import annotations

from torch import Tensor

from ssl_lightning.tasks.base import Panel, PretextTask


class Random(PretextTask):
    """Train nothing. For each seed, every task starts from the same backbone as this control."""

    needs_training = False

    def panel(self, images: Tensor) -> Panel:
        return Panel(images[:, None], ["image"])
