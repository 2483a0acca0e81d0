"""Rotation: closed forms, learning, the panel."""

import math

import pytest
import torch

from ssl_lightning.core.image_spec import ImageSpec
from ssl_lightning.core.seeding import generator
from ssl_lightning.networks.convnet import ConvNet
from ssl_lightning.tasks.rotation import Rotation

SPEC = ImageSpec(3, 16, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


def make(**options) -> Rotation:
    torch.manual_seed(0)
    return Rotation(ConvNet(widths=(4, 8), strides=(2, 2)), SPEC, **options)


@pytest.mark.parametrize("copies", [1, 4])
def test_zero_logits_give_log_4(copies: int) -> None:
    task = make(copies=copies)
    torch.nn.init.zeros_(task.head.linear.weight)
    torch.nn.init.zeros_(task.head.linear.bias)
    scores = task.step(torch.rand(8, 3, 16, 16), torch.full((8,), -1), generator(0))
    assert scores["loss"].item() == pytest.approx(math.log(4))


def test_the_backbone_sees_every_rotation_of_normalised_images() -> None:
    task = make()
    seen = []
    task.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    images = torch.rand(2, 3, 16, 16)
    task.step(images, torch.zeros(2), generator(0))
    normal = (images - torch.tensor(SPEC.mean).view(3, 1, 1)) / torch.tensor(SPEC.std).view(3, 1, 1)
    expected = torch.cat([torch.rot90(normal, turns, (2, 3)) for turns in range(4)])
    torch.testing.assert_close(seen[0], expected)


def test_a_few_images_are_learned_by_heart() -> None:
    task = make()
    images = torch.rand(16, 3, 16, 16, generator=generator(5))
    optimizer = torch.optim.SGD(task.parameters(), lr=0.1, momentum=0.9)
    for _ in range(100):
        scores = task.step(images, torch.full((16,), -1), generator(0))
        optimizer.zero_grad()
        scores["loss"].backward()
        optimizer.step()
    assert scores["acc"].item() >= 0.95


def test_the_panel_shows_the_truth_and_the_answer() -> None:
    task = make().eval()
    images = torch.rand(3, 3, 16, 16)
    panel = task.panel(images)
    assert panel.images.shape == (3, 4, 3, 16, 16)
    assert torch.equal(panel.images[:, 0], images)
    assert torch.equal(panel.images[1, 2], images[1].flip(1, 2))
    for row in range(3):
        for turns in range(4):
            answer = int(panel.captions[row][turns].split("°")[0])
            assert panel.right[row][turns] == (answer == 90 * turns)


@pytest.mark.parametrize("copies", [0, 2, 8])
def test_other_numbers_of_copies_are_refused(copies: int) -> None:
    with pytest.raises(ValueError, match=f"copies is {copies}; allowed are 4"):
        make(copies=copies)
