"""STL-10: 100,000 unlabelled and 5,000 + 8,000 labelled photographs of 96 x 96 pixels."""

from __future__ import annotations

from pathlib import Path

from ssl_lightning.data._in_memory import InMemory
from ssl_lightning.data.io.stl10 import CLASSES, obtain_stl10


class STL10(InMemory):
    """STL-10, with the unlabelled split for pretraining and the labelled ones for probes."""

    name = "stl10"
    published_size = 96
    published_channels = 3
    class_names = CLASSES
    pretrain_split = "unlabeled"

    def obtain(self) -> Path:
        return obtain_stl10(self.root)
