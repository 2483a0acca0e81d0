"""Runs on odd pictures: what is refused before work, and every setting that a message suggests."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from omegaconf import OmegaConf
from PIL import Image

import ssl_lightning
from ssl_lightning.artifacts.run_folder import PANEL, RESULTS
from ssl_lightning.config.identity import config_sha256, differences
from ssl_lightning.data.io.folders import BadImagesError
from ssl_lightning.launch.train import save_config
from ssl_lightning.run.execute import run
from ssl_lightning.run.parts import Parts, build_parts
from tests._composed import composed
from tests._tasks import FORMS, TASKS, VIEW_TASKS
from tests.refusals._run import make_run

COUNT, SIDE = 12, 20
RANDOM = np.random.default_rng(0)
RUN = [
    "data=folder", "data.image_size=16", "data.heldout=2", "data.num_workers=0", "data.batch_size=4",
    "task=rotation", "trainer=cpu", "trainer.precision=32-true", "trainer.max_epochs=1", "logger=[]",
    "callbacks=[]", "backbone.widths=[4,4,4]", "encoding.images=8", "probe=[]",
]  # fmt: skip


def noise(*channels: int) -> np.ndarray:
    return RANDOM.integers(0, 256, (SIDE, SIDE, *channels), np.uint8)


def write(folder: Path, make: Callable[[Path], object]) -> Path:
    folder.mkdir()
    for number in range(COUNT):
        make(folder / str(number))
    return folder


def four_bands(path: Path) -> None:
    tifffile.imwrite(f"{path}.tif", noise(4), photometric="rgb", extrasamples=["unspecified"])


def grey_as_rgb(path: Path) -> None:
    Image.fromarray(np.repeat(noise(1), 3, 2)).save(f"{path}.jpg")


def twelve_bits(path: Path) -> None:
    Image.fromarray(noise().astype(np.uint16) * 16).save(f"{path}.tif")


def floats(path: Path) -> None:
    Image.fromarray(noise().astype(np.float32) / 255).save(f"{path}.tif")


def transparent(path: Path) -> None:
    Image.fromarray(noise(4)).save(f"{path}.png")


def colours(path: Path) -> None:
    Image.fromarray(noise(3)).save(f"{path}.png")


def colours_of_16_bits(path: Path) -> None:
    tifffile.imwrite(f"{path}.tif", noise(3).astype(np.uint16) * 256, photometric="rgb")


def parts(tmp_path: Path, images: Path, *overrides: str) -> Parts:
    """Build the parts of a run on a folder, as before any work."""
    run = tmp_path / "run"
    given = [*RUN, f"data.pretrain_dir='{images}'", f"data.root='{tmp_path / 'cache'}'", *overrides]
    return build_parts(composed(given, run), run)


FOUR_CHANNELS = {
    **{name: given for name, given in TASKS.items() if name != "colorization"},
    **{name: [*TASKS[name], "task.saturation=0", "task.hue=0", "task.grey=0"] for name in VIEW_TASKS},
    **{
        name: [*TASKS[name], "task.decoder_width=8", "task.discriminator_width=4"]
        for name in ("inpainting", "super_resolution")
    },
    "combined": ["task=combined", "task.parts=[rotation,jigsaw]"],
    "rotation and simclr": [
        *TASKS["rotation and simclr"], "+task.options.simclr={saturation:0,hue:0,grey:0}",
    ],
    "supervised": ["task=supervised"],
}  # fmt: skip
SLOW = [*FORMS, *(name for name in VIEW_TASKS if name != "simclr")]  # other cases build the same views


@pytest.mark.parametrize(
    "task", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in FOUR_CHANNELS]
)
def test_every_task_but_colorization_takes_four_channels(tmp_path: Path, task: str) -> None:
    batch = ["callbacks=[checkpoint,panel]", "callbacks.panel.images=1", "trainer.max_steps=1"]
    batch += ["data.image_size=32"]
    run = make_run(tmp_path / "run", *FOUR_CHANNELS[task], "data.channels=4", *batch)
    assert (run / PANEL).is_file()
    assert (run / RESULTS).is_file()
    backbone = ssl_lightning.load_backbone(run)
    if task == "rotation":
        pixels = RANDOM.integers(0, 256, (32, 32, 4), np.uint8)
        expected = backbone.transform(torch.from_numpy(pixels).permute(2, 0, 1))
        assert torch.equal(backbone.transform(Image.fromarray(pixels)), expected)
        assert [tuple(maps.shape[:1]) for maps in backbone(expected[None])] == [(1,)] * 3
        with pytest.raises(ValueError, match="with 4 channels"):
            backbone.transform(torch.zeros(3, 32, 32))


def test_four_channels_are_resized_like_alone(tmp_path: Path) -> None:
    images = write(tmp_path / "images", four_bands)
    data = parts(tmp_path, images, "data.channels=4").data
    (picture, _), *_ = data.unlabelled()
    assert picture.shape[1:] == (4, 16, 16)


@pytest.mark.parametrize("channels", [1, 4])
def test_colorization_needs_three_channels(tmp_path: Path, channels: int) -> None:
    images = write(tmp_path / "images", transparent)
    with pytest.raises(ValueError, match=rf"data\.channels is {channels}; .* set data\.channels=3"):
        parts(tmp_path, images, "task=colorization", f"data.channels={channels}")
    assert parts(tmp_path, images, "task=colorization", "data.channels=3").task


def test_colorization_of_grey_pictures_is_refused_before_work(tmp_path: Path) -> None:
    images = write(tmp_path / "images", grey_as_rgb)
    with pytest.raises(ValueError, match="all 10 sampled pretraining images are grey;"):
        parts(tmp_path, images, "task=colorization")
    assert parts(tmp_path, images, "task=rotation").task  # another task, as the message says
    for number in range(6):
        colours(images / str(number))
        (images / f"{number}.jpg").unlink()
    with pytest.warns(UserWarning, match=r"\d of 10 sampled pretraining images are grey"):
        parts(tmp_path, images, "task=colorization")


ADVICE: dict[str, tuple[Callable[[Path], None], str, list[str]]] = {
    "four bands": (four_bands, r"give (data\.channels=4)", []),
    "floats": (floats, r"give (data\.value_range=\[\S+\])", []),
    "12 bits": (twelve_bits, r"(data\.value_range=\[\S+\]) uses all", []),
    "transparent": (transparent, r"(data\.channels=4) reads it", []),
    "grey": (grey_as_rgb, r"(data\.channels=1) reads them as grey", []),
    "too few channels": (colours, r"or (data\.channels=3)", ["data.channels=4"]),
    "a range for colours": (
        colours_of_16_bits,
        r"give (data\.value_range=null)",
        ["data.value_range=[0,4095]"],
    ),
}


@pytest.mark.parametrize("case", ADVICE)
def test_what_a_message_suggests_works(case: str, tmp_path: Path) -> None:
    make, advice, overrides = ADVICE[case]
    images = write(tmp_path / "images", make)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            parts(tmp_path, images, *overrides)
            said = "\n".join(str(warning.message) for warning in caught)
        except BadImagesError as error:
            said = str(error)
    suggested = re.search(advice, said)
    assert suggested, said
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert parts(tmp_path, images, *overrides, suggested[1]).task
    assert not [warning for warning in caught if advice in str(warning.message)]


def test_a_loaded_backbone_reads_pictures_with_the_range_of_its_run(tmp_path: Path) -> None:
    images = write(tmp_path / "images", twelve_bits)
    folder = tmp_path / "run"
    given = [
        *RUN,
        f"data.pretrain_dir='{images}'",
        f"data.root='{tmp_path / 'cache'}'",
        "callbacks=[checkpoint]",
    ]
    overrides = [*given, "data.value_range=[0,4080]", "data.channels=1", "trainer.max_steps=1"]
    cfg = composed(overrides, folder)
    OmegaConf.update(cfg, "overrides", overrides, force_add=True)
    save_config(cfg, folder)
    run(cfg, folder)
    transform = ssl_lightning.load_backbone(folder).transform
    values = np.full((16, 16), 2040, np.uint16)
    same = Image.fromarray(np.full((16, 16), 128, np.uint8))  # 2040 of 4080
    assert torch.equal(transform(Image.fromarray(values)), transform(same))


def test_a_range_of_null_leaves_the_digest_of_old_configs(tmp_path: Path) -> None:
    given = [*RUN, f"data.pretrain_dir='{tmp_path}'"]
    config = OmegaConf.to_container(composed(given, tmp_path))
    assert isinstance(config, dict)
    old = config | {"data": {key: value for key, value in config["data"].items() if key != "value_range"}}
    assert config_sha256(config) == config_sha256(old)
    assert differences(old, config) == []
    changed = config | {"data": {**config["data"], "value_range": [0, 4095]}}
    assert differences(old, changed) == ["data.value_range: (absent) -> [0, 4095]"]
