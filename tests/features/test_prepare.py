"""Preparation of backbones: statistics against a loop, views against single encodings."""

import copy

import pytest
import torch
from torch import nn

from ssl_lightning.core.image_spec import ImageSpec
from ssl_lightning.features.encode import encode
from ssl_lightning.features.prepare import Preparation, recalibrated
from ssl_lightning.networks.convnet import ConvNet
from ssl_lightning.tasks.base import PretextTask
from ssl_lightning.tasks.jigsaw import Jigsaw
from ssl_lightning.tasks.rotation import Rotation

SPEC = ImageSpec(3, 32, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
IMAGES = torch.randint(256, (20, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def norms(backbone: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]


def make(task: type[PretextTask] = Jigsaw) -> PretextTask:
    torch.manual_seed(0)
    return task(ConvNet(widths=(8, 16), strides=(2, 2)), SPEC)


def test_statistics_are_the_mean_over_batches() -> None:
    task = make().train()
    task.backbone(torch.randn(64, 3, 8, 8))  # statistics of other inputs
    before = copy.deepcopy(task.backbone.state_dict())
    fresh = recalibrated(task.backbone, task.probe_input, IMAGES, batch_size=8)
    for name, value in task.backbone.state_dict().items():
        assert torch.equal(value, before[name]), "the backbone itself is left alone"
    inputs: list[torch.Tensor] = []
    first = norms(fresh)[0]
    first.register_forward_hook(lambda _module, given, _out: inputs.append(given[0]))
    for batch in (IMAGES[:7], IMAGES[7:14], IMAGES[14:]):  # all images, as evenly as possible
        fresh(task.probe_input(batch / 255))
    means = torch.stack([x.mean((0, 2, 3)) for x in inputs])
    variances = torch.stack([x.var((0, 2, 3)) for x in inputs])
    torch.testing.assert_close(first.running_mean, means.mean(0))
    torch.testing.assert_close(first.running_var, variances.mean(0))
    assert not any(module.training for module in fresh.modules())
    assert {norm.momentum for norm in norms(fresh)} == {0.1}
    parameters = dict(fresh.named_parameters())
    for name, value in task.backbone.named_parameters():
        assert torch.equal(parameters[name], value)


def test_a_backbone_that_saw_whole_images_is_left_as_it_is() -> None:
    jigsaw, rotation = make(), make(Rotation)
    assert Preparation().recalibrates(jigsaw)
    assert not Preparation(input="views").recalibrates(jigsaw)
    assert not Preparation(batch_norm="trained").recalibrates(jigsaw)
    assert Preparation(batch_norm="recalibrated").recalibrates(rotation)
    assert Preparation().backbones(rotation, lambda n: IMAGES[:n])["backbone"] is rotation.backbone
    assert Preparation().backbones(jigsaw, lambda n: IMAGES[:n])["backbone"] is not jigsaw.backbone
    for images, available in ((9, 20), (2048, 9)):  # the number in use
        assert Preparation(images=images).protocol(jigsaw, available) == {
            "input": "image", "batch_norm": "recalibrated on 9 unlabelled images",
        }  # fmt: skip
    assert Preparation().protocol(rotation, 20) == {"input": "image", "batch_norm": "trained"}


def test_views_are_encoded_one_by_one_and_averaged() -> None:
    task = make().eval()
    feed = Preparation(input="views").feed(task)
    loaders = {"train": [(IMAGES[:3], torch.zeros(3, dtype=torch.int64))]}
    features = encode(task.backbone, feed, loaders, [1])
    tiles = feed(IMAGES[:3] / 255)
    assert tiles.shape == (3, 9, 3, 8, 8)
    with torch.no_grad():
        for number in range(3):
            single = [task.backbone(tile[None])[-1].mean((2, 3)) for tile in tiles[number]]
            torch.testing.assert_close(features.get("train", "stage2", 1)[number], torch.cat(single).mean(0))


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="allowed are trained, recalibrated and null"):
        Preparation(batch_norm="fresh")
    with pytest.raises(ValueError, match="at least 2"):
        Preparation(images=1)
    with pytest.raises(ValueError, match="allowed are image, views"):
        Preparation(input="tiles")
    with pytest.raises(ValueError, match="the backbone of Rotation sees full images"):
        Preparation(input="views").feed(make(Rotation))(IMAGES / 255)
