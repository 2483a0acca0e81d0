"""Digests of configs that lack keys of later versions."""

import copy
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from ssl_lightning.config.identity import ADDED, CHANGED, config_sha256, differences, series_sha256
from tests._composed import composed

OTHER = {
    "data.value_range": [0, 4095],
    "data.near_duplicates": "drop",
    "task.on": "tokens",
    "task.freeze_until": 0.1,
    "task.backbone_lr_factor": 0.1,
    "task.adversarial_loss": "hinge",
    "task.discriminator_norm": "spectral",
    "task.discriminator_head": "flattened",
    "task.discriminator_steps": 2,
    "task.discriminator_augment": ["cutout"],
    "task.discriminator_sees": "filling",
    "task.r1": 0.5,
    "task.discriminator_rotation": 1.0,
    "task.generator_rotation": 0.5,
    "task.input_noise": 0.5,
    "probe.rankme.lidar_images": 500,
    "probe.rankme.lidar_views": 5,
    "probe.segmentation.fractions": [0.1],
    "probe.segmentation.draws": 5,
    "probe.detection.fractions": [0.1],
    "probe.detection.draws": 5,
    "probe.linear.calibration": True,
    "probe.linear.corruptions": ["gaussian_noise"],
}


def with_key(config: Any, key: str, *value: Any) -> dict[str, Any]:
    """Copy a config with another value of a key, or without the key."""
    *groups, name = key.split(".")
    found: dict[str, Any] = copy.deepcopy(config)
    node = found
    for group in groups:
        node = node[group]
    del node[name]
    node.update(dict.fromkeys([name], *value) if value else {})
    return found


@pytest.mark.parametrize("key", ADDED)
def test_an_added_key_leaves_the_digest_of_old_configs(key: str, tmp_path: Path) -> None:
    data = "folder" if key == "data.value_range" else "fake"
    task = "jigsaw" if key == "task.on" else "inpainting"
    given = [f"task={task}", f"data={data}", *["data.pretrain_dir=/somewhere"] * (data == "folder")]
    probes = "probe=[linear,rankme,segmentation,detection]"
    config: Any = OmegaConf.to_container(composed([*given, probes], tmp_path))
    if key.removeprefix("task.") not in CHANGED:
        assert OmegaConf.select(OmegaConf.create(config), key) == ADDED[key][0]
    old = with_key(config, key)
    for value in ADDED[key]:
        same = with_key(config, key, value)
        assert config_sha256(same) == config_sha256(old)
        assert series_sha256(same) == series_sha256(old)
        assert differences(old, same) == []
    changed = with_key(config, key, OTHER[key])
    assert config_sha256(changed) != config_sha256(old)
    assert differences(old, changed) == [f"{key}: (absent) -> {OTHER[key]}"]
