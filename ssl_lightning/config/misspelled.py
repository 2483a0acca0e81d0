"""Errors of a config in one sentence: unknown keys and options, with the name that was probably meant."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from ssl_lightning.config.paths import conf_dir
from ssl_lightning.config.plugins import conf_dirs
from ssl_lightning.core.entry import command_line

CONFIG_ERRORS = (HydraException, OmegaConfBaseException, YAMLError)
MOST = 3  # keys that a message names
COMMANDS = ("train", "evaluate", "compare", "audit", "report", "export")  # with a file in conf/


def explained(error: Exception, command: str = "train") -> str:
    """Return the text of an error of Hydra, OmegaConf or YAML, without Hydra's search path.

    Args:
        error: One of `CONFIG_ERRORS`, such as that of an unknown key, or of an unknown option of a group.
        command: Name of the command, whose help a message may name.
    """
    lists = f"`{command_line(command)} --help` lists the keys"
    if isinstance(error, OverrideParseException) and "missing EQUAL" in str(error):
        files = (path for conf in conf_dirs() for path in conf.glob("*/*.yaml"))
        close = [f"{path.parent.name}={path.stem}" for path in files if path.stem == error.override]
        meant = f"did you mean {' or '.join(sorted(close))}?" if close else lists
        return f"{error.override} is not KEY=VALUE; {meant}"
    if isinstance(error, MarkedYAMLError) and (place := error.problem_mark):
        return f"{place.name} is not valid YAML: line {place.line + 1}, {error.problem}"
    text, _, _ = str(error).expandtabs(2).partition("\nConfig search path:")
    cause = error.__cause__
    if isinstance(cause, OmegaConfBaseException) and isinstance(cause.parent_node, DictConfig):
        key, name = str(cause.full_key), str(cause.key)
        parent = key.rpartition(".")[0]
        siblings = [str(each) for each in cause.parent_node if not str(each).startswith("_")]
        if not parent and (owner := command_with(name)):
            return f"{key} is a key of `{command_line(owner)}`, not of `{command_line(command)}`"
        inside = [] if parent else keys_inside(name, cause.parent_node)
        same = [each for each in inside if each.rpartition(".")[2] == name]
        if close := same or get_close_matches(name, siblings) or inside:
            return f"{key} is not a key of {parent or 'the config'}; did you mean {', '.join(close)}?"
        if not parent:
            return f"{key} is not a key of the config; {lists}"
        if any((conf / parent / f"{name}.yaml").exists() for conf in conf_dirs()):
            return f"{key} is not chosen; give {parent}=[{','.join([*siblings, name])}]"
        if not siblings:
            added = f"+{key}=... or +{key}.<key>=..."
            return f"{key} is a new key of {parent}, which is empty; put a + before it: {added}"
        return f"{key} is not a key of {parent}; allowed are {', '.join(siblings)}"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file is not None:
        group, _, name = error.missing_cfg_file.rpartition("/")
        files = (path for conf in conf_dirs() for path in (conf / group).glob("*.yaml"))
        options = error.options or sorted({path.stem for path in files})
        close = get_close_matches(name, options)
        meant = f"{error.missing_cfg_file}'" + (f"; did you mean {', '.join(close)}?" if close else "")
        text = text.replace(f"{error.missing_cfg_file}'", meant, 1)
        if close:
            text, _, _ = text.partition("\nAvailable options in")
            text = text.rstrip()
        if not error.options:  # of a group that takes several options
            text = f"{text.strip().removesuffix('.')}{'' if close else '.'} Allowed are {', '.join(options)}"
    return text


def command_with(name: str) -> str | None:
    """Return the first command whose file in conf/ has a key at its top; None if no command has it.

    >>> command_with("minutes"), command_with("epochs")
    ('compare', None)
    """
    files = {command: conf_dir() / f"{command}.yaml" for command in COMMANDS}
    return next((command for command, path in files.items() if name in OmegaConf.load(path)), None)


def keys_inside(name: str, cfg: DictConfig) -> list[str]:
    """Return the dotted keys of a config whose last part is a name, or else ends with it, the shortest first.

    >>> cfg = OmegaConf.create({"trainer": {"max_epochs": 20}, "optimizer": {"lr": 0.1, "other_lr": 1}})
    >>> keys_inside("epochs", cfg), keys_inside("lr", cfg)
    (['trainer.max_epochs'], ['optimizer.lr'])
    """
    paths = list(_paths(OmegaConf.to_container(cfg, resolve=False)))
    same = [path for path in paths if path.rpartition(".")[2] == name]
    longer = [path for path in paths if path.endswith(f"_{name}")]
    return (same or sorted(longer, key=lambda path: len(path.rpartition(".")[2])))[:MOST]


def _paths(content: Any, place: str = "") -> Iterator[str]:
    if isinstance(content, dict):
        for key, value in content.items():
            if key != "hydra":
                yield from _paths(value, f"{place}.{key}" if place else str(key))
    else:
        yield place
