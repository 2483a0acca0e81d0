"""Base class of pretext tasks: device transfer, learning rate, image specs."""

import pytest
import torch

from ssl_lightning.core.image_spec import ImageSpec
from ssl_lightning.core.seeding import generator
from ssl_lightning.networks.convnet import ConvNet
from ssl_lightning.tasks._pixels import to_float
from ssl_lightning.tasks.base import PretextTask
from ssl_lightning.tasks.colorization import Colorization
from ssl_lightning.tasks.context_prediction import ContextPrediction
from ssl_lightning.tasks.jigsaw import Jigsaw
from ssl_lightning.tasks.random import Random

SPEC = ImageSpec(3, 8, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


@pytest.mark.parametrize("channels_last", [True, False])
def test_transfer_scales_and_sets_the_memory_format(channels_last: bool) -> None:
    task = Random(ConvNet(), SPEC, channels_last=channels_last)
    raw = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 3, 16, 16)
    images, labels = task.on_after_batch_transfer((raw, torch.tensor([4])), 0)
    torch.testing.assert_close(images, raw.double().div(255).float())
    wanted = torch.channels_last if channels_last else torch.contiguous_format
    assert images.is_contiguous(memory_format=wanted)
    assert labels.tolist() == [4]


@pytest.mark.parametrize("kind", [Jigsaw, ContextPrediction, Colorization])
def test_steps_that_take_bytes_take_floats_alike(kind: type[PretextTask]) -> None:
    spec = ImageSpec(3, 32, (0.5, 0.4, 0.6), (0.25, 0.2, 0.3))
    raw = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8, generator=generator("bytes"))
    labels = torch.full((4,), -1)
    torch.manual_seed(0)
    task = kind(ConvNet(in_channels=kind.backbone_channels(spec)), spec).eval()
    received, _ = task.on_after_batch_transfer((raw, labels), 0)
    assert received.dtype == torch.uint8
    of_bytes, of_floats = (task.step(images, labels, generator(0)) for images in (received, to_float(raw)))
    assert of_bytes.keys() == of_floats.keys()
    for name, value in of_bytes.items():
        torch.testing.assert_close(value, of_floats[name], rtol=1e-4, atol=1e-4, msg=name)


def test_to_float_leaves_its_input_alone() -> None:
    raw = torch.tensor([255, 0], dtype=torch.uint8)
    assert to_float(raw).tolist() == [1.0, 0.0]
    assert raw.tolist() == [255, 0]
    assert to_float(torch.tensor([0.25, 1.0])).tolist() == [0.25, 1.0]


def test_linear_scaling_of_the_learning_rate() -> None:
    assert Random(ConvNet(), SPEC).lr_factor(1024) == 1.0
    assert Random(ConvNet(), SPEC, lr_reference_batch=256).lr_factor(1024) == 4.0
    with pytest.raises(ValueError, match="lr_reference_batch is 0"):
        Random(ConvNet(), SPEC, lr_reference_batch=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": 2, "mean": (0.5, 0.5), "std": (1.0, 1.0)}, "channels is 2"),
        ({"image_size": 0}, "image_size is 0"),
        ({"mean": (0.5,)}, "mean has 1 and std 3"),
        ({"std": (0.2, 0.2, 0.0)}, "above 0"),
    ],
)
def test_impossible_specs_are_refused(change: dict, message: str) -> None:
    good = {"channels": 3, "image_size": 8, "mean": (0.5,) * 3, "std": (0.2,) * 3}
    with pytest.raises(ValueError, match=message):
        ImageSpec(**(good | change))
