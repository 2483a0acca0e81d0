"""The config that `train.py` composes, for tests that build its parts in their own process."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from ssl_lightning.config.composition import drop_unchosen

CONF = Path(__file__).parent.parent / "conf"


def composed(overrides: Sequence[str], folder: Path) -> DictConfig:
    """Compose `conf/train.yaml` with overrides, resolved, for a run in `folder`."""
    made = _compose(tuple(overrides))
    cfg = drop_unchosen(made, made.hydra)  # a copy
    OmegaConf.update(cfg, "hydra.runtime.output_dir", str(folder), force_add=True)
    HydraConfig.instance().set_config(cfg)
    OmegaConf.set_struct(cfg, False)
    del cfg["hydra"]
    return OmegaConf.create(OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True))  # type: ignore[return-value]


@lru_cache(maxsize=4)  # a test often composes the same config for several folders
def _compose(overrides: tuple[str, ...]) -> DictConfig:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return compose("train", list(overrides), return_hydra_config=True)
