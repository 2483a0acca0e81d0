"""Shared by the tests of tasks: train on a few images, record a network's input, load photographs."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ssl_lightning.core.cache import cache_root
from ssl_lightning.core.seeding import generator
from ssl_lightning.tasks.base import PretextTask

CIFAR10 = cache_root(None) / "cifar10"
needs_cifar10 = pytest.mark.skipif(not CIFAR10.is_dir(), reason="CIFAR-10 is not in the cache")


def learn(
    task: PretextTask, images: Tensor, optimizer: torch.optim.Optimizer, steps: int
) -> dict[str, float]:
    """Train a task on the same images `(N, C, H, W)`, and score it on them with new random draws."""
    labels = torch.full((len(images),), -1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, optimizer.defaults["lr"], total_steps=steps)
    for step in range(steps):
        optimizer.zero_grad()
        task.step(images, labels, generator("train", step))["loss"].backward()
        optimizer.step()
        schedule.step()
    task.eval()
    with torch.no_grad():
        return {k: v.item() for k, v in task.step(images, labels, generator("val")).items()}


def seen_by(module: nn.Module) -> list[Tensor]:
    """Return a list to which each call of a module appends its input."""
    seen: list[Tensor] = []
    module.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone()))
    return seen


def photographs(count: int) -> Tensor:
    """Return the first training images of CIFAR-10, `(count, 3, 32, 32)` floats in [0, 1]."""
    images = torch.from_numpy(np.load(CIFAR10 / "train_images.npy", mmap_mode="r")[:count].copy())
    return images.permute(0, 3, 1, 2) / 255
