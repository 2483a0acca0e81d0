"""Supervised control: loss and accuracy by hand, required labels, the panel."""

import math

import pytest
import torch

from ssl_lightning.core.image_spec import ImageSpec
from ssl_lightning.core.seeding import generator
from ssl_lightning.networks.convnet import ConvNet
from ssl_lightning.tasks.supervised import Supervised

NAMES = ("cat", "dog", "eel")


def make(**options) -> Supervised:
    spec = ImageSpec(1, 8, (0.5,), (0.2,), **({"class_names": NAMES, "pretrain_labels": True} | options))
    return Supervised(ConvNet(in_channels=1, widths=(4,), strides=(2,)), spec)


def test_loss_and_accuracy_against_hand_made_logits() -> None:
    task = make()
    torch.nn.init.zeros_(task.head.linear.weight)
    task.head.linear.bias.data = torch.tensor([0.0, 1.0, 2.0])
    scores = task.step(torch.rand(4, 1, 8, 8), torch.tensor([2, 2, 0, 1]), generator(0))
    total = math.log(1 + math.e + math.e**2)
    assert scores["loss"].item() == pytest.approx(total - (2 + 2 + 0 + 1) / 4)
    assert scores["acc"].item() == 0.5


@pytest.mark.parametrize("options", [{"class_names": None}, {"pretrain_labels": False}])
def test_data_without_labels_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match="learns from labels"):
        make(**options)


def test_the_panel_names_the_answer() -> None:
    panel = make().eval().panel(torch.rand(2, 1, 8, 8))
    assert all(row[0].split(",")[0] in NAMES for row in panel.captions)
