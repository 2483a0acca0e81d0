"""The config that `train.py` composes, for tests that build its parts in their own process."""

import pickle
from collections.abc import Callable, Sequence
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
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


def _read_once(read: Callable[[Any, str], ConfigResult]) -> Callable[[Any, str], ConfigResult]:
    """Keep the files of conf/ and of Hydra, whose parsing takes a third of a composition."""
    kept: dict[tuple[str, str, str], bytes] = {}

    @wraps(read)
    def load_config(source: ConfigSource, config_path: str) -> ConfigResult:
        if source.path not in (str(CONF), "hydra.conf"):  # a test may write other files
            return read(source, config_path)
        place = (source.provider, source.path, config_path)
        if place not in kept:
            kept[place] = pickle.dumps(read(source, config_path))
        return pickle.loads(kept[place])  # faster than a deep copy; Hydra changes what it reads

    return load_config


Plugins.instance()  # registers the sources
for _scheme in ("file", "pkg"):
    _source = SourcesRegistry.instance().resolve(_scheme)
    _source.load_config = _read_once(_source.load_config)  # type: ignore[method-assign]
