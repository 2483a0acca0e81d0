"""Digests of configs that lack keys of later versions."""

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from ssl_lightning.config.identity import ADDED, config_sha256, differences, series_sha256
from tests._composed import composed

OTHER = {
    "data.value_range": [0, 4095],
    "task.adversarial_loss": "hinge",
    "task.discriminator_norm": "spectral",
    "task.discriminator_head": "flattened",
    "task.discriminator_steps": 2,
    "task.discriminator_augment": ["cutout"],
    "task.discriminator_sees": "filling",
    "task.r1": 0.5,
}


@pytest.mark.parametrize("key", ADDED)
def test_an_added_key_leaves_the_digest_of_old_configs(key: str, tmp_path: Path) -> None:
    data = "folder" if key == "data.value_range" else "fake"
    given = ["task=inpainting", f"data={data}", *["data.pretrain_dir=/somewhere"] * (data == "folder")]
    config: Any = OmegaConf.to_container(composed(given, tmp_path))
    group, name = key.split(".")
    assert config[group][name] == ADDED[key]
    old = config | {group: {k: value for k, value in config[group].items() if k != name}}
    assert config_sha256(config) == config_sha256(old)
    assert series_sha256(config) == series_sha256(old)
    assert differences(old, config) == []
    changed = config | {group: config[group] | {name: OTHER[key]}}
    assert config_sha256(changed) != config_sha256(old)
    assert differences(old, changed) == [f"{key}: (absent) -> {OTHER[key]}"]
