"""Fashion-MNIST: 60,000 + 10,000 grey images of clothes of 28 x 28 pixels in 10 classes."""

from __future__ import annotations

from pathlib import Path

from ssl_lightning.data._in_memory import InMemory
from ssl_lightning.data.io.fashion_mnist import CLASSES, obtain_fashion_mnist


class FashionMNIST(InMemory):
    """Fashion-MNIST, with the same training images for pretraining and probes."""

    name = "fashion_mnist"
    published_size = 28
    published_channels = 1
    class_names = CLASSES

    def obtain(self) -> Path:
        return obtain_fashion_mnist(self.root)
