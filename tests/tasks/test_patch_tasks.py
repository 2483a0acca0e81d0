"""Patch tasks: with default settings they start to learn, which is the common difficulty with them."""

from __future__ import annotations

import pytest
import torch

from ssl_lightning.core.cache import cache_root
from ssl_lightning.core.seeding import generator
from ssl_lightning.data.cifar10 import CIFAR10
from ssl_lightning.networks.convnet import ConvNet
from ssl_lightning.tasks._pixels import to_float
from ssl_lightning.tasks.base import PretextTask
from ssl_lightning.tasks.context_prediction import ContextPrediction
from ssl_lightning.tasks.jigsaw import Jigsaw

STEPS = 400
LR = 0.1  # as in conf/optimizer/sgd.yaml


@pytest.mark.slow
@pytest.mark.skipif(not (cache_root(None) / "cifar10").is_dir(), reason="CIFAR-10 is not in the cache")
@pytest.mark.parametrize("kind", [Jigsaw, ContextPrediction])
def test_64_real_images_are_solved(kind: type[PretextTask]) -> None:
    data = CIFAR10()
    images = to_float(data.train_sample(64))
    torch.manual_seed(0)
    task = kind(ConvNet(), data.spec)
    labels = torch.full((64,), -1)
    optimizer = torch.optim.SGD(task.parameters(), lr=LR, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=STEPS)
    reached = []
    for step in range(STEPS):
        optimizer.zero_grad()
        scores = task.step(images, labels, generator("train", step))
        scores["loss"].backward()
        optimizer.step()
        schedule.step()
        reached.append(scores["acc"].item())
    assert sum(reached[-10:]) / 10 >= 0.95, reached[::20]
