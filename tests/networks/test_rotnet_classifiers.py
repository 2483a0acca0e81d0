"""Classifiers of RotNet: the paper's sizes, counted by hand."""

import pytest
import torch
from torch import nn

from ssl_lightning.networks.rotnet_classifiers import ConvBlockClassifier, ThreeLayerClassifier


def size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_three_layers_of_200_200_and_10() -> None:
    classifier = ThreeLayerClassifier(192 * 8 * 8, 10)
    assert size(classifier) == 12288 * 200 + 2 * 200 + 200 * 200 + 2 * 200 + 200 * 10 + 10
    assert classifier(torch.randn(4, 192, 8, 8)).shape == (4, 10)


def test_hidden_layers_grow_with_the_classes_up_to_2048() -> None:
    classifier = ThreeLayerClassifier(5, 1000)
    assert [m.out_features for m in classifier if isinstance(m, nn.Linear)] == [2048, 2048, 1000]


def test_a_block_of_three_convolutions() -> None:
    classifier = ConvBlockClassifier(64, 10)
    convolutions = 64 * 192 * 9 + 2 * 192 * 192
    assert size(classifier) == convolutions + 3 * 2 * 192 + 192 * 10 + 10
    assert classifier(torch.randn(4, 64, 6, 5)).shape == (4, 10)


def test_initial_weights_have_the_variance_of_their_code() -> None:
    torch.manual_seed(0)
    linear = ThreeLayerClassifier(4096, 10)[1]
    assert linear.weight.std().item() == pytest.approx((2 / 200) ** 0.5, rel=0.01)
    convolution = next(m for m in ConvBlockClassifier(64, 10).modules() if isinstance(m, nn.Conv2d))
    assert convolution.weight.std().item() == pytest.approx((2 / (9 * 192)) ** 0.5, rel=0.01)
