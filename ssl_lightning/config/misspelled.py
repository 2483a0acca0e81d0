"""Hydra's errors on unknown keys and options, with the name that was probably meant."""

from __future__ import annotations

from difflib import get_close_matches

from hydra.errors import MissingConfigException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from ssl_lightning.config.plugins import conf_dirs


def explained(error: Exception) -> str:
    """Return the text of an error of Hydra or OmegaConf, without Hydra's search path.

    Args:
        error: Such as that of an override with an unknown key, or of an unknown option of a group.
    """
    text, _, _ = str(error).expandtabs(2).partition("\nConfig search path:")
    cause = error.__cause__
    if isinstance(cause, OmegaConfBaseException) and isinstance(cause.parent_node, DictConfig):
        key, name = str(cause.full_key), str(cause.key)
        if close := get_close_matches(name, [str(each) for each in cause.parent_node]):
            parent = key.rpartition(".")[0] or "the config"
            return f"{key} is not a key of {parent}; did you mean {', '.join(close)}?"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file is not None:
        group, _, name = error.missing_cfg_file.rpartition("/")
        files = (path for conf in conf_dirs() for path in (conf / group).glob("*.yaml"))
        options = error.options or sorted({path.stem for path in files})
        close = get_close_matches(name, options)
        meant = f"{error.missing_cfg_file}'" + (f"; did you mean {close[0]}?" if close else "")
        text = text.replace(f"{error.missing_cfg_file}'", meant, 1)
        if not error.options:  # of a group that takes several options
            text = f"{text.strip().removesuffix('.')}{'' if close else '.'} Allowed are {', '.join(options)}"
    return text
