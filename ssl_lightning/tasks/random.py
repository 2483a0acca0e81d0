"""Control: the backbone as it was initialised, which every pretext task has to clear."""

from __future__ import annotations

from torch import Tensor

from ssl_lightning.tasks.base import Panel, PretextTask


class Random(PretextTask):
    """Train nothing. The backbone of seed s is the one that every task of seed s starts from."""

    needs_training = False

    def panel(self, images: Tensor) -> Panel:
        return Panel(images[:, None], ["image"])
