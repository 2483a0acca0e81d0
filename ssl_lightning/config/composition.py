"""Composition of a config, without keys of options that are not chosen; imports no torch."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from ssl_lightning.config.keys import PATHS
from ssl_lightning.config.paths import conf_dir
from ssl_lightning.config.plugins import conf_dirs, use_plugins
from ssl_lightning.core.errors import RunError

LISTS = ("probe", "logger", "callbacks")  # groups with several chosen options
GLOBAL = ("experiment", "budget", "benchmark", "common_backbone")  # groups whose files set any keys
SINGLE = ("task", "data", "backbone", "optimizer", "scheduler")  # groups whose files list every key


def compose(name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """Compose and resolve a config without a command line, such as in a notebook; nothing is written.

    Args:
        name: train, evaluate, audit or compare.
        overrides: In Hydra's grammar, as on the command line.

    Returns:
        The config that a run would store. `run_dir` is absolute.

    Raises:
        HydraException: A group, an option or a key does not exist.
        RunError: A key belongs to an option that is not chosen, or the config does not resolve.

    Example:
        >>> compose("train", ["task=jigsaw", "name=first"]).folder
        'jigsaw/cifar10/convnet/first'
    """
    use_plugins()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = hydra_compose(name, list(overrides), return_hydra_config=True)
    chosen = drop_unchosen(cfg, cfg.hydra)
    with _set_hydra(cfg), open_dict(chosen):
        chosen.run_dir = str(Path(chosen.output_dir, chosen.folder).absolute())
        del chosen["hydra"]
        resolved = resolve(chosen)
    resolved.overrides = list(overrides)
    return resolved


def drop_unchosen(cfg: DictConfig, hydra: HydraConf | DictConfig) -> DictConfig:
    """Return a copy of a composed config without the keys of options that are not chosen.

    A benchmark, an experiment or a budget sets keys of the probes, the data set and the backbone that it
    names. The command line, or another of these files, may choose other options.

    Args:
        cfg: Composed, not resolved.
        hydra: Hydra's own config, with the overrides of the command line and the choices.

    Raises:
        RunError: The command line sets a key of a probe, logger or callback that is not chosen, or a chosen
            file lacks its line `# @package`.
    """
    _check_packages(cfg, hydra.runtime.choices)
    cfg = copy.deepcopy(cfg)
    overrides = OverridesParser.create().parse_overrides(command_overrides(hydra))
    choices = hydra.runtime.choices
    with open_dict(cfg):
        for group in LISTS:
            chosen = _chosen(cfg[group], group, overrides, choices)
            for name in [name for name in cfg[group] if name not in chosen]:
                _check_not_given(group, name, chosen, overrides)
                del cfg[group][name]
        for group in SINGLE:
            for key in _keys_of_others(cfg[group], group, choices.get(group)):
                if not _given(f"{group}.{key}", overrides):
                    del cfg[group][key]
    return cfg


def command_overrides(hydra: HydraConf | DictConfig) -> list[str]:
    """Return the overrides of the command line as they were given, such as `name=${oc.env:USER}`."""
    given: Any = OmegaConf.to_container(hydra.overrides.task)
    return list(given)


def resolve(cfg: DictConfig) -> DictConfig:
    """Resolve every interpolation once.

    Raises:
        RunError: An interpolation does not resolve, or a mandatory value is missing.
    """
    try:
        container = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise RunError(f"error: {error.full_key} must be given: {error.full_key}=...") from None
    except OmegaConfBaseException as error:
        raise RunError(f"error: the config is incomplete: {error}") from None
    config: Any = container
    if isinstance(prefixes := config.get("prefix_map"), dict):
        config["prefix_map"] = {_prefix(old): _prefix(new) for old, new in prefixes.items()}
    return OmegaConf.create(config)


def _prefix(value: Any) -> Any:
    """Return a prefix of names as it was written: `0.` is a number for Hydra and YAML.

    >>> _prefix(0.0), _prefix(1.5), _prefix("fc."), _prefix(None)
    ('0.', '1.5', 'fc.', None)
    """
    if isinstance(value, float) and value.is_integer():
        return f"{int(value)}."
    return str(value) if type(value) in (int, float) else value


def quote_paths(arguments: Sequence[str]) -> list[str]:
    """Quote the paths on a command line that Hydra's grammar does not take, such as `epoch=9 (1).ckpt`.

    >>> quote_paths(["weights=epoch=9 (1).ckpt", "run=~/a", "data.dir=a,b", "seed=(1"])
    ["weights='epoch=9 (1).ckpt'", "run='~/a'", 'data.dir=a,b', 'seed=(1']
    """
    parser = OverridesParser.create()
    quoted = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key in PATHS:
            try:
                parser.parse_override(argument)
            except HydraException:
                escaped = value.replace("'", "\\'")
                argument = f"{key}='{escaped}'"
        quoted.append(argument)
    return quoted


@contextmanager
def _set_hydra(cfg: DictConfig) -> Iterator[None]:
    """Set Hydra's own config for interpolations such as `${hydra:runtime.choices.task}`."""
    instance = HydraConfig.instance()
    before = instance.cfg
    instance.set_config(cfg)
    try:
        yield
    finally:
        instance.cfg = before


def _chosen(
    entries: DictConfig, group: str, overrides: Sequence[Override], choices: Mapping[str, Any]
) -> list[str]:
    """Return the names of the entries with a `_target_` that no list on the command line replaces.

    An entry without a `_target_` holds keys that a file sets for an option outside the list. An option that a
    file adds under its own name (`/probe@probe.paper_conv: nonlinear`) belongs to the list of that file. A
    list on the command line replaces it.
    """
    targets = [
        str(n) for n, entry in entries.items() if isinstance(entry, DictConfig) and "_target_" in entry
    ]
    if not any(each.key_or_group == group and each.package is None for each in overrides):
        return targets
    own = {each.package for each in overrides if each.key_or_group == group}
    return [name for name in targets if f"{group}@{group}.{name}" not in choices or f"{group}.{name}" in own]


def _check_packages(cfg: DictConfig, choices: Mapping[str, Any]) -> None:
    """Raise if a file of a group lacks its line `# @package`, so that its keys stand in the group itself.

    The same for a file of one class that does not name the class.

    Raises:
        RunError: The message names the file and the line.
    """
    for group in LISTS:
        if "_target_" in cfg[group]:
            bare = (name for name in _options(group, conf_dirs()) if _lacks_package(group, name))
            name = next(bare, "<name>")
            raise RunError(f"error: {group}/{name}.yaml lacks its first line, # @package {group}.{name}")
    for group in GLOBAL:
        node = cfg.get(group)
        if isinstance(node, DictConfig) and (group != "benchmark" or group in node):
            raise RunError(f"error: {group}/{choices[group]}.yaml lacks its first line, # @package _global_")
    for group in SINGLE:
        node = cfg.get(group)
        if isinstance(node, DictConfig) and "_target_" not in node:
            raise RunError(
                f"error: {group}/{choices[group]}.yaml lacks its class: _target_: <module>.<class>"
            )


def _lacks_package(group: str, name: str) -> bool:
    """Return whether a file of a group with several chosen options lacks its line `# @package`."""
    files = (folder / group / f"{name}.yaml" for folder in conf_dirs())
    return any(f"# @package {group}." not in path.read_text() for path in files if path.exists())


def _check_not_given(group: str, name: str, chosen: Sequence[str], overrides: Sequence[Override]) -> None:
    """Raise if the command line sets a key of an option that is not chosen.

    Raises:
        RunError: The message says how to choose the option, or lists the options.
    """
    if keys := _given(f"{group}.{name}", overrides):
        options = _options(group, conf_dirs())
        listed = [each for each in (*chosen, name) if each in options]
        fix = (
            f"{group}=[{','.join(listed)}] chooses it"
            if name in options
            else f"options are {', '.join(options)}"
        )
        raise RunError(
            f"error: {keys[0]} is given, and {name} is not chosen in {group}=[{','.join(chosen)}]; {fix}"
        )


def _given(place: str, overrides: Sequence[Override]) -> list[str]:
    """Return the keys at or below `place` that the command line sets."""
    keys = [str(each.key_or_group) for each in overrides if not each.is_delete()]
    return [key for key in keys if f"{key}.".startswith(f"{place}.")]


def _keys_of_others(node: DictConfig, group: str, choice: str | None) -> set[str]:
    """Return keys of `node` that belong to other options of the group but not to the chosen one."""
    options = _options(group, [conf_dir()])
    if choice not in options:  # none, or the option of a plugin or of the user
        return set()
    keys = {str(key) for key in node} - _keys(group, choice)
    return keys & set().union(*(_keys(group, option) for option in options)) if keys else keys


def _options(group: str, folders: Sequence[Path]) -> list[str]:
    return sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")})


@cache
def _keys(group: str, option: str) -> frozenset[str]:
    return frozenset(str(key) for key in OmegaConf.load(conf_dir() / group / f"{option}.yaml"))
