"""Random control: no training, and the backbone input of other tasks."""

import torch

from ssl_lightning.core.image_spec import ImageSpec
from ssl_lightning.networks.convnet import ConvNet
from ssl_lightning.tasks.random import Random


def test_it_trains_nothing_and_feeds_the_backbone_as_other_tasks_do() -> None:
    spec = ImageSpec(3, 8, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    task = Random(ConvNet(), spec)
    assert not task.needs_training
    assert list(task.branches()) == ["backbone"]
    images = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(task.probe_input(images), images * 4 - 2)
    assert torch.equal(task.panel(images).images[:, 0], images)
