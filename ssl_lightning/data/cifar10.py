"""CIFAR-10: 50,000 + 10,000 photographs of 32 x 32 pixels in 10 classes."""

from __future__ import annotations

from pathlib import Path

from ssl_lightning.data._in_memory import InMemory
from ssl_lightning.data.io.cifar10 import CLASSES, obtain_cifar10


class CIFAR10(InMemory):
    """CIFAR-10, with the same training images for pretraining and probes."""

    name = "cifar10"
    published_size = 32
    published_channels = 3
    class_names = CLASSES

    def obtain(self) -> Path:
        return obtain_cifar10(self.root)
