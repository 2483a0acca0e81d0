"""Transform of a loaded backbone: the values of the task's own input, for all tasks and kinds of pictures."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import get_class
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as v2

from ssl_lightning.artifacts.input_transform import InputTransform
from ssl_lightning.artifacts.weights import load_backbone, save_backbone
from ssl_lightning.core.image_spec import ImageSpec
from ssl_lightning.data.io.augment import EvalView
from ssl_lightning.data.io.folders import as_tensor, decode
from ssl_lightning.networks.convnet import ConvNet
from ssl_lightning.networks.vit import create_small_vit
from ssl_lightning.tasks.colorization import Colorization
from ssl_lightning.tasks.combined import Combined

TASKS = sorted(path.stem for path in (Path(__file__).parents[2] / "conf/task").glob("*.yaml"))
SIZE = 32
SPECS = {
    "RGB": ImageSpec(3, SIZE, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), ("a", "b"), True),
    "grey": ImageSpec(1, SIZE, (0.45,), (0.2,), ("a", "b"), True),
}


def pictures(channels: int, *size: int) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(256, (3, channels, *size), generator=draw, dtype=torch.uint8)


@pytest.mark.parametrize("colours", SPECS)
@pytest.mark.parametrize("name", TASKS)
def test_it_gives_what_the_task_gives_its_backbone(tmp_path: Path, name: str, colours: str) -> None:
    spec = SPECS[colours]
    if name in ("colorization", "combined") and colours == "grey":
        pytest.skip("colorization needs colours")
    target = OmegaConf.load(Path(__file__).parents[2] / f"conf/task/{name}.yaml")._target_
    config: dict[str, Any] = {"in_channels": get_class(target).backbone_channels(spec)}
    if name == "mae":
        config |= {"patch_size": 8, "width": 8, "depth": 1, "heads": 1, "stages": 1}
        make: Any = create_small_vit
    else:
        config |= {"widths": [4, 8], "strides": [2, 2]}
        make = ConvNet
    backbone = make(**config)
    task = get_class(target)(backbone, spec)
    described = {"_target_": f"{make.__module__}.{make.__name__}", **config}
    save_backbone(tmp_path, backbone, {"backbone": described, "input": task.input_config()})
    loaded = load_backbone(tmp_path)
    images = pictures(spec.channels, SIZE, SIZE)
    expected = task.probe_input(images.float() / 255)
    for given in (images, images.float() / 255):
        torch.testing.assert_close(loaded.transform(given), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loaded.transform(images[0]), expected[0], rtol=1e-5, atol=1e-5)
    pil = v2.to_pil_image(images[1])
    torch.testing.assert_close(loaded.transform(pil), expected[1], rtol=1e-5, atol=1e-5)
    assert loaded(loaded.transform(images))[0].shape == ((3, 8, 4, 4) if name == "mae" else (3, 4, 16, 16))
    assert loaded.state_dict().keys() == backbone.state_dict().keys()
    assert "transform" not in dict(loaded.named_modules())
    assert copy.deepcopy(loaded).transform.config == loaded.transform.config


@pytest.mark.parametrize("parts", [["colorization", "rotation"], ["colorization"]])
def test_a_backbone_of_three_channels_gets_the_lightness_in_each(tmp_path: Path, parts: list[str]) -> None:
    config: dict[str, Any] = {"in_channels": 3, "widths": [4, 8], "strides": [2, 2]}
    backbone = ConvNet(**config)
    task = (
        Combined(backbone, SPECS["RGB"], parts=parts)
        if len(parts) > 1
        else Colorization(backbone, SPECS["RGB"])
    )
    described = {"_target_": f"{ConvNet.__module__}.{ConvNet.__name__}", **config}
    save_backbone(tmp_path, backbone, {"backbone": described, "input": task.input_config()})
    loaded = load_backbone(tmp_path)
    images = pictures(3, SIZE, SIZE)
    expected = task.probe_input(images.float() / 255)
    assert expected.shape[1] == 3
    torch.testing.assert_close(loaded.transform(images), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loaded(loaded.transform(images))[1], backbone.eval()(expected)[1])


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "I;16", "1"])
@pytest.mark.parametrize("colour", ["RGB", "grey"])
def test_a_picture_is_seen_as_evaluation_decodes_its_file(tmp_path: Path, mode: str, colour: str) -> None:
    picture = v2.to_pil_image(pictures(3, 50, 41)[0])
    picture = picture.convert("L").convert("I;16") if mode == "I;16" else picture.convert(mode)
    path = tmp_path / "a.png"
    picture.save(path)
    channels = 3 if colour == "RGB" else 1
    view = EvalView(24, 0.8)(as_tensor(decode(path, channels, 10_000)))
    transform = InputTransform(24, colour, [0.0] * channels, [1.0] * channels, 0.8)
    with Image.open(path) as opened:
        torch.testing.assert_close(transform(opened), view / 255)


def test_colours_become_those_of_the_backbone() -> None:
    grey, coloured = pictures(1, 8, 8), pictures(3, 8, 8)
    rgb = InputTransform(8, "RGB", [0.0] * 3, [1.0] * 3)(grey)
    assert torch.equal(rgb, (grey / 255).expand(-1, 3, -1, -1))
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)  # ITU-R 601
    expected = (coloured / 255 * weights).sum(1, keepdim=True)
    torch.testing.assert_close(InputTransform(8, "grey", [0.0], [1.0])(coloured), expected, rtol=0, atol=5e-4)


def test_wrong_input_is_named() -> None:
    transform = InputTransform(8, "grey", [0.5], [0.5])
    for wrong in (torch.zeros(8, 8), torch.zeros(2, 8, 8), torch.zeros(1, 8, 8, dtype=torch.int64)):
        with pytest.raises(ValueError, match="allowed are"):
            transform(wrong)
    for wrong in (np.zeros((8, 8, 3), np.uint8), "photo.jpg", Path("photo.jpg")):
        with pytest.raises(ValueError, match=r"the picture is a .*allowed are a PIL image"):
            transform(wrong)
    for wrong in (torch.rand(1, 8, 8) * 255, torch.rand(1, 8, 8) * 4 - 2):
        with pytest.raises(ValueError, match=r"floats from .*allowed is \[0, 1\]"):
            transform(wrong)
    assert transform(torch.full((1, 8, 8), 1.1)).isfinite().all()  # bicubic resizing exceeds [0, 1] a little
    for change in ({"colour": "HSV"}, {"image_size": 0}, {"std": [0.0]}, {"mean": 3}, {"crop_ratio": 2}):
        with pytest.raises(ValueError, match=next(iter(change))):
            InputTransform.from_config({**transform.config, **change})
