"""Pretrained on CIFAR-10, probed on Fashion-MNIST: how far do features of photographs carry?"""

from __future__ import annotations

from ssl_lightning.data._pair import InMemoryPair
from ssl_lightning.data.cifar10 import CIFAR10
from ssl_lightning.data.fashion_mnist import FashionMNIST


class CIFAR10ToFashionMNIST(InMemoryPair):
    """Colour photographs to pretrain on; grey clothes, as RGB at 32 px, to probe on."""

    name = "cifar10_to_fashion_mnist"
    pretrain_on = CIFAR10
    probe_on = FashionMNIST
