"""The other side of the table of refusals: everything that this project ships passes the same checks."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from ssl_lightning.bench.build import CONF, composed
from ssl_lightning.schema import check_config

LISTS = ("probe", "callbacks", "logger")
GIVEN = {
    "data.dir": "/data",
    "data.pretrain_dir": "/data",
}  # what a user must give where a config asks for it


@pytest.mark.slow  # half a minute of composing
@pytest.mark.parametrize(
    "group", ["experiment", "data", "task", "backbone", "optimizer", "scheduler", *LISTS]
)
def test_every_shipped_config_is_accepted(group: str, tmp_path: Path) -> None:
    paths = sorted((CONF / group).glob("*.yaml"))
    assert paths
    for path in paths:
        choice = f"[{path.stem}]" if group in LISTS else path.stem
        asked = [
            f"{key}={value}" for key, value in GIVEN.items() if asks_for(key, f"{group}={choice}", tmp_path)
        ]
        config = OmegaConf.to_container(composed([f"{group}={choice}", *asked], tmp_path))
        check_config(config)  # type: ignore[arg-type]


def asks_for(key: str, choice: str, folder: Path) -> bool:
    try:
        composed([choice], folder)
    except Exception as error:
        return f"full_key: {key}" in str(error)
    return False
