"""Transfer from CIFAR-10 to Fashion-MNIST: features of photographs, probed on clothes."""

from __future__ import annotations

from ssl_lightning.data._pair import InMemoryPair
from ssl_lightning.data.cifar10 import CIFAR10
from ssl_lightning.data.fashion_mnist import FashionMNIST


class CIFAR10ToFashionMNIST(InMemoryPair):
    """Colour photographs to pretrain on; grey clothes, as RGB of 32 x 32 pixels, to probe on."""

    name = "cifar10_to_fashion_mnist"
    pretrain_on = CIFAR10
    probe_on = FashionMNIST
